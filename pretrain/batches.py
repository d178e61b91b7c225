"""Global batches of examples: the same for a step on any number of processes.

Axes: b example, t token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.masking import IGNORED, mask_tokens
from .corpus import Example, Examples

BY_ROW = ("ids", "mask", "types", "labels", "pairs")


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples, padded to the longest of the global batch.

    Attributes:
        ids: (b, t) int64. labels: (b, t), what is to be predicted from there, `IGNORED` for nothing.
        mask: (b, t) int64, 1 at tokens and 0 at padding; None where there is none.
        types: (b, t) of tokens; None where all are 0.
        pairs: (b,) labels of two texts; None without them.
        predicted, rows, tokens: labels, examples and tokens of the global batch.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor | None
    types: Tensor | None
    pairs: Tensor | None
    predicted: int
    rows: int
    tokens: int

    def part(self, index: int, parts: int) -> tuple[Batch, bool]:
        """One of `parts` nearly equal parts; where it would be empty, the first row, and False: it must not count."""
        chosen = np.array_split(np.arange(len(self.ids)), parts)[index]
        counts = bool(len(chosen))
        rows = torch.from_numpy(chosen if counts else np.arange(1))
        return self._map(lambda x: x[rows]), counts

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda x: x.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tables = {name: getattr(self, name) for name in BY_ROW}
        changed: dict[str, Any] = {name: change(table) for name, table in tables.items() if table is not None}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Collator:
    """What makes a batch of examples.

    Attributes:
        causal: each token is predicted from those before it. pairs: whether two texts are judged.
        pad_id, mask_id: of the tokenizer. vocabulary: ids to draw random tokens from.
        share, most, whole_words: of dynamic masks, see `mask_tokens`.
    """

    causal: bool
    pairs: bool
    pad_id: int
    mask_id: int
    vocabulary: int
    share: float
    most: int | None
    whole_words: bool

    def __call__(self, examples: Sequence[Example], seed: Sequence[int]) -> Batch:
        """A batch. The seed decides the masks of examples that have none yet."""
        longest = max(len(example["input_ids"]) for example in examples)

        def table(name: str, padding: int) -> np.ndarray:
            rows = np.full((len(examples), longest), padding, np.int64)
            for row, example in zip(rows, examples, strict=True):
                row[: len(example[name])] = example[name]
            return rows

        ids, sizes = table("input_ids", self.pad_id), [len(example["input_ids"]) for example in examples]
        visible = np.arange(longest) < np.array(sizes)[:, None]
        if self.causal:
            labels = np.full_like(ids, IGNORED)
            labels[:, :-1] = np.where(visible[:, 1:], ids[:, 1:], IGNORED)
        elif "labels" in examples[0]:
            labels = table("labels", IGNORED)
        else:
            ids, labels = mask_tokens(
                ids,
                table("special_tokens_mask", 1) > 0,
                table("word_starts", 0) if self.whole_words and "word_starts" in examples[0] else None,
                share=self.share,
                mask_id=self.mask_id,
                vocabulary=self.vocabulary,
                random=np.random.default_rng(list(seed)),
                whole_words=self.whole_words,
                most=self.most,
            )
        types = table("token_type_ids", 0)
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            None if visible.all() else torch.from_numpy(visible.astype(np.int64)),
            torch.from_numpy(types) if types.any() else None,
            torch.tensor([int(example["next_sentence_label"]) for example in examples]) if self.pairs else None,
            int((labels != IGNORED).sum()),
            len(examples),
            sum(sizes),
        )


def batches(examples: Examples, collate: Collator, size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """The global batches of a run, from step `skip` on. A batch may span two epochs."""
    endless = itertools.chain.from_iterable(examples.train(epoch) for epoch in itertools.count())
    stream = itertools.islice(endless, skip * size, None)
    for step in itertools.count(skip):
        yield collate(list(itertools.islice(stream, size)), (seed, 2, step))
