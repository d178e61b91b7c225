"""The fits of Lambda and TransNormer to a source: what they solve, that they repeat, what they say of a text."""

from __future__ import annotations

import json
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import assert_close
from safetensors.torch import load_file, save_file
from tiers import daily
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel

import effconv
from effconv.convert.errors import BadInputError
from effconv.convert.text import fitting_text
from effconv.targets.lambda_.fit import LambdaFit, fit_lambda
from effconv.targets.teacher import AttentionSite, TextSample, watch
from effconv.targets.text_batches import text_batches
from effconv.targets.transnormer.fit import FittedLayer, fit_transnormer
from effconv.templates.lambda_attention import LambdaAttention
from effconv.templates.transnormer_attention import LINEAR_ACTIVATIONS, TransNormerAttention
from tiny import save_tiny

torch.set_num_threads(1)
LAMBDA = {"key_depth": 4, "local_context": 5}
FITTED = {"lambda": LAMBDA, "transnormer": {"block_size": 16}}
each_fitted = pytest.mark.parametrize("target", FITTED)
SIZES = {"vocab_size": 99, "max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


BERT_PATHS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


def site_of(layer: nn.Module, paths: tuple[str, ...], heads: int = 4) -> AttentionSite:
    return AttentionSite("", *(layer.get_submodule(path) for path in paths), heads=heads)


# Lambda


def tiny_encoder():
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.3, **SIZES
    )
    model = BertModel(config)
    sites = [site_of(layer, BERT_PATHS, heads=2) for layer in model.encoder.layer]
    stream = torch.randint(5, 99, (3000,), generator=torch.Generator().manual_seed(1)).tolist()
    return model, sites, text_batches(stream, [1], [2], lengths=(48, 16), budget=3000)


FIT = LambdaFit(key_depth=4, local_context=5)


def test_the_lambda_fit_repeats_bit_for_bit_and_depends_on_its_seed():
    model, sites, batches = tiny_encoder()
    first, second = (fit_lambda(model, sites, batches, FIT) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    other = fit_lambda(model, sites, batches, LambdaFit(key_depth=4, local_context=5, seed=1))
    assert not np.array_equal(first[0]["landmarks"], other[0]["landmarks"])


def test_a_bound_on_memory_does_not_change_the_fit():
    model, sites, batches = tiny_encoder()
    once = fit_lambda(model, sites, batches, FIT)
    bounded = fit_lambda(model, sites, batches, LambdaFit(key_depth=4, local_context=5, memory=1))
    for a, b in zip(once, bounded, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_lambda_fit_solves_the_written_out_least_squares():
    model, sites, batches = tiny_encoder()
    batches = [batch[:6] for batch in batches]
    fitted = fit_lambda(model, sites, batches, FIT)[1]
    config = types.SimpleNamespace(hidden_size=32, num_attention_heads=2, key_depth=4, local_context_size=5)
    mix = LambdaAttention(config, 1)
    mix.load_state_dict({name: torch.from_numpy(x) for name, x in fitted.items()})
    taken: dict[str, list[Tensor]] = {name: [] for name in "qkvy"}

    def receive(run):
        for name, x in zip("qkvy", run.by_head(), strict=True):
            taken[name].append(x)

    model.eval()
    with torch.no_grad(), watch([(sites[1], receive)]):
        for batch in batches:
            model(input_ids=batch)
    c, r, d = 5, 5, 16
    normal, right = np.zeros((2, 17 * 10, 17 * 10)), np.zeros((2, 17 * 10))
    for q, k, v, y in zip(*(taken[name] for name in "qkvy"), strict=True):
        q, k, v, y = (x.double() for x in (q, k, v, y))
        lambdas = (mix.landmarks.detach().double() @ k.transpose(2, 3)).softmax(-1) @ v
        wide = F.pad(v, (0, 0, 2, 2))
        for b, h, t in np.ndindex(q.shape[:3]):
            rows = torch.cat([lambdas[b, h], wide[b, h, t : t + r]])  # s d
            features = torch.einsum("i,sd->isd", torch.cat([q[b, h, t], torch.ones(1)]), rows).reshape(-1, d).numpy()
            normal[h] += features @ features.T
            right[h] += features @ y[b, h, t].numpy()
    for h in range(2):
        diagonal = np.diag(normal[h])
        ridge = np.diag(FIT.ridge * diagonal + 1e-9 * diagonal.mean())
        theta = np.linalg.solve(normal[h] + ridge, right[h]).reshape(17, c + r)
        bound = 1e-3 * np.abs(theta).max()
        np.testing.assert_allclose(fitted["content_weight"][h], theta[:16, :c].T, atol=bound)
        np.testing.assert_allclose(fitted["local_weight"][h], theta[:16, c:].T, atol=bound)
        np.testing.assert_allclose(fitted["content_bias"][h], theta[16, :c], atol=bound)


def test_the_encoder_is_left_as_it_came():
    model, sites, batches = tiny_encoder()
    model.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fit_lambda(model, sites, batches, FIT)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_of_the_lambda_fit_reaches_its_totals():
    model, sites, batches = tiny_encoder()
    seen: dict[str, tuple[int, int]] = {}
    fit_lambda(model, sites, batches, FIT, lambda stage, done, total: seen.update({stage: (done, total)}))
    assert set(seen) == {"queries", "landmarks", "statistics", "solve"}
    assert all(done == total for done, total in seen.values())


def test_too_short_a_text_is_refused():
    model, sites, _ = tiny_encoder()
    with pytest.raises(BadInputError, match="only 3 tokens"):
        text_batches([7] * 3, [1], [2], lengths=(16,))
    with pytest.raises(BadInputError, match="too few"):
        fit_lambda(model, sites, [torch.ones(1, 4, dtype=torch.long)], FIT)


def test_texts_carry_the_special_tokens_and_have_mixed_lengths():
    batches = text_batches(range(100, 5000), [1], [2], lengths=(64, 16), budget=4096)
    assert {x.shape[1] for x in batches} == {64, 16}
    assert all((x[:, 0] == 1).all() and (x[:, -1] == 2).all() for x in batches)
    assert 3500 <= sum(x.numel() for x in batches) <= 4200


# TransNormer


def bert() -> tuple[nn.Module, list[nn.Module], tuple[str, ...]]:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, initializer_range=0.2, **SIZES
    )
    model = BertModel(config, add_pooling_layer=False)
    return model, list(model.encoder.layer), BERT_PATHS


def distilbert() -> tuple[nn.Module, list[nn.Module], tuple[str, ...]]:
    config = DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=48, initializer_range=0.2, **SIZES)
    model = DistilBertModel(config)
    paths = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")
    return model, list(model.transformer.layer), paths


def albert() -> tuple[nn.Module, list[nn.Module], tuple[str, ...]]:
    config = AlbertConfig(
        embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, **SIZES
    )
    model = AlbertModel(config, add_pooling_layer=False)
    layer = model.encoder.albert_layer_groups[0].albert_layers[0]
    return model, [layer] * 3, ("attention.query", "attention.key", "attention.value", "attention.dense")


TEACHERS = {"bert": bert, "distilbert": distilbert, "albert": albert}


def samples(padded: bool = False) -> list[TextSample]:
    ids = torch.randint(5, 99, (24, 32))
    return [TextSample(ids, torch.arange(32) < torch.randint(8, 33, (24, 1)) if padded else None)]


def dense(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])


def mixes(diag_layers: tuple[int, ...]) -> list[TransNormerAttention]:
    config = types.SimpleNamespace(
        hidden_size=32, num_attention_heads=4, variant="t2", diag_layers=diag_layers, block_size=8
    )
    return [TransNormerAttention(config, i) for i in range(3)]


def fit(teacher: str, data: list[TextSample], **options) -> tuple[nn.Module, list[FittedLayer]]:
    model, layers, paths = TEACHERS[teacher]()
    model.eval()
    chosen = options.pop("mixes", mixes((0,) if teacher != "albert" else ()))
    sites, linear = [site_of(layer, paths) for layer in layers], [not getattr(m, "diag", True) for m in chosen]
    values = {"activation": LINEAR_ACTIVATIONS["1+elu"], **options}
    return model, fit_transnormer(model, layers, sites, chosen, linear, data, **values)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_dense_attention_is_recovered_exactly(teacher, padded):
    model, fitted = fit(teacher, samples(padded), mixes=[dense] * 3)
    paths = TEACHERS[teacher]()[2]
    for layer in fitted:
        assert set(layer.weights) == {"output"}
        assert layer.explained == pytest.approx(1.0, abs=1e-5)
    layers = {"bert": "encoder.layer.2.", "distilbert": "transformer.layer.2."}
    prefix = layers.get(teacher, "encoder.albert_layer_groups.0.albert_layers.0.")
    weight, bias = fitted[2].weights["output"]
    assert_close(weight, model.get_parameter(f"{prefix}{paths[-1]}.weight"), 1e-4)
    assert_close(bias, model.get_parameter(f"{prefix}{paths[-1]}.bias"), 1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_transnormer_fit_repeats_bit_for_bit_and_leaves_the_teacher_alone(teacher, padded):
    data = samples(padded)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        model, fitted = fit(teacher, data)
        runs.append(fitted)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(p.grad is None for p in model.parameters())
    for a, b in zip(*runs, strict=True):
        assert a.explained == b.explained
        assert 0.0 < a.explained <= 1.0
        for name, pair in a.weights.items():
            assert all(
                torch.isfinite(x).all() and torch.equal(x, y) for x, y in zip(pair, b.weights[name], strict=True)
            )
    assert set(runs[0][-1].weights) == {"query", "key", "value", "output"}


def test_folded_weights_give_the_fitted_layer():
    """The emitted layer, run on the teacher's input, explains what the fit said it would."""
    data = samples()
    chosen = mixes(())
    model, fitted = fit("bert", data, mixes=chosen)
    layer = model.encoder.layer[0]
    x = model.embeddings(data[0].input_ids)
    stock = layer.attention.self

    def heads(linear: tuple[Tensor, Tensor]) -> Tensor:
        return F.linear(x, *linear).unflatten(-1, (4, 8)).transpose(1, 2)

    with torch.no_grad():
        q, k, v = (heads((m.weight, m.bias)) for m in (stock.query, stock.key, stock.value))
        dense_layer = layer.attention.output.dense
        target = dense_layer(dense(q, k, v, None).transpose(1, 2).flatten(2))
        q, k, v = (heads(fitted[0].weights[n]) for n in ("query", "key", "value"))
        ours = F.linear(chosen[0](q, k, v, None).transpose(1, 2).flatten(2), *fitted[0].weights["output"])
    error = (target - ours).square().sum() / (target - target.mean((0, 1))).square().sum()
    assert 1.0 - error.item() == pytest.approx(fitted[0].explained, abs=1e-4)


def test_progress_of_the_transnormer_fit_counts_to_its_total():
    calls: list[tuple[int, int]] = []
    fit("bert", samples(), progress=lambda step, done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


# Both, as a user meets them


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "tiny", "bert", "ForMaskedLM", 64)


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """Texts by what is wrong with them; `good` is some 2,000 words of which nothing is."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["the", "of", "and", "to", "in", "it", "is", "that", "was", "for", "on", "with", "as", "he", "be", "by"]
    rng = np.random.default_rng(0)
    good = " ".join(rng.choice(words, 2000))
    strange = " ".join(
        word for i, word in enumerate(good.split()) for word in ([word, "語"] if i % 10 == 0 else [word])
    )
    for name, text in {"good": good, "short": "the of and to in", "empty": "", "strange": strange}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "foreign.txt").write_text("我们今天去学校学习数学和语文。" * 500, encoding="utf-8")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00\x81" * 50)
    return folder


def converted(source, target, output, *text, **options):
    return effconv.convert(
        source, target, max_length=128, output=output, verify=False, calibrate=text, **FITTED[target], **options
    )


@pytest.fixture(scope="session")
def fitted(source, texts, tmp_path_factory):
    """The conversion of the source to a target, fitted on the good text, once."""
    folder = tmp_path_factory.mktemp("fitted")
    return cache(lambda target: converted(source, target, folder / target, texts / "good.txt"))


@pytest.mark.xdist_group("fitted")
@each_fitted
def test_a_conversion_repeats_bit_for_bit(target, source, texts, fitted, tmp_path):
    one, two = fitted(target).output, converted(source, target, tmp_path / "two", texts / "good.txt").output
    for path in one.iterdir():
        if path.name not in ("effconv.json", "README.md"):
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.xdist_group("fitted")
@each_fitted
def test_the_manifest_says_what_was_fitted_on(target, texts, fitted):
    result = fitted(target)
    record = json.loads((result.output / "effconv.json").read_text())["calibration"]
    assert record["text"] == "good.txt"
    assert len(record["sha256"]) == 64
    assert record["unknown_share"] == 0
    assert record["tokens"] >= 2000
    assert record["tokens_used"] > 0
    assert record["lengths"]
    assert str(texts) not in (result.output / "effconv.json").read_text()
    assert "good.txt" in (result.output / "README.md").read_text()


@pytest.mark.parametrize("target", daily(["lambda"], of=FITTED))
def test_without_a_text_the_built_in_one_is_fitted_on(target, source, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "effconv.targets.text_batches.fitting_text", lambda: fitting_text()[:6_000]
    )  # enough, and quick
    record = converted(source, target, tmp_path / "out").manifest["calibration"]
    assert record["text"] == "the built-in English text"
    assert record["tokens_used"] > 0


@each_fitted
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", r"calibration text has .*(only|too few)"),
        ("empty", "calibration text has"),
        ("foreign", r"does not know \d+%.*language that the source"),
        ("binary", "cannot read.*UTF-8"),
        ("missing", "cannot read.*missing.txt"),
    ],
)
def test_a_text_that_cannot_be_fitted_on_is_refused(target, name, words, source, texts, tmp_path):
    with pytest.raises(BadInputError, match=f"(?s){words}"):
        converted(source, target, tmp_path / "out", texts / f"{name}.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", daily(["lambda"], of=FITTED))
def test_unknown_tokens_are_a_finding(target, source, texts, tmp_path):
    result = converted(source, target, tmp_path / "out", texts / "strange.txt")
    assert any("unknown to the tokenizer" in finding for finding in result.findings)
    assert 0.05 < result.manifest["calibration"]["unknown_share"] < 0.3


@each_fitted
def test_a_source_without_a_tokenizer_is_refused(target, texts, tmp_path):
    source = save_tiny(tmp_path / "bare", tokenizer=False)
    with pytest.raises(BadInputError, match="tokenizer is missing"):
        converted(source, target, tmp_path / "out", texts / "good.txt")


@each_fitted
def test_a_tokenizer_of_another_model_is_refused(target, texts, tmp_path):
    source = save_tiny(tmp_path / "other", "bert")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["zebra"] = len(vocabulary), vocabulary["the"]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInputError, match="belongs to the weights"):
        converted(source, target, tmp_path / "out", texts / "good.txt")


@each_fitted
def test_a_source_that_is_not_finite_is_refused(target, texts, tmp_path):
    source = save_tiny(tmp_path / "unsound", "bert")
    tensors = load_file(source / "model.safetensors")
    tensors["bert.encoder.layer.0.intermediate.dense.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=r"(?s)NaN.*encoder.layer.0.intermediate.dense.weight"):
        converted(source, target, tmp_path / "out", texts / "good.txt")
