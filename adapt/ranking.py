"""Retrieval of long documents by short passages: the task, ways to embed a document, and ranks.

Documents are cut from a text one after the other; queries are pieces of a document beyond the source's own length, so
that a model which reads only the beginning has never seen them. Ways to embed a document:

    truncation     the source, on the first tokens that it takes
    chunk average  the source on consecutive chunks, the normalised embeddings averaged
    chunk maximum  the source on consecutive chunks, the best one counts (one vector a chunk, not one a document)
    repo           the converted model, on the whole document

A query is embedded by the model that embedded the documents. R@1: how often the right document has the largest cosine.
MRR: the mean of 1 / its rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert.errors import BadInputError
from ..convert.options import Progress
from ..convert.text import counted
from ..convert.windows import around
from .teacher import pooled

CHUNKS = 8  # run at once


@dataclass(frozen=True, slots=True)
class Task:
    """Documents (n, length) and queries (m, size) as token ids without special tokens, and each query's document."""

    documents: Tensor
    queries: Tensor
    answers: Tensor


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that embeds texts of token ids.

    Special tokens are put around a text, states pooled ("mean" or "cls"), and what stands behind that is applied.
    """

    model: nn.Module
    prefix: Sequence[int]
    suffix: Sequence[int]
    pooling: str = "mean"
    dense: nn.Module = field(default_factory=nn.Identity)

    @torch.no_grad()
    def __call__(self, body: Tensor) -> Tensor:
        """Ids (b, t) → normalised embeddings (b, w)."""
        ids = around(body, self.prefix, self.suffix)
        parts = [self.model(part).last_hidden_state for part in torch.split(ids, CHUNKS)]
        return F.normalize(self.dense(torch.cat([pooled(part, self.pooling) for part in parts])), dim=-1)


def make_task(tokens: Sequence[int], *, documents: int, length: int, queries: int, size: int, beyond: int) -> Task:
    """The task.

    Args:
        tokens: of the text, without special tokens.
        documents: at most. length: tokens of one.
        queries: a document, evenly spread over what is beyond its first `beyond` tokens. size: tokens of one.

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
    return Task(body, found.flatten(0, 1), torch.arange(count).repeat_interleave(queries))


def chunk_embeddings(encoder: Encoder, documents: Tensor, size: int) -> Tensor:
    """Embeddings (n, c, w) of consecutive chunks of at most `size` tokens; all of them are nearly equally long."""
    chunks = documents.tensor_split(-(-documents.shape[1] // size), 1)
    return torch.stack([encoder(chunk) for chunk in chunks], 1)


def ranked(similarity: Tensor, answers: Tensor) -> Tensor:
    """Ranks (m,) of the right documents by similarities (m, n); of equal ones the right document counts as the last."""
    right = similarity.gather(1, answers[:, None])
    others = similarity.scatter(1, answers[:, None], float("-inf"))
    return 1 + (others >= right).sum(1)


def reciprocal(ranks: Tensor) -> float:
    """MRR: the mean of 1 / rank."""
    return float((1 / ranks.double()).mean())


def difference(ranks: Tensor, others: Tensor, answers: Tensor) -> tuple[float, float]:
    """How much larger R@1 is than that of other ranks (m,) of the same queries, and the standard error of that.

    The error is that of a mean over documents: queries of one document are found, or not, together.
    """
    won = (ranks == 1).double() - (others == 1).double()
    by_document = torch.stack([won[answers == document].mean() for document in sorted(set(answers.tolist()))])
    return float(won.mean()), float(by_document.std() / len(by_document) ** 0.5)


def measure(
    task: Task, source: Encoder, reach: int, repos: dict[str, Encoder], progress: Progress
) -> list[dict[str, Any]]:
    """One row a way to embed documents.

    Args:
        source: the dense model, which takes `reach` tokens, special ones included.
        repos: converted models by name.
    """
    size = reach - len(source.prefix) - len(source.suffix)
    progress("source: queries", 0, 0)
    queries = source(task.queries)
    progress("source: chunks", 0, 0)
    chunks = chunk_embeddings(source, task.documents, size)
    average = ranked(queries @ F.normalize(chunks.mean(1), dim=-1).T, task.answers)
    found = {
        "truncation": ranked(queries @ source(task.documents[:, :size]).T, task.answers),
        "chunk average": average,
        "chunk maximum": ranked(torch.einsum("qw,ncw->qnc", queries, chunks).amax(-1), task.answers),
    }
    rows = list(found.items())  # no dict: a repo may have any name
    for name, encoder in repos.items():
        progress(f"{name}: queries and documents", 0, 0)
        documents = torch.cat([encoder(document[None]) for document in task.documents])
        rows.append((name, ranked(encoder(task.queries) @ documents.T, task.answers)))
    return [_row(name, ranks, average, task.answers) for name, ranks in rows]


def _row(name: str, ranks: Tensor, average: Tensor, answers: Tensor) -> dict[str, Any]:
    over, error = difference(ranks, average, answers)
    return {
        "documents": name,
        "r@1": float((ranks == 1).double().mean()),
        "mrr": reciprocal(ranks),
        "over_chunk_average": over,
        "over_chunk_average_error": error,
    }
