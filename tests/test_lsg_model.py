"""What an emitted LSG model does as a transformers model, in fresh processes, on both versions of transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import repo_worker
from safetensors.numpy import load_file, save_file

from effconv.convert import modelcode
from effconv.convert.families import FAMILIES
from tiny import save_tiny

COMPAT_PYTHON = os.environ.get("EFFCONV_COMPAT_PYTHON")
CHECKS = [name for name in vars(repo_worker) if name.startswith("check_")]
LATER = "check_a_saved_model_loads_again"  # in a process of its own, after the others
needs_compat = [
    pytest.mark.compat,
    pytest.mark.skipif(not COMPAT_PYTHON, reason="EFFCONV_COMPAT_PYTHON names no second environment"),
]
FIVE = pytest.param(sys.executable, id="transformers5")
FOUR = pytest.param(COMPAT_PYTHON, id="transformers4", marks=needs_compat)


def emit(source: Path, family: str, repo: Path, tokens: int = 256) -> Path:
    """A repo as a conversion leaves it, but with random global embeddings: positions repeated, code rendered."""
    shutil.copytree(source, repo)
    tensors = load_file(source / "model.safetensors")
    prefix, special = FAMILIES[family].prefix, FAMILIES[family].special_positions
    name = f"{prefix}.embeddings.position_embeddings.weight"
    rows, body = tensors[name][:special], tensors[name][special:]
    tensors[name] = np.concatenate([rows, body[np.arange(tokens) % len(body)]])
    table = np.random.default_rng(0).normal(0, 0.3, (512, body.shape[1])).astype("float32")
    tensors[f"{prefix}.embeddings.global_embeddings.weight"] = table
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})
    code, heads = FAMILIES[family].code, {head.suffix: head.auto for head in FAMILIES[family].heads}
    config = json.loads((source / "config.json").read_text())
    config |= {
        "model_type": modelcode.names(code, modelcode.LSG_CODE).model_type,
        "auto_map": modelcode.auto_map(code, modelcode.LSG_CODE, heads),
        "architectures": [modelcode.class_name(code, modelcode.LSG_CODE, "ForMaskedLM")],
        "max_position_embeddings": tokens + special,
        "use_cache": False,
        "block_size": 8,
        "sparse_block_size": 8,
    }
    (repo / "config.json").write_text(json.dumps(config))
    for file, text in modelcode.render(code, modelcode.LSG_CODE, heads).items():
        (repo / file).write_text(text)
    return repo


def job_of(family: str, folder: Path) -> dict:
    source = save_tiny(folder / "source", family, "ForMaskedLM", 64)
    return {
        "repo": str(emit(source, family, folder / "repo")),
        "source": str(source),
        "save": str(folder / "saved"),
        "heads": {head.suffix: head.auto for head in FAMILIES[family].heads},
    }


def run_worker(job, checks, folder, python):
    path, results = folder / "job.json", folder / "results.json"
    path.write_text(json.dumps({**job, "checks": checks, "results": str(results)}))
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, str(Path(repo_worker.__file__)), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(results.read_text())


@pytest.mark.parametrize("python", [FIVE, FOUR])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_emitted_model(family, python, tmp_path, subtests):
    job = job_of(family, tmp_path)
    faults = run_worker(job, [name for name in CHECKS if name != LATER], tmp_path, python)
    faults |= run_worker(job, [LATER], tmp_path, python)
    for check, fault in faults.items():
        with subtests.test(check):
            assert not fault, fault


@pytest.mark.parametrize(
    ("saver", "loader"),
    [
        pytest.param(sys.executable, COMPAT_PYTHON, id="5 then 4", marks=needs_compat),
        pytest.param(COMPAT_PYTHON, sys.executable, id="4 then 5", marks=needs_compat),
    ],
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_saved_by_one_version_loads_in_the_other(family, saver, loader, tmp_path):
    job = job_of(family, tmp_path)
    faults = run_worker(job, ["check_a_saved_model_carries_its_code"], tmp_path, saver)
    faults |= run_worker(job, [LATER], tmp_path, loader)
    assert not any(faults.values()), faults
