"""The ways to embed a document that `effconv retrieval` compares, by name. Imports nothing heavy.

One vector a document: the first tokens that the source takes (`truncation`), the average of its chunks (`chunk-mean`),
the source with a longer position table on the whole document (`dense`, `dense-interpolated`), the average of its
whitened pieces (`pieces`), and each repo. One vector a chunk, the best of which counts: the source on chunks
(`chunk-max`), the source on windows that overlap, pooled per chunk (`late-chunking`), both long models pooled per chunk
(`dense-chunks`, `repo-chunks`), and the average of each chunk's whitened pieces (`pieces-chunks`).
"""

from __future__ import annotations

from ..convert.errors import UsageError

LABELS = {  # as rows are called; a repo's row has its name before that
    "truncation": "truncation",
    "chunk-mean": "chunk average",
    "chunk-max": "chunk maximum",
    "late-chunking": "late chunking",
    "pieces": "whitened pieces",
    "pieces-chunks": "whitened pieces, chunks",
    "dense": "dense",
    "dense-interpolated": "dense, interpolated",
    "dense-chunks": "dense, chunks",
    "repo-chunks": "chunks",
}
SAYS = {  # in the help of `--with`
    "truncation": "the first tokens that the source takes",
    "chunk-mean": "average of its chunks",
    "chunk-max": "its best chunk",
    "late-chunking": "chunks pooled from overlapping windows",
    "pieces": "average of whitened short pieces",
    "pieces-chunks": "the same for each chunk",
    "dense": "the source with repeated positions, on the whole document",
    "dense-interpolated": "the same with interpolated positions",
    "dense-chunks": "dense, pooled per chunk",
    "repo-chunks": "each repo, pooled per chunk",
}
STRETCHED = ("dense", "dense-interpolated", "dense-chunks")


def chosen(named: str | None) -> tuple[str, ...]:
    """The ways that `--with` names, in the order of `LABELS`; all of them if it is not given.

    Raises:
        UsageError: it names another one.
    """
    if named is None:
        return tuple(LABELS)
    words = [word.strip().lower() for word in named.split(",") if word.strip()]
    odd = [word for word in words if word not in LABELS]
    if odd or not words:
        raise UsageError(
            f"unknown way to embed a document: {', '.join(odd)}" if odd else "no way to embed a document is named",
            where="--with",
            hint="use some of " + ", ".join(LABELS),
        )
    return tuple(name for name in LABELS if name in words)
