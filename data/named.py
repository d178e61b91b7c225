"""The texts of files, each with an id and its file: rows of tables, articles of WikiText, lines or whole text files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from ..convert.text import read_utf8
from .documents import HEADING, table, text_documents
from .files import TABULAR, require_files
from .rows import PLAIN, plain_table


@dataclass(frozen=True, slots=True)
class NamedText:
    """A text with its id and the file that has it."""

    id: str
    file: str
    text: str


def read_named(
    files: Sequence[str],
    *,
    column: str = "text",
    id_column: str | None = None,
    lines: bool = False,
    where: str = "--data",
) -> Iterator[NamedText]:
    """The texts of all files that hold more than white space.

    Args:
        column, id_column: of .jsonl, .json, .csv and .parquet files. Without an id, a text is FILE#ROW.
        lines: a text per line of a text file, else one per top heading of WikiText, or the whole file.
        where: the option that lists the files.

    Raises:
        BadInputError: a file cannot be read, a column is missing, or no file has text.
    """
    require_files(files, where)
    missing = [name for name in files if not Path(name).exists()]
    if missing:
        raise BadInputError(f"no such file: {missing[0]}", where=where, hint="check the name and the current folder")
    any_text = False
    for name in files:
        path = Path(name)
        for i, (own, text) in enumerate(
            _rows(path, column, id_column) if path.suffix in TABULAR else _plain(path, lines)
        ):
            if text.strip():
                any_text = True
                yield NamedText(path.name + f"#{i}" if own is None else str(own), name, text)
    if not any_text:
        raise BadInputError("the data contains no text", where=where, hint="give files with text in them")


def _rows(path: Path, column: str, id_column: str | None) -> Iterator[tuple[Any, str]]:
    """Id and text of each row; a row whose text is missing or no text is passed over."""
    known = importlib.util.find_spec("datasets") is not None or path.suffix not in PLAIN
    rows = table(path) if known else plain_table(path)
    wanted = {"--text-column": column} | ({"--id-column": id_column} if id_column else {})
    for flag, name in wanted.items():
        if name not in rows.column_names:
            raise BadInputError(
                f"no column {name!r}, found {', '.join(rows.column_names)}",
                where=str(path),
                hint=f"give the column with {flag}",
            )
    texts = list(rows[column])
    ids = list(rows[id_column]) if id_column else [None] * len(texts)
    for own, text in zip(ids, texts, strict=True):
        yield own, text if isinstance(text, str) else ""


def _plain(path: Path, lines: bool) -> Iterator[tuple[Any, str]]:
    text = read_utf8(path, "--data")
    parts = text_documents if len(HEADING.findall(text)) > 1 else lambda whole: [whole]
    found = text.splitlines() if lines else parts(text)
    if len(found) == 1:
        yield path.name, found[0]
        return
    yield from ((None, part) for part in found)
