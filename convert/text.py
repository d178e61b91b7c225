"""Reads text files and provides the built-in texts. Unreadable files are refused early."""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import BadInputError, listing

Named = str | os.PathLike[str]
LOOKED_AT = 1 << 16  # bytes of a file that are read before anything heavy is loaded
HINT = "give existing files in UTF-8 that you have permission to read"


def one_or_several(value: Named | Iterable[Named] | None) -> tuple[Named, ...]:
    """A single path or name as a list of one, None as an empty list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)


def require_readable(files: Iterable[Path], where: str, *, binary: Collection[Path] = ()) -> None:
    """Opens every file and checks its first bytes. `read_utf8` reports faults further on.

    Args:
        where: the option that lists the files. binary: those of them that are not text.

    Raises:
        BadInputError: lists every file that is missing, unreadable, a folder or not UTF-8.
    """
    faults = []
    for path in files:
        try:
            with path.open("rb") as file:
                start = file.read(LOOKED_AT)
            if path not in binary:
                codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be incomplete
        except (OSError, UnicodeDecodeError) as error:
            faults.append(_fault(path, error, from_start=True))
    if faults:
        raise _unreadable(faults, where)


def read_utf8(path: Path, where: str) -> str:
    """The whole text of a file.

    Args:
        where: the option that lists the file.

    Raises:
        BadInputError: the file is not UTF-8 or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, where, from_start=True) from None


def joined(files: Sequence[Path], where: str) -> str:
    """The text of all files, one after the other. Of a .jsonl, .json, .csv or .parquet file, its column `text`.

    Raises:
        BadInputError: as `read_utf8`, or a table has no column `text`.
    """
    from ..data.documents import table_rows  # on demand: it imports this module
    from ..data.files import table_form

    return "\n".join(
        "\n".join(table_rows(path, "text", flag=None)) if table_form(path) else read_utf8(path, where) for path in files
    )


def unreadable(
    path: Path, error: OSError | UnicodeDecodeError, where: str, *, from_start: bool = False
) -> BadInputError:
    """The error for a text file that cannot be read.

    Args:
        from_start: whether the decoder was given the file from its first byte on, so that the line is known.
    """
    return _unreadable([_fault(path, error, from_start=from_start)], where)


def _fault(path: Path, error: OSError | UnicodeDecodeError, *, from_start: bool) -> str:
    if isinstance(error, OSError):
        return f"{path}: {error.strerror}"
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"{path}: not valid UTF-8 ({error.reason})" + (f", line {line}" if from_start else "")


def _unreadable(faults: Sequence[str], where: str) -> BadInputError:
    which = f" {faults[0]}" if len(faults) == 1 else f"\n{listing(faults)}"
    return BadInputError(f"cannot read the text:{which}", where=where, hint=HINT)


FITTING_SHARE = 0.75


def fitting_text() -> str:
    """The built-in text for calibration."""
    return "".join(_articles()[0])


def measuring_text() -> str:
    """The built-in text for fidelity: articles that are not used for calibration."""
    return "".join(_articles()[1])


def _articles() -> tuple[list[str], list[str]]:
    text = (resources.files(__package__) / "data" / "text.txt").read_text(encoding="utf-8")
    articles = [f" = {article}" for article in text.removeprefix(" = ").split("\n = ")]
    first = int(len(articles) * FITTING_SHARE)
    return articles[:first], articles[first:]


def counted(count: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def six_digits(figure: float) -> float:
    """Rounds a float32 result to six digits, so that equal states have a cosine of 1."""
    return float(f"{figure:.6g}")


UNKNOWN_FINDING, UNKNOWN_REFUSED = 0.05, 0.3  # shares of tokens that the tokenizer does not know


def check_tokens(tokens: Sequence[int], tokenizer: Any, rows: int, name: str) -> tuple[float, list[str]]:
    """The share of tokens unknown to the tokenizer, and a finding if it is high.

    Raises:
        BadInputError: a token id beyond the model's word embeddings, or a text that is mostly unknown to the tokenizer.
    """
    largest = max(tokens, default=0)
    if largest >= rows:
        raise BadInputError(
            f"the tokenizer gives the token id {largest}, but the source's word embeddings have only {rows} rows",
            where="the source's tokenizer files",
            hint="use the tokenizer that belongs to the weights",
        )
    unknown = sum(token == tokenizer.unk_token_id for token in tokens) / max(len(tokens), 1)
    if unknown > UNKNOWN_REFUSED:
        raise BadInputError(
            f"the source's tokenizer does not know {unknown:.0%} of the text's tokens",
            where=name,
            hint="give text in a language that the source was trained on",
        )
    if unknown <= UNKNOWN_FINDING:
        return unknown, []
    return unknown, [
        f"{unknown:.0%} of the text's tokens are unknown to the tokenizer: check that the language is right"
    ]


def special_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text.

    Raises:
        BadInputError: the tokenizer with special tokens does not keep the text's own tokens together.
    """
    body, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    lead = next((i for i in range(len(whole)) if body and whole[i : i + len(body)] == body), None)
    if lead is None:
        raise BadInputError(
            f"cannot tell the special tokens from the text: 'a' is {body} without them and {whole} with them",
            where="the source's tokenizer files",
            hint="use the tokenizer that belongs to the weights",
        )
    return whole[:lead], whole[lead + len(body) :]
