"""The code files of an emitted LSG repo, as text, and the rules of its options."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from places import ROOT

from effconv.convert.families.registry import FAMILIES
from effconv.convert.repo import modelcode
from effconv.lsgify.target import LSG
from effconv.targets.registry import TARGETS
from effconv.templates.lsg_configuration import lsg_faults

RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
DEFAULTS = {
    "adaptive": True,
    "block_size": 128,
    "sparse_block_size": 128,
    "sparsity_factor": 2,
    "sparsity_type": "norm",
    "num_global_tokens": 1,
    "mask_first_token": False,
    "pool_with_global": True,
    "lsh_num_pre_rounds": 1,
    "lsh_seed": 0,
    "causal_globals": "globals",
    "bos_pooling_padding": "masked",
    "attention_form": "auto",
}
each_family = pytest.mark.parametrize("family", LSG.families)


def rendered(family):
    heads = {head.suffix: head.auto for head in FAMILIES[family].heads}
    return modelcode.render(FAMILIES[family].code, LSG.code, heads)


@each_family
def test_the_modeling_file_names_every_other_file(family):
    files, modeling = rendered(family), modelcode.names(FAMILIES[family].code, LSG.code).modeling_module
    imported = set(re.findall(r"^from \.(\w+) import", files[f"{modeling}.py"], re.MULTILINE))
    assert imported == {name.removesuffix(".py") for name in files} - {modeling}


@each_family
def test_the_auto_map_leads_to_classes(family):
    files, heads = rendered(family), {head.suffix: head.auto for head in FAMILIES[family].heads}
    for auto, path in modelcode.auto_map(FAMILIES[family].code, LSG.code, heads).items():
        module, name = path.split(".")
        body = ast.parse(files[f"{module}.py"]).body
        assert any(isinstance(node, ast.ClassDef) and node.name == name for node in body), auto


@each_family
def test_every_file_starts_with_its_license_and_a_docstring(family):
    for name, text in rendered(family).items():
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), name
        assert ast.get_docstring(ast.parse(text)), name


@each_family
def test_files_import_what_every_environment_has(family):
    allowed = {*sys.stdlib_module_names, "torch", "transformers"}
    for name, text in rendered(family).items():
        body = ast.parse(text)
        tried = {node for block in ast.walk(body) if isinstance(block, ast.Try) for node in ast.walk(block)}
        assert imported(set(ast.walk(body)) - tried) <= allowed, name
        assert imported(tried) <= {"triton"}, name  # transformers, too, asks only for what stands outside of a try


EACH_PAIR = [
    (target, family)
    for target in TARGETS.values()
    if isinstance(target.code, modelcode.TargetCode)
    for family in target.families
]


@pytest.mark.parametrize(("target", "family"), EACH_PAIR, ids=lambda value: getattr(value, "name", value))
def test_emitted_code_has_no_tricks(target, family):
    """No class is switched or made as a model is loaded, nothing is inspected, no environment or setting is touched."""
    heads = {head.suffix: head.auto for head in FAMILIES[family].heads}
    for name, text in modelcode.render(FAMILIES[family].code, target.code, heads).items():
        assert "F401" not in text, name
        for node in ast.walk(ast.parse(text)):
            words = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom) else ""
            assert not re.search(r"__class__|\binspect\b|\bos\b", words), (name, words)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
                assert len(node.args) == 1, (name, ast.unparse(node))
            if isinstance(node, ast.Assign):
                assert "torch.backends" not in "".join(map(ast.unparse, node.targets)), (name, ast.unparse(node))


def test_an_lsg_repo_has_nine_files_of_code():
    for family in LSG.families:
        code = FAMILIES[family].code
        assert len(rendered(family)) == 9 + 2 * code.score_bias + bool(code.config_fields), family


def imported(nodes):
    """The packages that import statements name."""
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {module.split(".")[0] for module in modules}


@each_family
@pytest.mark.skipif(not RUFF, reason="ruff is not installed")
def test_rendered_files_pass_the_linter(family, tmp_path):
    for name, text in rendered(family).items():
        (tmp_path / name).write_text(text)
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        run = subprocess.run(
            [RUFF, *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ({"block_size": 12.0}, "block_size must be an integer of at least 1, got 12.0"),
        ({"sparse_block_size": -1}, "sparse_block_size must be an integer of at least 0, got -1"),
        ({"sparsity_factor": True}, "sparsity_factor must be an integer of at least 0, got True"),
        ({"num_global_tokens": 513}, "from 0 to 512"),
        ({"lsh_seed": 2**32}, "lsh_seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"sparsity_type": "bigbird"}, "must be one of none, norm, lsh"),
        ({"causal_globals": "all"}, "globals, published"),
        ({"attention_form": "cpu"}, "attention_form must be one of auto, plain, flex, triton, got 'cpu'"),
        ({"pool_with_global": 1}, "pool_with_global must be true or false, got 1"),
        ({"sparsity_factor": 3}, "block_size 128 must be divisible by sparsity_factor 3"),
        ({"sparsity_factor": 256}, "block_size 128 must be divisible by sparsity_factor 256"),
        ({"sparsity_factor": 8, "sparse_block_size": 100}, "= 100 tokens, which is not divisible"),
        ({"mask_first_token": True, "num_global_tokens": 0}, "needs a global token"),
    ],
)
def test_options_without_a_meaning_are_named_with_what_to_do(changes, words):
    faults = lsg_faults(SimpleNamespace(**{**DEFAULTS, **changes}))
    assert len(faults) == 1
    assert words in faults[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_global_tokens": 0},
        {"sparsity_factor": 3, "sparsity_type": "none"},
        {"sparsity_factor": 3, "sparse_block_size": 0},
        {"sparsity_factor": 0},
        {"sparsity_factor": 128},
        {"sparsity_factor": 8, "sparse_block_size": 100, "sparsity_type": "stride"},
        {"sparsity_factor": 8, "sparse_block_size": 1000},
    ],
)
def test_options_with_a_meaning_are_taken(changes):
    assert lsg_faults(SimpleNamespace(**{**DEFAULTS, **changes})) == []


def test_all_faults_are_told_together():
    faults = lsg_faults(SimpleNamespace(**{**DEFAULTS, "block_size": 0, "sparsity_type": "x", "adaptive": None}))
    assert len(faults) == 3


def test_the_code_imports_from_a_folder_of_any_name(tmp_path, monkeypatch):
    files, modeling = rendered("bert"), modelcode.names(FAMILIES["bert"].code, LSG.code).modeling_module
    monkeypatch.syspath_prepend(tmp_path)
    namespaces = set()
    for name in ("długie", "مدل", "long texts", "long_texts", "it's 🦒", "e\u0301tude", "étude"):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text, encoding="utf-8")
        importlib.import_module(f"{name}.{modeling}")
        namespaces.add(importlib.import_module(f"{name}.lsg_kernel_cpu").NAMESPACE)
    assert len(namespaces) == 7  # torch's operators are global to the process: no repo takes another's place
