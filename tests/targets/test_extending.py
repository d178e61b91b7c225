"""docs/how-to/extending.md: a target is one folder and one row, and may live in another package than effconv."""

from __future__ import annotations

from importlib import resources

import pytest
from environments import strangers_output
from places import SUPPORT
from typer.testing import CliRunner

import effconv
from effconv import cli
from effconv.convert.families.registry import FAMILIES, families_for
from effconv.targets import registry
from tiny import save_tiny

ROW = registry.Row("toy_target.target:UNIFORM", "toy_target.options:UniformOptions", "Convert to uniform attention.")
LOAD = """
import sys, torch
from transformers import AutoModel
assert not any(name.startswith(("effconv", "toy_target")) for name in sys.modules)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__name__ == "UniformBertModel", type(model)
assert model(torch.arange(5, 105)[None]).last_hidden_state.isfinite().all()
"""


@pytest.fixture
def row(monkeypatch):
    """The toy target, as its own package would add it; the process that verifies a repo must be able to import it."""
    monkeypatch.setitem(registry.ROWS, "uniform", ROW)
    monkeypatch.setitem(cli.CONVERTING, "uniform", ROW)
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    monkeypatch.syspath_prepend(SUPPORT)
    yield
    registry.TARGETS.pop("uniform", None)


def test_a_folder_and_a_row_are_a_target(row, tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", 64)
    result = effconv.convert(source, "uniform", output=tmp_path / "repo", max_length=128)
    assert [check.name for check in result.measured if check.passed is False] == []
    passed = {check.name for check in result.measured if check.passed}
    assert passed == {check.name for check in registry.TARGETS["uniform"].checks} - {"same_embedding"}
    assert "mean of the values" in (tmp_path / "repo" / "README.md").read_text(encoding="utf-8")
    emitted = (tmp_path / "repo" / "uniform_attention.py").read_text(encoding="utf-8")
    assert emitted == (resources.files("toy_target") / "uniform_attention.py").read_text(encoding="utf-8")
    assert "already converted to uniform" in effconv.inspect(tmp_path / "repo").why_not
    (tmp_path / "load.py").write_text(LOAD)
    strangers_output(tmp_path / "load.py", tmp_path / "repo", folder=tmp_path)


def test_it_takes_every_family_that_needs_no_more(row):
    assert registry.TARGETS["uniform"].families == families_for(())
    assert {name for name, family in FAMILIES.items() if not family.requirements} == set(families_for(()))


def test_its_options_are_a_command(row, tmp_path):
    said = CliRunner().invoke(cli.app, ["uniform", str(tmp_path / "missing"), "--max-len", "128"])
    assert "missing" in said.output + str(said.exception), said
    assert "--max-len" in CliRunner().invoke(cli.app, ["uniform", "--help"]).output
