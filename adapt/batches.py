"""Batches: maps a step number to the same global batch on any number of processes, without padding.

Text is packed: the documents of an epoch are concatenated, and each text of a batch is the next window of them
between special tokens. All texts of a batch have one length. Lengths alternate from step to step, with about the same
number of tokens per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError
from ..convert.windows import around
from ..data.documents import Corpus, Tokens
from ..data.masking import IGNORED as IGNORED
from ..data.masking import mask_tokens

BY_TEXT = ("ids", "begins", "masked_ids", "labels", "places")  # tables of a batch, a row a text


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one length.

    Attributes:
        ids: (b, t) int64. special: (t,) bool, True at special tokens. begins: (b, t) bool, True where a word begins.
        rows: of the global batch that this one is a part of.
        masked_ids: (b, t) with masks, and labels: (b, t), `IGNORED` where nothing was masked; None without mlm.
        masked: tokens that are masked in the global batch.
        places: (b,) of these texts in the global batch; pieces: (rows, p, w) embeddings of pieces of all its texts;
            before: (n, w) of pieces of texts before it. None without contrastive.
    """

    ids: Tensor
    special: Tensor
    begins: Tensor
    rows: int
    masked_ids: Tensor | None = None
    labels: Tensor | None = None
    masked: int = 0
    places: Tensor | None = None
    pieces: Tensor | None = None
    before: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the global batch."""
        return self.rows * self.ids.shape[1]

    def part(self, index: int, parts: int) -> tuple[Batch, bool]:
        """One of `parts` nearly equal parts; where it would be empty, the first row, and False: it must not count."""
        chosen = np.array_split(np.arange(len(self.ids)), parts)[index]
        counts = bool(len(chosen))
        rows = torch.from_numpy(chosen if counts else np.arange(1))
        return self._map(BY_TEXT, lambda x: x[rows]), counts

    def to(self, device: torch.device) -> Batch:
        return self._map((*BY_TEXT, "pieces", "before"), lambda x: x.to(device))

    def _map(self, names: Sequence[str], change: Callable[[Tensor], Tensor]) -> Batch:
        tables = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {name: change(table) for name, table in tables.items() if table is not None}
        return replace(self, **changed)


class TokenStream:
    """The training text as one endless sequence of tokens. Documents are reordered in every epoch."""

    def __init__(self, documents: Callable[[int], Iterator[Tokens]]) -> None:
        self._documents = documents
        self._epoch = 0
        self._open = documents(0)
        self._rest: Tokens = np.empty((0, 2), np.int32)

    def take(self, count: int) -> Tokens:
        """The next `count` tokens (count, 2)."""
        parts, size, empty_epochs = [self._rest], len(self._rest), 0
        while size < count:
            document = next(self._open, None)
            if document is None:
                self._epoch += 1
                empty_epochs += 1
                if empty_epochs > 1 and not size:
                    raise BadInputError("the training text is empty", where="--data", hint="give more text")
                self._open = self._documents(self._epoch)
                continue
            parts.append(document)
            size += len(document)
        joined = np.concatenate(parts)
        self._rest = joined[count:]
        return joined[:count]


def batches(corpus: Corpus, lengths: Sequence[int], tokens: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """The global batches of a run, from step `skip` on.

    Args:
        lengths: of texts, special tokens included. tokens: of a batch, about.
        seed: of the order of lengths.
    """
    ends = len(corpus.prefix), len(corpus.suffix)
    stream, random = TokenStream(corpus.train), np.random.default_rng([seed, 1])
    turn: list[int] = []
    step = 0
    while True:
        turn = turn or list(random.permutation(lengths))
        length = int(turn.pop())
        rows, body = max(1, round(tokens / length)), length - sum(ends)
        taken = torch.from_numpy(stream.take(rows * body).reshape(rows, body, 2))
        step += 1
        if step <= skip:
            continue
        ids = around(taken[..., 0].long(), corpus.prefix, corpus.suffix)
        special = F.pad(torch.zeros(body, dtype=torch.bool), ends, value=True)
        yield Batch(ids, special, F.pad(taken[..., 1] > 0, ends, value=True), rows)


def check_enough(corpus: Corpus, lengths: Sequence[int]) -> None:
    """Raises BadInputError if the training text is shorter than one text of a batch."""
    tokens = corpus.record.get("tokens")  # unknown of a stream
    if tokens is not None and tokens + len(corpus.prefix) + len(corpus.suffix) < max(lengths):
        raise BadInputError(
            f"the training text has only {tokens} tokens, fewer than one text of {max(lengths)} tokens",
            where="--data",
            hint="give more text, or shorter --lengths",
        )


def masked(batch: Batch, share: float, mask_id: int, vocabulary: int, whole_words: bool, seed: Sequence[int]) -> Batch:
    """The batch with tokens masked, anew for each seed.

    Args:
        share: of the tokens of each text that are chosen, at least one token or word.
        whole_words: choose all tokens of a word or none.
        seed: the same gives the same masks.
    """
    ids, labels = mask_tokens(
        batch.ids.numpy(),
        batch.special.numpy(),
        batch.begins.numpy(),
        share=share,
        mask_id=mask_id,
        vocabulary=vocabulary,
        random=np.random.default_rng(list(seed)),
        whole_words=whole_words,
    )
    return replace(
        batch,
        masked_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        masked=int((labels != IGNORED).sum()),
    )
