"""Linformer attention: the published layers, float64 oracles of the formula, masks, lengths, dtypes, storage."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import TOLERANCE, assert_close, recorded_cases, recorded_tensors
from torch import Tensor, nn

from effconv.templates.linformer_attention import LinformerAttention, project, published_linformer, resample
from effconv.templates.linformer_projection import draw, peaked_segments, strided, uniform_segments

torch.set_num_threads(1)
CASES = recorded_cases("linformer", "linformer_attention")
SHARING = {"no-share": "none", "share-headwise": "heads", "share-kv": "kv", "share-layerwise": "layers"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def config(**changes: Any) -> SimpleNamespace:
    values = {
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "proj_dim": 8,
        "projection_length": 40,
        "sharing": "kv",
        "mask_mode": "masked",
        "projection_bias": False,
        "projection_weighting": "none",
    }
    return SimpleNamespace(**{**values, **changes})


def qkv(b: int = 3, h: int = 4, t: int = 40, d: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(b, t, h, d, dtype=dtype).transpose(1, 2) for _ in range(3)]


def oracle(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q (E k)ᵀ / √d) F v, one head of one sequence after the other, float64."""
    y = torch.zeros_like(q, dtype=torch.float64)
    for i in range(q.shape[0]):
        for head in range(q.shape[1]):
            e, f = ((m[head] if m.dim() == 3 else m).double() for m in (keys, values))
            scores = q[i, head].double() @ (e @ k[i, head].double()).T / math.sqrt(q.shape[-1])
            y[i, head] = scores.softmax(-1) @ (f @ v[i, head].double())
    return y


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_published_mode_equals_the_golden(case: dict[str, Any]):
    tensors, p = recorded_tensors("linformer", "linformer_attention", case["name"])
    h = case["num_heads"]
    sharing = SHARING[case["param_share_style"]]
    # The published code attends with two matrices for every style but share-kv, whatever it documents.
    mix = LinformerAttention(
        config(
            num_attention_heads=h,
            proj_dim=case["reduced_kv_len_dim"],
            projection_length=case["kv_len"],
            sharing={"layers": "heads"}.get(sharing, sharing),
            mask_mode="published",
            projection_bias=case["use_projection_bias"],
        )
    )

    def stored(kind: str, suffix: str) -> Tensor:
        if sharing == "none":
            return torch.stack([p[f"{kind}_projection_kernel.{i}.{suffix}"] for i in range(h)])
        return p[f"{kind}_projection_kernel.{suffix}"]

    state = {}
    for key in mix.state_dict():
        kind = key.split("_")[0]
        state[key] = stored(kind, "bias" if key.endswith("bias") else "weight")
    mix.load_state_dict(state)
    x = tensors["x"]
    q, k, v = (
        F.linear(x, p[f"proj_{n}_dense_layer.weight"], p.get(f"proj_{n}_dense_layer.bias")).unflatten(-1, (h, -1))
        for n in "qkv"
    )
    mask = tensors["mask_1_is_pad"][:, 0, 0].eq(0)
    for m, expected in ((None, "y"), (mask, "y_masked")):
        y = mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), m).transpose(1, 2).flatten(2)
        out = F.linear(y, p["proj_output_dense_layer.weight"], p.get("proj_output_dense_layer.bias"))
        assert_close(out, tensors[expected], TOLERANCE)


@pytest.mark.parametrize("sharing", ["heads", "kv", "none"])
@pytest.mark.parametrize("t", [40, 39, 25, 9])
def test_long_input_equals_the_formula(sharing: str, t: int):
    mix = LinformerAttention(config(sharing=sharing))
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    q, k, v = qkv(t=t)
    keys, values, _, _ = mix.projections()
    assert_close(mix(q, k, v), oracle(q, k, v, resample(keys, t), resample(values, t)))


@pytest.mark.parametrize("t", [1, 5, 8])
@pytest.mark.parametrize("weighting", ["none", "salience"])
def test_up_to_proj_dim_tokens_attention_is_exact(t: int, weighting: str):
    q, k, v = qkv(t=t)
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    assert_close(LinformerAttention(config(projection_weighting=weighting))(q, k, v), scores.softmax(-1) @ v.double())


def test_salience_equals_its_formula():
    mix = LinformerAttention(config(projection_weighting="salience", sharing="heads"))
    q, k, v = (x.double() for x in qkv(b=2, t=33, d=8))
    keys, values = (resample(m, 33).double() for m in mix.projections()[:2])
    expected = torch.zeros_like(q)
    for i in range(2):
        for head in range(4):
            s = k[i, head] @ q[i, head].mean(0) / math.sqrt(8)
            s = (s - s.mean()).clamp(-4, 4)
            w = (0.7 * s).exp()
            rows = []
            for e in (keys, values):
                e = e / e.sum(1, keepdim=True)
                rows.append((e * w) / (e @ w)[:, None])
            bias = (keys @ s.exp()).log() - rows[0] @ s - keys.square().sum(1).log()
            scores = q[i, head] @ (rows[0] @ k[i, head]).T / math.sqrt(8) + bias
            expected[i, head] = scores.softmax(-1) @ (rows[1] @ v[i, head])
    assert_close(mix(q.float(), k.float(), v.float()), expected)


MASKS = {
    "right": lambda t: torch.arange(t) < torch.tensor([[t], [20], [20], [6], [1]]),
    "left": lambda t: torch.arange(t) >= torch.tensor([[0], [20], [25], [34], [39]]),
    "holes": lambda t: torch.rand(5, t) < torch.tensor([[0.9], [0.5], [0.5], [0.1], [1.0]]),
    "empty row": lambda t: torch.arange(t) < torch.tensor([[t], [0], [20], [0], [1]]),
}


@pytest.mark.parametrize("weighting", ["none", "salience"])
@pytest.mark.parametrize("name", MASKS)
def test_padding_and_batch_mates_change_nothing(name: str, weighting: str):
    mix = LinformerAttention(config(projection_weighting=weighting))
    q, k, v = qkv(b=5)
    mask = MASKS[name](40)
    noise = [x.masked_scatter(~mask[:, None, :, None].expand_as(x), 1e4 * torch.randn(x.numel())) for x in (q, k, v)]
    together = mix(q, k, v, mask)
    assert_close(mix(*noise, mask), together, 1e-6)
    for i in range(5):
        real = mask[i]
        if real.any():
            alone = mix(*(x[i : i + 1][:, :, real] for x in (q, k, v)))
            assert_close(together[i : i + 1][:, :, real], alone)
        assert not together[i][:, ~real].any()


def test_gradients_pass_through_masks_to_every_parameter():
    mix = LinformerAttention(config(sharing="none"))
    q, k, v = (x.requires_grad_() for x in qkv(b=5))
    mix(q, k, v, MASKS["right"](40)).square().sum().backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in (*mix.parameters(), q, k, v))


@pytest.mark.parametrize("weighting", ["none", "salience"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(dtype: torch.dtype, weighting: str):
    mix = LinformerAttention(config(projection_weighting=weighting, proj_dim=16, projection_length=1100))
    q, k, v = qkv(b=2, t=1100)
    mask = torch.arange(1100) < torch.tensor([[1100], [700]])
    exact = mix(q, k, v, mask)
    assert_close(mix(q.to(dtype), k.to(dtype), v.to(dtype), mask), exact, 0.03)
    assert_close(mix.to(dtype)(q.to(dtype), k.to(dtype), v.to(dtype), mask), exact, 0.03)
    large = [8.0 * x.to(dtype) for x in (q, k, v)]
    assert torch.isfinite(mix(*large, mask)).all()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.isfinite(mix.float()(q.to(dtype), k.to(dtype), v.to(dtype), mask)).all()


def test_zeros_are_skipped_without_changing_the_product():
    e = torch.from_numpy(peaked_segments(32, 2000, 3))
    x = torch.randn(2, 3, 2000, 4)
    dense = e.double() @ x.double()
    with torch.no_grad():
        assert_close(project(e, x), dense)
        assert_close(project(e + 0.01, x), (e + 0.01).double() @ x.double())
    grown = e.clone().requires_grad_()
    project(grown, x).sum().backward()
    assert grown.grad is not None
    assert grown.grad.ne(0).all()  # a zero of E is trained like any other entry


def test_resampling_keeps_row_sums_order_and_the_end_tokens():
    for t in (9, 17, 39, 40):
        rows = resample(torch.from_numpy(peaked_segments(8, 40, 2)), t)
        assert rows.shape == (8, t)
        assert_close(rows.sum(1), torch.ones(8))
        assert_close(rows[0], F.one_hot(torch.tensor(0), t))
        assert_close(rows[-1], F.one_hot(torch.tensor(t - 1), t))
        centres = rows @ torch.arange(t, dtype=torch.float32)
        assert (centres.diff() > 0).all()
    random = torch.randn(3, 8, 40)
    assert torch.equal(resample(random, 40), random)
    assert_close(resample(random, 21).sum(-1), random.sum(-1))


def test_layers_share_one_stored_matrix():
    mixes = nn.ModuleList(LinformerAttention(config(sharing="layers"), i) for i in range(2))
    LinformerAttention.link(list(mixes))
    assert list(mixes.state_dict()) == ["0.key_projection"]
    q, k, v = qkv()
    assert torch.equal(mixes[0](q, k, v), mixes[1](q, k, v))
    for twin in (copy.deepcopy(mixes), pickle.loads(pickle.dumps(mixes))):
        with torch.no_grad():
            twin[0].key_projection.copy_(strided_like(twin[0].key_projection))
        assert torch.equal(twin[0](q, k, v), twin[1](q, k, v))
        assert not torch.equal(twin[1](q, k, v), mixes[1](q, k, v))
    mixes[1](q, k, v).sum().backward()
    assert mixes[0].key_projection.grad is not None
    with pytest.raises(RuntimeError, match="link"):
        LinformerAttention(config(sharing="layers"), 1)(q, k, v)


def strided_like(parameter: Tensor) -> Tensor:
    return torch.from_numpy(strided(*parameter.shape)).to(parameter.dtype)


@pytest.mark.parametrize(("k", "n"), [(3, 4), (8, 9), (128, 512), (256, 4096), (100, 130)])
def test_initial_rows_are_averages_of_neighbours_that_cover_every_token(k: int, n: int):
    for rows in (uniform_segments(k, n), peaked_segments(k, n, 5), peaked_segments(k, n, 1, 0.3)):
        assert rows.shape == (k, n)
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-6)
        assert ((rows > 0).sum(0) == 1).all()
    assert (strided(k, n).max(1) == 1).all()


def test_draws_repeat_from_their_seed():
    for kind in ("gaussian", "truncated-normal", "xavier"):
        a, b = (draw(kind, 8, 40, np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="init must be"):
        draw("zeros", 8, 40, np.random.default_rng(3))


def test_wrong_settings_are_refused():
    for bad in ({"sharing": "all"}, {"mask_mode": "none"}, {"projection_weighting": "x"}, {"proj_dim": 40}):
        with pytest.raises(ValueError, match=r"must be|does not fit"):
            LinformerAttention(config(**bad))
    q, k, v = qkv(t=41)
    with pytest.raises(ValueError, match="41 tokens"):
        LinformerAttention(config())(q, k, v)
    with pytest.raises(ValueError, match="41 tokens"):
        published_linformer(q, k, v, torch.zeros(8, 40), torch.zeros(8, 40))
