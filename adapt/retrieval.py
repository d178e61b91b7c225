"""A retrieval task made from any text: which long document does a short piece of its later part come from?

Documents are `length` tokens each, cut from the text one after the other; queries are pieces of a document beyond the
source's own length, so that a model which reads only the beginning has never seen them. Ways to embed a document:

    truncation     the source, on the first tokens that it takes
    chunk average  the source on consecutive chunks, the normalised embeddings averaged
    chunk maximum  the source on consecutive chunks, the best one counts (one vector a chunk, not one a document)
    repo           the converted model, on the whole document

A query is embedded by the model that embedded the documents. R@1: how often the right document has the largest cosine.
MRR: the mean of 1 / its rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calibrate.text import read_text
from ..convert.errors import BadInputError, UsageError
from ..convert.manifest import check_hashes, read_manifest
from ..convert.recheck import source_of
from .models import pooling_of
from .teacher import pooled

Progress = Callable[[str, int, int], None]
CHUNKS = 8  # run at once


@dataclass(frozen=True, slots=True)
class Task:
    """Documents (n, length) and queries (m, size) as token ids without special tokens, and each query's document."""

    documents: Tensor
    queries: Tensor
    answers: Tensor


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that embeds texts of token ids: special tokens are put around, states pooled ("mean" or "cls")."""

    model: nn.Module
    prefix: Sequence[int]
    suffix: Sequence[int]
    pooling: str = "mean"

    @torch.no_grad()
    def __call__(self, body: Tensor) -> Tensor:
        """Ids (b, t) → normalised embeddings (b, w)."""
        ids = around(body, self.prefix, self.suffix)
        parts = [self.model(part).last_hidden_state for part in torch.split(ids, CHUNKS)]
        return F.normalize(torch.cat([pooled(part, self.pooling) for part in parts]), dim=-1)


def around(body: Tensor, prefix: Sequence[int], suffix: Sequence[int]) -> Tensor:
    """Ids (b, t) with the special tokens before and after."""
    ends = (torch.tensor(list(end), dtype=body.dtype).expand(len(body), -1) for end in (prefix, suffix))
    first, last = ends
    return torch.cat([first, body, last], 1)


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
    if count < 2 or length < beyond + queries * size:
        raise BadInputError(
            f"{len(tokens)} tokens give {max(count, 0)} documents of {length} tokens with {queries} queries of {size} "
            f"beyond token {beyond}",
            where="--data",
            hint="give more text, or other --tokens and --queries",
        )
    body = torch.tensor(list(tokens[: count * length])).view(count, length)
    starts = np.linspace(beyond, length - size, queries).round().astype(int)
    found = torch.stack([body[:, start : start + size] for start in starts], 1)  # n queries size
    return Task(body, found.flatten(0, 1), torch.arange(count).repeat_interleave(queries))


def chunk_embeddings(encoder: Encoder, documents: Tensor, size: int) -> Tensor:
    """Embeddings (n, c, w) of consecutive chunks of at most `size` tokens; all of them are nearly equally long."""
    chunks = documents.tensor_split(-(-documents.shape[1] // size), 1)
    return torch.stack([encoder(chunk) for chunk in chunks], 1)


def ranked(similarity: Tensor, answers: Tensor) -> dict[str, float]:
    """R@1 and MRR of similarities (queries, documents); of equal ones the right document counts as the last."""
    right = similarity.gather(1, answers[:, None])
    others = similarity.scatter(1, answers[:, None], float("-inf"))
    rank = 1 + (others >= right).sum(1)
    return {"r@1": float((rank == 1).double().mean()), "mrr": float((1 / rank.double()).mean())}


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
    rows = [
        ("truncation", queries @ source(task.documents[:, :size]).T),
        ("chunk average", queries @ F.normalize(chunks.mean(1), dim=-1).T),
        ("chunk maximum", torch.einsum("qw,ncw->qnc", queries, chunks).amax(-1)),
    ]
    for name, encoder in repos.items():
        progress(f"{name}: queries and documents", 0, 0)
        rows.append((name, encoder(task.queries) @ torch.cat([encoder(d[None]) for d in task.documents]).T))
    return [{"documents": name, **ranked(similarity, task.answers)} for name, similarity in rows]


def retrieval(
    repos: Sequence[str | os.PathLike[str]],
    *,
    against: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]],
    documents: int = 50,
    tokens: int = 2048,
    queries: int = 4,
    query_tokens: int = 32,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Builds the task from text files and measures it: the source's three ways, and each repo.

    Args:
        repos: folders of converted models, all of the same source. against: the source.
        documents, tokens, queries, query_tokens: see `make_task`.

    Returns:
        "task" (documents, tokens, queries, query_tokens) and "rows" (documents, r@1, mrr).

    Raises:
        EffconvError: a repo, a source or a text that cannot be used.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folders = [Path(repo) for repo in repos]
    manifests = [read_manifest(folder) for folder in folders]
    if not manifests:
        raise UsageError("no repo to measure", where="REPO", hint="give at least one repo that effconv made")
    names = [folder.absolute().name for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        check_hashes(folder, manifest)
        if int(manifest["max_length"]) < tokens:
            raise UsageError(
                f"{folder.name} takes {manifest['max_length']} tokens, and a document has {tokens}",
                where="--tokens",
                hint="give shorter documents",
            )
    folder = source_of(against, manifests[0], token, offline)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0], trust_remote_code=True)
    text = read_text([Path(path) for path in data], tokenizer, len(tokenizer))
    reach = min(int(manifest["source_max_length"]) for manifest in manifests)
    around_text = len(text.prefix) + len(text.suffix)
    task = make_task(
        text.tokens, documents=documents, length=tokens - around_text, queries=queries, size=query_tokens, beyond=reach
    )

    def encoder(place: Path, repo: Path, trusted: bool) -> Encoder:
        model = transformers.AutoModel.from_pretrained(place, trust_remote_code=trusted, dtype=torch.float32)
        return Encoder(model.eval(), text.prefix, text.suffix, pooling_of(repo))

    source = encoder(folder, folders[0], trust_remote_code)
    models = {name: encoder(place, place, True) for name, place in zip(names, folders, strict=True)}
    rows = measure(task, source, reach, models, progress)
    shape = {
        "documents": len(task.documents),
        "tokens": tokens,
        "queries": len(task.queries),
        "query_tokens": query_tokens,
    }
    return {"task": shape, "data": text.record, "rows": rows}
