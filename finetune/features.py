"""Labelled texts as a model takes them: tokens of each text, and batches padded to their longest one.

Tokens are kept as int32 arrays, a tenth of what lists of Python numbers take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..convert.errors import BadInputError
from .tasks import Task

AT_ONCE = 256  # texts that are tokenized together
IGNORED = -100  # a label that no loss and no metric counts
STRIDE_SHARE = 0.25  # of a window of a long context: how much it shares with the one before


@dataclass(frozen=True)
class Texts:
    """What a model reads of rows, as text.

    Attributes:
        first: the texts; lists of words for `tokens`, contexts for `question`. second: their pairs, questions; None
            without. choices: for each row, its choices. labels: of the rows, as the task has them.
    """

    first: list[Any]
    second: list[str] | None
    choices: list[list[str]] | None
    labels: list[Any]


@dataclass
class Features:
    """A data set for Trainer: each item is what one batch row needs.

    Attributes:
        items: model inputs as arrays (t,) or (choices, t), with `labels`. lengths: in tokens.
        rows: the row of each item; several where long contexts are cut into windows.
        cut: texts that were longer than the model takes. offsets: of a question's contexts.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    cut: int = 0
    offsets: list[list[tuple[int, int] | None]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def by_length(self) -> Features:
        """The longest first: padding costs least, and a run that does not fit into memory ends at once."""
        order = sorted(range(len(self)), key=lambda i: -self.lengths[i])
        take = lambda values: [values[i] for i in order]  # noqa: E731
        offsets = take(self.offsets) if self.offsets else []
        return Features(take(self.items), take(self.lengths), take(self.rows), self.cut, offsets)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def features_of(
    task: Task, texts: Texts, tokenizer: Any, max_length: int, classes: int, target_length: int
) -> Features:
    """Tokenizes the rows of a task.

    Args:
        classes: outputs of a multilabel head. target_length: tokens of a summary.

    Raises:
        BadInputError: the tokenizer cannot do what the task needs.
    """
    if task.name in ("tokens", "question") and not tokenizer.is_fast:
        raise BadInputError(
            f"{task.name} needs a fast tokenizer (tokenizer.json), and {type(tokenizer).__name__} is not one",
            where="tokenizer_config.json",
            hint="convert a source with a tokenizer.json",
        )
    found = Features()
    make = {"tokens": _words, "question": _windows, "choice": _choices}.get(task.name, _plain)
    for start in range(0, len(texts.first), AT_ONCE):
        make(found, texts, range(start, min(start + AT_ONCE, len(texts.first))), tokenizer, max_length)
    if task.name == "summarize":
        for item, label in zip(found.items, texts.labels, strict=True):
            ids = tokenizer(text_target=label, max_length=target_length, truncation=True)["input_ids"]
            item["labels"] = np.asarray(ids, np.int64)
    elif task.name == "multilabel":
        for item, label in zip(found.items, texts.labels, strict=True):
            item["labels"] = np.zeros(classes, np.float32)
            item["labels"][label] = 1
    elif task.name in ("classification", "regression", "choice"):
        kind = np.float32 if task.name == "regression" else np.int64
        for item, label in zip(found.items, texts.labels, strict=True):
            item["labels"] = np.asarray(label, kind)
    return found


def collator(task: Task, tokenizer: Any, shifted: Callable[[Tensor], Tensor] | None) -> Callable[[list[Any]], Any]:
    """Makes a batch of items: every tensor padded to the longest of them.

    Args:
        shifted: from labels (b, t) to the inputs of a decoder, for `summarize`.
    """
    padding = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": IGNORED,
    }

    def padded(name: str, arrays: Sequence[np.ndarray]) -> Tensor:
        longest = max(array.shape[-1] for array in arrays)
        whole = np.full((len(arrays), *arrays[0].shape[:-1], longest), padding.get(name, 0), np.int64)
        for row, array in zip(whole, arrays, strict=True):
            if getattr(tokenizer, "padding_side", "right") == "left" and name != "labels":
                row[..., longest - array.shape[-1] :] = array
            else:
                row[..., : array.shape[-1]] = array
        return torch.from_numpy(whole)

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {name: padded(name, [item[name] for item in items]) for name in items[0] if name != "labels"}
        labels = [item["labels"] for item in items]
        ragged = task.name in ("tokens", "summarize")
        batch["labels"] = padded("labels", labels) if ragged else torch.from_numpy(np.stack(labels))
        if shifted is not None:
            batch["decoder_input_ids"] = shifted(batch["labels"])
        return batch

    return collate


def _plain(found: Features, texts: Texts, rows: range, tokenizer: Any, max_length: int) -> None:
    seconds = None if texts.second is None else [texts.second[i] for i in rows]
    _add(found, tokenizer, rows, [texts.first[i] for i in rows], seconds, max_length)


def _words(found: Features, texts: Texts, rows: range, tokenizer: Any, max_length: int) -> None:
    """The label of a word is that of its first token; its others, and special tokens, have none."""
    for i in rows:
        assert len(texts.first[i]) == len(texts.labels[i])  # `require_texts`
    encoded = _add(found, tokenizer, rows, [texts.first[i] for i in rows], None, max_length, is_split_into_words=True)
    for place, i in enumerate(rows):
        words = encoded.word_ids(place)
        begins = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
        labels = [texts.labels[i][word] if first else IGNORED for word, first in zip(words, begins, strict=True)]
        found.items[len(found.items) - len(rows) + place]["labels"] = np.asarray(labels, np.int64)


def _choices(found: Features, texts: Texts, rows: range, tokenizer: Any, max_length: int) -> None:
    assert texts.choices is not None
    for i in rows:
        count = len(texts.choices[i])
        one = Features()
        _add(one, tokenizer, range(count), [texts.first[i]] * count, texts.choices[i], max_length)
        longest = max(one.lengths)
        item = {}
        for name, pad in (("input_ids", tokenizer.pad_token_id), ("token_type_ids", 0), ("attention_mask", 0)):
            if name in one.items[0]:
                parts = [np.pad(part[name], (0, longest - len(part[name])), constant_values=pad) for part in one.items]
                item[name] = np.stack(parts)
        found.items.append(item)
        found.lengths.append(longest)
        found.rows.append(i)
        found.cut += one.cut


def _windows(found: Features, texts: Texts, rows: range, tokenizer: Any, max_length: int) -> None:
    """Questions with windows of their contexts; a window without the answer points to its first token."""
    assert texts.second is not None
    encoded = tokenizer(
        [texts.second[i] for i in rows],
        [texts.first[i] for i in rows],
        truncation="only_second",
        max_length=max_length,
        stride=int(STRIDE_SHARE * max_length),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    for place, sample in enumerate(encoded["overflow_to_sample_mapping"]):
        row = rows[sample]
        inside = [part == 1 for part in encoded.sequence_ids(place)]
        offsets = [
            tuple(span) if real else None for span, real in zip(encoded["offset_mapping"][place], inside, strict=True)
        ]
        item = {name: np.asarray(encoded[name][place], np.int32) for name in _INPUTS if name in encoded}
        item["labels"] = np.asarray(_span(offsets, texts.labels[row]), np.int64)
        found.items.append(item)
        found.lengths.append(len(item["input_ids"]))
        found.rows.append(row)
        found.offsets.append(offsets)


def _span(offsets: Sequence[tuple[int, int] | None], answers: Sequence[tuple[int, str]]) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) where this window does not have all of it."""
    if not answers:
        return 0, 0
    begin, end = answers[0][0], answers[0][0] + len(answers[0][1])
    inside = [i for i, span in enumerate(offsets) if span is not None and span[0] < end and span[1] > begin]
    real = [span for span in offsets if span is not None]
    if not inside or not real or begin < real[0][0] or end > real[-1][1]:
        return 0, 0
    return inside[0], inside[-1]


_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def _add(
    found: Features,
    tokenizer: Any,
    rows: range,
    first: list[Any],
    second: list[str] | None,
    max_length: int,
    **options: Any,
) -> Any:
    """Adds an item for each text, cut at the end of its longer part."""
    encoded = tokenizer(first, second, truncation=False, verbose=False, **options)
    long = [len(ids) > max_length for ids in encoded["input_ids"]]
    if any(long):
        found.cut += sum(long)
        encoded = tokenizer(first, second, truncation=True, max_length=max_length, verbose=False, **options)
    for place, i in enumerate(rows):
        item = {name: np.asarray(encoded[name][place], np.int32) for name in _INPUTS if name in encoded}
        found.items.append(item)
        found.lengths.append(len(item["input_ids"]))
        found.rows.append(i)
    return encoded


def batches_of(features: Features, collate: Callable[[list[Any]], Any], batch: int) -> Iterator[dict[str, Tensor]]:
    """The items in their order, `batch` at a time."""
    for start in range(0, len(features), batch):
        yield collate(features.items[start : start + batch])
