"""Embeddings of long texts: one vector a text, or one a chunk, computed in the context of the whole text.

The files:

    options   flags and their values                                      (no torch)
    chunks    which ids are run, and which states belong to which chunk   (no torch)
    encoder   `ChunkEncoder`, over sentence-transformers
    texts     the texts of files, each with an id                         (no torch)
    run       `effconv embed`: texts → vectors in a file

`effconv.embed(...)`, the function, is `effconv.api.embed`. `effconv.embed.ChunkEncoder` is imported on first use.
"""

from typing import Any

from ..callable_package import make_callable

__api__ = "effconv.api:embed"
make_callable(__name__)


def __getattr__(name: str) -> Any:
    if name in ("Chunk", "ChunkEncoder"):
        from . import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
