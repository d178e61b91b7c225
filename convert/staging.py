"""The output folder: built in a staging folder beside it, which becomes the output in one step, or vanishes.

What stood at the output before goes only when the new one stands. A killed run leaves at most a staging folder without
an owner, which the next run clears.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import OutputError, UsageError


class Staging:
    """A folder beside the output that becomes the output when `publish` is called, and vanishes on any error.

    Staging folders hold an exclusive lock while their run lives, so that the next run can tell a killed run's folder
    from a running one's, and clears it.

    Raises:
        OutputError: the output exists and `overwrite` is off, no permission, disk full.
    """

    def __init__(self, output: Path, *, overwrite: bool) -> None:
        self.output = output
        self.overwrite = overwrite
        self.folder = output.parent / f"{_prefix(output)}{secrets.token_hex(4)}"
        self._lock_path = self.folder.with_name(self.folder.name + ".lock")
        self._lock = -1

    def __enter__(self) -> Staging:
        with output_errors(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
            clear_stale(self.output)
            check_output(self.output, overwrite=self.overwrite)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)

    def publish(self) -> None:
        """Makes the staging folder the output, durably. What stood there before goes only when the new one stands."""
        with output_errors(self.output):
            for path in sorted(self.folder.rglob("*")):
                _fsync(path)
            _fsync(self.folder)
            if self.output.exists():
                if not self.overwrite and any(self.output.iterdir()):
                    check_output(self.output, overwrite=False)
                _exchange(self.folder, self.output)
            else:
                self.folder.rename(self.output)
            _fsync(self.output.parent)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output that holds something, unless it may be overwritten."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError("the output exists and is not a folder", where=str(output), hint="choose another with --output")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputError(
            "the output folder is not empty", where=str(output), hint="pass --overwrite, or choose another with --output"
        )


def check_apart(source: Path | None, output: Path) -> None:
    """Refuses an output inside the source, or around it."""
    if source is None:
        return
    here, there = source.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(
            "the output and the source overlap, and the source is never touched",
            where=str(output),
            hint="choose a folder elsewhere with --output",
        )


def check_room(folder: Path, needed: int) -> None:
    """Refuses to begin what the disk cannot hold."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the disk is too full: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free",
            where=str(folder),
            hint="make room, or choose another disk with --output",
        )


@contextlib.contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Turns the system's errors about the output into ones with advice."""
    hints: Mapping[int | None, tuple[str, str]] = {
        errno.ENOSPC: ("the disk is full", "make room, or choose another disk with --output"),
        errno.EDQUOT: ("the disk quota is used up", "make room, or choose another disk with --output"),
        errno.EACCES: ("no permission to write the output", "choose another folder with --output"),
        errno.EPERM: ("no permission to write the output", "choose another folder with --output"),
        errno.EROFS: ("the output is on a read-only disk", "choose another folder with --output"),
        errno.ENOTDIR: ("a part of the output's path is a file", "choose another folder with --output"),
        errno.EFBIG: ("the disk does not take files of this size", "pass --max-shard-size 2GB"),
        errno.ENAMETOOLONG: ("the output's name is too long", "choose a shorter one with --output"),
    }
    try:
        yield
    except OSError as error:
        if error.errno not in hints:
            raise
        what, hint = hints[error.errno]
        raise OutputError(what, where=str(output), hint=hint) from None


def clear_stale(output: Path) -> None:
    """Finishes or clears what a killed run left: first the journal of a replacement, then staging folders without owner."""
    journal = _journal(output)
    if journal.exists():
        # A journal that cannot be parsed was cut short before anything was renamed.
        with contextlib.suppress(ValueError):
            names = json.loads(journal.read_text())
            old, new = output.parent / names["old"], output.parent / names["new"]
            if not output.exists():
                (new if new.exists() else old).rename(output)
            shutil.rmtree(old, ignore_errors=True)
        journal.unlink()
    for path in output.parent.glob(glob.escape(_prefix(output)) + "*"):
        folder = path.with_name(path.name.removesuffix(".lock"))
        if not _owned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(folder.name + ".lock").unlink(missing_ok=True)


def _owned(folder: Path) -> bool:
    """Whether the run that made the staging folder lives: it holds the lock beside it."""
    try:
        descriptor = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _prefix(output: Path) -> str:
    return f".{output.name}.effconv-"


def _journal(output: Path) -> Path:
    return output.parent / f".{output.name}.effconv.journal"


def _exchange(new: Path, output: Path) -> None:
    """Swaps the two folders in one call where the system has it, else by two renames and a journal."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(output), exchange) == 0:
        return
    exchange_with_journal(new, output)


def exchange_with_journal(new: Path, output: Path) -> None:
    """Two renames; killed between them, the next run finds the journal and finishes the replacement."""
    old = new.with_name(new.name + ".old")
    journal = _journal(output)
    journal.write_text(json.dumps({"old": old.name, "new": new.name}))
    _fsync(journal)
    output.rename(old)
    new.rename(output)
    journal.unlink()
    shutil.rmtree(old)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


