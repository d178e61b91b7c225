"""8-bit dense layers: close to float32, refused where they cannot run, and never saved by mistake."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import effconv
from effconv.bench import models, options, precisions
from effconv.bench.models import Subject
from effconv.convert.errors import UnsupportedError, UsageError
from effconv.eight_bits import Int8Linear, require_int8
from tiny import save_tiny

here = "x86" in torch.backends.quantized.supported_engines and torch.backends.mkldnn.is_available()
runs = pytest.mark.skipif(not here, reason="no 8-bit products for this processor")
SMALL = {"max_length": 256, "block_size": 16, "sparse_block_size": 16, "verify": False}


def cosine(one, other):
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    effconv.convert(save_tiny(folder / "source"), "lsg", output=folder / "lsg", **SMALL)
    return folder / "lsg"


@runs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])  # inputs of one sign too
def test_a_dense_layer_in_8_bits_is_close_to_float32(bias, shift):
    torch.manual_seed(0)
    dense = nn.Linear(96, 40, bias=bias)
    dense.weight.data[7] = 0
    dense.weight.data[8] *= 100  # a large row does not cost the others their digits
    x = torch.randn(3, 50, 96) + shift
    found = Int8Linear(dense)(x)
    wanted = dense(x).detach()
    assert found.shape == (3, 50, 40)
    steps = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / 127  # of an input
    bound = steps * dense.weight.abs().sum(1) / 2 + dense.weight.abs().amax(1) / 254 * x.abs().sum(-1).max()
    assert ((found - wanted).abs() <= bound.detach() + 1e-4).all()
    assert cosine(found, wanted) > 0.999


@runs
def test_inputs_at_the_ends_of_the_range():
    dense = nn.Linear(8, 4)
    layer = Int8Linear(dense)
    assert layer(torch.zeros(2, 8)) == pytest.approx(dense.bias.detach().expand(2, 4))
    assert layer(torch.ones(0, 8)).shape == (0, 4)
    assert layer(torch.ones(8)) == pytest.approx(dense(torch.ones(8)).detach(), abs=0.02)
    bad = torch.ones(2, 8)
    bad[0, 0] = math.inf
    assert not layer(bad)[0].isfinite().any()


@runs
def test_other_rows_of_a_batch_change_nothing():
    layer = Int8Linear(nn.Linear(64, 8))
    one, large = torch.randn(1, 64), 100 * torch.randn(5, 64)
    assert layer(torch.cat([one, large]))[:1] == pytest.approx(layer(one), abs=1e-5)


@runs
def test_sums_of_large_products_do_not_overflow():
    dense = nn.Linear(256, 8, bias=False)
    dense.weight.data.fill_(1.0)
    x = torch.full((4, 256), 5.0)
    x[:, 0] = 0  # all others at the highest level
    assert Int8Linear(dense)(x) == pytest.approx(torch.full((4, 8), 1275.0), rel=1e-3)


@runs
def test_a_repo_loads_with_8_bit_dense_layers(repo):
    ids = torch.randint(5, 100, (2, 100), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 60:] = 0
    plain, small = effconv.load(repo).eval(), effconv.load(repo, int8=True)
    assert not any(type(module) is nn.Linear for module in small.modules())
    assert not small.training
    with torch.no_grad():
        one, other = (model(input_ids=ids, attention_mask=mask)[0] for model in (plain, small))
    assert cosine(one, other) > 0.99


@runs
def test_a_model_with_8_bit_layers_is_not_saved(repo, tmp_path):
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        effconv.load(repo, int8=True).save_pretrained(tmp_path / "saved")


@runs
def test_only_a_float32_model_is_quantised():
    with pytest.raises(UnsupportedError, match="bfloat16") as error:
        effconv.int8(nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16)))
    assert (error.value.where, error.value.exit_code) == ("0.weight", 3)


@runs
def test_bench_builds_models_with_8_bit_dense_layers(repo):
    config = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 9,
    }
    for subject in (Subject("stock", "", config), Subject("repo", "", folder=str(repo), own_code=True)):
        model = models.build(subject.described(), "int8")
        assert any(isinstance(module, Int8Linear) for module in model.modules())
        with torch.no_grad():
            assert model(input_ids=torch.full((1, 8), 5))[0].isfinite().all()


@runs
def test_code_that_asks_for_the_type_of_a_weight_runs():
    import transformers

    config = transformers.T5Config(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=9)
    model = effconv.int8(transformers.T5EncoderModel(config))
    with torch.no_grad():
        assert model(input_ids=torch.full((1, 8), 5))[0].isfinite().all()


def test_processors_without_8_bit_products_are_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"], raising=False)
    with pytest.raises(UnsupportedError, match="this processor") as error:
        require_int8()
    assert "effconv export" in error.value.hint
    with pytest.raises(UnsupportedError, match="this processor"):
        effconv.bench("nowhere", dtype="float32,int8")
    assert precisions.quick("cpu", train=False)[-1] != "int8"


def test_bench_takes_8_bits_for_inference_on_the_cpu_alone(monkeypatch):
    for more in ({"train": True}, {"device": "cuda"}):
        with pytest.raises(UsageError, match="--dtype int8"):
            options.bench_options({"dtype": "int8", **more})
    monkeypatch.setattr(precisions, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(precisions, "require_int8", lambda: None)
    assert options.bench_options({"dtype": "all"}).dtypes() == ["float32", "int8"]
    assert options.bench_options({"dtype": "all", "train": True}).dtypes() == ["float32"]
    monkeypatch.setattr(precisions, "multiplies_bfloat16", lambda: True)
    assert options.bench_options({"dtype": "all"}).dtypes() == ["float32", "bfloat16", "int8"]
