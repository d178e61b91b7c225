"""One vector for several pieces, which is about equally near to each of them.

A mean is near to what many pieces share and far from the one that says something else, and it may be that one which is
looked for. Generalised max pooling (Murray and Perronnin, arXiv 1406.0312) weights the pieces: with X (n, w) the
pieces as rows of length 1, the vector v has products with all of them as near to 1 as a ridge r allows,

    v = argmin |X v - 1|² + r n |v|² = Xᵀ (X Xᵀ + r n I)⁻¹ 1.

With a large ridge it is the mean's direction. It is for whitened pieces: others are all alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 0.05


def even(pieces: Tensor, ridge: float = RIDGE) -> Tensor:
    """Pieces (n, w) of length 1 → the vector (w,) of length 1."""
    count, width = pieces.shape
    inner = pieces @ pieces.T if count <= width else pieces.T @ pieces  # either gives it, and the smaller one is solved
    inner.diagonal().add_(ridge * count)
    if count <= width:
        found = torch.linalg.solve(inner, pieces.new_ones(count)) @ pieces
    else:
        found = torch.linalg.solve(inner, pieces.sum(0))
    return F.normalize(found, dim=-1)


def even_parts(pieces: Tensor, counts: Sequence[int], ridge: float = RIDGE) -> Tensor:
    """Pieces of several texts, one text after the other, and how many each has → their vectors (texts, w)."""
    return torch.stack([even(part, ridge) for part in pieces.split(list(counts))])
