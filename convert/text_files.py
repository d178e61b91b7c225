"""Text files that a command reads: named one or several, refused early where a look shows it, read once."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInputError, listing

Named = str | os.PathLike[str]
LOOKED_AT = 1 << 16  # bytes of a file that are read before anything heavy is loaded
HINT = "give UTF-8 text files that are there"


def one_or_several(value: Named | Iterable[Named] | None) -> tuple[Named, ...]:
    """What a Python caller named: a single path or name stands for a list of one, and None for none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)


def require_readable(files: Iterable[Path], where: str) -> None:
    """Opens every file and looks at its first bytes: what is wrong further on, `read_utf8` finds.

    Args:
        where: the option that named them.

    Raises:
        BadInputError: with every file that is missing, closed, a folder or no UTF-8.
    """
    faults = []
    for path in files:
        try:
            with path.open("rb") as file:
                start = file.read(LOOKED_AT)
            codecs.getincrementaldecoder("utf-8")().decode(start)  # whose end may cut a character
        except (OSError, UnicodeDecodeError) as error:
            faults.append(_fault(path, error))
    if faults:
        raise _unreadable(faults, where)


def read_utf8(path: Path, where: str) -> str:
    """The whole text of a file.

    Args:
        where: the option that named it.

    Raises:
        BadInputError: it is no UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable([_fault(path, error)], where) from None


def joined(files: Sequence[Path], where: str) -> str:
    """The text of all files, one after the other.

    Raises:
        BadInputError: as `read_utf8`.
    """
    return "\n".join(read_utf8(path, where) for path in files)


def special_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    body, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    lead = next(i for i in range(len(whole)) if whole[i : i + len(body)] == body)
    return whole[:lead], whole[lead + len(body) :]


def _fault(path: Path, error: OSError | UnicodeDecodeError) -> str:
    says = f"it is no UTF-8 ({error.reason})" if isinstance(error, UnicodeDecodeError) else error.strerror
    return f"{path}: {says}"


def _unreadable(faults: Sequence[str], where: str) -> BadInputError:
    which = f" {faults[0]}" if len(faults) == 1 else f"\n{listing(faults)}"
    return BadInputError(f"the text cannot be read:{which}", where=where, hint=HINT)
