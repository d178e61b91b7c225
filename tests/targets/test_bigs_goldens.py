"""BiGS against the recorded outputs of the published JAX model and of the published torch port."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json

import numpy as np
import pytest
import torch
from bigs_goldens import (
    CASES,
    HALVES,
    ROOT,
    SHARDED,
    TOLERANCE,
    TORCH_CASES,
    architecture,
    checked,
    each,
    flat_outputs,
    inputs_of,
    jax_models,
    port_source,
    read_json,
    runs_of,
    to_jax,
    to_torch,
    worst,
)
from environments import FIVE, FOUR_NIGHTLY, strangers_output
from safetensors.numpy import load_file
from same_models import TOLERANCE as SAME

from effconv.api import convert, verify
from effconv.convert.io.flax_msgpack import read_structure
from effconv.targets.bigs import reference as bigs_reference
from effconv.targets.bigs.checks import _params
from effconv.targets.bigs.target import BIGS, DEFAULTS
from effconv.templates import modeling_bigs
from effconv.templates.bigs_ssm import state_space_kernel

each_case = each(CASES)
JAX = bool(importlib.util.find_spec("jax") and importlib.util.find_spec("flax"))
needs_jax = pytest.mark.skipif(not JAX, reason="jax and flax are not installed")


@pytest.fixture(scope="module")
def torch_repo(tmp_path_factory):
    """Makes a case's torch repo, once."""
    folder = tmp_path_factory.mktemp("torch")
    return functools.cache(lambda case: to_torch(case, folder / case))


def torch_model(repo, case):
    return getattr(modeling_bigs, architecture(case)).from_pretrained(repo, dtype=torch.float32).eval()


def run_torch(model, inputs):
    with torch.no_grad():
        return flat_outputs(
            model(**{name: torch.from_numpy(value) for name, value in inputs.items()}, output_hidden_states=True)
        )


@each_case
def test_the_torch_model_gives_the_outputs_of_the_published_jax_model(case, torch_repo):
    model = torch_model(torch_repo(case), case)
    for inputs, wanted in runs_of(case):
        assert worst(run_torch(model, inputs), wanted) <= TOLERANCE
    inputs, wanted = runs_of(case)[0]
    learning = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})  # in the form that learns
    wanted = {name: value for name, value in wanted.items() if not name.startswith("hidden_states.")}
    assert worst({name: value.detach() for name, value in flat_tensors(learning).items()}, wanted) <= TOLERANCE


@each([case for case in CASES if case not in HALVES])  # those kernels were recorded in half precision
def test_kernels_are_those_of_the_published_jax_model(case, torch_repo):
    params = {name: torch.from_numpy(value) for name, value in _params(torch_repo(case)).items()}
    recorded = load_file(ROOT / case / "outputs_flax.safetensors")
    for name, wanted in recorded.items():
        if name.startswith("kernel."):
            _, layer, way = name.split(".")
            part = [params[f"encoder.layer.{layer}.{way}.kernel.{key}"] for key in ("A_re", "A_im", "C", "log_step")]
            got = state_space_kernel(*part, wanted.shape[0]).T.numpy()
            assert worst({"k": got.reshape(wanted.shape)}, {"k": wanted}) <= 2e-6


@each_case
def test_the_float64_form_is_that_of_the_published_model(case, torch_repo):
    """The reference itself: nothing but float32 rounding lies between it and the recordings."""
    repo = torch_repo(case)
    config, head = {**DEFAULTS, **read_json(repo / "config.json")}, architecture(case).removeprefix("BiGS")
    tolerance = {"base_long_L4096": 5e-3}.get(case, 5e-5)
    for inputs, wanted in runs_of(case):
        got = bigs_reference.forward(_params(repo), config, head, **inputs)
        assert worst(got, {name: value for name, value in wanted.items() if name in got}) <= tolerance


@each_case
def test_jax_to_torch_to_jax_is_the_identity(case, torch_repo, tmp_path):
    back = to_jax(torch_repo(case), tmp_path / "jax")
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


@each(TORCH_CASES)
def test_torch_to_jax_to_torch_keeps_all_but_what_the_plan_drops(case, tmp_path):
    source = port_source(case, tmp_path / "port")
    made = convert(source, "torch2jax", output=tmp_path / "jax", verify=False)
    dropped = {row.sources[0] for row in made.plan.rows if row.action == "drop"}
    assert all(row.why for row in made.plan.rows if row.action == "drop")
    back = convert(made.output, "jax2torch", output=tmp_path / "torch", verify=False).output
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert after.keys() == before.keys() - dropped
    assert all(after[name].tobytes() == before[name].tobytes() for name in after)


@each([case for case in TORCH_CASES if case != "base_postnorm_L16"])  # the port has none
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


@each([case for case in CASES if (ROOT / case / "pytorch_model.bin").is_file()])
def test_the_torch_ports_bin_files_are_read(case, tmp_path):
    source = tmp_path / "port"
    source.mkdir()
    (source / "config.json").write_text((ROOT / case / "config_torch.json").read_text())
    (source / "pytorch_model.bin").write_bytes((ROOT / case / "pytorch_model.bin").read_bytes())
    assert _tensors(to_jax(source, tmp_path / "jax")) == _tensors(ROOT / case)


@needs_jax
@each_case
def test_the_jax_model_gives_the_outputs_of_the_published_one_and_saves_what_it_loaded(case, tmp_path):
    kind = getattr(jax_models(), architecture(case))
    model = kind.from_pretrained(ROOT / case)
    runs = runs_of(case)
    found = [flat_outputs(model(**inputs, output_hidden_states=True)) for inputs, _ in runs]
    assert all(worst(got, wanted) <= TOLERANCE for got, (_, wanted) in zip(found, runs, strict=True))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("flax_model-*.msgpack"))) > 2
    assert _tensors(tmp_path / "whole") == _tensors(tmp_path / "shards") == _tensors(ROOT / case)
    again = kind.from_pretrained(tmp_path / "shards")
    assert again.config == model.config
    second = flat_outputs(again(**runs[0][0], output_hidden_states=True))
    assert worst(second, found[0]) <= SAME


@needs_jax
def test_the_jax_module_can_be_applied_without_the_optional_inputs():
    import jax

    models = jax_models()
    case = "base_lin_L37"
    model = models.BiGSModel.from_pretrained(ROOT / case)
    ids = inputs_of(case)["input_ids"]
    wanted = model(ids)
    got = jax.jit(model.module.apply)({"params": model.params}, ids)
    assert worst(got, {name: np.asarray(value) for name, value in wanted.items()}) <= TOLERANCE


JAX_CHECKS = {"equal_to_source", "jax_and_torch_agree", "same_tokens"}
TORCH_CHECKS = JAX_CHECKS | {"equal_to_formula", "saved_again_equal", "every_tensor_read", "runs_at_full_length"}


@each(
    [
        case
        for case in ("seqcls3_L37", "mh4_base_L37", "mlm_bf16params_L37", "mc_L16", "pretraining_L16")
        if case in CASES
    ]
)
def test_what_the_commands_make_passes_their_checks(case, torch_repo):
    passed = checked(torch_repo(case), source=ROOT / case)
    assert passed.pop("padding_changes_nothing") is None  # it flows through the layers, as published
    assert passed == dict.fromkeys(TORCH_CHECKS, True)


@pytest.mark.nightly
@pytest.mark.xdist_group("bigs-commands")
def test_the_commands_verify_what_they_make(tmp_path):
    made = convert(ROOT / "mlm_tied_L37", "jax2torch", output=tmp_path / "torch")
    assert {result.name for result in made.measured if result.passed} == TORCH_CHECKS
    back = convert(made.output, "torch2jax", output=tmp_path / "jax", verify=False)
    measured = {result.name: result for result in verify(back.output, against=made.output)}
    assert {name for name, result in measured.items() if result.passed} == JAX_CHECKS | (
        {"every_tensor_read"} if JAX else set()
    )
    assert measured["jax_and_torch_agree"].details["jax"].startswith("run" if JAX else "not installed")


WORKER = (
    f"SAME = {SAME}"
    + """
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
    for name, value in flat.items():  # two loads: the weights lie at other addresses
        assert (second[name] - value).abs().max() <= SAME * max(1, value.abs().max()), name
    own, saved = model.state_dict(), again.state_dict()
    assert own.keys() == saved.keys() and all(torch.equal(saved[name], value) for name, value in own.items())
    flat |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    save_file({name: value.numpy().copy() for name, value in flat.items()}, case["outputs"])

by_auto = {case["auto"]: case["repo"] for case in job}
repo = by_auto["AutoModelForMaskedLM"]
options = {"model": repo, "trust_remote_code": True, "device": "cpu"}
mask = transformers.AutoTokenizer.from_pretrained(repo).mask_token
found = transformers.pipeline("fill-mask", **options)(f"the {mask} of it")
assert len(found) == 5 and abs(sum(entry["score"] for entry in found)) <= 1, found
assert len(transformers.pipeline("feature-extraction", **options)("the of it")[0][0]) == 32
options["model"] = by_auto["AutoModelForSequenceClassification"]
assert 0 <= transformers.pipeline("text-classification", **options)("the of it")[0]["score"] <= 1

torch.manual_seed(0)
model = transformers.AutoModelForMaskedLM.from_pretrained(repo, trust_remote_code=True)
rows = torch.randint(5, 300, (1, 16)).expand(6, -1)
before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
arguments = transformers.TrainingArguments(
    output_dir=case["saved"] + "-trainer", use_cpu=True, gradient_checkpointing=True, per_device_train_batch_size=2,
    max_steps=3, learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
)
trainer = transformers.Trainer(
    model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows]
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0], losses
still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
assert not still, still
trainer.save_model()
again = transformers.AutoModelForMaskedLM.from_pretrained(arguments.output_dir, trust_remote_code=True)
assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
"""
)


STRANGERS = sorted(
    {next(case for case in CASES if architecture(case) == kind): kind for kind in map(architecture, CASES)}
    | {case: case for case in ("mh4_base_L37", SHARDED, *HALVES) if case in CASES}
)


@pytest.mark.parametrize("python", [FIVE, FOUR_NIGHTLY])
def test_strangers_on_both_versions_get_the_published_outputs(python, torch_repo, tmp_path):
    autos = {head.suffix: head.auto for head in BIGS.heads}
    job = [
        {
            "repo": str(torch_repo(case)),
            "auto": autos[architecture(case).removeprefix("BiGS")],
            "inputs": str(ROOT / case / "inputs.safetensors"),
            "saved": str(tmp_path / f"{case}-saved"),
            "outputs": str(tmp_path / f"{case}.safetensors"),
        }
        for case in STRANGERS
    ]
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "worker.py").write_text(WORKER)
    strangers_output(tmp_path / "worker.py", tmp_path / "job.json", folder=tmp_path, python=python)
    for entry, case in zip(job, STRANGERS, strict=True):
        assert worst(load_file(entry["outputs"]), runs_of(case)[0][1]) <= TOLERANCE, case


def flat_tensors(outputs):
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def _tensors(folder):
    """Name to type, shape and hash of the bytes, of a folder with flax files."""
    found = {}
    for file in sorted(folder.glob("flax_model*.msgpack")):
        raw = file.read_bytes()
        for tensor, ranges in read_structure(file, file.name):
            data = b"".join(raw[start : start + count] for start, count in ranges)
            found[tensor.name] = (tensor.dtype, tensor.shape, hashlib.sha256(data).hexdigest())
    return found
