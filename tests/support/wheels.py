"""A wheel of the checkout, and commands without anything of the checkout, or of the tests, in their environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT

NOT_SOURCES = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "demo-output", "*.safetensors", "*.bin"
)


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command without anything of the checkout, or of the tests, in its environment."""
    ours = ("PYTHON", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def build_wheel(folder: Path) -> Path:
    """A wheel, built from a copy of the checkout in a folder whose name is no Python name."""
    copy = folder / "a copy-1.0"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", cwd=copy)
    (wheel,) = (copy / "dist").glob("effconv-*.whl")
    return wheel
