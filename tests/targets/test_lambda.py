"""Lambda attention: the published layers and models, the converted form's float64 oracle and its invariants."""

from __future__ import annotations

import types

import pytest
import torch
from recorded import TOLERANCE, assert_close, recorded_cases, recorded_tensors
from same_models import assert_same_outputs, assert_same_tensors
from torch import Tensor, nn

from effconv.templates import lambda_attention as attention
from effconv.templates import lambda_published as published

torch.set_num_threads(1)
CASES = {case["name"]: case for case in recorded_cases("lambda", "lambda")}
LAYERS = [name for name, case in CASES.items() if case["kind"] == "Lambda layer"]
MODELS = [name for name in CASES if name not in LAYERS]


def golden(name: str) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    return CASES[name], *recorded_tensors("lambda", "lambda", name)


def published_config(case: dict, **kwargs):
    return published.LambdaBertConfig(
        **{"global_positions": "published", "mask_mode": "published", **case["config"], **kwargs}
    )


@pytest.mark.parametrize("name", LAYERS)
def test_published_layer_in_eval_and_in_training(name):
    case, own, parameters = golden(name)
    layer = published.LambdaLayer(published_config(case))
    layer.load_state_dict(parameters)
    for mode in ("eval", "train"):
        y, lambda_c = layer.train(mode == "train")(own["x"])
        assert_close(y, own[f"y_{mode}"], TOLERANCE)
        assert_close(lambda_c, own[f"lambda_c_{mode}"], TOLERANCE)
    for key, after in own.items():
        if key.startswith("param_after_train_step/"):
            assert_close(layer.state_dict()[key.split("/")[1]], after, TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_published_models_heads_and_losses(name):
    case, own, parameters = golden(name)
    model = getattr(published, case["kind"])(published_config(case)).eval()
    missing, unexpected = model.load_state_dict(parameters, strict=False)
    assert not missing
    assert all(key.endswith("position_ids") for key in unexpected)
    names = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label", "sentence_order_label")
    output = model(**{k: own[k] for k in names if k in own}, output_hidden_states=True)
    compared = 0
    for key in ("last_hidden_state", "pooler_output", "prediction_logits", "pair_logits"):
        if key in own:
            assert_close(output[key], own[key], TOLERANCE)
            compared += 1
    if "loss" in own:
        assert_close(output.loss.reshape(1), own["loss"], TOLERANCE)
        compared += 1
    assert compared >= 2
    for i, state in enumerate(output.hidden_states):
        assert_close(state, own[f"hidden_states.{i}"], TOLERANCE)
    for i, lambda_c in enumerate(output.attentions):
        assert_close(lambda_c, own[f"lambda_c.{i}"], TOLERANCE)


def test_stored_diagonal_equals_the_published_table():
    case, own, parameters = golden("lambda_global")
    layer = published.LambdaLayer(published_config(case, global_positions="diagonal")).eval()
    table = parameters.pop("pos_embed")
    layer.load_state_dict({**parameters, "pos_diagonal": published.position_diagonal(table)})
    assert_close(layer(own["x"])[0], own["y_eval"], TOLERANCE)


def test_papers_global_form_equals_its_sum():
    case, own, parameters = golden("lambda_global")
    layer = published.LambdaLayer(published_config(case, global_positions="paper")).eval()
    layer.load_state_dict(parameters)
    x = own["x"]
    q, v = layer.norm_q(layer.query(x.transpose(1, 2))), layer.norm_v(layer.value(x.transpose(1, 2)))
    k = layer.key(x.transpose(1, 2)).softmax(-1)
    (b, _, t), h, kd, u = q.shape, layer.h, layer.k, layer.u
    q, k, v = q.view(b, h, kd, t), k.view(b, kd, u, t), v.view(b, -1, u, t)
    expected = torch.zeros(b, t, h, v.shape[1])
    table = parameters["pos_embed"]
    for n in range(t):
        position = sum(torch.einsum("uk,bvu->bkv", table[n, m], v[..., m]) for m in range(t))
        content = torch.einsum("bkut,bvut->bkv", k, v)
        expected[:, n] = torch.einsum("bhk,bkv->bhv", q[..., n], content + position)
    assert_close(layer(x)[0], expected.flatten(2), TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("local", [5, None])
def test_published_layout_masked_ignores_padding(local, training):
    torch.manual_seed(0)
    config = published.LambdaBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_lambda_queries=4,
        intra_depth=2, max_position_embeddings=24, local_context_size=local, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = published.LambdaBertModel(config).train(training)
    ids = torch.randint(1, 50, (2, 12))
    padded, mask = torch.cat([ids, torch.randint(1, 50, (2, 7))], 1), torch.arange(19).expand(2, -1) < 12
    assert_close(model(padded, attention_mask=mask).last_hidden_state[:, :12], model(ids).last_hidden_state, 1e-5)


def test_published_pretraining_model_saves_and_loads_the_same(tmp_path):
    torch.manual_seed(0)
    config = published.LambdaBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_lambda_queries=4,
        max_position_embeddings=24, local_context_size=5,
    )  # fmt: skip
    ids = torch.randint(1, 50, (2, 12))
    for kind in (published.LambdaBertForPreTrainingNSP, published.LambdaBertForPreTrainingSOP):
        model = kind(config).eval()
        model.lambdabert.encoder.layer[0].lambdalayer.self.norm_q.running_mean.normal_()
        model.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__).eval()
        assert_same_tensors(again, model)
        assert_same_outputs(again(ids).prediction_logits, model(ids).prediction_logits)
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_published_config_names_every_fault():
    with pytest.raises(ValueError, match=r"must divide.*must be odd"):
        published.LambdaBertConfig(hidden_size=30, num_lambda_queries=4, local_context_size=4)
    with pytest.raises(ValueError, match="MB a layer"):
        published.LambdaBertConfig(max_position_embeddings=4096, global_positions="published")
    published.LambdaBertConfig(max_position_embeddings=4096)  # the diagonal is small


def small_mix(landmarks: int = 4, local: int = 5, width: int = 16, heads: int = 3):
    torch.manual_seed(0)
    config = types.SimpleNamespace(
        hidden_size=heads * width, num_attention_heads=heads, key_depth=landmarks, local_context_size=local
    )
    mix = attention.LambdaAttention(config, 0)
    for p in mix.parameters():
        nn.init.normal_(p, 0.0, 0.3)
    return mix


def oracle(mix, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The formula one position at a time, in float64; rows beyond a text's length stay zero."""
    p = {name: x.detach().double() for name, x in mix.named_parameters()}
    q, k, v = q.double(), k.double(), v.double()
    y = torch.zeros_like(q)
    r = p["local_weight"].shape[1] if "local_weight" in p else 0
    for b, n in enumerate(lengths):
        for h in range(q.shape[1]):
            lambdas = torch.softmax(p["landmarks"][h] @ k[b, h, :n].T, 1) @ v[b, h, :n]
            for t in range(n):
                y[b, h, t] = (p["content_weight"][h] @ q[b, h, t] + p["content_bias"][h]) @ lambdas
                for j in range(r):
                    if 0 <= t + j - r // 2 < n:
                        weight = p["local_weight"][h, j] @ q[b, h, t] + p["local_bias"][h, j]
                        y[b, h, t] += weight * v[b, h, t + j - r // 2]
    return y


@pytest.mark.parametrize("form", ["tiled", "batched"])
@pytest.mark.parametrize("local", [0, 1, 5, 15])
@pytest.mark.parametrize("t", [1, 16, 37])
def test_both_forms_equal_the_float64_oracle(form, local, t, monkeypatch):
    monkeypatch.setattr(attention, "TILE", 16)  # so that a text has several tiles, the last one short
    monkeypatch.setattr(attention, "TILED_FROM", 0 if form == "tiled" else 10**9)
    mix = small_mix(local=local)
    q, k, v = torch.randn(3, 2, t, 3, 16).transpose(2, 3)
    lengths = [t, max(1, t // 2)]
    mask = torch.arange(t) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        for m, n in ((mask, lengths), (None, [t, t])):
            y = mix(q, k, v, m)
            keep = torch.ones(2, t, dtype=torch.bool) if m is None else m
            assert_close((y * keep[:, None, :, None]).double(), oracle(mix, q, k, v, n), 1e-5)


@pytest.mark.parametrize("form", ["tiled", "batched"])
def test_padding_and_batch_mates_change_nothing(form, monkeypatch):
    monkeypatch.setattr(attention, "TILE", 16)
    monkeypatch.setattr(attention, "TILED_FROM", 0 if form == "tiled" else 10**9)
    mix = small_mix()
    q, k, v = torch.randn(3, 2, 40, 3, 16).transpose(2, 3) * 3
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    with torch.no_grad():
        together, alone = mix(q, k, v, mask), mix(q[1:, :, :23], k[1:, :, :23], v[1:, :, :23], None)
    assert_close(together[1:, :, :23], alone, 1e-5)


@pytest.mark.parametrize("form", ["tiled", "batched"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_finite_and_near(form, dtype, autocast, monkeypatch):
    monkeypatch.setattr(attention, "TILED_FROM", 0 if form == "tiled" else 10**9)
    mix = small_mix()
    q, k, v = torch.randn(3, 2, 500, 3, 16).transpose(2, 3)
    mask = torch.arange(500) < torch.tensor([[500], [0]])  # a row with no real token at all must stay finite too
    with torch.no_grad():
        exact = mix(q, k, v, mask)
        if autocast:
            with torch.autocast("cpu", dtype=dtype):
                y = mix(q.to(dtype), k.to(dtype), v.to(dtype), mask)
        else:
            y = mix.to(dtype)(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    error = (y[0].float() - exact[0]).norm() / exact[0].norm()
    assert error < (0.02 if dtype == torch.bfloat16 else 0.003)


def test_gradients_are_those_of_the_formula():
    mix = small_mix().double()
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 9, 3, 16, dtype=torch.float64).transpose(3, 4)[:, 0])
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    inputs = (q, k, v, *mix.parameters())
    assert torch.autograd.gradcheck(
        lambda q, k, v, *p: attention.lambda_attention(q, k, v, mask, *p) * mask[:, None, :, None],
        inputs, fast_mode=True,
    )  # fmt: skip
    mix(q, k, v, mask).square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in inputs)
    assert (v.grad[1, :, 6:] == 0).all()  # what the mask hides gets no gradient from anybody's output


def test_no_tensor_is_quadratic_in_the_length():
    mix = small_mix()
    t = 4096
    q, k, v = torch.randn(3, 1, t, 3, 16).transpose(2, 3)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return out

    with Largest():
        mix(q, k, v, None)
        with torch.no_grad():
            mix(q, k, v, None)
    assert largest <= 16 * q.untyped_storage().nbytes()


def test_new_module_is_uniform_attention():
    mix = attention.LambdaAttention(
        types.SimpleNamespace(hidden_size=32, num_attention_heads=2, key_depth=4, local_context_size=3), 0
    )
    q, k, v = torch.randn(3, 1, 2, 11, 16)
    assert_close(mix(q, k, v, None), v.mean(2, keepdim=True).expand_as(v), 1e-5)


def test_even_local_context_is_refused():
    config = types.SimpleNamespace(hidden_size=32, num_attention_heads=2, key_depth=4, local_context_size=4)
    with pytest.raises(ValueError, match="odd"):
        attention.LambdaAttention(config, 0)
