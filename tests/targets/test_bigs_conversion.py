"""What the BiGS commands make of options, other lengths and sources that do not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from bigs_goldens import HALVES, ROOT, checked, read_json, runs_of, to_jax, to_torch
from safetensors.numpy import load_file, save_file
from same_models import assert_same_outputs, assert_same_tensors
from typer.testing import CliRunner

from effconv.api import convert, fidelity, plan, verify
from effconv.cli import app
from effconv.convert.errors import BadInputError, UnsupportedError, UsageError
from effconv.convert.io.flax_msgpack import read_structure
from effconv.convert.verify.against import Against, source_of
from effconv.inspection import inspect_source
from effconv.targets.bigs.checks import _params
from effconv.targets.bigs.target import BIGS, JAX2TORCH, NAMES, jax_name, operation
from effconv.templates import modeling_bigs

CASE, POSITIONS = "mlm_tied_L37", "bigs.embeddings.position_embeddings.weight"


def copied(case, folder, **config):
    shutil.copytree(ROOT / case, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    values = {**read_json(folder / "config.json"), **config}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value != "left out"})
    )
    return folder


def test_every_name_has_its_way_back():
    for pair in NAMES:
        jax, torch_name = pair.jax.replace("{i}", "7"), pair.torch.replace("{i}", "7")
        names = (jax, f"s4_bert/{jax}", torch_name, f"bigs.{torch_name}")
        assert [BIGS.canonical_name(name) for name in names] == [torch_name] * 4
        assert jax_name(torch_name) == jax
        if pair.op.action == "derive":
            assert operation(torch_name).shape(operation(torch_name).shape((3, 4))) == (3, 4)
    for name in ("encoder/layer/07/dv/kernel", "encoder/layer/-1/dv/kernel", "encoder/layer/x/D", "s4_bert/", "a/b"):
        assert BIGS.canonical_name(name) is None


def test_the_table_covers_every_tensor_of_every_head():
    config = {"num_hidden_layers": 2}
    for head in BIGS.heads:
        for weight in BIGS.weights(config, head):
            assert jax_name(weight.name)


@pytest.mark.parametrize("target", ["torch", "jax"])
@pytest.mark.parametrize("length", [100, 37, 20])
def test_the_position_table_is_repeated_to_the_length_asked_for(target, length, tmp_path):
    torch_repo = to_torch(CASE, tmp_path / "torch")
    table = load_file(torch_repo / "model.safetensors")[POSITIONS]
    if target == "torch":
        repo = to_torch(CASE, tmp_path / "long", max_length=length)
        again = convert(torch_repo, "bigs", output=tmp_path / "again", max_length=length, verify=False).output
        assert (repo / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    else:
        jax_repo = to_jax(torch_repo, tmp_path / "jax", max_length=length)
        repo = convert(jax_repo, "jax2torch", output=tmp_path / "long", verify=False).output
    made = load_file(repo / "model.safetensors")
    assert np.array_equal(made[POSITIONS], table[np.arange(length) % 37])
    assert read_json(repo / "config.json")["max_position_embeddings"] == length
    assert read_json(repo / "tokenizer_config.json")["model_max_length"] == length
    assert all(checked(repo, "equal_to_source", "equal_to_formula", source=ROOT / CASE).values())
    model = modeling_bigs.BiGSForMaskedLM.from_pretrained(repo).eval()
    assert model(torch.full((1, length), 9)).logits.isfinite().all()
    with pytest.raises(ValueError, match=f"takes at most {length}"):
        model(torch.full((1, length + 1), 9))


def test_positions_can_be_interpolated(tmp_path):
    repo = to_torch(CASE, tmp_path / "torch", max_length=73, positions="interpolate")
    table = load_file(to_torch(CASE, tmp_path / "plain") / "model.safetensors")[POSITIONS]
    made = load_file(repo / "model.safetensors")[POSITIONS]
    assert np.allclose(made[::2], table, atol=1e-6)
    assert np.allclose(made[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)


def test_large_checkpoints_are_sharded_on_both_sides(tmp_path):
    torch_repo = to_torch(CASE, tmp_path / "torch", max_shard_size="30KB")
    jax_repo = to_jax(torch_repo, tmp_path / "jax", max_shard_size="30KB")
    assert len(list(torch_repo.glob("model-*.safetensors"))) > 2
    shards = sorted(jax_repo.glob("flax_model-*.msgpack"))
    index = read_json(jax_repo / "flax_model.msgpack.index.json")
    assert {path.name for path in shards} == set(index["weight_map"].values())
    whole = {tensor.name for tensor, _ in read_structure(ROOT / CASE / "flax_model.msgpack", "flax_model.msgpack")}
    assert index["weight_map"].keys() == whole
    back = to_torch_from(jax_repo, tmp_path / "back")
    one, other = (load_file(folder / "model.safetensors") for folder in (back, to_torch(CASE, tmp_path / "whole")))
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def to_torch_from(source, folder):
    return convert(source, "jax2torch", output=folder, verify=False).output


@pytest.mark.parametrize("case", HALVES)
def test_half_precision_is_stored_as_it_was_and_applied_in_float32(case, tmp_path):
    repo = to_torch(case, tmp_path / "torch")
    from safetensors import safe_open

    with safe_open(repo / "model.safetensors", "np") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert types == {HALVES[case]}
    assert read_json(repo / "config.json")["dtype"] == "float32"


def test_a_cast_leaves_the_convolutions_alone(tmp_path):
    made = convert(ROOT / CASE, "jax2torch", output=tmp_path / "half", dtype="bfloat16", verify=False)
    types = {row.dtype for row in made.plan.rows if ".fs4." in str(row.target) or ".bs4." in str(row.target)}
    assert types == {"F32"}
    assert {row.dtype for row in made.plan.rows if ".dv." in str(row.target)} == {"BF16"}


def test_inert_padding_is_an_option_that_verify_checks(tmp_path):
    inert = to_torch("base_lin_L37", tmp_path / "inert", mask_mode="inert")
    assert checked(inert, "padding_changes_nothing")["padding_changes_nothing"] is True
    published = to_torch("base_lin_L37", tmp_path / "published")
    assert checked(published, "padding_changes_nothing")["padding_changes_nothing"] is None
    config = read_json(inert / "config.json")
    assert (config["mask_mode"], read_json(published / "config.json")["mask_mode"]) == ("inert", "pooler")
    (published / "config.json").write_text(json.dumps({**read_json(published / "config.json"), "mask_mode": "inert"}))
    one, other = (modeling_bigs.BiGSModel.from_pretrained(folder).eval() for folder in (inert, published))
    inputs = {name: torch.from_numpy(value) for name, value in runs_of("base_lin_L37")[0][0].items()}
    with torch.no_grad():
        assert_same_tensors(one, other)
        assert_same_outputs(one(**inputs).pooler_output, other(**inputs).pooler_output)


def test_the_plan_says_what_is_dropped_and_what_is_new(tmp_path):
    port = tmp_path / "port"
    port.mkdir()
    (port / "config.json").write_text((ROOT / CASE / "config_torch.json").read_text())
    (port / "model.safetensors").write_bytes((ROOT / CASE / "torch_model.safetensors").read_bytes())
    reasons = {row.sources[0]: row.why for row in plan(port, "torch2jax").rows if row.action == "drop"}
    assert reasons == {
        "bigs.embeddings.position_ids": "a buffer, rebuilt when the model loads",
        "bigs.pooler.dense.weight": reasons["bigs.pooler.dense.weight"],
        "bigs.pooler.dense.bias": reasons["bigs.pooler.dense.bias"],
        "cls.predictions.decoder.weight": "tied to embeddings.word_embeddings.weight, stored once",
        "cls.predictions.decoder.bias": "the same tensor as cls.predictions.bias, stored once",
    }
    assert "not in the JAX" in reasons["bigs.pooler.dense.bias"]
    carried = [row for row in plan(port, "bigs").rows if "kept for" in row.why]
    assert {row.target for row in carried} == {"bigs.pooler.dense.weight", "bigs.pooler.dense.bias"}
    new = [
        row
        for row in plan(ROOT / CASE, "jax2torch", architecture="ForSequenceClassification").rows
        if row.action == "new"
    ]
    assert {row.target for row in new} == {
        "bigs.pooler.dense.weight", "bigs.pooler.dense.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip


def test_a_tied_tensor_that_differs_is_refused(tmp_path):
    port = tmp_path / "port"
    port.mkdir()
    (port / "config.json").write_text((ROOT / CASE / "config_torch.json").read_text())
    tensors = load_file(ROOT / CASE / "torch_model.safetensors")
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.decoder.bias"] + 1
    save_file(tensors, port / "model.safetensors")
    with pytest.raises(BadInputError, match=r"decoder\.bias differs"):
        to_jax(port, tmp_path / "jax")
    assert not (tmp_path / "jax").exists()


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"model_type": "bert"}, UnsupportedError, "does not take bert"),
        ({"num_hidden_layers": 3}, BadInputError, "config.json says 3 layers, the weights have 2"),
        ({"num_hidden_layers": 1}, BadInputError, "config.json says 1 layer, the weights have 2"),
        ({"hidden_size": 33}, BadInputError, "but config.json requires"),
        ({"num_ssm_heads": 4}, BadInputError, "but config.json requires"),
        ({"decode": True}, BadInputError, "decode"),
        ({"position_embedding_type": "relative_key"}, BadInputError, "position_embedding_type"),
        ({"num_ssm_heads": 5}, BadInputError, "must divide"),
        ({"vocab_size": -1}, BadInputError, "must be a positive integer"),
        ({"architectures": ["BiGSForTalking"]}, UnsupportedError, "no head"),
    ],
)
def test_sources_that_do_not_fit_are_refused(config, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        to_torch_from(copied(CASE, tmp_path / "source", **config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_without_architectures_gets_the_head_its_tensors_make(tmp_path):
    source = copied("pretraining_L16", tmp_path / "source", architectures="left out")
    assert plan(source, "jax2torch").architecture == "BiGSForPreTraining"


def test_each_command_takes_its_own_side(tmp_path):
    with pytest.raises(BadInputError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        to_jax(copied("mlm_chunked_L16", tmp_path / "jax-only"), tmp_path / "out")
    torch_repo = to_torch(CASE, tmp_path / "torch")
    with pytest.raises(BadInputError, match=r"expected flax_model\.msgpack"):
        to_torch_from(torch_repo, tmp_path / "out")
    for options in ({"layer_gelu": "relu"}, {"max_length": 0}, {"mask_mode": "all"}, {"positions": "none"}):
        with pytest.raises(UsageError):
            convert(torch_repo, "bigs", output=tmp_path / "out", **options)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for side, make in (("torch", to_torch), ("jax", lambda case, folder: to_jax(tmp_path / "torch0", folder))):
        for number in range(2):
            make(CASE, tmp_path / f"{side}{number}")
        one, other = (
            {path.name: path.read_bytes() for path in (tmp_path / f"{side}{number}").iterdir()} for number in range(2)
        )
        assert one == other


def test_the_commands_take_length_positions_and_gelu(tmp_path):
    """`--max-len`, `--positions` and `--layer-gelu` on all three commands, as a user types them."""
    torch_repo = to_torch(CASE, tmp_path / "torch")
    for command, source in (("jax2torch", ROOT / CASE), ("torch2jax", torch_repo), ("bigs", torch_repo)):
        out = tmp_path / command
        flags = ["--max-len", "73", "--positions", "interpolate", "--layer-gelu", "erf", "--mask-mode", "inert"]
        ran = CliRunner().invoke(app, [command, str(source), *flags, "--no-verify", "-o", str(out)])
        assert ran.exit_code == 0, ran.output
        config = read_json(out / "config.json")
        assert (config["max_position_embeddings"], config["layer_gelu"], config["mask_mode"]) == (73, "erf", "inert")
        assert read_json(out / "effconv.json")["options"]["positions"] == "interpolate"
    tables = [_positions(tmp_path / command) for command in ("jax2torch", "torch2jax", "bigs")]
    assert all(np.array_equal(table, tables[0]) for table in tables)


def _positions(repo):
    return _params(repo)["embeddings.position_embeddings.weight"]


WITHOUT_JAX = """
import importlib.machinery, sys

class WithoutJax(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "ml_dtypes"):
            return None
        return super().find_spec(name, path, target)

sys.meta_path = [WithoutJax if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


@pytest.mark.nightly
def test_conversions_are_made_and_verified_where_jax_is_not_installed(tmp_path):
    """Every process, the one that verifies too, starts without jax and flax."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_JAX)
    script = f"""
import importlib.util, json, sys
import effconv
assert not any(importlib.util.find_spec(name) for name in ("jax", "flax"))
torch = effconv.convert({str(ROOT / "mlm_bf16params_L37")!r}, "jax2torch", output="torch")
jax = effconv.convert("torch", "torch2jax", output="jax")
print(json.dumps([made.manifest["measurements"]["checks"] for made in (torch, jax)]))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for checks in json.loads(run.stdout.splitlines()[-1]):
        found = {check["name"]: check for check in checks}
        assert found["equal_to_source"]["passed"]
        assert found["jax_and_torch_agree"]["passed"]
        assert (
            found["jax_and_torch_agree"]["details"]["jax"] == "not installed: compared with the float64 implementation"
        )
    name = "flax_model.msgpack"
    assert (tmp_path / "jax" / name).read_bytes() == (ROOT / "mlm_bf16params_L37" / name).read_bytes()


def test_a_source_is_inspected_and_compared_again(tmp_path):
    found = inspect_source(copied("seqcls_fp16params_L16", tmp_path / "source"))
    assert (found.head, found.max_length, found.becomes) == ("ForSequenceClassification", 16, ["jax2torch"])
    repo = to_torch("seqcls_fp16params_L16", tmp_path / "torch")
    given = source_of(tmp_path / "source", repo, read_json(repo / "effconv.json"), None, True, JAX2TORCH)
    assert given == Against(tmp_path / "source", same=True)
    assert inspect_source(repo).becomes == ["torch2jax", "bigs"]
    with pytest.raises(UnsupportedError, match="effconv verify --against"):
        fidelity(repo, against=tmp_path / "source")
    with pytest.raises(UsageError, match="a bert"):
        verify(repo, against=copied("seqcls_fp16params_L16", tmp_path / "other", model_type="bert"))
