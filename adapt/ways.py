"""Embeds the queries and documents of a task in every way that is compared, measures what that costs, and ranks.

A way costs what embedding one document after the other costs: CPU seconds of all threads, and the most memory that it
took beyond the loaded models, chunks or windows of a document included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bench import memory
from ..convert.options import Progress
from ..embed.chunks import PIECE, cut_twice
from ..embed.whitening import Moments
from .controls import LABELS
from .embedding_cache import Cache, digest_of
from .ranking import Encoder, Task, best, difference, mean_error, ranked

WARMUP = 64  # tokens of a run before what is measured
PIECES = ("pieces", "pieces-chunks")
Parts = Mapping[str, Tensor]  # vectors (k, w) of a document, by what they are


@dataclass(frozen=True)
class Model:
    """A model that embeds the task.

    Attributes:
        name: as rows call it. load: makes the encoder, only where the cache lacks something. digest: of everything that
            decides its outputs. ways: names in `LABELS` (or "repo", the whole document by a repo).
    """

    name: str
    load: Callable[[], Encoder]
    digest: str
    ways: Sequence[str]


@dataclass(frozen=True)
class Embedded:
    """Vectors of all documents.

    Attributes:
        vectors: (total, w). counts: of each document. seconds, peak: a document; None where the system cannot tell.
    """

    vectors: Tensor
    counts: list[int]
    seconds: float
    peak: int | None


def measure(
    task: Task, models: Sequence[Model], size: int, reach: int, cache: Cache, progress: Progress
) -> list[dict[str, Any]]:
    """One row a way to embed documents.

    Args:
        size: tokens of a chunk. reach: tokens that the source takes, for truncation.
    """
    found: dict[tuple[str, str], tuple[Tensor, Embedded]] = {}
    for model in models:
        queries, parts = _embedded(task, model, size, reach, cache, progress)
        for way in model.ways:
            found[model.name, way] = (queries, parts[way])
    ranks: dict[tuple[str, str], Tensor] = {}
    for key, (queries, documents) in found.items():
        if key[1] == "chunk-mean":
            several = torch.split(documents.vectors, documents.counts)
            means = torch.stack([F.normalize(part.mean(0), dim=-1) for part in several])
            found[key] = queries, replace(documents, vectors=means, counts=[1] * len(several))
        elif key[1] in PIECES:
            found[key] = _averaged(queries, documents, task, size, of_chunks=key[1] == "pieces-chunks")
        queries, documents = found[key]
        ranks[key] = ranked(best(queries, documents.vectors, documents.counts), task.answers)
    order = [*LABELS, "repo"]
    keys = sorted(found, key=lambda key: order.index(key[1]))  # stable: repos in the order in which they were given
    bases = {name: next((ranks[key] for key in keys if key[1] == name), None) for name in ("chunk-mean", "chunk-max")}
    return [_row(key, ranks[key], found[key][1], bases, task) for key in keys]


def _averaged(queries: Tensor, pieces: Embedded, task: Task, size: int, *, of_chunks: bool) -> tuple[Tensor, Embedded]:
    """Whitened queries, and the whitened averages of the pieces of each document, or of each chunk."""
    seen = Moments()
    seen.add(pieces.vectors)
    whitening = seen.whitening()
    inner = [[len(chunk) for chunk in cut_twice(len(body), size, PIECE)] for body in task.documents]
    counts = [len(chunks) if of_chunks else 1 for chunks in inner]
    parts = [count for chunks in inner for count in (chunks if of_chunks else [sum(chunks)])]
    return whitening(queries), replace(pieces, vectors=whitening.pooled(pieces.vectors, parts), counts=counts)


def _row(
    key: tuple[str, str], ranks: Tensor, documents: Embedded, bases: Mapping[str, Tensor | None], task: Task
) -> dict[str, Any]:
    name, way = key
    label = name if way == "repo" else f"{name}, {LABELS[way]}" if way == "repo-chunks" else LABELS[way]
    row: dict[str, Any] = {"documents": label, "way": way}
    row["r@1"], row["r@1_error"] = mean_error((ranks == 1).double(), task.units)
    row["mrr"], row["mrr_error"] = mean_error(1 / ranks.double(), task.units)
    for base, others in bases.items():
        if others is not None:
            what = "over_" + LABELS[base].replace(" ", "_")
            row[what], row[f"{what}_error"] = difference(ranks, others, task.units)
    row["vectors"] = sum(documents.counts) / len(documents.counts)
    row["cpu_seconds"], row["peak_bytes"] = documents.seconds, documents.peak
    return row


def _embedded(
    task: Task, model: Model, size: int, reach: int, cache: Cache, progress: Progress
) -> tuple[Tensor, dict[str, Embedded]]:
    """Queries (m, w), and documents by way."""
    loaded: list[Encoder] = []

    def encoder() -> Encoder:
        if not loaded:
            loaded.append(model.load())
        return loaded[0]

    def embed_queries() -> tuple[dict[str, Tensor], dict[str, Any]]:
        progress(f"{model.name}: queries", 0, 0)
        return {"queries": encoder().several(list(task.queries))}, {}

    asked = {"model": model.digest, "ids": digest_of(task.queries)}
    queries = cache.get({**asked, "of": "queries"}, embed_queries)[0]["queries"]
    documents = digest_of(task.documents)
    found: dict[str, Embedded] = {}
    for run, needed in _runs(model.ways):

        def embed_documents(run: str = run) -> tuple[dict[str, Tensor], dict[str, Any]]:
            progress(f"{model.name}: documents ({LABELS.get(run, 'whole')})", 0, 0)
            return _measured(_maker(run, encoder(), size, reach), task.documents)

        of = {"model": model.digest, "ids": documents, "of": run, "chunk_tokens": size, "reach": reach}
        tensors, cost = cache.get(of, embed_documents)
        for way, part in needed.items():
            counts = tensors[f"{part}.counts"].tolist()
            found[way] = Embedded(tensors[part], counts, cost["seconds"], cost["peak"])
    return queries, found


def _runs(ways: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """What is run for these ways: a name each, and which of its outputs a way takes. Long models run once for both."""
    runs: dict[str, dict[str, str]] = {}
    for way in ways:
        run = {"chunk-mean": "chunk-max", "pieces-chunks": "pieces"}.get(way, way)
        part = "one" if way in ("truncation", "dense", "dense-interpolated", "repo") else "chunks"
        if way in PIECES:
            part = "pieces"
        if way in ("dense", "dense-interpolated", "dense-chunks", "repo", "repo-chunks"):
            run = "whole"
        runs.setdefault(run, {})[way] = part
    return list(runs.items())


def _maker(run: str, encoder: Encoder, size: int, reach: int) -> Callable[[Tensor], Parts]:
    """Embeds one document (t,)."""
    room = reach - len(encoder.prefix) - len(encoder.suffix)

    def whole(body: Tensor) -> Parts:
        chunks, one = encoder.in_context(body, size)
        return {"chunks": chunks, "one": encoder(body[None]) if one is None else one}

    def pieces(body: Tensor) -> Parts:
        bounds = [piece for chunk in cut_twice(len(body), size, PIECE) for piece in chunk]
        return {"pieces": encoder.several([body[begin:end] for begin, end in bounds])}

    makers: dict[str, Callable[[Tensor], Parts]] = {
        "truncation": lambda body: {"one": encoder(body[None, :room])},
        "chunk-max": lambda body: {"chunks": encoder.alone(body, size)},
        "late-chunking": lambda body: {"chunks": encoder.in_context(body, size)[0]},
        "pieces": pieces,
        "whole": whole,
    }
    return makers[run]


def _measured(
    make: Callable[[Tensor], Parts], documents: Sequence[Tensor] | Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Vectors of all documents with their counts, and the cost of a document."""
    make(documents[0][:WARMUP])
    base = memory.begin()
    begun = time.process_time()
    found = [make(body) for body in documents]
    seconds = (time.process_time() - begun) / len(found)
    peak = None if base is None else max(memory.peak() - base, 0)
    tensors: dict[str, Tensor] = {}
    for part in found[0]:
        tensors[part] = torch.cat([parts[part] for parts in found])
        tensors[f"{part}.counts"] = torch.tensor([len(parts[part]) for parts in found])
    return tensors, {"seconds": seconds, "peak": peak}
