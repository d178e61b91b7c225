# SPDX-License-Identifier: Apache-2.0
"""Initial E and F of Linformer: (proj_dim, length) matrices over positions, in numpy: a conversion needs no torch.

Rows sum to 1. Row 0 is position 0 (CLS), the last row the last position (the last real token, once the matrix has been
resampled to a sequence's true length); the rows between share the middle positions in order, one segment each.
"""

from __future__ import annotations

import itertools

import numpy as np

__all__ = ["default_peak", "draw", "peaked_segments", "strided", "uniform_segments"]

_GOLDEN = 0.6180339887498949


def default_peak(sharing: str, weighting: str = "none") -> float:
    """The peak that won on WikiText-2 valid with MiniLM; one tenth more or less costs at most .01 of token cosine.

    One matrix for all layers cannot take turns, so it averages more; salience chooses tokens itself, so it needs less.
    """
    if weighting == "salience":
        return 0.3
    return 0.6 if sharing == "layers" else 0.8


def uniform_segments(proj_dim: int, length: int) -> np.ndarray:
    """Every middle row is the mean of its segment (float32, (proj_dim, length)); raises ValueError as _bounds does."""
    return peaked_segments(proj_dim, length, 0, 0.0)


def strided(proj_dim: int, length: int, layer: int = 0) -> np.ndarray:
    """Every middle row is one position of its segment; which one differs by layer (see peaked_segments)."""
    return peaked_segments(proj_dim, length, layer, 1.0)


def peaked_segments(proj_dim: int, length: int, layer: int = 0, peak: float = 0.8) -> np.ndarray:
    """A segment's row gives `peak` of its weight to one position and shares the rest among all of them.

    A mean of keys is a key that nobody asked for: scores flatten and sharp heads lose their target. A single token is a
    real key, but then the others are never seen. So most of the weight goes to one token, another one in every layer
    (the golden ratio spreads the choice, and neighbouring layers choose far apart): what one layer skips, the next
    one reads.

    Args:
        proj_dim: rows, at least 3.
        length: positions, more than proj_dim.
        layer: index that chooses the position within a segment.
        peak: 0 gives means, 1 gives a strided selection.
    """
    bounds = _bounds(proj_dim, length)
    offset = (0.5 + layer * _GOLDEN) % 1.0
    rows = np.zeros((proj_dim, length), dtype=np.float32)
    rows[0, 0] = rows[-1, -1] = 1.0
    for row, (start, stop) in enumerate(itertools.pairwise(bounds), start=1):
        rows[row, start:stop] = (1.0 - peak) / (stop - start)
        rows[row, start + int(offset * (stop - start))] += peak
    return rows


def draw(kind: str, proj_dim: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """The published random inits: "gaussian" (Johnson-Lindenstrauss, var 1/k), "truncated-normal" (.02) or "xavier"."""
    shape = (proj_dim, length)
    if kind == "gaussian":
        return (rng.standard_normal(shape) / np.sqrt(proj_dim)).astype(np.float32)
    if kind == "truncated-normal":
        values = rng.standard_normal(shape)
        while (far := np.abs(values) > 2.0).any():
            values[far] = rng.standard_normal(int(far.sum()))
        return (0.02 * values).astype(np.float32)
    if kind == "xavier":
        bound = np.sqrt(6.0 / (proj_dim + length))
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    raise ValueError(f"init must be gaussian, truncated-normal or xavier, got {kind!r}")


def _bounds(proj_dim: int, length: int) -> list[int]:
    if not 3 <= proj_dim < length:
        raise ValueError(
            f"proj_dim must be at least 3 and less than the length {length}, got {proj_dim}"
            " (inputs of up to proj_dim tokens already have exact attention)"
        )
    middle, segments = length - 2, proj_dim - 2
    return [1 + (2 * i * middle + segments) // (2 * segments) for i in range(segments + 1)]
