"""`PieceEncoder`: a long text as the average of its pieces, each embedded by itself, and whitened.

The embedding of a chunk says what the chunk is about. The average of the embeddings of its sentences keeps more of each
of them, once what all pieces have in common is taken out (`whitening`). No training, and no model for long texts, is
needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError, UsageError
from ..convert.repo.own_modules import PIECES
from .chunks import PIECE, cut
from .encoder import ChunkEncoder, Text
from .whitening import Moments, Whitening

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROWS = 4  # pieces that are run together for each text that would be


class PieceEncoder(ChunkEncoder):
    """Embeds texts as averages of short pieces, each embedded by itself.

    Args:
        model: as of `ChunkEncoder`: any sentence-transformers model, converted or not.
        piece_tokens: tokens of a piece, special tokens not counted. By default 30, or what `effconv pieces` wrote into
            the model.
        whitening: applied to texts and queries: that of an earlier collection, or the file with it. `fit_encode` fits
            one. By default none, or the one that `effconv pieces` wrote into the model.
        **others: those of `ChunkEncoder`.

    Attributes:
        seen: the moments of all pieces that were embedded since the encoder was made.

    Raises:
        EffconvError: as of `ChunkEncoder`; pieces do not fit into the model, or the file has no whitening.
    """

    encoders = ("Transformer", PIECES)

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer,
        *,
        piece_tokens: int | None = None,
        whitening: Whitening | str | os.PathLike[str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, **others)
        own: Any = self.model[-1] if type(self.model[0]).__name__ == PIECES else None
        self._own = own is not None
        piece_tokens = piece_tokens or (int(self.model[0].piece_tokens) if self._own else PIECE)  # type: ignore[arg-type]
        if own is not None and whitening is None:
            whitening = Whitening(own.mean.detach().float().cpu(), own.matrix.detach().float().cpu())
        room = self.max_seq_length - len(self._prefix) - len(self._suffix)
        if not 1 <= piece_tokens <= room:
            raise UsageError(
                f"pieces must have 1 to {room} tokens, got {piece_tokens}",
                where="piece_tokens",
                hint=f"give a number of tokens, such as {min(PIECE, room)}",
            )
        self.piece_tokens = piece_tokens
        self.seen = Moments()
        if isinstance(whitening, (str, os.PathLike)):
            whitening = Whitening.load(Path(whitening).expanduser())
        self.whitening = whitening

    def encode(self, sentences: str | Sequence[str], *, chunk_tokens: int | None = None, **options: Any) -> Any:
        """Embeds texts, one vector a chunk: the average of its pieces, whitened if there is a whitening.

        Args:
            sentences: a text, or several.
            chunk_tokens: tokens of a chunk. None: one vector a text.
            options: those of `ChunkEncoder.encode`. A whitened vector has length 1 in any case.

        Returns:
            As `ChunkEncoder.encode`.

        Raises:
            BadInputError: the whitening is for vectors of another width.
        """
        return super().encode(sentences, chunk_tokens=chunk_tokens, **options)

    encode_document = encode

    def fit_encode(self, sentences: Sequence[str], **options: Any) -> Any:
        """Fits the whitening to the pieces of these texts, keeps it, and embeds them: as `encode`, at the same cost.

        Raises:
            BadInputError: the texts have fewer pieces than a vector has numbers.
        """
        tensors = options.pop("convert_to_tensor", False)
        self.whitening, self.seen = None, Moments()
        found: list[Tensor] = self.encode(sentences, **options, convert_to_tensor=True)
        self.whitening = fitted(self.seen)
        whitened = [self.whitening(vectors.cpu()) for vectors in found]
        return whitened if tensors else [np.asarray(vectors) for vectors in whitened]

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`SentenceTransformer.encode_query`, whitened if there is a whitening."""
        if self.whitening is None:
            return self._queries(sentences, **options)
        tensors = options.pop("convert_to_tensor", False)
        found = self._queries(sentences, **options, convert_to_tensor=True)
        rows = F.normalize(found.float(), dim=-1)
        whitened = self._whitened(rows[None] if rows.ndim == 1 else rows).view(rows.shape)
        return whitened if tensors else np.asarray(whitened)

    def _queries(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """Queries, not whitened."""
        if not self._own:
            return super().encode_query(sentences, **options)
        if options.get("prompt") is None and "query" in (self.model.prompts or {}):
            options.setdefault("prompt_name", "query")
        return self.model.encode(sentences, **options)  # type: ignore[arg-type]

    def chunks(self, sentences: str | Sequence[str], chunk_tokens: int | None = None) -> list[Any]:
        """Where `encode` cuts texts into chunks, as `ChunkEncoder.chunks`."""
        return super().chunks(sentences, chunk_tokens)

    def _whitened(self, vectors: Tensor) -> Tensor:
        """Vectors (n, w), whitened if there is a whitening."""
        if self.whitening is None:
            return vectors
        width = len(self.whitening.mean)
        if width != vectors.shape[1]:
            raise BadInputError(
                f"the whitening is for vectors of {width} numbers, and those of the model have {vectors.shape[1]}",
                where="whitening",
                hint="give one that was fitted with this model",
            )
        return self.whitening(vectors.cpu())

    def _cut(self, text: Text, size: int | None) -> Text:
        if size is not None and size < 1:
            raise UsageError(f"chunks must have at least 1 token, got {size}", where="chunk_tokens", hint="such as 512")
        return replace(text, chunks=cut(len(text.ids), size or max(len(text.ids), 1)))

    def _embed(self, texts: list[Text], batch_size: int) -> list[Tensor]:
        pieces: list[Text] = []
        counts: list[list[int]] = []
        for text in texts:
            bounds = [cut(end - begin, self.piece_tokens) for begin, end in text.chunks]
            counts.append([len(several) for several in bounds])
            for (begin, _), several in zip(text.chunks, bounds, strict=True):
                pieces += [
                    Text(text.ids[begin + first : begin + behind], text.prompt, None, [(0, behind - first)])
                    for first, behind in several
                ]
        vectors = F.normalize(torch.cat(super()._embed(pieces, ROWS * batch_size)).float(), dim=-1)
        self.seen.add(vectors.cpu())
        chunks = torch.split(vectors, [count for several in counts for count in several])
        means = self._whitened(torch.stack([chunk.mean(0) for chunk in chunks]))
        return list(torch.split(means, [len(several) for several in counts]))


def fitted(seen: Moments) -> Whitening:
    """The whitening of pieces.

    Raises:
        BadInputError: there are fewer of them than a vector has numbers, or all are equal.
    """
    if seen.count < max(seen.width, 2):
        raise BadInputError(
            f"a whitening of vectors of {seen.width} numbers needs at least as many pieces, "
            f"and the texts have {seen.count}",
            where="--whiten",
            hint="give more texts, or a whitening of other texts with --whitening",
        )
    found = seen.whitening()
    if not found.matrix.isfinite().all():
        raise BadInputError(
            "all pieces have the same embedding, so there is nothing to whiten",
            where="--whiten",
            hint="give texts that differ, or leave out --whiten",
        )
    return found
