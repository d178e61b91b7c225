"""TransNormer attention: the published layers, float64 oracles of the formula, masks, lengths, dtypes, gates."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorded import TOLERANCE, assert_close, recorded_cases, recorded_tensors
from torch import Tensor, nn

from effconv.templates.transnormer_attention import NORMS, HeadsNorm, RotaryReflection, TransNormerAttention, gated

torch.set_num_threads(1)
# The window case follows neither from the paper nor from its configuration, and is not asked for.
CASES = [case for case in recorded_cases("transnormer", "transnormer") if case["name"] != "local.window.relu"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def config(**changes: Any) -> SimpleNamespace:
    values = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "variant": "t2",
        "diag_layers": [0],
        "block_size": 8,
        "mask_mode": "masked",
    }
    return SimpleNamespace(**{**values, **changes})


def qkv(b: int = 3, h: int = 4, t: int = 29, d: int = 8) -> list[Tensor]:
    return [torch.randn(b, t, h, d).transpose(1, 2) for _ in range(3)]


def published_mix(case: dict[str, Any], p: dict[str, Tensor], prefix: str = "") -> TransNormerAttention:
    c, kind = case["config"], case["kind"]
    diag = kind == "NormLocalAttention" or c.get("attention_type") == 2
    decoder = "Decoder" in kind
    side = "decoder" if decoder else "encoder"
    activation = c.get("act_fun", c.get("linear_act_fun"))
    mix = TransNormerAttention(
        config(
            variant="t2" if c.get("use_softmax") else "t1",
            diag_layers=[0] if diag else [],
            block_size=c.get("chunk_size", c.get(f"{side}_chunk_size", 64)),
            mask_mode="published",
            linear_activation=None if diag else activation,
            attention_norm=c["norm_type"],
            is_decoder=c.get("causal", decoder),
            position_encoding="lrpe" if c.get("use_urpe", c.get(f"{side}_use_urpe")) else "none",
        )
    )
    state = {}
    for key in mix.state_dict():
        names = [key.replace("lrpe.", "urpe."), key.replace("norm.", "layer_norm."), key]
        state[key] = next(p[prefix + n] for n in names if prefix + n in p)
    mix.load_state_dict(state)
    return mix


def published_attention(case: dict[str, Any], p: dict[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    q, k, v = (
        F.linear(x, p[f"{prefix}{n}_proj.weight"], p[f"{prefix}{n}_proj.bias"]).unflatten(-1, (4, 8)).transpose(1, 2)
        for n in "qkv"
    )
    y = published_mix(case, p, prefix)(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(y, p[f"{prefix}out_proj.weight"], p[f"{prefix}out_proj.bias"])


class DenseLayer(nn.Module):
    """A feed-forward as ALBERT's layers have it."""

    def __init__(self, width, inner, activation):
        super().__init__()
        self.ffn, self.ffn_output, self.activation = nn.Linear(width, inner), nn.Linear(inner, width), activation

    def ff_chunk(self, x):
        return self.ffn_output(self.activation(self.ffn(x)))


def published_feed_forward(p: dict[str, Tensor]) -> Any:
    """The emitted gated layer with the published GLU's weights; its "swish" resolves to the identity."""
    inner, width = p["glu.l1.weight"].shape
    layer = gated(DenseLayer(width, inner, lambda x: x), width, inner)
    names = {"l1": "ffn", "l2": "gate", "l3": "ffn_output"}
    state = {key.removeprefix("glu."): value for key, value in p.items() if key.startswith("glu.")}
    layer.load_state_dict({names[key[:2]] + key[2:]: value for key, value in state.items()})
    return layer.ff_chunk


def published_layer(case: dict[str, Any], p: dict[str, Tensor], x: Tensor) -> Tensor:
    side = "decoder" if "Decoder" in case["kind"] else "encoder"
    pre = case["config"][f"{side}_normalize_before"]
    glu = published_feed_forward(p)
    norm = lambda z: z / (z.norm(dim=-1, keepdim=True) / math.sqrt(32) + 1e-8)  # noqa: E731
    for part in (lambda z: published_attention(case, p, z, "self_attn."), glu):
        x = x + part(norm(x)) if pre else norm(x + part(x))
    return x


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_published_mode_equals_the_golden(case: dict[str, Any]):
    tensors, p = recorded_tensors("transnormer", "transnormer", case["name"])
    run = published_layer if case["name"].startswith("layer.") else published_attention
    with torch.no_grad():
        assert_close(run(case, p, tensors["x"]), tensors["y"], TOLERANCE)


def oracle(mix: TransNormerAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Token by token, head by head, float64: y_i = Σ_j a_ij v_j over the real tokens j that i may read."""
    b, h, t, d = q.shape
    q, k, v = q.double(), k.double(), v.double()
    phi = {"elu": F.elu, "1+elu": lambda x: 1 + F.elu(x)}[mix.linear_activation]
    if not mix.diag:
        q, k = phi(q), phi(k)
    else:
        q = q / math.sqrt(d)
    y = torch.zeros(b, h, t, d, dtype=torch.float64)
    for s in range(b):
        for i in range(t):
            reads = [
                j
                for j in range(t)
                if mask[s, j]
                and (not mix.causal or j <= i)
                and (not mix.diag or i // mix.block_size == j // mix.block_size)
            ]
            if not reads or not mask[s, i]:
                continue
            a = torch.einsum("hd,hjd->hj", q[s, :, i], k[s][:, reads])
            if mix.diag:
                a = a.softmax(-1) if mix.softmax else a.relu()
            y[s, :, i] = torch.einsum("hj,hjd->hd", a, v[s][:, reads])
    if mix.norm is None:
        return y
    x = y.transpose(1, 2).flatten(2)
    p = {n: value.double() for n, value in mix.norm.named_parameters()}
    unit = x / (x.norm(dim=-1, keepdim=True) / math.sqrt(h * d) + 1e-8)
    if mix.norm.kind == "layernorm":
        unit = F.layer_norm(x, (h * d,), p["weight"], p["bias"], 1e-5)
    if "scale" in p:
        unit = unit * p["scale"]
    if "gate" in p:
        unit = unit * torch.sigmoid(p["gate"] * x)
    return unit.unflatten(-1, (h, d)).transpose(1, 2)


MASKS = {
    "none": lambda t: torch.ones(3, t, dtype=torch.bool),
    "right": lambda t: torch.arange(t) < torch.tensor([[t], [17], [3]]),
    "left": lambda t: torch.arange(t) >= torch.tensor([[0], [t - 17], [t - 3]]),
    "holes": lambda t: torch.rand(3, t) < 0.6,
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("diag", [False, True])
@pytest.mark.parametrize("variant", ["t1", "t2"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("norm", NORMS)
def test_fast_form_equals_the_formula(name: str, variant: str, diag: bool, causal: bool, norm: str):
    mix = TransNormerAttention(
        config(variant=variant, diag_layers=[0] if diag else [], is_decoder=causal, attention_norm=norm)
    )
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.uniform_(0.5, 1.5)
    q, k, v = qkv()
    mask = MASKS[name](29)
    real = mask[:, None, :, None]
    y = mix(q, k, v, None if name == "none" else mask)
    assert_close(y * real, oracle(mix, q, k, v, mask) * real, 2e-5)


@pytest.mark.parametrize("diag", [False, True])
@pytest.mark.parametrize("variant", ["t1", "t2"])
def test_padding_and_batch_mates_change_nothing(variant: str, diag: bool):
    mix = TransNormerAttention(config(variant=variant, diag_layers=[0] if diag else [], position_encoding="rotary"))
    q, k, v = qkv(t=40)
    mask = MASKS["right"](40)
    real = mask[:, None, :, None].expand_as(q)
    noise = [x.masked_scatter(~real, 100 * torch.randn(x.numel())) for x in (q, k, v)]
    together = mix(q, k, v, mask)
    assert_close(mix(*noise, mask)[real], together[real])
    for i, n in enumerate(mask.sum(1).tolist()):
        assert_close(together[i : i + 1, :, :n], mix(*(x[i : i + 1, :, :n] for x in (q, k, v))))


def test_causal_output_ignores_what_comes_later():
    for diag in ([0], []):
        mix = TransNormerAttention(config(is_decoder=True, diag_layers=diag))
        q, k, v = qkv(t=150)
        assert_close(mix(q, k, v)[:, :, :70], mix(q[:, :, :70], k[:, :, :70], v[:, :, :70]))


def test_positions_that_start_as_the_identity_change_nothing_and_learn():
    q, k, v = qkv()
    for diag in ([0], []):
        plain, positioned = (
            TransNormerAttention(config(diag_layers=diag, position_encoding=e)) for e in ("none", "lrpe")
        )
        assert_close(positioned(q, k, v), plain(q, k, v), 1e-6)
        positioned(q, k, v).square().mul(torch.arange(29).view(29, 1)).sum().backward()
        assert positioned.lrpe.theta.grad.ne(0).any()
    assert not list(RotaryReflection(8, trainable=False, reflect=False).parameters())


def test_rotary_scores_depend_on_distance_alone():
    turn = RotaryReflection(8)
    q, k = torch.randn(8), torch.randn(8)
    at = lambda x, i: turn(x.view(1, 8), torch.tensor([i]))[0]  # noqa: E731
    assert_close(at(q, 3) @ at(k, 10), at(q, 20) @ at(k, 27))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("diag", [False, True])
@pytest.mark.parametrize("variant", ["t1", "t2"])
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_stays_finite_and_close(dtype: torch.dtype, variant: str, diag: bool, causal: bool):
    mix = TransNormerAttention(config(variant=variant, diag_layers=[0] if diag else [], is_decoder=causal))
    q, k, v = qkv(t=2000)
    v = v + 3.0  # a sum of 2,000 such values leaves fp16's range
    mask = torch.arange(2000) < torch.tensor([[2000], [900], [70]])
    real = mask[:, None, :, None]
    exact = mix(q, k, v, mask)
    assert torch.isfinite(exact).all()
    half = mix(*(x.to(dtype) for x in (q, k, v)), mask)
    assert half.dtype == dtype
    tolerance = 0.05 if variant == "t2" or diag else 0.3  # T1's signed features cancel
    assert_close(half.float() * real, exact * real, tolerance)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.isfinite(mix(*(30 * x.to(dtype) for x in (q, k, v)), mask)).all()


def test_simple_norm_of_zeros_is_zero_with_finite_gradient():
    x = torch.zeros(1, 4, 2, 8, requires_grad=True)
    y = HeadsNorm("simplermsnorm", 32)(x)
    assert not y.any()


class DenseIntermediate(nn.Module):
    """The first half of BERT's feed-forward."""

    def __init__(self):
        super().__init__()
        self.dense, self.intermediate_act_fn = nn.Linear(32, 64), F.gelu

    def forward(self, hidden_states):
        return self.intermediate_act_fn(self.dense(hidden_states))


class DenseFFN(nn.Module):
    """DistilBERT's feed-forward."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2, self.dropout, self.activation = (
            nn.Linear(32, 64),
            nn.Linear(64, 32),
            nn.Dropout(0),
            F.gelu,
        )

    def ff_chunk(self, input):
        return self.dropout(self.lin2(self.activation(self.lin1(input))))

    def forward(self, hidden_states):
        return self.ff_chunk(hidden_states)


class Layer(nn.Module):
    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return (self.intermediate if hasattr(self, "intermediate") else self.ffn)(x)


LAYERS = {
    "bert": lambda: Layer(intermediate=DenseIntermediate()),
    "distilbert": lambda: Layer(ffn=DenseFFN()),
    "albert": lambda: DenseLayer(32, 64, F.gelu),
}


@pytest.mark.parametrize("family", LAYERS)
def test_a_gate_starts_as_one_and_learns(family):
    layer, x = LAYERS[family](), torch.randn(2, 5, 32)
    run = layer.ff_chunk if family == "albert" else layer
    before, keys = run(x), set(layer.state_dict())
    layer = gated(layer, 32, 64)
    run = layer.ff_chunk if family == "albert" else layer
    assert torch.equal(run(x), before)
    added = set(layer.state_dict()) - keys
    assert keys < set(layer.state_dict())
    assert {name.rpartition("gate.")[2] for name in added} == {"weight", "bias"}
    run(x).sum().backward()
    assert next(p for n, p in layer.named_parameters() if n.endswith("gate.weight")).grad.ne(0).any()


def test_wrong_settings_are_refused():
    for bad in ({"variant": "t3"}, {"attention_norm": "x", "diag_layers": []}, {"position_encoding": "x"}):
        with pytest.raises(ValueError, match="must be"):
            TransNormerAttention(config(**bad))
    with pytest.raises(ValueError, match="even"):
        RotaryReflection(7)
