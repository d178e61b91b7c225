"""What the labels of a task are, and which output of the head each one is. No heavy imports."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..convert.errors import BadInputError, UsageError, listing
from ..data.rows import Rows
from .tasks import Task

LABEL = re.compile(r"LABEL_\d+")
MOST_CLASSES = 10_000  # a column with more is not a column of classes
SHOWN = 5  # rows of one fault
NAMED = ("classification", "multilabel", "tokens")


@dataclass(frozen=True)
class Labels:
    """The labels of a run.

    Attributes:
        names: of the head's outputs; () for tasks without classes.
        train, heldout: the label of each row: an id, ids, numbers, text or answers, as the task has it.
        replaced: the head is made anew, though the repo has a trained one. kept: its outputs keep their meaning.
    """

    names: tuple[str, ...]
    train: list[Any]
    heldout: list[Any]
    replaced: bool = False
    kept: bool = False


def task_of(rows: Rows, column: str) -> str:
    """The task that a column of labels stands for, where nobody has said it.

    Raises:
        BadInputError: numbers and texts.
        UsageError: labels that fit several tasks.
    """
    values = rows.columns[column]
    if all(isinstance(value, (str, bool, int)) for value in values):
        return "classification"
    if all(isinstance(value, (int, float)) for value in values):
        return "regression"
    if all(isinstance(value, (str, int, float)) for value in values):
        odd = next(i for i, value in enumerate(values) if isinstance(value, str) != isinstance(values[0], str))
        raise BadInputError(
            f"labels are numbers and texts: {rows.place(0)} has {str(values[0])[:60]}, and {rows.place(odd)} has "
            f"{str(values[odd])[:60]!r}",
            where=", ".join(rows.names),
            hint="correct the rows, or pass --task classification or --task regression to see all that do not fit",
        )
    raise UsageError(
        f"the labels do not tell the task: the first one is {str(values[0])[:60]}",
        where="--task",
        hint="pass --task, such as --task multilabel, tokens or question",
    )


def read_labels(
    task: Task,
    column: str,
    train: Rows,
    heldout: Rows,
    config: Mapping[str, Any],
    *,
    trained: bool,
    new_head: bool,
) -> Labels:
    """Labels of both splits, as the head's outputs.

    Args:
        config: the repo's config.json. trained: whether the repo has a head for the task that was trained.
        new_head: replace it.

    Raises:
        BadInputError: labels that are none of the task, that do not fit the trained head, or that only evaluation
            rows have.
    """
    values = (_values(task, train, column), _values(task, heldout, column))
    replaced, kept = trained and new_head, trained and not new_head
    if task.name == "regression":
        if kept and _outputs(config) not in (0, 1):
            raise _unfit(f"a regression has one output, and the head has {_outputs(config)}", column)
        return Labels(("LABEL_0",), values[0], values[1], replaced, kept)
    if task.name not in NAMED:
        return Labels((), values[0], values[1], replaced, kept)
    seen, apart = (list(_each(part)) for part in values)
    names, ids = _classes(seen, train.label_names, config if kept else {}, column)
    unknown = sorted({str(value) for value in apart if value not in ids})
    if unknown:
        raise BadInputError(
            f"labels only in the evaluation rows: {_some(unknown)}. The training rows have {_some(map(str, ids))}",
            where=", ".join(heldout.names),
            hint="add training rows with these labels, or remove the evaluation rows",
        )
    if len(names) < 2 and task.name == "classification":
        raise BadInputError(
            f"all rows have the same label {names[0]!r}",
            where=", ".join(train.names),
            hint="give rows with at least two labels, or numbers with --task regression",
        )
    one, two = ([_encoded(value, ids) for value in part] for part in values)
    return Labels(names, one, two, replaced, kept)


def _classes(
    seen: list[Any], named: tuple[str, ...], config: Mapping[str, Any], column: str
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The outputs' names, and the output of each label."""
    distinct = sorted(set(seen), key=lambda value: (isinstance(value, str), value))
    if len(distinct) > MOST_CLASSES:
        raise BadInputError(
            f"{len(distinct):,} different labels are too many for classes",
            where=f"--label {column}",
            hint="name the column with the label, or pass --task regression or summarize",
        )
    whole = all(isinstance(value, int) for value in distinct)
    if config:
        stored = _stored(config)
        if whole and min(distinct) >= 0 and max(distinct) < len(stored):
            return stored, {value: int(value) for value in range(len(stored))}
        if all(str(value) in stored for value in distinct):
            texts = {name: i for i, name in enumerate(stored)}
            return stored, texts | {value: texts[str(value)] for value in distinct}
        raise _unfit(f"the data has {_some(map(str, distinct))}, and the head has {_some(stored)}", column)
    if whole and named and min(distinct) >= 0 and max(distinct) < len(named):
        return named, {i: i for i in range(len(named))}
    if whole and distinct == list(range(len(distinct))):
        return tuple(f"LABEL_{i}" for i in distinct), {value: int(value) for value in distinct}
    return tuple(map(str, distinct)), {value: i for i, value in enumerate(distinct)}


def _stored(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("id2label")
    if isinstance(found, dict) and found:
        return tuple(str(found.get(str(i), f"LABEL_{i}")) for i in range(len(found)))
    return tuple(f"LABEL_{i}" for i in range(_outputs(config) or 2))


def _outputs(config: Mapping[str, Any]) -> int:
    found = config.get("id2label")
    if isinstance(found, dict) and found:
        return len(found)
    stated = config.get("num_labels")
    return stated if isinstance(stated, int) else 2


def _unfit(why: str, column: str) -> BadInputError:
    return BadInputError(
        f"the labels do not fit the repo's trained head: {why}",
        where=f"--label {column}",
        hint="pass --new-head to train a new head, or give labels of the old one",
    )


def _values(task: Task, rows: Rows, column: str) -> list[Any]:
    """The labels of the rows, in the form of the task."""
    values = rows.columns[column]
    faults = []
    found = []
    for i, value in enumerate(values):
        try:
            found.append(_FORMS[task.name](value))
        except (TypeError, ValueError, KeyError):
            faults.append(f"{rows.place(i)}: {str(value)[:80]!r}")
    if faults:
        raise BadInputError(
            f"labels that are not {_SAYS[task.name]}:\n{listing(faults[:SHOWN])}"
            + (f"\n    and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""),
            where=", ".join(rows.names),
            hint="name the column with --label, or the task with --task",
        )
    return found


def _class(value: Any) -> Any:
    if isinstance(value, float) and value == int(value):  # as CSV files with empty cells have them
        return int(value)
    if not isinstance(value, (str, int)):
        raise TypeError
    return str(value) if isinstance(value, bool) else value


def _several(value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError
    return [_class(item) for item in value]


def _number(value: Any) -> float:
    if isinstance(value, str) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _answers(value: Any) -> list[tuple[int, str]]:
    """SQuAD's answers, {text: [...], answer_start: [...]}, as (start, text); [] for a question without an answer."""
    texts, starts = value["text"], value["answer_start"]
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if len(texts) != len(starts):
        raise ValueError
    return [(int(start), str(text)) for start, text in zip(starts, texts, strict=True)]


def _position(value: Any) -> int:
    if isinstance(value, (str, bool)) or int(value) != value or value < 0:
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_FORMS: Mapping[str, Any] = {
    "classification": _class,
    "multilabel": _several,
    "tokens": _several,
    "regression": _number,
    "question": _answers,
    "choice": _position,
    "summarize": _text,
}
_SAYS = {
    "classification": "a class (a text or a whole number)",
    "multilabel": "lists of classes",
    "tokens": "lists of classes, one for each word",
    "regression": "numbers",
    "question": "answers as {text: [...], answer_start: [...]}",
    "choice": "the number of the right choice, from 0",
    "summarize": "a text",
}


def _each(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        yield from value if isinstance(value, list) else (value,)


def _encoded(value: Any, ids: Mapping[Any, int]) -> Any:
    return [ids[item] for item in value] if isinstance(value, list) else ids[value]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
