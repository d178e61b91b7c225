"""Conversions on systems that lack what Linux has: the same files come out, and Windows is refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bigs_goldens import ROOT as BIGS
from checkpoints import SMALL, snapshot

import effconv
from effconv.convert.errors import OutputError, UnsupportedError
from effconv.convert.io import system
from effconv.convert.io.staging import check_apart, clear_stale
from tiny import save_tiny

PACKAGE = Path(effconv.__file__).parent
MACOS = ("fdatasync", "copy_file_range", "pidfd_open", "posix_fallocate", "posix_fadvise")
OLD_MACOS = (*MACOS, "preadv")
FEWEST = (*OLD_MACOS, "pread")
CALLS = r"\bos\.(fdatasync|p?readv?|copy_file_range|pidfd_open|posix_\w+|sendfile)\b|\bfcntl\.|\bSIGHUP\b|\bCDLL\b"
FLAGS = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "--no-verify")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def usual(source, tmp_path_factory) -> dict[str, bytes]:
    """What the conversion makes where nothing is missing."""
    return snapshot(effconv.convert(source, "lsg", output=tmp_path_factory.mktemp("usual") / "long", **SMALL).output)


def without(monkeypatch, names) -> None:
    for name in names:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(system, "exchanged", lambda one, other: False)


def run(program: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.mark.parametrize("missing", [MACOS, OLD_MACOS, FEWEST], ids=["macos", "old macos", "fewest"])
def test_a_conversion_gives_the_same_files_without_calls_of_linux(missing, source, usual, tmp_path, monkeypatch):
    without(monkeypatch, missing)
    made = effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL).output
    assert snapshot(made) == usual
    (made / "config.json").write_text("{}", encoding="utf-8")
    effconv.convert(source, "lsg", output=made, overwrite=True, **SMALL)
    assert snapshot(made) == usual
    assert [path.name for path in tmp_path.iterdir()] == ["long"]


def test_msgpack_is_read_and_written_the_same_without_calls_of_linux(tmp_path, monkeypatch):
    weights = (BIGS / "mlm_tied_L37" / "flax_model.msgpack").read_bytes()
    without(monkeypatch, FEWEST)
    there = effconv.convert(BIGS / "mlm_tied_L37", "jax2torch", output=tmp_path / "torch", verify=False).output
    back = effconv.convert(there, "torch2jax", output=tmp_path / "jax", verify=False).output
    assert (back / "flax_model.msgpack").read_bytes() == weights


def test_a_disk_that_refuses_a_copy_inside_the_system_gets_one_through_a_buffer(source, usual, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    assert snapshot(effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL).output) == usual


def test_where_there_are_no_locks_nothing_of_another_run_is_cleared(source, usual, tmp_path, monkeypatch):
    for name in (".long.effconv-0123abcd", ".other.effconv-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(system, "fcntl", None)
        assert snapshot(effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL).output) == usual
        assert (tmp_path / ".long.effconv-0123abcd").exists(), "it may be that of a run that lives"
    clear_stale(tmp_path / "long")
    assert not (tmp_path / ".long.effconv-0123abcd").exists()
    assert (tmp_path / ".other.effconv-0123abcd").exists()


def test_the_disks_own_cache_is_emptied_where_the_system_asks_for_that(source, usual, tmp_path, monkeypatch):
    asked = []

    class MacOS:
        F_FULLFSYNC, LOCK_EX, LOCK_NB = 51, 2, 4
        flock = staticmethod(lambda descriptor, how: None)
        fcntl = staticmethod(lambda descriptor, call: asked.append(call))

    monkeypatch.setattr(system, "fcntl", MacOS)
    effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL)
    assert len(asked) > len(usual)
    assert set(asked) == {51}


@pytest.mark.slow
def test_the_command_line_converts_without_fcntl_and_hangup(source, usual, tmp_path):
    bare = f"""
import os, signal, sys
sys.modules["fcntl"] = None
del signal.SIGHUP
for name in {FEWEST}:
    if hasattr(os, name):
        delattr(os, name)
import ctypes
def none(*_, **__):
    raise OSError("no C library")
ctypes.CDLL = none
from effconv.cli import main
main()
"""
    for more in ((), ("--overwrite",)):
        done = run(bare, "lsg", source, *FLAGS, "-o", "long", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert snapshot(tmp_path / "long") == usual


def test_only_one_file_calls_what_some_systems_lack():
    engine = [PACKAGE, *(PACKAGE / name for name in ("convert", "lsgify", "hub", "adapt", "calibrate"))]
    calls = {
        f"{path.relative_to(PACKAGE)}: {found[0]}"
        for folder in engine
        for path in folder.glob("*.py")
        for found in re.finditer(CALLS, re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text(encoding="utf-8")))
        if path.name != "system.py"
    }
    assert calls == set()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["lsg", "source"]], ids=["help", "convert"])
def test_windows_is_refused_in_one_line_that_names_wsl(arguments, tmp_path):
    windows = """
import signal, sys
import typer
sys.modules["fcntl"] = None
del signal.SIGHUP, signal.SIGPIPE
sys.platform = "win32"
from effconv.cli import main
main()
"""
    done = run(windows, *arguments, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "WSL" in line


def test_windows_is_refused_in_python_too(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedError, match="WSL"):
        effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_ignores_case_does_not_hide_that_output_and_source_are_one(source, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "MODEL").symlink_to("model")  # one folder by two names, which `resolve` leaves alone there
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: path.absolute())
    for output in ("MODEL", "MODEL/long"):
        with pytest.raises(OutputError, match="overlap"):
            check_apart(tmp_path / "model", tmp_path / output)
    with pytest.raises(OutputError, match="overlap"):
        check_apart(tmp_path / "model" / "source", tmp_path / "MODEL")
    check_apart(tmp_path / "model", tmp_path / "long")


@pytest.mark.slow
def test_an_ascii_locale_changes_no_file(tmp_path):
    """Every text is read and written as UTF-8, whatever the system's locale says."""
    source = save_tiny(tmp_path / "modèle")
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: fr\n---\n# Modèle à ∞\n", encoding="utf-8")
    vocabulary = (source / "vocab.txt").read_text(encoding="utf-8")
    (source / "vocab.txt").write_text(vocabulary.replace("cat", "été"), encoding="utf-8")
    made = effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL).output
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = "import locale, sys\nassert sys.getfilesystemencoding() == 'ascii', sys.getfilesystemencoding()\n"
    program += "from effconv.cli import main\nmain()"
    done = run(program, "lsg", source, *FLAGS, "-o", "again", cwd=tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path / "again") == snapshot(made)
