"""Examples of a task: ids with a first token for the class, and labels.

Every vocabulary begins with the padding token and the token that stands first, whose state the head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effconv.convert.errors import BadInputError
from effconv.finetune.features import Features

PAD, FIRST = 0, 1
SPECIAL = 2  # ids before those of the task
VALIDATION = 0.1  # share of the training examples, where a data set has no validation examples


@dataclass(frozen=True)
class Examples:
    """Inputs and labels.

    Attributes:
        ids: of each example an array (t,), or two of them for a pair. Ids of the task start at 0 here.
        labels: of the examples.
    """

    ids: Sequence[Any]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, rows: Iterable[int]) -> Examples:
        rows = list(rows)
        return Examples([self.ids[i] for i in rows], [self.labels[i] for i in rows])

    def shortened(self, count: int | None) -> Examples:
        """The first examples; all without a count."""
        return self if count is None else self.taken(range(min(count, len(self))))

    def majority(self) -> float:
        """The share of the most frequent label."""
        return max(np.bincount(self.labels)) / len(self)


@dataclass(frozen=True)
class Splits:
    """A data set. `vocabulary` counts the ids of the task, without those of `SPECIAL`."""

    train: Examples
    valid: Examples
    test: Examples
    vocabulary: int
    classes: int


def held_out(examples: Examples, share: float = VALIDATION, seed: int = 0) -> tuple[Examples, Examples]:
    """Training and validation examples: a random share is held out, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(examples))
    count = max(1, round(share * len(examples)))
    return examples.taken(sorted(order[count:])), examples.taken(sorted(order[:count]))


def features(examples: Examples, length: int) -> Features:
    """What Trainer reads: ids behind the first token, cut at `length` tokens; a row for each text of a pair."""
    found = Features(rows=list(range(len(examples))))
    for ids, label in zip(examples.ids, examples.labels, strict=True):
        texts = [_with_first(part, length) for part in (ids if isinstance(ids, tuple) else (ids,))]
        longest = max(map(len, texts))
        table, mask = (np.zeros((len(texts), longest), np.int32) for _ in range(2))
        for row, text in enumerate(texts):
            table[row, : len(text)], mask[row, : len(text)] = text, 1
        whole = isinstance(ids, tuple)
        item = {"input_ids": table if whole else table[0], "attention_mask": mask if whole else mask[0]}
        found.items.append({**item, "labels": np.asarray(label, np.int64)})
        found.lengths.append(longest)
        found.cut += longest == length
    return found


def _with_first(ids: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([[FIRST], ids[: length - 1].astype(np.int32) + SPECIAL])


def require(folder: Path, names: Sequence[str], what: str) -> None:
    """Raises BadInputError where a folder lacks files of the published data set."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise BadInputError(
            f"{what}: {', '.join(missing)} not found", where=str(folder), hint="give the unpacked data set with --data"
        )


def bad_row(path: Path, number: int, problem: str) -> BadInputError:
    return BadInputError(problem, where=f"{path}, line {number}", hint="download the file again")


Reader = Callable[[Path], Splits]
