"""Peak memory of this process, on Linux: what is resident now, and the most that was since it was last asked."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> int | None:
    """Forgets the peak so far; returns what is resident, in bytes, or None where the system does not tell."""
    resident()  # gives freed memory back, so that it counts again
    try:
        CLEAR.write_bytes(b"5")  # the peak is what is resident now
        return _field("VmHWM")
    except OSError:
        return None


def peak() -> int:
    """The most that was resident since `begin`, in bytes."""
    return _field("VmHWM")


def resident() -> int | None:
    """What is resident now, in bytes, or None where the system does not tell; freed memory is given back first."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        return _field("VmRSS")
    except OSError:
        return None


def _field(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
