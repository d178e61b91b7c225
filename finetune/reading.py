"""The rows of a run: which files or dataset, which columns, and whether they have what the task reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..data.rows import Rows, read_splits, read_tables, require_tables, text_values
from .options import FinetuneOptions
from .tasks import CLASSIFICATION, GLUE_DATASET, Task


def read_rows(options: FinetuneOptions, task: Task | None) -> tuple[Rows, Rows | None, dict[str, Any]]:
    """Training rows, evaluation rows (None where they must be held out), and the columns by their use."""
    task = task or CLASSIFICATION
    dataset = options.dataset
    if dataset is None and not options.data and task.glue:
        dataset = f"{GLUE_DATASET}:{task.glue}"
    if dataset is None and not options.data:
        raise UsageError(
            "no rows to train on", where="--data", hint="give JSONL, CSV or parquet files, or a dataset with --dataset"
        )
    choices = (options.choices or task.choices).split(",") if task.choices else []
    columns = {
        "text": options.text or task.text,
        "pair": options.pair or task.pair,
        "label": options.label or task.label,
        "choices": [name.strip() for name in choices],
    }
    wanted = [str(name) for name in (columns["text"], columns["pair"], columns["label"], *columns["choices"]) if name]
    label = str(columns["label"])
    require_tables(options.data, "--data")
    require_tables(options.eval, "--eval")
    if options.choices and not task.choices:
        raise UsageError(
            "--choices applies only with --task choice", where="--choices", hint="leave it out, or pass --task choice"
        )
    apart = read_tables(options.eval, wanted, label, "--eval") if options.eval else None
    if dataset is None:
        return read_tables(options.data, wanted, label, "--data"), apart, columns
    rows, own = read_splits(dataset, wanted, label, options.token, task.evaluated)
    return rows, apart or own, columns


def require_texts(task: Task, rows: Rows, columns: Mapping[str, Any]) -> None:
    """Raises BadInputError where the columns do not have what the task reads."""
    if task.name == "tokens":
        odd = next((i for i, value in enumerate(rows.columns[columns["text"]]) if not _is_list_of_text(value)), None)
        if odd is not None:
            raise BadInputError(
                f"{rows.place(odd)}: column {columns['text']!r} is not a list of words",
                where=", ".join(rows.names),
                hint="give each row's words as a list, and one label for each",
            )
        pairs = zip(rows.columns[columns["text"]], rows.columns[columns["label"]], strict=True)
        for i, (words, labels) in enumerate(pairs):
            if isinstance(labels, list) and len(words) != len(labels):
                raise BadInputError(
                    f"{rows.place(i)} has {len(words)} words and {len(labels)} labels",
                    where="--text, --label",
                    hint="give lists of the same length",
                )
        return
    text_values(rows, columns["text"])
    if columns["pair"]:
        text_values(rows, columns["pair"])
    if task.name == "choice":
        counts = {len(choices) for choices in choices_of(rows, columns)}
        labels = rows.columns[columns["label"]]
        if len(counts) > 1 or max(labels) >= min(counts):
            raise BadInputError(
                f"rows have {', '.join(map(str, sorted(counts)))} choices, and labels up to {max(labels)}",
                where=", ".join(rows.names),
                hint="give every row the same number of choices, and labels from 0",
            )


def choices_of(rows: Rows, columns: Mapping[str, Any]) -> list[list[str]]:
    """The choices of each row, from one column of lists or several columns of texts.

    Raises:
        BadInputError: they are not texts.
    """
    names = columns["choices"]
    if len(names) > 1:
        return [list(choices) for choices in zip(*(text_values(rows, name) for name in names), strict=True)]
    found = rows.columns[names[0]]
    odd = next((i for i, value in enumerate(found) if not _is_list_of_text(value) or not value), None)
    if odd is not None:
        raise BadInputError(
            f"{rows.place(odd)}: column {names[0]!r} is not a list of texts",
            where=", ".join(rows.names),
            hint="give a column of lists, or several columns: --choices a,b,c",
        )
    return found


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
