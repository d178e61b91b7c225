"""Writes the output atomically: a staging folder next to it becomes the output in one step, or is removed.

An old output is removed only after the new one is in place. A killed run leaves at most a staging folder without
an owner, which the next run removes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import EffconvError, OutputError, UsageError
from . import system

LONGEST_NAME = 255  # bytes of a file's name, on Linux and macOS
TOKEN = re.compile(r"[0-9a-f]{8}")  # of a staging folder's name: nothing else is ever cleared


class Staging:
    """A folder next to the output that becomes the output when `publish` is called, and is removed on any error.

    A run holds an exclusive lock on its staging folder, so that the next run can recognise the folder of a killed run
    and remove it.

    Args:
        overwrite: whether to replace a non-empty output. None: the command never does, and has no --overwrite.

    Raises:
        OutputError: the output exists and may not be replaced, no permission, disk full.
        UnsupportedError: on Windows.
    """

    def __init__(self, output: Path, *, overwrite: bool | None) -> None:
        system.require_supported_system()
        self.output = output
        self.overwrite = overwrite
        self.folder = _staging_path(output, secrets.token_hex(4))
        self._lock_path = _lock_path(self.folder)
        self._lock = -1
        self._made: list[Path] = []  # folders above the output that did not exist, the deepest first

    def __enter__(self) -> Staging:
        try:
            with output_errors(self.output):
                _check_above(self.output)
                self._made = list(itertools.takewhile(lambda folder: not folder.exists(), self.output.parents))
                self.output.parent.mkdir(parents=True, exist_ok=True)
                clear_stale(self.output)
                check_output(self.output, overwrite=self.overwrite)
                self._lock = _locked(self._lock_path)
                self.folder.mkdir()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, error: object = None, traceback: object = None) -> None:
        if isinstance(error, EffconvError) and error.where.startswith(str(self.folder)):
            error.where = ""  # nobody can look there any more
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock >= 0:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
        with contextlib.suppress(OSError):  # the first one that holds something, such as the output, ends this
            for folder in self._made:
                folder.rmdir()

    def publish(self) -> None:
        """Makes the staging folder the output, durably. An old output is removed only after the new one is in place."""
        with output_errors(self.output):
            for path in (*sorted(self.folder.rglob("*")), self.folder):
                (_fsync_folder if path.is_dir() else _fsync)(path)
            try:
                self.folder.rename(self.output)  # where nothing stands, or an empty folder
            except OSError:
                if not os.path.lexists(self.output):
                    raise
                check_output(self.output, overwrite=self.overwrite)
                _exchange(self.folder, self.output)
            _fsync_folder(self.output.parent)

    def keep_failed(self, mark: str) -> Path:
        """Renames the staging folder to OUTPUT.failed and returns its new path.

        A folder from an earlier failure (it contains the file `mark`) is replaced. Anything else of that name is kept,
        and a number is added to the new name.
        """
        for number in itertools.count(1):
            kept = self.output.with_name(f"{self.output.name}.failed" + (f"-{number}" if number > 1 else ""))
            if not os.path.lexists(kept):
                break
            if kept.is_dir() and not kept.is_symlink() and (kept / mark).is_file():
                kept.rename(_old_path(self.folder))  # killed here, the next run clears it
                break
        try:
            self.folder.rename(kept)
        finally:
            shutil.rmtree(_old_path(self.folder), ignore_errors=True)
        _fsync_folder(kept.parent)
        return kept


def check_output(output: Path, *, overwrite: bool | None, of_models: bool = False) -> None:
    """Refuses a non-empty output unless it may be overwritten, and a path where no folder can be created.

    Args:
        overwrite: None if the command has no --overwrite.
        of_models: the command replaces no folder that contains no model, in case the path was mistyped.

    Raises:
        OutputError: one of these.
    """
    _check_above(output)
    _check_loadable(output)
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputError(
            "the output exists and is not a folder", where=str(output), hint="choose another path with --output"
        )
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if of_models and overwrite is not None and names and not names & {"effconv.json", "config.json"}:
        raise OutputError(
            "the output folder has other files and no model, so --overwrite does not replace it"
            if overwrite
            else "the output folder is not empty, and has no model that --overwrite would replace",
            where=str(output),
            hint="choose another path with --output, or remove the folder yourself",
        )
    if names and not overwrite:
        raise OutputError(
            "the output folder is not empty",
            where=str(output),
            hint="choose another folder with --output"
            if overwrite is None
            else "pass --overwrite, or choose another path with --output",
        )
    check_writable(output)


def check_writable(output: Path, option: str = "--output") -> None:
    """Refuses an output whose folder takes no files, before the work is done. The folder need not exist.

    Permissions do not tell: root passes every check of them, and still cannot write to /proc or a read-only disk.

    Raises:
        OutputError: a file cannot be created next to the output, or part of its path is not a folder.
    """
    output = output.absolute()
    _check_above(output)
    above = next(folder for folder in output.parents if folder.is_dir())
    hint = f"choose another place with {option}"
    try:
        with output_errors(above), tempfile.TemporaryFile(dir=above, prefix=".effconv-"):
            pass
    except OutputError as error:
        error.hint = hint
        raise
    except OSError as error:
        raise OutputError(f"no file can be created here ({error.strerror})", where=str(above), hint=hint) from None


def _check_loadable(output: Path) -> None:
    """Refuses a name from which transformers could not load: it copies a repo's code to a folder of a longer name."""
    name = _staging_path(output, "0" * 8).name.replace(".", "_dot_").replace("-", "_hyphen_")
    excess = len(os.fsencode(name)) - LONGEST_NAME
    if excess > 0:
        raise OutputError(
            "the name of the output folder is too long: transformers writes its code to a folder of that name, with "
            f"_dot_ and _hyphen_ for every . and -, and so it has {excess} bytes too many",
            where=str(output),
            hint="choose a shorter name with --output",
        )


def _check_above(output: Path) -> None:
    above = next(folder for folder in output.parents if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(
            "part of the output path is not a folder", where=str(above), hint="choose another path with --output"
        )


def require_folder(folder: Path, flag: str) -> None:
    """Raises UsageError where an option names a folder, and a file is in its place or in place of one above it."""
    folder = folder.absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        what = f"{flag} is a file" if there == folder else f"a part of the path of {flag} is a file"
        raise UsageError(what, where=str(there), hint=f"give a folder with {flag}")


def check_apart(source: Path | None, output: Path) -> None:
    """Refuses an output inside the source, or around it."""
    if source is None:
        return
    here, there = source.resolve(), output.resolve()
    around = [(here, folder) for folder in (there, *there.parents)] + [(folder, there) for folder in here.parents]
    if any(system.same_place(one, other) for one, other in around):
        raise OutputError(
            "the output folder and the source folder must not overlap",
            where=str(output),
            hint="choose another folder with --output",
        )


def check_room(folder: Path, needed: int) -> None:
    """Refuses to start if the disk has too little space."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"not enough disk space: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free",
            where=str(folder),
            hint="free some space, or choose another disk with --output",
        )


@contextlib.contextmanager
def output_errors(output: Path, flag: str = "--output") -> Iterator[None]:
    """Turns operating system errors about the output into OutputErrors with a hint.

    Args:
        flag: the option that names the output.
    """
    hints: Mapping[int | None, tuple[str, str]] = {
        errno.ENOSPC: ("the disk is full", "free some space, or choose another disk with --output"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another disk with --output"),
        errno.EACCES: ("no permission to write the output", "choose another folder with --output"),
        errno.EPERM: ("no permission to write the output", "choose another folder with --output"),
        errno.EROFS: ("the output is on a read-only disk", "choose another folder with --output"),
        errno.EFBIG: (
            "a file would be larger than the disk or the process's limit (ulimit -f) allows",
            "raise the limit, choose another disk with --output, or convert into smaller files with --max-shard-size",
        ),
        errno.ENAMETOOLONG: ("the output path is too long", "choose a shorter one with --output"),
        errno.ENOTEMPTY: (
            "another process created the output folder during this run",
            "pass --overwrite, or choose another path with --output",
        ),
        errno.EEXIST: (
            "another process created the output folder during this run",
            "pass --overwrite, or choose another path with --output",
        ),
        errno.EIO: ("the disk reported an error", "choose another disk with --output"),
    }
    try:
        yield
    except OSError as error:
        if error.errno not in hints:
            raise
        what, hint = hints[error.errno]
        raise OutputError(what, where=str(output), hint=hint.replace("--output", flag)) from None


def clear_stale(output: Path) -> None:
    """Finishes or removes what a killed run left: the journal of a replacement, then ownerless staging folders."""
    journal = _journal(output)
    if journal.exists():
        replacement = _replacement(journal, output)
        if replacement is None:  # cut short before anything was renamed
            journal.unlink()
        elif not _owned(replacement[1]):
            old, new = replacement
            if not output.exists():
                (new if new.exists() else old).rename(output)
            shutil.rmtree(old, ignore_errors=True)
            journal.unlink()
    for name in os.listdir(output.parent):
        folder = output.parent / name.removesuffix(".lock").removesuffix(".old")
        if _is_staging(folder, output) and not _owned(folder):
            for left in (folder, _old_path(folder)):
                shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # in a shared folder it may be somebody else's
                _lock_path(folder).unlink(missing_ok=True)


def _replacement(journal: Path, output: Path) -> tuple[Path, Path] | None:
    """The old and the new folder that a journal names, or None.

    Anybody may write into the output's parent: what is removed or renamed must be a staging folder.
    """
    try:
        names = json.loads(journal.read_text(encoding="utf-8"))
        old, new = output.parent / names["old"], output.parent / names["new"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (old, new) if _is_staging(new, output) and old == _old_path(new) else None


def _locked(path: Path) -> int:
    """A new lock file, locked; the lock ends with the process, whatever ends it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # some network file systems have no locks: then nothing is ever cleared
            system.lock(descriptor, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # another run took it for a dead one's before it was locked


def _owned(folder: Path) -> bool:
    """Whether the run that made the staging folder lives: it holds the lock beside it. True where nobody can tell."""
    try:
        descriptor = os.open(_lock_path(folder), os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        system.lock(descriptor, wait=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _old_path(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _staging_path(output: Path, token: str) -> Path:
    return output.parent / f".{output.name}.effconv-{token}"


def _is_staging(folder: Path, output: Path) -> bool:
    token = folder.name.rpartition("-")[2]
    return bool(TOKEN.fullmatch(token)) and folder == _staging_path(output, token)


def _journal(output: Path) -> Path:
    return output.parent / f".{output.name}.effconv.journal"


def _exchange(new: Path, output: Path) -> None:
    """Swaps the two folders in one call where the system has it, else by two renames and a journal."""
    if not system.exchanged(new, output):
        exchange_with_journal(new, output)


def exchange_with_journal(new: Path, output: Path) -> None:
    """Two renames; killed between them, the next run finds the journal and finishes the replacement."""
    old = _old_path(new)
    journal = _journal(output)
    try:
        journal.write_text(json.dumps({"old": old.name, "new": new.name}), encoding="utf-8")
        _fsync(journal)
        _fsync_folder(output.parent)
        output.rename(old)
        new.rename(output)
    except BaseException:
        if not output.exists():
            old.rename(output)  # where even this fails, the journal stays and the next run does it
        raise
    finally:
        if output.exists():
            journal.unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        system.sync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    """Makes renames in a folder durable, where the file system can: some refuse, and the renames stand all the same."""
    with contextlib.suppress(OSError):
        _fsync(folder)
