"""Whitening: what all embeddings of a collection have in common is taken out of each of them.

Few directions rule the embeddings of most encoders, and so all their cosines, while what tells one text from another
lies in the many others (Su et al., arXiv 2103.15316). With m the mean of a sample of embeddings, C its covariance and c
the mean of the eigenvalues of C, an embedding x (a row) becomes

    (x - m) (C + f c I)^(-1/2),

with the symmetric root (Kessy et al., arXiv 1512.00809, call it ZCA). The floor f keeps directions that the sample
tells little of from being blown up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError

FLOOR = 0.01


def root(covariance: Tensor, floor: float) -> Tensor:
    """(C + f c I)^(-1/2) of a covariance (w, w) float64."""
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    matrix: Tensor = axes * (values + floor * values.mean()).rsqrt() @ axes.T
    return matrix


@dataclass(frozen=True)
class Whitening:
    """A whitening.

    Attributes:
        mean: m (w,) float32. matrix: the root (w, w) float32.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings (..., w) → whitened ones of length 1, in float32."""
        return F.normalize((embeddings.float() - self.mean) @ self.matrix, dim=-1)

    def save(self, path: Path) -> None:
        """Writes a safetensors file with `mean` and `matrix`."""
        from safetensors.torch import save

        # As bytes: `save_file` makes a file that nobody else may read.
        path.write_bytes(save({"mean": self.mean.contiguous(), "matrix": self.matrix.contiguous()}))

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Reads what `save` wrote.

        Raises:
            BadInputError: the file is missing, or was written by something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            mean, matrix = found["mean"].float(), found["matrix"].float()
        except (OSError, SafetensorError, KeyError) as error:
            raise BadInputError(
                f"the file holds no whitening ({error})",
                where=str(path),
                hint="give the .whitening.safetensors file that effconv embed --whiten wrote",
            ) from None
        if mean.ndim != 1 or matrix.shape != (len(mean), len(mean)):
            raise BadInputError(
                f"the file holds no whitening: its mean is {tuple(mean.shape)}, its matrix {tuple(matrix.shape)}",
                where=str(path),
                hint="give the .whitening.safetensors file that effconv embed --whiten wrote",
            )
        return cls(mean, matrix)


class Moments:
    """The mean and covariance of embeddings that come in parts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None  # of the first part: sums of squares lose nothing to a large mean
        self._sum: Tensor
        self._products: Tensor

    def add(self, embeddings: Tensor) -> None:
        """Takes embeddings (n, w) in."""
        rows = embeddings.double()
        if self._shift is None:
            self._shift = rows.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = rows.new_zeros(rows.shape[1], rows.shape[1])
        rows = rows - self._shift
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def width(self) -> int:
        """Numbers of an embedding; 0 before one was added."""
        return 0 if self._shift is None else len(self._shift)

    def whitening(self, floor: float = FLOOR) -> Whitening:
        """The whitening of what was added, two embeddings at least."""
        assert self._shift is not None
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Whitening((mean + self._shift).float(), root(covariance, floor).float())
