"""Embeddings of long texts: one vector a text, or one a chunk, computed in the context of the whole text.

The files:

    options   flags and their values                                      (no torch)
    chunks    which ids are run, and which states belong to which chunk   (no torch)
    loadable  whether a folder can be loaded                              (no torch)
    encoder   `ChunkEncoder`, over sentence-transformers
    whitening what all vectors of a collection have in common, taken out
    pieces    `PieceEncoder`: averages of whitened pieces
    device    the value of --device                                       (torch only where one is given)
    files     vectors in parquet or .npy files                            (no torch)
    run       `effconv embed`: texts → vectors in a file

`effconv.embed(...)`, the function, is `effconv.api.embed`. The encoders are imported on first use.
"""

from typing import Any

from ..callable_package import make_callable

__api__ = "effconv.api:embed"
make_callable(__name__)


def __getattr__(name: str) -> Any:
    if name in ("Chunk", "ChunkEncoder"):
        from . import encoder

        return getattr(encoder, name)
    if name in ("PieceEncoder", "Whitening"):
        from . import pieces

        return getattr(pieces, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
