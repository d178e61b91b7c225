"""Retrieval of long documents by short passages: the task, the models that embed it, ranks and their errors.

Documents are windows of a text, one after the other; queries are pieces of a window beyond the source's own length, so
that a model which reads only the beginning has never seen them. `whole` makes the same task of whole documents. `ways`
has the ways to embed a document. R@1: how often the right document has the largest cosine. MRR: the mean of 1 / its
rank.

Queries of one article are found, or not, together. A standard error is that of a mean over units (articles, files or
documents), not over queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert.errors import BadInputError
from ..convert.text import counted
from ..convert.windows import around
from ..embed.chunks import PIECE, cut, cut_twice, passes
from ..embed.whitening import Whitening
from .teacher import pooled

CHUNKS = 8  # run at once


@dataclass(frozen=True, slots=True)
class Task:
    """What is looked for, and where.

    Attributes:
        documents: token ids without special tokens, each (t,). queries: likewise.
        answers: the document of each query (m,). units: the independent unit that each query is from (m,).
    """

    documents: Sequence[Tensor] | Tensor
    queries: Sequence[Tensor] | Tensor
    answers: Tensor
    units: Tensor


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that embeds texts of token ids.

    Special tokens are put around a text, states pooled ("mean" or "cls"), and what stands behind that is applied.

    Attributes:
        longest: tokens that the model takes, special ones included.
    """

    model: nn.Module
    prefix: Sequence[int]
    suffix: Sequence[int]
    pooling: str = "mean"
    dense: nn.Module = field(default_factory=nn.Identity)
    longest: int = 1 << 30

    @property
    def room(self) -> int:
        """Tokens of a text that it takes, special ones not included."""
        return self.longest - len(self.prefix) - len(self.suffix)

    @torch.no_grad()
    def __call__(self, body: Tensor) -> Tensor:
        """Ids (b, t) → normalised embeddings (b, w)."""
        ids = around(body, self.prefix, self.suffix)
        parts = [self._states(part) for part in torch.split(ids, CHUNKS)]
        return self._finished(torch.cat([pooled(part, self.pooling) for part in parts]))

    def several(self, texts: Sequence[Tensor]) -> Tensor:
        """Texts of any lengths → normalised embeddings (b, w), texts of one length together."""
        lengths = [len(text) for text in texts]
        found: dict[int, Tensor] = {}
        for length in dict.fromkeys(lengths):
            places = [i for i, own in enumerate(lengths) if own == length]
            found |= zip(places, self(torch.stack([texts[i] for i in places])), strict=True)
        return torch.stack([found[i] for i in range(len(texts))])

    def alone(self, body: Tensor, size: int) -> Tensor:
        """A text (t,) → embeddings (c, w) of its chunks of at most `size` tokens, each run without the others."""
        return self.several([body[begin:end] for begin, end in cut(len(body), size)])

    @torch.no_grad()
    def in_context(self, body: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
        """A text (t,) → embeddings (c, w) of the same chunks, pooled from states that saw the text (late chunking).

        Returns:
            Them, and the embedding (1, w) of the text if the same run gives it.
        """
        bounds = cut(len(body), size)
        own = self.pooling == "cls"
        runs = passes(body.tolist(), bounds, self.prefix, self.suffix, self.longest, own_ends=own)
        parts: list[list[Tensor]] = [[] for _ in bounds]
        for run in runs:
            states = self._states(torch.tensor([run.ids]))[0]
            for chunk, first, behind in run.takes:
                parts[chunk].append(states[first:behind])
        chunks = [torch.cat(part)[None] for part in parts]
        vectors = self._finished(torch.cat([pooled(states, self.pooling) for states in chunks]))
        if own or len(runs) > 1:
            return vectors, None
        return vectors, self._finished(pooled(torch.cat(chunks, 1), self.pooling))

    def _states(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model(ids).last_hidden_state
        return states

    def _finished(self, embeddings: Tensor) -> Tensor:
        return F.normalize(self.dense(embeddings), dim=-1)


@dataclass(frozen=True)
class PiecesEncoder(Encoder):
    """A repo of `effconv pieces`: whitened averages of a document's pieces, and whitened queries.

    Pieces are cut within chunks, so that one run gives the vectors of chunks, too (`encode_document` cuts the text).

    Attributes:
        whitening: of pieces. piece_tokens: of a piece, at most.
    """

    whitening: Whitening = field(kw_only=True)
    piece_tokens: int = PIECE

    def several(self, texts: Sequence[Tensor]) -> Tensor:
        return self.whitening(super().several(texts))

    def in_context(self, body: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
        chunks = cut_twice(len(body), size, self.piece_tokens)
        pieces = super().several([body[begin:end] for chunk in chunks for begin, end in chunk])
        counts = [len(chunk) for chunk in chunks]
        return self.whitening.pooled(pieces, counts), self.whitening.pooled(pieces, [len(pieces)])


def make_task(
    tokens: Sequence[int],
    *,
    documents: int,
    length: int,
    queries: int,
    size: int,
    beyond: int,
    unit_of: Sequence[int] | np.ndarray | None = None,
) -> Task:
    """The task of windows.

    Args:
        tokens: of the text, without special tokens.
        documents: at most. length: tokens of one.
        queries: a document, evenly spread over what is beyond its first `beyond` tokens. size: tokens of one.
        unit_of: the unit of each token. By default a document is one.

    Raises:
        BadInputError: the text gives fewer than two documents, or a document has no room for its queries.
    """
    count = min(documents, len(tokens) // length)
    if length < beyond + queries * size:
        raise BadInputError(
            f"{queries} queries of {size} tokens do not fit into documents of {length} tokens after token {beyond}, "
            "the maximum length of the source",
            where="--tokens, --queries, --query-tokens",
            hint="give longer documents, or fewer or shorter queries",
        )
    if count < 2:
        raise BadInputError(
            f"the text has {len(tokens):,} tokens: {counted(count, 'document')} of {length}, "
            "but retrieval needs at least 2",
            where="--data",
            hint=f"give more text ({2 * length:,} tokens at least), or use fewer --tokens per document",
        )
    body = torch.tensor(list(tokens[: count * length])).view(count, length)
    starts = np.linspace(beyond, length - size, queries).round().astype(int)
    found = torch.stack([body[:, start : start + size] for start in starts], 1)  # n queries size
    answers = torch.arange(count).repeat_interleave(queries)
    units = answers
    if unit_of is not None:
        places = (np.arange(count)[:, None] * length + starts).ravel()
        units = torch.as_tensor(np.asarray(unit_of)[places].astype(np.int64))
    return Task(body, found.flatten(0, 1), answers, units)


def best(queries: Tensor, vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """Similarity (m, n) of queries (m, w) and documents: that of the document's best vector.

    Args:
        vectors: of all documents, one after the other. counts: vectors of each document.
    """
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    found = torch.full((len(queries), len(counts)), float("-inf"))
    return found.scatter_reduce(1, owner.expand(len(queries), -1), queries @ vectors.T, "amax")


def ranked(similarity: Tensor, answers: Tensor) -> Tensor:
    """Ranks (m,) of the right documents by similarities (m, n); of equal ones the right document counts as the last."""
    right = similarity.gather(1, answers[:, None])
    others = similarity.scatter(1, answers[:, None], float("-inf"))
    return 1 + (others >= right).sum(1)


def reciprocal(ranks: Tensor) -> float:
    """MRR: the mean of 1 / rank."""
    return float((1 / ranks.double()).mean())


def mean_error(values: Tensor, units: Tensor) -> tuple[float, float | None]:
    """The mean of values (m,) and its standard error, clustered by unit; None for the error of a single unit.

    With r_u the sum over unit u of the values' deviations from the mean, the error is sqrt(G / (G - 1) Σ r_u²) / m for
    G units. With as many values in each unit, it is that of the mean of the units' means.
    """
    values = values.double()
    mean, groups = values.mean(), len(units.unique())
    if groups < 2:
        return float(mean), None
    _, places = units.unique(return_inverse=True)
    sums = torch.zeros(groups, dtype=torch.double).index_add(0, places, values - mean)
    return float(mean), float((sums.square().sum() * groups / (groups - 1)).sqrt() / len(values))


def difference(ranks: Tensor, others: Tensor, units: Tensor) -> tuple[float, float | None]:
    """How much larger R@1 is than that of other ranks (m,) of the same queries, and the standard error of that."""
    return mean_error((ranks == 1).double() - (others == 1).double(), units)
