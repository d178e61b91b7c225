"""The form of LSG attention that GPUs get by default, on a device that is pretended; and the field that asks for it."""

from __future__ import annotations

import json
import os
import sys

import pytest
from environments import FOUR_NIGHTLY, strangers_output
from places import ROOT, SUPPORT

import effconv
from effconv.convert.errors import UsageError
from effconv.layers import BlockLocalSelfAttention, LSGSelfAttention
from tiny import save_tiny

WORKER = SUPPORT / "device_worker.py"
OPTIONS = {"max_length": 128, "block_size": 8, "sparse_block_size": 8, "verify": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("devices") / "source", "bert", "Model", 64)


@pytest.fixture(scope="module")
def repo(source):
    return effconv.convert(source, "lsg", output=source.parent / "repo", **OPTIONS).output


def test_off_the_cpu_the_plain_form_runs_and_makes_no_tensor_of_the_cpu(repo):
    paths = os.pathsep.join(path for path in sys.path if path)
    results = json.loads(strangers_output(WORKER, repo, folder=repo.parent, env={"PYTHONPATH": paths}).splitlines()[-1])
    assert len(results) == 24
    assert {name: found for name, found in results.items() if found != "as wanted"} == {}


LOADED = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModel

sys.modules["effconv"] = None
repo, saved = (Path(x) for x in sys.argv[1:])
stated = json.loads((repo / "config.json").read_text())
read = lambda folder, **fields: AutoModel.from_pretrained(folder, trust_remote_code=True, **fields).eval()
ids = torch.arange(5, 45)[None]
forms, states = [], []
for fields in ({}, {"attention_form": "plain"}, {"attention_form": "flex"}, {"attention_form": "triton"}):
    model = read(repo, **fields)
    model.save_pretrained(saved)
    forms += [model.config.attention_form, read(saved).config.attention_form]
    with torch.no_grad():
        states.append(model(ids).last_hidden_state)
del stated["attention_form"]  # as of a repo that was made before there was the field
(repo / "config.json").write_text(json.dumps(stated))
forms.append(read(repo).config.attention_form)
try:
    read(repo, attention_form="cuda")
except ValueError as error:
    print(error)
far = max((state - states[0]).abs().max().item() for state in states)
print(json.dumps({"forms": forms, "far": far}))
"""


@pytest.mark.parametrize("python", [pytest.param(sys.executable, id="transformers5"), FOUR_NIGHTLY])
def test_the_form_is_set_at_loading_and_saved_with_the_model(python, source, tmp_path):
    repo = effconv.convert(source, "lsg", output=tmp_path / "repo", **OPTIONS).output
    said = strangers_output("-c", LOADED, repo, tmp_path / "saved", folder=tmp_path, python=python)
    assert "attention_form must be one of auto, plain, flex, triton, got 'cuda'" in said
    found = json.loads(said.splitlines()[-1])
    assert found["forms"] == ["auto"] * 2 + ["plain"] * 2 + ["flex"] * 2 + ["triton"] * 2 + ["auto"]
    assert found["far"] <= 1e-5  # on a CPU all of them compute the same


def test_a_conversion_states_the_form_in_config_and_manifest_and_verifies(source, tmp_path):
    made = effconv.convert(
        source, "lsg", output=tmp_path / "repo", **{**OPTIONS, "verify": True}, attention_form="triton"
    ).output
    assert json.loads((made / "config.json").read_text())["attention_form"] == "triton"
    assert json.loads((made / "effconv.json").read_text())["options"]["attention_form"] == "triton"
    assert "--attention-form triton" in (made / "README.md").read_text()
    # An LSG source keeps its own, unless it is told otherwise.
    again = effconv.convert(made, "lsg", output=tmp_path / "again", verify=False).output
    assert json.loads((again / "config.json").read_text())["attention_form"] == "triton"
    with pytest.raises(UsageError, match=r"--attention-form must be .*got 'gpu'"):
        effconv.convert(source, "lsg", output=tmp_path / "none", attention_form="gpu")


def test_layers_take_the_form_as_an_argument():
    assert LSGSelfAttention().options.attention_form == "auto"
    assert BlockLocalSelfAttention(attention_form="plain").options.attention_form == "plain"
    with pytest.raises(ValueError, match=r"attention_form must be .*got 'cuda'"):
        LSGSelfAttention(attention_form="cuda")


def test_no_emitted_file_reads_the_environment():
    lines = [
        (path.name, line.strip())
        for path in sorted((ROOT / "templates").iterdir())
        if path.is_file() and path.suffix in (".py", ".jinja")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "environ" in line or "getenv" in line
    ]
    assert lines == []
