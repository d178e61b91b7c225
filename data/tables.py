"""Rows of .jsonl, .json and .csv files, read as a stream by the standard library, and the texts of all tables.

`datasets` guesses: it shifts the columns of a CSV row with too many values, passes over lines that are not objects, and
fails on some files without saying where. So these files are read here, and every error names the file and the row.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from ..convert.text import counted
from .files import table_form

Row = tuple[str, dict[str, Any]]  # where the row is, such as "line 3", and its values by column
KINDS = {bool: "true and false", int: "numbers", float: "numbers", list: "lists", dict: "objects"}
FORMS = "give a JSONL, CSV or parquet file with the columns that are read"
QUOTES = "put quotes around texts that contain commas"
UTF8 = "save the file as UTF-8"


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .json or .csv file.

    Raises:
        BadInputError: it cannot be read, is not UTF-8, has no rows, or a row is damaged.
    """
    read = {"csv": _csv_rows, ".json": _json_rows}
    form = table_form(path)
    rows = read.get(path.suffix.lower() if form == "json" else str(form), _jsonl_rows)(path)
    first = next(rows, None)
    if first is None:
        raise BadInputError("the file has no rows", where=str(path), hint=FORMS)
    yield first
    yield from rows


def texts_of(
    rows: Iterable[Row],
    column: str,
    file: str,
    *,
    id_column: str | None = None,
    flag: str | None = "--text-column",
) -> Iterator[tuple[Any, str | None]]:
    """Id and text of each row; None for a row that has no text (null, or without the column).

    Args:
        file: the name of the file or dataset, for errors. id_column: column of the ids; without it they are None.
        flag: the option that names the column; None where there is none.

    Raises:
        BadInputError: no row has the column, or a value is not a text.
    """
    wanted = {column: flag} | ({id_column: "--id-column"} if id_column else {})
    names: dict[str, None] = {}
    for place, row in rows:
        names.update(dict.fromkeys(row))
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise not_text(column, value, f"{file}, {place}", flag)
        yield row.get(id_column) if id_column else None, value
    for name, option in wanted.items():
        if name not in names:
            raise no_column(name, names, file, option)


def no_column(column: str, names: Iterable[str], file: str, flag: str | None) -> BadInputError:
    """The error for a table without a column."""
    hint = f"give the column with {flag}" if flag else f"name the column with the texts {column!r}"
    return BadInputError(f"no column {column!r}, found {', '.join(map(str, names))}", where=file, hint=hint)


def not_text(column: str, value: Any, where: str, flag: str | None) -> BadInputError:
    """The error for a value that is not a text."""
    kind = KINDS.get(type(value), type(value).__name__)
    hint = f"give another column with {flag}, or write its values as texts" if flag else "write the values as texts"
    return BadInputError(f"column {column!r} holds {kind}, not text", where=where, hint=hint)


def csv_texts(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """The rows of a CSV file, where a column of numbers alone holds numbers: a number among texts is a text."""
    stream = iter(rows)
    held: list[Row] = []
    for place, row in stream:
        held.append((place, row))
        text = str(row.get(column) or "").strip()
        if text and not _is_number(text):
            break
    else:  # the file ended
        held = [
            (place, row | {column: float(row[column])}) if _is_number(row.get(column)) else (place, row)
            for place, row in held
        ]
    yield from itertools.chain(held, stream)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), sys.maxsize >> 32))  # 131,072 characters by default
    reader = csv.reader(_lines(path), strict=True)
    try:
        header = next((cells for cells in reader if cells), None)
        number = 0
        for cells in reader:
            if not cells or header is None:
                continue
            number += 1
            if len(cells) != len(header):
                raise BadInputError(
                    f"row {number} has {counted(len(cells), 'value')}, the header has {len(header)}",
                    where=str(path),
                    hint=QUOTES if len(cells) > len(header) else "give every row a value for each column",
                )
            row: dict[str, Any] = {}
            for name, cell in zip(header, cells, strict=True):
                row.setdefault(name, cell)  # as pandas: the first of two columns of one name has it
            yield f"row {number}", row
    except csv.Error as error:
        said = "a quoted text has no closing quote" if "unexpected end" in str(error) else str(error)
        raise _damaged(path, f"line {reader.line_num}", said, f'{QUOTES}, and write "" for a quote in a text') from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield f"line {number}", _object(path, f"line {number}", _parsed(path, f"line {number}", line.rstrip()))


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of an array of objects, or of one object a line."""
    lines = _lines(path)
    first = next((line for line in lines if line.strip()), "")
    lines.close()
    begin = first.lstrip()
    if begin.startswith("{") and _is_json(first):
        yield from _jsonl_rows(path)
        return
    whole = "".join(_lines(path))
    if not whole.strip():
        return
    parsed = _parsed(path, "", whole)
    for number, value in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
        yield f"row {number}", _object(path, f"row {number}", value)


def _object(path: Path, place: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise BadInputError(
        f"{place} is not an object but {_shown(value)}",
        where=f"{path}, {place}",
        hint='write each row as an object, such as {"text": "..."}'
        + (", or name a file with one array .json" if path.suffix.lower() == ".jsonl" and type(value) is list else ""),
    )


def _shown(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) <= 40 else said[:40] + "..."


def _parsed(path: Path, place: str, text: str) -> Any:
    try:
        parsed = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # an escaped half of a character, which no tokenizer takes
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        said = "half a character (an unpaired surrogate)" if isinstance(error, UnicodeEncodeError) else str(error)
        if isinstance(error, json.JSONDecodeError):
            said, place = f"{error.msg} at column {error.colno}", place or f"line {error.lineno}"
        raise _damaged(path, place, f"not valid JSON: {said}", "write one JSON object per line") from None
    return parsed


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _damaged(path: Path, place: str, why: str, hint: str) -> BadInputError:
    where = f"{path}, {place}" if place else str(path)
    return BadInputError(f"cannot read the file ({why})", where=where, hint=hint)


def _lines(path: Path) -> Generator[str]:
    """The lines of a file, with their ends and without a byte order mark."""
    number = 1
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        raise _damaged(path, "", str(error.strerror), "give a file that can be read") from None
    except UnicodeDecodeError as error:
        raise _damaged(path, f"line {number}", f"not valid UTF-8: {error.reason}", UTF8) from None


def mappings(rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of a dataset or a parquet file, numbered."""
    for number, row in enumerate(rows, 1):
        yield f"row {number}", dict(row)
