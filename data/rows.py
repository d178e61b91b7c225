"""Labelled rows: files and datasets with columns, split for training and evaluation. Imports `datasets` on demand."""

from __future__ import annotations

import bisect
import hashlib
import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, UsageError
from ..convert.io.tensorfile import file_sha256
from .documents import dataset, table
from .files import TABULAR, require_files, table_form
from .tables import rows_of

EVALUATED = ("validation", "validation_matched", "dev", "valid")  # splits of a dataset that are looked at
HELDOUT_SHARE = 0.1
PLAIN = ("json", "csv")  # forms that are read without `datasets`, where that is not installed


@dataclass(frozen=True)
class Rows:
    """Rows of one purpose.

    Attributes:
        columns: values by column, all of one length. label_names: of a label column whose classes the dataset names.
        names: files or datasets. record: of the manifest: names, sha256, rows.
        numbers: of the rows in all the data, from 0; None where these are all of it, in its order.
        begins: the first row of each file, where there are several.
    """

    columns: dict[str, list[Any]]
    label_names: tuple[str, ...]
    names: tuple[str, ...]
    record: dict[str, Any]
    numbers: Sequence[int] | None = None
    begins: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def chosen(self, indices: Sequence[int]) -> Rows:
        """These rows, in this order."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        numbers = [self.numbers[i] if self.numbers is not None else i for i in indices]
        return replace(self, columns=columns, record={**self.record, "rows": len(indices)}, numbers=numbers)

    def place(self, i: int) -> str:
        """Where row i of these is in the data, as errors say it: row 8, or row 8 of more.csv."""
        number = i if self.numbers is None else self.numbers[i]
        if len(self.begins) < 2:
            return f"row {number + 1}"
        file = bisect.bisect_right(self.begins, number) - 1
        return f"row {number - self.begins[file] + 1} of {Path(self.names[file]).name}"


def require_tables(names: Sequence[str], where: str) -> None:
    """Raises for files that have no columns, and for missing ones, before any is read.

    Args:
        where: the option that lists them.
    """
    require_files([name for name in names if table_form(name)], where)
    for name in names:
        if not table_form(name):
            raise BadInputError(
                f"{name} is not a file with columns" if Path(name).exists() else f"no such file: {name}",
                where=where,
                hint=f"give {', '.join(TABULAR)} files, or a dataset with --dataset",
            )


def read_tables(names: Sequence[str], wanted: Collection[str], label: str, where: str) -> Rows:
    """Rows of files.

    Args:
        wanted: columns to read. label: the one of them with labels. where: the option that lists the files.

    Raises:
        BadInputError: a file cannot be read, is empty, or lacks a column.
    """
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    begins: list[int] = []
    for name in names:
        path = Path(name)
        begins.append(max(map(len, columns.values()), default=0))
        read = table if _has_datasets() or table_form(path) not in PLAIN else plain_table
        for column, values in _columns(read(path), wanted, name).items():
            columns[column] += values
    record = {
        "data": [Path(name).name for name in names],
        "sha256": {Path(name).name: file_sha256(Path(name)) for name in names},
    }
    return _sound(Rows(columns, (), tuple(names), record, begins=tuple(begins)), label, where)


def read_splits(
    name: str, wanted: Collection[str], label: str, token: str | None, evaluated: str
) -> tuple[Rows, Rows | None]:
    """Training and evaluation rows of a dataset; None where it has no split to evaluate on.

    Args:
        name: of the dataset: `name`, `name:configuration` or `name@split`, or a folder.
        evaluated: the split to evaluate on, before `EVALUATED`.

    Raises:
        BadInputError: no such dataset, no training split, or a column is missing.
    """
    splits = dataset(name, token, split=None)
    if "@" in name:
        splits = {"train": splits}
    if "train" not in splits:
        raise BadInputError(
            f"the dataset has no training split, found {', '.join(splits)}",
            where=f"--dataset {name}",
            hint="name a split, such as name@test",
        )
    apart = next((split for split in (evaluated, *EVALUATED) if split in splits), None)
    return _split(name, "train", splits, wanted, label), (
        None if apart is None else _split(name, apart, splits, wanted, label)
    )


def held_out(rows: Rows, label: str, seed: int) -> tuple[Rows, Rows]:
    """A tenth of the rows apart, at least one; never all rows with a label.

    Args:
        label: column with the labels.

    Raises:
        BadInputError: there is only one row.
    """
    if len(rows) < 2:
        raise BadInputError(
            "one row is too few to train and evaluate on", where=", ".join(rows.names), hint="give more rows, or --eval"
        )
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    count = max(1, round(HELDOUT_SHARE * len(rows)))
    keys = [json.dumps(value, sort_keys=True, default=str) for value in rows.columns[label]]
    rest: dict[str, int] = {}
    for key in keys:
        rest[key] = rest.get(key, 0) + 1
    few = len(rest) <= len(rows) / 2  # classes, not numbers or texts of which each is there once
    apart: list[int] = []
    for i in order:
        if len(apart) < count and not (few and rest[keys[i]] == 1):
            apart.append(i)
            rest[keys[i]] -= 1
    apart = apart or order[:1]
    kept = sorted(set(order) - set(apart))
    return rows.chosen(kept), rows.chosen(sorted(apart))


def _split(name: str, split: str, splits: Any, wanted: Collection[str], label: str) -> Rows:
    found = splits[split]
    where = name if "@" in name else f"{name}@{split}"
    columns = _columns(found, wanted, where)
    names = getattr(found.features.get(label), "names", None) or getattr(
        getattr(found.features.get(label), "feature", None), "names", None
    )
    digest = hashlib.sha256(json.dumps(columns, sort_keys=True, default=str).encode()).hexdigest()
    shown = Path(where).name if Path(name.partition("@")[0]).exists() else where
    return _sound(
        Rows(columns, tuple(names or ()), (shown,), {"data": [shown], "sha256": {shown: digest}}), label, where
    )


def _columns(rows: Any, wanted: Collection[str], where: str) -> dict[str, list[Any]]:
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        options = "--text, --pair, --label and --choices name the columns"
        raise BadInputError(
            f"no column {', '.join(map(repr, missing))}, found {', '.join(rows.column_names)}",
            where=where,
            hint=options,
        )
    return {name: list(rows[name]) for name in wanted}


def _sound(rows: Rows, label: str, where: str) -> Rows:
    """The rows, with how many there are in their record; those of an unlabelled split are refused."""
    if not rows.columns or not len(rows):
        raise BadInputError("the file has no rows", where=", ".join(rows.names), hint="give files with rows")
    for name, values in rows.columns.items():
        empty = next((i for i, value in enumerate(values) if value is None), None)
        if empty is not None:
            raise BadInputError(
                f"{rows.place(empty)} has no {name}",
                where=", ".join(rows.names),
                hint=f"fill or remove the rows without {name}",
            )
    rows.record["rows"] = len(rows)
    return rows


def text_values(rows: Rows, column: str) -> list[str]:
    """A column of texts.

    Raises:
        BadInputError: a value that is not a text.
    """
    values = rows.columns[column]
    odd = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
    if odd is not None:
        raise BadInputError(
            f"{rows.place(odd)}: column {column!r} is not a text but {type(values[odd]).__name__}",
            where=", ".join(rows.names),
            hint="name the column with the text, with --text or --pair",
        )
    return values


def require_datasets(names: Sequence[str], where: str) -> None:
    """Raises UsageError where the package is not installed and something else than JSON and CSV files is read."""
    if not _has_datasets() and any(table_form(name) not in PLAIN for name in names):
        raise UsageError("the package datasets is not installed", where=where, hint="pip install 'effconv[finetune]'")


def _has_datasets() -> bool:
    return importlib.util.find_spec("datasets") is not None


@dataclass(frozen=True)
class _Table:
    """Columns of a file that was read without `datasets`, which cannot be installed beside transformers 4.57."""

    columns: dict[str, list[Any]]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


def plain_table(path: Path) -> _Table:
    """A JSON or CSV file, read by the standard library.

    Raises:
        BadInputError: it cannot be read.
    """
    rows = [row for _, row in rows_of(path)]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    if table_form(path) == "csv":
        columns = {name: _numbers(values) for name, values in columns.items()}
    return _Table(columns)


def _numbers(values: list[Any]) -> list[Any]:
    """A column of a CSV file as numbers, where all its cells are; empty cells as None."""
    cells = [value or None for value in values]
    for kind in (int, float):
        try:
            return [None if cell is None else kind(cell) for cell in cells]
        except (ValueError, TypeError):
            continue
    return cells
