"""`PieceEncoder`: a long text as the average of its pieces, each embedded by itself, and whitened.

The embedding of a chunk says what the chunk is about. A weighted average (`even`) of the embeddings of its sentences
keeps more of each of them, once what all pieces have in common is taken out (`whitening`). No training, and no model
for long texts, is needed.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError, UsageError
from ..convert.repo.digest import embedding_digest
from ..convert.repo.manifest import NAME, read_manifest
from ..convert.repo.own_modules import PIECES
from .chunks import PIECE, cut
from .encoder import ChunkEncoder, Text
from .whitening import Moments, Whitening

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

T = TypeVar("T")
ROWS = 4  # pieces that are run together for each text that would be


@dataclass(frozen=True, slots=True)
class Pieces:
    """Embeddings of the pieces of a text, which wait for their whitening.

    Attributes:
        vectors: (n, w) float32, of length 1. counts: pieces of each chunk.
    """

    vectors: Tensor
    counts: list[int]


class PieceEncoder(ChunkEncoder):
    """Embeds texts as averages of short pieces, each embedded by itself: weighted ones with a whitening, plain without.

    Args:
        model: as of `ChunkEncoder`: any sentence-transformers model, converted or not.
        piece_tokens: tokens of a piece, special tokens not counted. By default those that the whitening was fitted to,
            or what `effconv pieces` wrote into the model, or 30.
        whitening: applied to texts and queries: that of an earlier collection, or the file with it. `fit_encode` fits
            one. By default none, or the one that `effconv pieces` wrote into the model.
        **others: those of `ChunkEncoder`.

    Attributes:
        seen: the moments of all pieces that were embedded since the encoder was made.

    Raises:
        EffconvError: as of `ChunkEncoder`; pieces do not fit into the model, the file has no whitening, or it
            was fitted with another model or to pieces of another length.
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
        folder = Path(os.path.expanduser(model)) if isinstance(model, (str, os.PathLike)) else None
        self._folder = folder if folder is not None and folder.is_dir() else None
        own: Any = self.model[-1] if type(self.model[0]).__name__ == PIECES else None
        self._own = own is not None
        where = "whitening"
        if isinstance(whitening, (str, os.PathLike)):
            where = str(whitening)
            whitening = Whitening.load(Path(whitening).expanduser())
        usual = int(self.model[0].piece_tokens) if self._own else PIECE  # type: ignore[arg-type]
        if piece_tokens is None:
            piece_tokens = (whitening.piece_tokens if whitening is not None else 0) or usual
        room = self.max_seq_length - len(self._prefix) - len(self._suffix)
        if not 1 <= piece_tokens <= room:
            raise UsageError(
                f"pieces must have 1 to {room} tokens, got {piece_tokens}",
                where="--pieces",
                hint=f"give a number of tokens, such as {min(PIECE, room)}",
            )
        self.piece_tokens = piece_tokens
        self.seen = Moments()
        if whitening is not None:
            self._require_fit(whitening, where)
        elif own is not None:  # looked at when it is used: another one may be fitted in its place
            mean, matrix = own.mean.detach().float().cpu(), own.matrix.detach().float().cpu()
            whitening = Whitening(mean, matrix, piece_tokens=usual)
        self.whitening = whitening

    @functools.cached_property
    def weights(self) -> str:
        """sha256 of the model's weights; "" for a model that was not loaded from a folder."""
        if self._folder is None:
            return ""
        ours = (self._folder / NAME).is_file()  # and then compared with its manifest when it was loaded
        return embedding_digest(self._folder, read_manifest(self._folder)["files"] if ours else {})

    def encode(self, sentences: str | Sequence[str], *, chunk_tokens: int | None = None, **options: Any) -> Any:
        """Embeds texts, one vector a chunk: the average of its pieces, whitened and weighted if there is a whitening.

        Args:
            sentences: a text, or several.
            chunk_tokens: tokens of a chunk. None: one vector a text.
            options: those of `ChunkEncoder.encode`. A whitened vector has length 1 in any case.

        Returns:
            As `ChunkEncoder.encode`.

        Raises:
            BadInputError: the whitening is for other vectors.
        """
        return super().encode(sentences, chunk_tokens=chunk_tokens, **options)

    encode_document = encode

    def fit_encode(self, sentences: Sequence[str], **options: Any) -> Any:
        """Fits the whitening to the pieces of these texts, keeps it, and embeds them: as `encode`, at the same cost.

        All pieces are in memory at once: for w numbers a vector, 4 w bytes a piece. `effconv embed` has them in a file.

        Raises:
            BadInputError: the texts have fewer pieces than a vector has numbers.
        """
        tensors = options.pop("convert_to_tensor", False)
        options.pop("normalize_embeddings", None)  # a whitened vector has length 1
        self.whitening, self.seen = None, Moments()
        texts = list(self.with_enough_pieces(iter(sentences), str, options.get("chunk_tokens")))
        held = self.pieces(texts, **options)
        whitening = self.fit()
        found = [whitening.pooled(text.vectors, text.counts) for text in held]
        return found if tensors else [np.asarray(vectors) for vectors in found]

    def pieces(
        self,
        sentences: Sequence[str],
        *,
        chunk_tokens: int | None = None,
        batch_size: int = 8,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Pieces]:
        """The pieces of texts, not whitened, with the options of `encode`. `Whitening.pooled` makes vectors of them."""
        lead = self._prompt(prompt, prompt_name)
        texts = [self._cut(self._read(text, lead), chunk_tokens) for text in sentences]
        return self._in_batches(texts, batch_size, self._pieces)

    def fit(self) -> Whitening:
        """Fits the whitening to all pieces that were embedded since the encoder was made, and keeps it.

        Raises:
            BadInputError: there are fewer of them than a vector has numbers, or all are equal.
        """
        self.whitening = replace(fitted(self.seen), model=self.weights, piece_tokens=self.piece_tokens)
        return self.whitening

    def with_enough_pieces(
        self, texts: Iterator[T], text_of: Callable[[T], str], chunk_tokens: int | None = None
    ) -> Iterator[T]:
        """The same texts, if a whitening can be fitted to them.

        Only as many are tokenized as it takes to see it: a collection that is too small is refused before it is
        embedded, at no cost for a large one.

        Raises:
            BadInputError: the texts have fewer pieces than a vector has numbers.
        """
        # The name before sentence-transformers 5.4, which the modules of older repos have.
        named = getattr(self.model, "get_embedding_dimension", self.model.get_sentence_embedding_dimension)
        width, count = int(named() or 0), 0
        held: list[T] = []
        while count < width:
            part = list(itertools.islice(texts, 1))
            if not part:
                raise _too_few(width, count)
            held += part
            chunks = self._cut(self._read(text_of(part[0]), self._prompt(None, None)), chunk_tokens).chunks
            count += sum(len(cut(end - begin, self.piece_tokens)) for begin, end in chunks)
        return itertools.chain(held, texts)

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """`SentenceTransformer.encode_query`, whitened if there is a whitening."""
        if self.whitening is None:
            return self._queries(sentences, **options)
        tensors = options.pop("convert_to_tensor", False)
        found = self._queries(sentences, **options, convert_to_tensor=True)
        rows = F.normalize(found.float(), dim=-1)
        self._require_width(self.whitening, rows.shape[-1])
        whitened = self.whitening(rows.cpu())
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

    def _require_width(self, whitening: Whitening, width: int) -> None:
        """Raises BadInputError for a whitening of other vectors than those of the model, which have `width` numbers."""
        self._require_fit(whitening, "whitening")
        if len(whitening.mean) != width:
            raise BadInputError(
                f"the whitening is for vectors of {len(whitening.mean)} numbers, and those of the model have {width}",
                where="whitening",
                hint="give one that was fitted with this model",
            )

    def _require_fit(self, whitening: Whitening, where: str) -> None:
        """Raises BadInputError for a whitening of other embeddings, as far as it says which it is for."""
        if whitening.piece_tokens not in (0, self.piece_tokens):
            raise BadInputError(
                f"the whitening was fitted to pieces of {whitening.piece_tokens} tokens, and the pieces have "
                f"{self.piece_tokens}",
                where=where,
                hint=f"use pieces of {whitening.piece_tokens} tokens, or fit a new whitening (--whiten)",
            )
        if whitening.model and self.weights and whitening.model != self.weights:
            raise BadInputError(
                f"the whitening was fitted with another model: the sha256 of its weights is {whitening.model[:12]}, "
                f"and that of this model's weights is {self.weights[:12]}",
                where=where,
                hint="give a whitening that was fitted with this model, or fit a new one (--whiten)",
            )

    def _cut(self, text: Text, size: int | None) -> Text:
        if size is not None and size < 1:
            raise UsageError(
                f"chunks must have at least 1 token, got {size}", where="chunk_tokens", hint="give a number such as 512"
            )
        return replace(text, chunks=cut(len(text.ids), size or max(len(text.ids), 1)))

    def _embed(self, texts: list[Text], batch_size: int) -> list[Tensor]:
        found = self._pieces(texts, batch_size)
        if self.whitening is None:
            return [torch.stack([part.mean(0) for part in text.vectors.split(text.counts)]) for text in found]
        self._require_width(self.whitening, found[0].vectors.shape[1])
        return [self.whitening.pooled(text.vectors, text.counts) for text in found]

    def _pieces(self, texts: list[Text], batch_size: int) -> list[Pieces]:
        """The pieces of each text, which the moments have seen."""
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
        vectors = F.normalize(torch.cat(super()._embed(pieces, ROWS * batch_size)).float(), dim=-1).cpu()
        self.seen.add(vectors)
        return [Pieces(*text) for text in zip(vectors.split([sum(some) for some in counts]), counts, strict=True)]


def fitted(seen: Moments) -> Whitening:
    """The whitening of pieces.

    Raises:
        BadInputError: there are fewer of them than a vector has numbers, or all are equal.
    """
    if seen.count < max(seen.width, 2):
        raise _too_few(seen.width, seen.count)
    found = seen.whitening()
    if not found.matrix.isfinite().all():
        raise BadInputError(
            "all pieces have the same embedding, so there is nothing to whiten",
            where="--data",
            hint="give texts that differ, or leave out --whiten",
        )
    return found


def _too_few(width: int, count: int) -> BadInputError:
    return BadInputError(
        f"a whitening of vectors of {width} numbers needs at least as many pieces, and the texts have {count}",
        where="--data",
        hint="give more texts, or a whitening of other texts with --whitening",
    )
