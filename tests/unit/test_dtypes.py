"""Casts give what torch gives, bit for bit; half-precision sources stay what they are unless a cast is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import bits, convert, read, read_json, rewrite, write

from effconv.convert.io.dtypes import Array, all_finite, cast
from tiny import save_tiny

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNSIGNED = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}
RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def all_kinds_of(dtype: str) -> np.ndarray:
    """Bit patterns of a type: all of a small one; of a large one many, the edges of the smaller types among them."""
    if dtype in ("F16", "BF16"):
        return np.arange(1 << 16, dtype="<u2")
    random = np.random.default_rng(0)
    patterns = random.integers(0, np.iinfo(UNSIGNED[dtype]).max, 200_000, dtype=UNSIGNED[dtype])
    ties = (random.integers(0, 1 << 16, 20_000, dtype="<u4") << 16) | 0x8000
    edges = np.concatenate([ties, ties + 1, ties - 1, random.integers(0x38000000, 0x48000000, 100_000, dtype="<u4")])
    near = edges.view("<f4")
    with np.errstate(all="ignore"):
        return np.concatenate([patterns, near.astype(RAW[dtype]).view(UNSIGNED[dtype])])


@pytest.mark.parametrize("target", sorted(TORCH))
@pytest.mark.parametrize("source", sorted(TORCH))
def test_a_cast_gives_torchs_bits(source, target):
    patterns = all_kinds_of(source)
    signed = patterns.view(patterns.dtype.str.replace("u", "i"))
    wanted = torch.from_numpy(signed.copy()).view(TORCH[source]).to(TORCH[target])
    got = cast(Array(patterns.view(RAW[source]), source), target)
    got_bits = got.data.view(UNSIGNED[target])
    wanted_bits = wanted.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[wanted.itemsize]).numpy()
    nan = wanted.isnan().numpy()
    assert (got_bits[~nan] == wanted_bits.view(UNSIGNED[target])[~nan]).all()
    held = torch.from_numpy(got_bits[nan].view(got_bits.dtype.str.replace("u", "i")).copy()).view(TORCH[target])
    assert held.isnan().all()


@pytest.mark.parametrize("dtype", sorted(TORCH))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(dtype, value):
    tensor = torch.full((1000,), 1e30 if dtype in ("F32", "F64") else 1.0, dtype=TORCH[dtype])  # its square overflows
    as_array = lambda: Array(tensor.view(torch.uint8).numpy().view(RAW[dtype]), dtype)  # noqa: E731
    assert all_finite(as_array())
    tensor[777] = value
    assert not all_finite(as_array())


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_source_stays_as_it_is(dtype, form, tmp_path):
    source = save_tiny(tmp_path / "source")
    write(source, {name: value.to(NAMES[dtype]) for name, value in read(source).items()}, form)
    stored = torch.load(source / "pytorch_model.bin") if form == "bin" else read(source)
    convert(source, tmp_path / "out")
    out = read(tmp_path / "out")
    assert {value.dtype for value in out.values()} == {NAMES[dtype]}
    assert all(bits(value) == bits(stored[name]) for name, value in out.items() if value.shape[0] not in (128, 512))
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == dtype


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_dtype_casts_every_tensor_as_torch_does(stored, target, form, tmp_path):
    source = save_tiny(tmp_path / "source")
    tensors = {name: value.to(NAMES[stored]) for name, value in read(source).items()}
    write(source, tensors, form)
    convert(source, tmp_path / "out", dtype=target)
    out = read(tmp_path / "out")
    assert {value.dtype for value in out.values()} == {NAMES[target]}
    unchanged = [name for name in out if not name.endswith(("position_embeddings.weight", "global_embeddings.weight"))]
    assert len(unchanged) > 30
    assert all(bits(out[name]) == bits(tensors[name].to(NAMES[target])) for name in unchanged)
    positions = "bert.embeddings.position_embeddings.weight"
    assert bits(out[positions]) == bits(tensors[positions].repeat(2, 1).to(NAMES[target]))
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == target


def test_mixed_types_stay_mixed_and_the_plan_names_each_cast(tmp_path):
    source = save_tiny(tmp_path / "source")
    rewrite(source, lambda all_: {k: v.half() if "encoder" in k else v for k, v in all_.items()})
    result = convert(source, tmp_path / "out")
    assert result.plan.counts() == {"copy": 41, "tile": 1, "derive": 1}
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "float16"  # the type of most tensors
    result = convert(source, tmp_path / "cast", dtype="float32")
    casts = [row for row in result.plan.rows if "F16 to F32" in row.why]
    assert {row.action for row in casts} == {"derive"}
    assert {row.target for row in casts} == {name for name in read(source) if "encoder" in name}


def test_a_value_beyond_half_precision_becomes_infinite_and_is_reported(tmp_path):
    source = save_tiny(tmp_path / "source")
    name = "bert.encoder.layer.0.output.dense.weight"
    rewrite(source, lambda tensors: {**tensors, name: tensors[name] + 1e5})
    result = convert(source, tmp_path / "out", dtype="float16")
    assert result.findings == [f"{name} holds NaN or infinite values"]
    assert not convert(source, tmp_path / "kept").findings
