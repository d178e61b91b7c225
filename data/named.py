"""The texts of files, each with an id and its file: rows of tables, articles of WikiText, lines or whole text files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from ..convert.text import read_utf8
from .documents import HEADING, table_texts, text_documents
from .files import require_files, table_form


@dataclass(frozen=True, slots=True)
class NamedText:
    """A text with its id and the file that has it."""

    id: str
    file: str
    text: str


class NamedTexts(Iterator[NamedText]):
    """A stream of texts.

    Attributes:
        rows_without_text: rows of tables that were left out so far, as their text is null, missing or white space.
    """

    def __init__(self, read: Callable[[NamedTexts], Iterator[NamedText]]) -> None:
        self.rows_without_text = 0
        self._stream = read(self)

    def __next__(self) -> NamedText:
        return next(self._stream)


def read_named(
    files: Sequence[str],
    *,
    column: str = "text",
    id_column: str | None = None,
    lines: bool = False,
    where: str = "--data",
) -> NamedTexts:
    """The texts of all files that hold more than white space.

    Args:
        column, id_column: of .jsonl, .json, .csv and .parquet files. Without an id, a text is FILE#ROW.
        lines: a text per line of a text file, else one per top heading of WikiText, or the whole file.
        where: the option that lists the files.

    Raises:
        BadInputError: a file cannot be read, a column is missing, a value is not a text, or no file has text. Of
            tables, before the first text.
    """

    def read(texts: NamedTexts) -> Iterator[NamedText]:
        require_files(files, where)
        missing = [name for name in files if not Path(name).exists()]
        if missing:
            raise BadInputError(
                f"no such file: {missing[0]}", where=where, hint="check the name and the current folder"
            )
        for name in files:
            if table_form(name):
                for _ in table_texts(Path(name), column, id_column=id_column):  # embedding is slow: a fault is told now
                    pass
        any_text = False
        for name in files:
            path, table = Path(name), table_form(name)
            for i, (own, text) in enumerate(
                table_texts(path, column, id_column=id_column) if table else _plain(path, lines, where)
            ):
                if text is not None and text.strip():
                    any_text = True
                    yield NamedText(path.name + f"#{i}" if own is None else str(own), name, text)
                elif table:
                    texts.rows_without_text += 1
        if not any_text:
            raise BadInputError("the data contains no text", where=where, hint="give files with text in them")

    return NamedTexts(read)


def _plain(path: Path, lines: bool, where: str) -> Iterator[tuple[Any, str]]:
    text = read_utf8(path, where)
    parts = text_documents if len(HEADING.findall(text)) > 1 else lambda whole: [whole]
    found = text.splitlines() if lines else parts(text)
    if len(found) == 1:
        yield path.name, found[0]
        return
    yield from ((None, part) for part in found)
