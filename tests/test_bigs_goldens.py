"""BiGS against the recorded outputs of the published JAX model and of the published torch port."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from bigs_goldens import (
    CASES,
    ROOT,
    TOLERANCE,
    TORCH_CASES,
    architecture,
    flat_outputs,
    inputs_of,
    port_source,
    read_json,
    runs_of,
    to_jax,
    to_torch,
    worst,
)
from environments import FIVE, FOUR, stranger
from safetensors.numpy import load_file

from effconv.api import convert, verify
from effconv.convert import bigs_reference
from effconv.convert.bigs import BIGS, DEFAULTS
from effconv.convert.bigs_checks import _params
from effconv.convert.flax_msgpack import read_structure
from effconv.templates import modeling_bigs
from effconv.templates.bigs_ssm import state_space_kernel

each_case = pytest.mark.parametrize("case", CASES)
needs_jax = pytest.mark.skipif(
    not (importlib.util.find_spec("jax") and importlib.util.find_spec("flax")), reason="jax and flax are not installed"
)


def torch_model(repo, case):
    return getattr(modeling_bigs, architecture(case)).from_pretrained(repo, dtype=torch.float32).eval()


def run_torch(model, inputs):
    with torch.no_grad():
        return flat_outputs(
            model(**{name: torch.from_numpy(value) for name, value in inputs.items()}, output_hidden_states=True)
        )


@each_case
def test_the_torch_model_gives_the_outputs_of_the_published_jax_model(case, tmp_path):
    model = torch_model(to_torch(case, tmp_path / "torch"), case)
    for inputs, wanted in runs_of(case):
        assert worst(run_torch(model, inputs), wanted) <= TOLERANCE


@each_case
def test_gradients_on_or_off_the_outputs_are_the_same(case, tmp_path):
    model = torch_model(to_torch(case, tmp_path / "torch"), case)
    inputs = {name: torch.from_numpy(value) for name, value in inputs_of(case).items()}
    with torch.no_grad():
        cached = model(**inputs)[0]
    assert torch.allclose(model(**inputs)[0], cached, atol=1e-5, rtol=1e-5)


@each_case
def test_kernels_are_those_of_the_published_jax_model(case, tmp_path):
    params = {name: torch.from_numpy(value) for name, value in _params(to_torch(case, tmp_path / "torch")).items()}
    recorded = load_file(ROOT / case / "outputs_flax.safetensors")
    if read_json(ROOT / case / "meta.json")["stored_dtype"] != "float32":
        pytest.skip("recorded in half precision")
    for name, wanted in recorded.items():
        if name.startswith("kernel."):
            _, layer, way = name.split(".")
            part = [params[f"encoder.layer.{layer}.{way}.kernel.{key}"] for key in ("A_re", "A_im", "C", "log_step")]
            got = state_space_kernel(*part, wanted.shape[0]).T.numpy()
            assert worst({"k": got.reshape(wanted.shape)}, {"k": wanted}) <= 2e-6


@each_case
def test_the_float64_form_is_that_of_the_published_model(case, tmp_path):
    """The reference itself: nothing but float32 rounding lies between it and the recordings."""
    repo = to_torch(case, tmp_path / "torch")
    config, head = {**DEFAULTS, **read_json(repo / "config.json")}, architecture(case).removeprefix("BiGS")
    tolerance = {"base_long_L4096": 5e-3}.get(case, 5e-5)
    for inputs, wanted in runs_of(case):
        got = bigs_reference.forward(_params(repo), config, head, **inputs)
        assert worst(got, {name: value for name, value in wanted.items() if name in got}) <= tolerance


@each_case
def test_jax_to_torch_to_jax_is_the_identity(case, tmp_path):
    back = to_jax(to_torch(case, tmp_path / "torch"), tmp_path / "jax")
    before, after = _tensors(ROOT / case), _tensors(back)
    assert after == before
    if (
        ROOT / case / "flax_model.msgpack"
    ).is_file() and case != "mlm_chunked_L16":  # its pieces are smaller than flax's
        assert (back / "flax_model.msgpack").read_bytes() == (ROOT / case / "flax_model.msgpack").read_bytes()
    config, ours = read_json(ROOT / case / "config.json"), read_json(back / "config.json")
    left_out = {"transformers_version", "use_cache", "use_pykeops_kernel"}
    assert {name: ours[name] for name in config.keys() - left_out} == {
        name: value for name, value in config.items() if name not in left_out
    }


@pytest.mark.parametrize("case", TORCH_CASES)
def test_torch_to_jax_to_torch_keeps_all_but_what_the_plan_drops(case, tmp_path):
    source = port_source(case, tmp_path / "port")
    made = convert(source, "torch2jax", output=tmp_path / "jax", verify=False)
    dropped = {row.sources[0] for row in made.plan.rows if row.action == "drop"}
    assert all(row.why for row in made.plan.rows if row.action == "drop")
    back = convert(made.output, "jax2torch", output=tmp_path / "torch", verify=False).output
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert after.keys() == before.keys() - dropped
    assert all(after[name].tobytes() == before[name].tobytes() for name in after)


@pytest.mark.parametrize("case", [case for case in TORCH_CASES if case != "base_postnorm_L16"])  # the port has none
def test_the_torch_ports_checkpoints_keep_its_numbers_with_erf(case, tmp_path):
    repo = convert(
        port_source(case, tmp_path / "port"), "bigs", output=tmp_path / "out", layer_gelu="erf", verify=False
    ).output
    assert read_json(repo / "config.json")["layer_gelu"] == "erf"
    got = run_torch(torch_model(repo, case), inputs_of(case))
    recorded = load_file(ROOT / case / "outputs_torch.safetensors")
    tolerance = {"base_long_L4096": 5e-3}.get(case, 5e-5)
    assert worst(got, {name: value for name, value in recorded.items() if name in got}) <= tolerance
    tanh = convert(tmp_path / "port", "bigs", output=tmp_path / "tanh", verify=False).output
    got = run_torch(torch_model(tanh, case), inputs_of(case))
    jax_form = {name.removeprefix("tanh."): value for name, value in recorded.items() if name.startswith("tanh.")}
    assert worst(got, {name: value for name, value in jax_form.items() if name in got}) <= tolerance


@pytest.mark.parametrize("case", [case for case in CASES if (ROOT / case / "pytorch_model.bin").is_file()])
def test_the_torch_ports_bin_files_are_read(case, tmp_path):
    source = tmp_path / "port"
    source.mkdir()
    (source / "config.json").write_text((ROOT / case / "config_torch.json").read_text())
    (source / "pytorch_model.bin").write_bytes((ROOT / case / "pytorch_model.bin").read_bytes())
    assert _tensors(to_jax(source, tmp_path / "jax")) == _tensors(ROOT / case)


@needs_jax
@each_case
def test_the_jax_model_gives_the_outputs_of_the_published_one(case, tmp_path):
    from effconv.templates import modeling_bigs_jax

    repo = to_jax(to_torch(case, tmp_path / "torch"), tmp_path / "jax")
    kind = getattr(modeling_bigs_jax, architecture(case))
    for folder in (repo, ROOT / case):
        model = kind.from_pretrained(folder)
        for inputs, wanted in runs_of(case):
            assert worst(flat_outputs(model(**inputs, output_hidden_states=True)), wanted) <= TOLERANCE


@needs_jax
@each_case
def test_the_jax_model_saves_what_it_loaded(case, tmp_path):
    from effconv.templates import modeling_bigs_jax

    kind = getattr(modeling_bigs_jax, architecture(case))
    model = kind.from_pretrained(ROOT / case)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("flax_model-*.msgpack"))) > 2
    assert _tensors(tmp_path / "whole") == _tensors(tmp_path / "shards") == _tensors(ROOT / case)
    again = kind.from_pretrained(tmp_path / "shards")
    inputs = inputs_of(case)
    ours, theirs = flat_outputs(again(**inputs)), flat_outputs(model(**inputs))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("case", ["mlm_tied_L37", "seqcls3_L37", "mh4_base_L37", "mlm_bf16params_L37", "mc_L16"])
def test_the_commands_verify_what_they_make(case, tmp_path):
    made = convert(ROOT / case, "jax2torch", output=tmp_path / "torch")
    assert {result.name for result in made.measured if result.passed} >= {
        "equal_to_source", "equal_to_formula", "jax_and_torch_agree", "saved_again_equal"
    }  # fmt: skip
    back = convert(made.output, "torch2jax", output=tmp_path / "jax")
    assert {result.name for result in back.measured if result.passed} == {"equal_to_source", "jax_and_torch_agree"}
    assert all(result.passed is not False for result in verify(made.output))


WORKER = """
import json, sys, numpy as np, torch, transformers
from safetensors.numpy import load_file, save_file
job = json.load(open(sys.argv[1]))
for case in job:
    model = getattr(transformers, case["auto"]).from_pretrained(case["repo"], trust_remote_code=True).eval()
    assert model.dtype == torch.float32, model.dtype
    inputs = {name: torch.from_numpy(value) for name, value in load_file(case["inputs"]).items()}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    model.save_pretrained(case["saved"])
    again = getattr(transformers, case["auto"]).from_pretrained(case["saved"], trust_remote_code=True).eval()
    with torch.no_grad():
        second = again(**inputs)
    flat = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(second[name], value) for name, value in flat.items())
    flat |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    save_file({name: value.numpy().copy() for name, value in flat.items()}, case["outputs"])
"""


@pytest.mark.parametrize("python", [FIVE, FOUR])
def test_strangers_on_both_versions_get_the_published_outputs(python, tmp_path):
    autos = {head.suffix: head.auto for head in BIGS.heads}
    job = [
        {
            "repo": str(to_torch(case, tmp_path / case)),
            "auto": autos[architecture(case).removeprefix("BiGS")],
            "inputs": str(ROOT / case / "inputs.safetensors"),
            "saved": str(tmp_path / f"{case}-saved"),
            "outputs": str(tmp_path / f"{case}.safetensors"),
        }
        for case in CASES
        if case != "base_long_L4096"
    ]
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "worker.py").write_text(WORKER)
    command = [python, str(tmp_path / "worker.py"), str(tmp_path / "job.json")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=stranger(tmp_path), check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    for entry, case in zip(job, [case for case in CASES if case != "base_long_L4096"], strict=True):
        wanted = runs_of(case)[0][1]
        assert worst(load_file(entry["outputs"]), wanted) <= TOLERANCE, case
        for one in (entry["repo"], entry["saved"]):
            shutil.rmtree(one)


def _tensors(folder):
    """Name to type, shape and hash of the bytes, of a folder with flax files."""
    found = {}
    for file in sorted(folder.glob("flax_model*.msgpack")):
        raw = file.read_bytes()
        for tensor, ranges in read_structure(file, file.name):
            data = b"".join(raw[start : start + count] for start, count in ranges)
            found[tensor.name] = (tensor.dtype, tensor.shape, hashlib.sha256(data).hexdigest())
    return found
