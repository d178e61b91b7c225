"""What can go wrong, and the exit code that says so.

Every error has three parts: what is wrong, where, and what to do next. The command line prints them and ends with
`exit_code`; the Python API raises them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SHOWN_FAULTS = 20
OUT_OF_MEMORY = re.compile(r"MemoryError|out of memory|can(?:'t|not) allocate memory", re.IGNORECASE)
MEMORY = "out of memory: close other programs or use a machine with more memory"
MEMORY_EXIT_CODE = 8


class EffconvError(Exception):
    """Base of every error that effconv raises on purpose.

    Args:
        what: what is wrong, one sentence.
        where: the file, tensor or option concerned.
        hint: what to do next.

    Attributes:
        made: what is there all the same, such as the result of a conversion whose push failed; else None.
    """

    exit_code = 1
    made: Any = None

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


class UsageError(EffconvError):
    """An option that makes no sense, alone or with another."""

    exit_code = 2


class UnsupportedError(EffconvError):
    """A source that is sound but that effconv does not convert."""

    exit_code = 3


class BadInputError(EffconvError):
    """A source that is missing, damaged or contradicts itself."""

    exit_code = 4


class CheckFailedError(EffconvError):
    """A repo that does not do what its manifest or its target promises.

    Attributes:
        measured: one entry a check (`manifest.Measured`), where the checks ran to their end.
    """

    exit_code = 5
    measured: tuple[Any, ...] = ()


class HubError(EffconvError):
    """The network or the Hub."""

    exit_code = 6


class OutputError(EffconvError):
    """The output: it exists, the disk is full, no permission."""

    exit_code = 7


class StoppedError(EffconvError):
    """Ctrl-C in a run of which something outlives it: the message says what."""

    exit_code = 130


def memory_ran_out(said: str) -> bool:
    """Whether what a process or a library said as it ended is that there was no memory left."""
    return bool(OUT_OF_MEMORY.search(said))


def joined_hints(*hints: str) -> str:
    """Several hints as one."""
    return "; ".join(filter(None, hints))


def listing(faults: Iterable[str]) -> str:
    """All faults of a kind as one indented list; beyond the first twenty, their count."""
    faults = list(faults)
    lines = [f"    {fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"    ... and {len(faults) - SHOWN_FAULTS} more")
    return "\n".join(lines)
