"""The table of global embeddings, made from a source's own embeddings so that it starts where tokens live.

512 rows. Row 0 is the first position's embedding plus that of the beginning-of-sequence token, the others are positions
spread over the table plus the mask token's embedding (arXiv 2210.15497, section 3.3, and its published converter).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..convert.io.dtypes import Array, from_float32
from ..convert.ops import Shape, generator, sinusoids
from .options import ROWS


@dataclass(frozen=True, slots=True)
class GlobalEmbeddings:
    """Makes the table from the position table, the word embeddings and (where they count) all token types.

    Args:
        bos, mask: ids of the tokens whose embeddings row 0 and the others get; for `random`, mask may be None.
        special: leading rows of the position table that no token uses.
        stride: distance of the positions that rows 0, 1, 2, ... take, in a table of 512.
        init: mask, or random (a sample of N(mean, covariance) of the word embeddings in place of the mask token's).
        seed: of the random draws.
        keeps_first: whether row 0 is that of the last input, the table of a source that is LSG already.
        computed: rows of a position table of sinusoids, which is computed.
        tabled: whether the first input is a position table. Where there is none, nothing is added for positions.
    """

    bos: int
    mask: int | None
    special: int
    stride: int
    init: str
    seed: int
    keeps_first: bool = False
    computed: int = 0
    tabled: bool = True
    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        positions, words = inputs[:2] if self.tabled else ((self.computed, inputs[0][-1]), inputs[0])
        if len(words) != 2 or positions[-1] != words[1]:
            raise ValueError(f"positions {positions} and words {words} differ in width")
        for name, token in (("beginning-of-sequence", self.bos), ("mask", self.mask)):
            if token is not None and not 0 <= token < words[0]:
                raise ValueError(f"the id of the {name} token is {token}, the vocabulary has {words[0]} rows")
        return (ROWS, words[1])

    def apply(self, *inputs: Array) -> Array:
        words, *others = inputs[1:] if self.tabled else inputs
        if self.tabled:
            table = self._positions(inputs[0].float32()[self.special :])
        elif self.computed:
            table = self._positions(sinusoids(self.computed, words.shape[1]))
        else:
            table = np.zeros((ROWS, words.shape[1]), dtype=np.float32)
        stored = inputs[-1]
        types = others[: len(others) - self.keeps_first]
        typed = sum((_row(rows, 0) for rows in types), start=np.float32(0))
        if self.init == "random":
            added = self._sample(words)
            added[0] = _row(words, self.bos)
            # The published converter adds the token type to both here; its rows are matched bit for bit, sum by sum.
            table = (added + typed) + (table + typed)
        else:
            table[0] += _row(words, self.bos)
            table[1:] += _row(words, self.mask)
            table += typed
        if self.keeps_first:
            table[0] = _row(stored, 0)
        return from_float32(table, inputs[0].dtype)

    def _positions(self, body: np.ndarray) -> np.ndarray:
        """512 position rows (512, width), in the order that takes every `stride`-th first.

        A longer table gives every F-th of its first 512 F rows; a shorter one is filled with draws from N(mean, std).
        """
        factor = max(len(body) // ROWS, 1)
        chosen = body[: ROWS * factor : factor]
        if len(chosen) < ROWS:
            mean, std = body.mean(axis=0), body.std(axis=0, ddof=1) if len(body) > 1 else np.zeros_like(body[0])
            draws = generator(self.seed, "global_embeddings.positions").standard_normal(
                (ROWS - len(chosen), body.shape[1])
            )
            chosen = np.concatenate([chosen, (mean + std * draws).astype(np.float32)])
        stride = max(self.stride // factor, 1)
        order = sorted(range(ROWS), key=lambda position: (position % stride, position // stride))
        return chosen[order].astype(np.float32)

    def _sample(self, words: Array) -> np.ndarray:
        """512 draws of N(mean, covariance) of the word embeddings."""
        count, width = words.shape
        total, products = np.zeros(width), np.zeros((width, width))
        for rows in words.blocks(1024):
            block = rows.float32().astype(np.float64)
            total += block.sum(axis=0)
            products += block.T @ block
        mean = total / count
        covariance = (products - count * np.outer(mean, mean)) / max(count - 1, 1)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        draws = generator(self.seed, "global_embeddings.words").standard_normal((ROWS, width))
        sample: np.ndarray = (mean + draws @ root.T).astype(np.float32)
        return sample


def _row(table: Array, index: int | None) -> np.ndarray:
    row: np.ndarray = Array(table.data[index : None if index is None else index + 1], table.dtype).float32()[0]
    return row


@dataclass(frozen=True, slots=True)
class GlobalBias:
    """Makes the bias (1, heads) of global keys from the table (buckets, heads) of the bias for distances.

    A global key gets the least that any distance gets, so that it takes almost no share from the keys of the source.
    Untrained all-mpnet-base-v2 on 128 tokens of WikiText-2 valid, cosine of tokens to the source: .999 so, .990 with
    what the farthest keys get, .979 with the mean of all, .934 with zero.
    """

    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        (table,) = inputs
        if len(table) != 2:
            raise ValueError(f"the table of the bias has the shape {table}, not one of buckets and heads")
        return (1, table[1])

    def apply(self, *inputs: Array) -> Array:
        return from_float32(inputs[0].float32().min(axis=0, keepdims=True), inputs[0].dtype)
