"""Text files that a command reads: named one or several, refused before anything heavy is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import BadInputError, listing

Named = str | os.PathLike[str]


def one_or_several(value: Named | Iterable[Named] | None) -> tuple[Named, ...]:
    """What a Python caller named: a single path or name stands for a list of one, and None for none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)


def require_readable(files: Iterable[Path], where: str) -> None:
    """Raises BadInputError with every file that is missing, closed, a folder or no UTF-8.

    Args:
        where: the option that named them.
    """
    faults = []
    for path in files:
        try:
            with path.open(encoding="utf-8") as lines:
                for _ in lines:  # of a corpus, a line at a time
                    pass
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except UnicodeDecodeError as error:
            faults.append(f"{path}: it is no UTF-8 ({error.reason})")
    if faults:
        which = f" {faults[0]}" if len(faults) == 1 else f"\n{listing(faults)}"
        raise BadInputError(
            f"the text cannot be read:{which}", where=where, hint="give UTF-8 text files that are there"
        )


def joined(files: Sequence[Path]) -> str:
    """The text of all files, one after the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
