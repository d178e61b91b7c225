"""The two environments in which emitted repos must load: this one, and one with transformers 4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

_BESIDE = ROOT / ".venv-compat" / "bin" / "python"
COMPAT_PYTHON = os.environ.get("EFFCONV_COMPAT_PYTHON") or (str(_BESIDE) if _BESIDE.exists() else None)

needs_compat = [
    pytest.mark.compat,
    pytest.mark.skipif(
        not COMPAT_PYTHON,
        reason="no environment with transformers 4: `make venv-compat` makes one, or EFFCONV_COMPAT_PYTHON names it",
    ),
]
FIVE = pytest.param(sys.executable, id="transformers5")
FOUR = pytest.param(COMPAT_PYTHON, id="transformers4", marks=needs_compat)
FOUR_NIGHTLY = pytest.param(COMPAT_PYTHON, id="transformers4", marks=[*needs_compat, pytest.mark.nightly])


def stranger(folder: Path) -> dict[str, str]:
    """The environment variables of a process that knows of no checkout, opens no socket and asks nothing."""
    variables = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables.pop("PYTHONPATH", None)
    return variables


def run_checks(worker: Path, jobs: dict[str, dict], checks: list[str], folder: Path, python: str) -> dict[str, dict]:
    """The faults that the worker's checks find, by job and check, from a fresh process."""
    path, results = folder / "jobs.json", folder / "results.json"
    path.write_text(json.dumps({"jobs": jobs, "checks": checks, "results": str(results)}))
    run = subprocess.run(
        [python, str(worker), str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=stranger(folder),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(results.read_text())
