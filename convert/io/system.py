"""System calls that some systems lack, with fallbacks.

Linux has all of them, macOS some, and an unusual build of Python or a network file system may lack any. Nothing else in
effconv calls these by name, so a conversion runs wherever Python has files. Windows is refused: nothing was run there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from pathlib import Path

from ..errors import UnsupportedError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

COPY_BUFFER = 1 << 21  # bytes: small enough to stay in the processor's cache
NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)  # what file systems answer
_seeking = threading.Lock()


def require_supported_system() -> None:
    """Raises UnsupportedError on Windows."""
    if sys.platform == "win32":
        raise UnsupportedError(
            "effconv does not run on Windows directly. Use WSL: run `wsl --install`, then install effconv in it"
        )


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Reads from a place in an open file; returns the bytes read, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    data = read_at(descriptor, len(buffer), offset)
    buffer[: len(data)] = data
    return len(data)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """The bytes at a place in an open file, fewer at its end.

    Without `pread` the file's position moves, so nothing else may read or write there through the same descriptor.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def copy_range(source: int, target: int, start: int, count: int) -> int:
    """Copies bytes of one open file to the position of another; returns how many, 0 at the source's end.

    Inside the system, or through a buffer where the system or the file systems cannot do that.
    """
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset_src=start)
        except OSError as error:
            if error.errno not in NO_COPY_RANGE:
                raise
    data = read_at(source, min(count, COPY_BUFFER), start)
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def write_back(descriptor: int) -> None:
    """Has the disk hold what was written to an open file so far."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def sync(descriptor: int) -> None:
    """Has the disk hold an open file. macOS's fsync leaves data in the disk's own cache; another call empties that."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # network file systems refuse
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def lock(descriptor: int, *, wait: bool) -> None:
    """Locks an open file until it is closed or the process ends, whatever ends it.

    Raises:
        OSError: somebody else holds the lock, or there are no locks here: some network file systems have none.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def exchanged(one: Path, other: Path) -> bool:
    """Swaps two folders in one call; False where the system or the file system cannot."""
    import ctypes  # takes milliseconds, which --help has no use for

    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no such function, no C library to ask
        return False
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, also by links or by a name in other letters where the disk ignores case."""
    with contextlib.suppress(OSError):
        return one.samefile(other)
    return one == other


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a run to end, of those that the system has."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
