"""The errors of effconv and their exit codes.

Every error has three parts: what is wrong, where, and what to do next. The command line prints them and exits with
`exit_code`. The Python API raises them.
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
        made: the result if there is one in spite of the error, such as a conversion whose push failed; else None.
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
    """An option has an invalid value, or conflicts with another option."""

    exit_code = 2


class UnsupportedError(EffconvError):
    """The source is valid, but effconv does not support it."""

    exit_code = 3


class BadInputError(EffconvError):
    """The source or another input is missing, damaged or inconsistent."""

    exit_code = 4


NO_EMBEDDING = BadInputError(
    "a token of a text has no embedding in the model: its tokenizer and its weights do not belong together",
    hint="compare the ids in tokenizer.json with vocab_size in config.json, and download the model again or train the "
    "new tokens' embeddings",
)


class CheckFailedError(EffconvError):
    """A repo fails a check, or its files differ from its manifest.

    Attributes:
        measured: one entry per check (`manifest.Measured`), if all checks ran.
    """

    exit_code = 5
    measured: tuple[Any, ...] = ()


class HubError(EffconvError):
    """The network or the Hub failed."""

    exit_code = 6


class OutputError(EffconvError):
    """The output cannot be written: it exists, the disk is full, no permission."""

    exit_code = 7


class StoppedError(EffconvError):
    """Ctrl-C in a run that leaves something behind, which the message names."""

    exit_code = 130


def beyond_a_table(said: str) -> bool:
    """Whether torch looked up a row that an embedding table does not have (on a CPU: on a GPU it says less)."""
    return "IndexError: index out of range in self" in said


def memory_ran_out(said: str) -> bool:
    """Whether the last words of a process or a library say that it ran out of memory."""
    return bool(OUT_OF_MEMORY.search(said))


def joined_hints(*hints: str) -> str:
    """Several hints as one."""
    return "; ".join(filter(None, hints))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Continues a sentence with the known word that is closest to a misspelt one; "" if none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def listing(faults: Iterable[str]) -> str:
    """All faults as one indented list: the first twenty, then the number of the others."""
    faults = list(faults)
    lines = [f"    {fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"    ... and {len(faults) - SHOWN_FAULTS} more")
    return "\n".join(lines)
