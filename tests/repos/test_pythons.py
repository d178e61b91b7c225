"""Other Pythons: everything but torch is installed there, a conversion is made, and this environment verifies it.

torch stays out: a build for another Python is a download of gigabytes, and a plain conversion needs none.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from wheels import ROOT, build_wheel, run

from tiny import save_tiny

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMED = sorted(line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if ":: 3." in line)
OTHERS = [name for name in (*NAMED, "3.14") if name != f"{sys.version_info.major}.{sys.version_info.minor}"]
FLAGS = {
    "lsg": ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16"),
    "linformer": ("--max-len", "128", "--proj-dim", "32"),
}
pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("pythons")]


def interpreter(name: str) -> str | None:
    """The command of that Python: on the path, or one that pyenv has."""
    for found in sorted(Path.home().glob(f".pyenv/versions/{name}*/bin/python{name}"), reverse=True):
        return str(found)
    return shutil.which(f"python{name}")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session", params=OTHERS)
def binaries(request, wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment of another Python with the wheel and its dependencies, less torch."""
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"Python {request.param} is not on this machine")
    folder = tmp_path_factory.mktemp("python")
    run(python, "-m", "venv", "env", cwd=folder)
    install = (folder / "env" / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
    needed = [line for line in PROJECT["dependencies"] if not line.startswith("torch")]
    run(*install, "--no-deps", wheel, cwd=folder)
    run(*install, *needed, cwd=folder)
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "tiny")


def test_the_oldest_python_is_the_one_of_the_tests():
    assert PROJECT["requires-python"] == f">={NAMED[0]}"
    assert NAMED[0] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_help_is_given_and_torch_is_not_there(binaries, tmp_path):
    assert "lsg" in run(binaries / "effconv", "--help", cwd=tmp_path).stdout
    assert run(binaries / "python", "-c", "import torch", cwd=tmp_path, check=False).returncode == 1


@pytest.mark.parametrize("target", FLAGS)
def test_a_conversion_is_planned_and_made_there_and_verified_here(target, binaries, source, tmp_path):
    plan = run(binaries / "effconv", target, source, *FLAGS[target], "--plan", cwd=tmp_path).stdout
    assert "copy" in plan
    run(binaries / "effconv", target, source, *FLAGS[target], "--no-verify", "-o", "long", cwd=tmp_path)
    here = Path(sys.executable).with_name("effconv")
    assert "passed" in run(here, "verify", "long", "--against", source, "--offline", cwd=tmp_path).stdout
    run(here, target, source, *FLAGS[target], "--no-verify", "-o", "here", cwd=tmp_path)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "long" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_a_check_without_torch_says_what_is_missing(binaries, source, tmp_path):
    done = run(binaries / "effconv", "lsg", source, *FLAGS["lsg"], "-o", "long", cwd=tmp_path, check=False)
    assert done.returncode == 5
    assert "torch" in done.stderr
    assert not (tmp_path / "long").exists()
