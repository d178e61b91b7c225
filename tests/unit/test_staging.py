"""The output appears whole or not at all; what stood there stays until then; what a killed run left is cleared."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import snapshot

from effconv.convert.errors import OutputError
from effconv.convert.io import staging
from effconv.convert.io.staging import (
    Staging,
    check_apart,
    check_output,
    check_room,
    check_writable,
    clear_stale,
    exchange_with_journal,
)

OLD, NEW = {"old.txt": b"old"}, {"new.txt": b"new"}
DEAD = "0123abcd"


def make(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def publish(output: Path, *, overwrite: bool = False) -> None:
    with Staging(output, overwrite=overwrite) as made:
        (made.folder / "new.txt").write_bytes(b"new")
        made.publish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "journal"])
def way(request, monkeypatch):
    """Both ways to replace a folder: one call of the system, or two renames with a journal."""
    if request.param == "journal":
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **named: object())
    return request.param


def test_until_it_is_published_the_output_does_not_exist(tmp_path):
    with Staging(tmp_path / "out", overwrite=False) as made:
        assert not (tmp_path / "out").exists()
        (made.folder / "new.txt").write_bytes(b"new")
        made.publish()
    assert snapshot(tmp_path) == {"out/new.txt": b"new"}


def test_an_empty_folder_may_be_the_output(way, tmp_path):
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")
    assert snapshot(tmp_path) == {"out/new.txt": b"new"}


def test_overwriting_leaves_nothing_of_the_old(way, tmp_path):
    make(tmp_path / "out", OLD)
    publish(tmp_path / "out", overwrite=True)
    assert snapshot(tmp_path) == {"out/new.txt": b"new"}
    assert names(tmp_path) == ["out"]


def test_the_old_output_stays_while_the_new_one_is_made_and_when_that_fails(tmp_path):
    def run():
        with Staging(tmp_path / "out", overwrite=True) as made:
            (made.folder / "new.txt").write_bytes(b"new")
            assert snapshot(tmp_path / "out") == OLD
            raise RuntimeError

    make(tmp_path / "out", OLD)
    with pytest.raises(RuntimeError):
        run()
    assert snapshot(tmp_path) == {"out/old.txt": b"old"}
    assert names(tmp_path) == ["out"]


def test_without_overwrite_a_full_output_is_refused_also_when_it_appears_late(tmp_path):
    with pytest.raises(OutputError, match="not empty") as caught:
        publish(make(tmp_path / "there", OLD))
    assert "--overwrite" in caught.value.hint
    with Staging(tmp_path / "out", overwrite=False) as made:
        make(tmp_path / "out", OLD)
        with pytest.raises(OutputError, match="not empty"):
            made.publish()
    assert snapshot(tmp_path) == {"out/old.txt": b"old", "there/old.txt": b"old"}
    assert names(tmp_path) == ["out", "there"]


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link"])
def test_an_output_that_is_no_folder_is_refused_even_with_overwrite(kind, tmp_path):
    out = tmp_path / "out"
    if kind == "file":
        out.write_bytes(b"mine")
    else:
        out.symlink_to(make(tmp_path / "real", OLD) if kind == "link to a folder" else tmp_path / "nowhere")
    with pytest.raises(OutputError, match="not a folder"):
        publish(out, overwrite=True)
    assert out.is_symlink() or out.read_bytes() == b"mine"


def test_folders_above_the_output_are_made_and_go_again_when_nothing_comes_of_it(tmp_path):
    with pytest.raises(RuntimeError), Staging(tmp_path / "a" / "b" / "out", overwrite=False):
        raise RuntimeError
    assert names(tmp_path) == []
    publish(tmp_path / "a" / "b" / "out")
    assert snapshot(tmp_path) == {"a/b/out/new.txt": b"new"}
    with pytest.raises(RuntimeError), Staging(tmp_path / "a" / "c" / "out", overwrite=False):
        raise RuntimeError
    assert snapshot(tmp_path) == {"a/b/out/new.txt": b"new"}
    assert names(tmp_path / "a") == ["b"]


def test_what_a_dead_run_left_is_cleared_and_what_a_living_one_holds_is_not(tmp_path):
    make(tmp_path / f".out.effconv-{DEAD}", NEW)
    (tmp_path / f".out.effconv-{DEAD}.lock").touch()
    make(tmp_path / ".out.effconv-deadbeef.old", OLD)
    with Staging(tmp_path / "out", overwrite=False) as living:
        publish(tmp_path / "out")
        assert living.folder.is_dir()
        assert names(tmp_path) == sorted([living.folder.name, f"{living.folder.name}.lock", "out"])
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", [".out.effconv-mydata", ".out.effconv-0123abcd.bak", ".other.effconv-0123abcd", "out.effconv-0123abcd"]
)
def test_only_names_that_a_run_gives_are_ever_cleared(name, tmp_path):
    make(tmp_path / name, OLD)
    publish(tmp_path / "out")
    assert snapshot(tmp_path / name) == OLD


def test_a_lock_that_was_taken_away_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    flock, seen = fcntl.flock, []

    def steal(descriptor, how):
        if not seen:
            seen.append(descriptor)
            (lock,) = tmp_path.glob("*.lock")
            lock.unlink()  # another run took it for a dead one's
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", steal)
    with Staging(tmp_path / "out", overwrite=False) as made:
        assert len(list(tmp_path.glob("*.lock"))) == 1
        clear_stale(tmp_path / "out")
        assert made.folder.is_dir()


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_works_and_nothing_is_cleared(error, tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(error, os.strerror(error))

    make(tmp_path / f".out.effconv-{DEAD}", OLD)
    (tmp_path / f".out.effconv-{DEAD}.lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    publish(tmp_path / "out")
    assert snapshot(tmp_path / "out") == NEW
    assert snapshot(tmp_path / f".out.effconv-{DEAD}") == OLD


def test_a_kill_between_the_renames_of_a_replacement_is_mended(tmp_path):
    """The journal's three moments: before the first rename, between them, after the second."""
    for moment in range(3):
        place = tmp_path / str(moment)
        out, new, old = (place / name for name in ("out", f".out.effconv-{DEAD}", f".out.effconv-{DEAD}.old"))
        make(out, OLD)
        make(new, NEW)
        (place / ".out.effconv.journal").write_text(json.dumps({"old": old.name, "new": new.name}))
        if moment > 0:
            out.rename(old)
        if moment > 1:
            new.rename(out)
        clear_stale(out)
        assert snapshot(place) == {f"out/{name}": content for name, content in (NEW if moment else OLD).items()}
        assert names(place) == ["out"]


def test_a_replacement_that_fails_half_way_is_undone(tmp_path, monkeypatch):
    out, new = make(tmp_path / "out", OLD), make(tmp_path / f".out.effconv-{DEAD}", NEW)
    rename = Path.rename

    def fail_for_new(self, target):
        if self == new:
            raise OSError(errno.EACCES, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(PermissionError):
        exchange_with_journal(new, out)
    assert snapshot(tmp_path) == {"out/old.txt": b"old", f"{new.name}/new.txt": b"new"}


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 5000,
        '{"old": 1, "new": 2}',
        '{"old": "../precious", "new": "../precious"}',
        '{"old": "precious", "new": ".out.effconv-0123abcd"}',
        '{"old": ".out.effconv-0123abcd/../precious", "new": ".out.effconv-0123abcd"}',
        '{"old": ".out.effconv-0123abcd.old", "new": "precious"}',
    ],
)
def test_a_journal_that_no_run_wrote_removes_nothing(journal, tmp_path):
    precious = make(tmp_path / "precious", OLD)
    (tmp_path / ".out.effconv.journal").write_text(journal)
    publish(tmp_path / "out")
    assert snapshot(precious) == OLD
    assert names(tmp_path) == ["out", "precious"]


def test_a_journal_of_a_living_run_is_left_alone(tmp_path):
    with Staging(tmp_path / "out", overwrite=True) as living:
        old = living.folder.with_name(living.folder.name + ".old")
        make(old, OLD)
        (tmp_path / ".out.effconv.journal").write_text(json.dumps({"old": old.name, "new": living.folder.name}))
        clear_stale(tmp_path / "out")
        assert snapshot(old) == OLD
        assert living.folder.is_dir()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("relation", [".", "inside", "..", "inside/deep", "../source"])
def test_an_output_that_overlaps_the_source_is_refused(relation, tmp_path):
    source = make(tmp_path / "source", OLD)
    with pytest.raises(OutputError, match="overlap"):
        check_apart(source, source / relation)
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(OutputError, match="overlap"):
        check_apart(link, source)
    check_apart(source, tmp_path / "source-2")


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match="not enough disk space: 5 MB needed"):
        check_room(tmp_path / "not" / "there", 5_000_000)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_what_the_system_says_of_the_output_becomes_advice(number, says, tmp_path, monkeypatch):
    def fail(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(staging, "_fsync", fail)
    with pytest.raises(OutputError, match=says) as caught:
        publish(tmp_path / "out")
    assert caught.value.hint
    assert names(tmp_path) == []


def test_a_folder_that_overwrite_would_not_replace_is_said_to_be_one(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no model") as caught:
            check_output(output, overwrite=overwrite, of_models=True)
        assert "--overwrite" not in caught.value.hint
    (output / "config.json").touch()
    with pytest.raises(OutputError, match="the output folder is not empty\n") as caught:
        check_output(output, overwrite=False, of_models=True)
    assert "--overwrite" in caught.value.hint
    check_output(output, overwrite=True, of_models=True)


def test_paths_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for path, says in (("file/deep/out", "not a folder"), ("loop/out", "not a folder"), ("x" * 300, "too long")):
        with pytest.raises(OutputError, match=says):
            publish(tmp_path / path)
    assert names(tmp_path) == ["file", "loop"]


@pytest.mark.slow
def test_two_runs_to_one_output_end_with_one_whole_folder(tmp_path):
    program = """
import sys
from pathlib import Path
from effconv.convert.errors import OutputError
from effconv.convert.io.staging import Staging
for turn in range(20):
    try:
        with Staging(Path(sys.argv[1]), overwrite=True) as made:
            for name in "abc":
                (made.folder / name).write_text(sys.argv[2])
            made.publish()
    except OutputError as error:
        sys.exit(str(error))
"""
    out = tmp_path / "out"
    runs = [subprocess.Popen([sys.executable, "-c", program, str(out), str(number)]) for number in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(set(snapshot(out).values())) == 1
    assert len(snapshot(out)) == 3
    assert names(tmp_path) == ["out"]


def test_a_name_that_transformers_could_not_load_is_refused_first(tmp_path):
    check_output(tmp_path / "é-9.txt", overwrite=False)
    with pytest.raises(OutputError, match="_hyphen_"):
        check_output(tmp_path / "-".join(["part"] * 20), overwrite=False)
    with pytest.raises(OutputError, match="too long"):
        check_output(tmp_path / ("字" * 80), overwrite=False)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write to either")
def test_a_folder_that_takes_no_files_is_refused_first(tmp_path):
    for output in (Path("/proc/out"), Path("/proc/self/deep/out")):
        with pytest.raises(OutputError) as caught:
            check_output(output, overwrite=False)
        assert caught.value.where.startswith("/proc")
        assert "--output" in caught.value.hint
    with pytest.raises(OutputError) as caught:
        check_writable(Path("/proc/all.json"), "--results")
    assert "--results" in caught.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        check_writable(tmp_path / "file" / "out.npy")
    check_writable(tmp_path / "new" / "out.npy")
    assert names(tmp_path) == ["file"]
