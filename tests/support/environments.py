"""The two environments in which emitted repos must load: this one, and one with transformers 4."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import preforked
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


@functools.cache
def warm(python: str = sys.executable) -> tuple[str, ...]:
    """The command that stands for a Python whose processes begin with torch and transformers imported.

    They know nothing of effconv and of this process. What is said of a fresh process itself needs one of its own.
    """
    if not hasattr(os, "pidfd_open"):
        return (python,)
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    path = str(folder / "socket")
    server = subprocess.Popen(
        [python, preforked.__file__, "serve", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=stranger(folder),
    )

    def end() -> None:
        server.communicate()  # its stdin is closed, by which it ends
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    assert server.stdout.readline() == b"ready\n"
    return (sys.executable, "-I", "-S", preforked.__file__, "run", path)


def strangers_output(
    *arguments: object, folder: Path, python: str = sys.executable, env: Mapping[str, str] | None = None
) -> str:
    """What `python ARGUMENT...` prints as a stranger in a folder, in a process of `warm`; it must succeed."""
    run = subprocess.run(
        [*warm(python), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**stranger(folder), **(env or {})},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


def run_checks(worker: Path, jobs: dict[str, dict], checks: list[str], folder: Path, python: str) -> dict[str, dict]:
    """The faults that the worker's checks find, by job and check, from a process of its own."""
    path, results = folder / "jobs.json", folder / "results.json"
    path.write_text(json.dumps({"jobs": jobs, "checks": checks, "results": str(results)}))
    strangers_output(worker, path, folder=folder, python=python)
    return json.loads(results.read_text())
