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
from ..convert.text_files import Named, one_or_several, require_readable
from ..convert.tokenizer import require_tokenizer
from ..convert.wording import counted
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
    if length < beyond + queries * size:
        raise BadInputError(
            f"{queries} queries of {size} tokens do not fit into documents of {length} tokens beyond token {beyond}, "
            "where the source's own reach ends",
            where="--tokens, --queries, --query-tokens",
            hint="give longer documents, or fewer or shorter queries",
        )
    if count < 2:
        raise BadInputError(
            f"the text has {len(tokens):,} tokens: {counted(count, 'document')} of {length}, "
            "and one must be found among at least 2",
            where="--data",
            hint=f"give more text ({2 * length:,} tokens at least), or fewer --tokens a document",
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
    repos: Named | Sequence[Named],
    *,
    against: Named,
    data: Named | Sequence[Named],
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
        repos: folders of converted models, all of the same source; one or several. against: the source.
        data: a UTF-8 text file, or several, which are joined.
        documents, tokens, queries, query_tokens: see `make_task`.

    Returns:
        "task" (documents, tokens, queries, query_tokens) and "rows" (documents, r@1, mrr).

    Raises:
        EffconvError: a repo, a source or a text that cannot be used.
    """
    folders, files = [Path(repo) for repo in one_or_several(repos)], [Path(path) for path in one_or_several(data)]
    if not folders:
        raise UsageError("no repo to measure", where="REPO", hint="give at least one repo that effconv made")
    if documents < 2:
        raise UsageError("a document must be found among others", where="--documents", hint="give at least 2")
    if not files:
        raise UsageError("no text to cut documents from", where="--data", hint="give one UTF-8 text file or several")
    manifests = [_checked(folder, tokens) for folder in folders]
    require_readable(files, "--data")
    folder = source_of(against, manifests[0], token, offline)
    reach = min(int(manifest["source_max_length"]) for manifest in manifests)
    if tokens < reach + queries * query_tokens:
        longest = min(int(manifest["max_length"]) for manifest in manifests)
        raise UsageError(
            f"queries are taken beyond the {reach} tokens of the source, and a document of {tokens} tokens has no room "
            f"there for {queries} of {query_tokens}",
            where="--tokens, --queries, --query-tokens",
            hint=f"give longer documents (the repos take {longest} tokens), or fewer or shorter queries",
        )

    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    names = [folder.absolute().name for folder in folders]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0], trust_remote_code=True)
    text = read_text(files, tokenizer, len(tokenizer))
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


def _checked(folder: Path, tokens: int) -> dict[str, Any]:
    """The manifest of a repo whose files are what it says, and that takes documents of so many tokens."""
    if not folder.exists():
        raise UsageError(
            "no such folder, and no such file", where=str(folder), hint="give repos that effconv made, and text files"
        )
    manifest = read_manifest(folder)
    if int(manifest["max_length"]) < tokens:
        raise UsageError(
            f"{folder.name} takes {manifest['max_length']} tokens, and a document has {tokens}",
            where="--tokens",
            hint=f"give --tokens {manifest['max_length']} or fewer, or a repo for longer texts (--max-len {tokens})",
        )
    require_tokenizer(folder)
    check_hashes(folder, manifest)
    return manifest
