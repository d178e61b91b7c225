"""Whitening: what all embeddings of a collection have in common is taken out of each of them.

Few directions rule the embeddings of most encoders, and so all their cosines, while what tells one text from another
lies in the many others (Su et al., arXiv 2103.15316). With m the mean of a sample of embeddings, C its covariance and c
the mean of the eigenvalues of C, an embedding x (a row) becomes

    (x - m) (C + f c I)^(-1/2),

with the symmetric root (Kessy et al., arXiv 1512.00809, call it ZCA). The floor f keeps directions that the sample
tells little of from being blown up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError
from .even import even_parts

FLOOR = 0.01
MODEL, PIECE_TOKENS = "model_sha256", "piece_tokens"  # names in the file's metadata


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
        model: sha256 of the weights of the model that embedded the sample; "" if unknown.
        piece_tokens: tokens of a piece of the sample; 0 if unknown.
    """

    mean: Tensor
    matrix: Tensor
    model: str = ""
    piece_tokens: int = 0

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings (..., w) → whitened ones of length 1, in float32."""
        return F.normalize((embeddings.float() - self.mean) @ self.matrix, dim=-1)

    def pooled(self, pieces: Tensor, counts: Sequence[int]) -> Tensor:
        """Embeddings (n, w) of the pieces of several texts, and how many each has → one vector a text (texts, w).

        Whitened and pooled evenly (`even`), of length 1, in float32.
        """
        return even_parts(self(pieces), counts)

    def to_bytes(self) -> bytes:
        """A safetensors file with `mean` and `matrix`; its metadata says which embeddings it is for."""
        from safetensors.torch import save

        known = {MODEL: self.model, PIECE_TOKENS: str(self.piece_tokens or "")}
        metadata = {name: value for name, value in known.items() if value}
        tensors = {"mean": self.mean.contiguous(), "matrix": self.matrix.contiguous()}
        return save(tensors, metadata=metadata or None)

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.write_bytes(self.to_bytes())  # as bytes: `save_file` makes a file that nobody else may read

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Reads what `save` wrote. Older files do not say which embeddings they are for.

        Raises:
            BadInputError: the file is missing, or was written by something else.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise _unread("this is a folder" if path.is_dir() else "no such file", path)
        try:
            with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                mean, matrix = (file.get_tensor(name).float() for name in ("mean", "matrix"))
                said = file.metadata() or {}
            found = cls(mean, matrix, said.get(MODEL, ""), int(said.get(PIECE_TOKENS, 0)))
        except OSError as error:
            raise _unread(f"the file cannot be read ({error.strerror or error})", path) from None
        except SafetensorError as error:
            raise _unread(f"not a whitening file ({error})", path) from None
        except ValueError:
            raise _unread(f"not a whitening file: {PIECE_TOKENS} in its metadata is not a number", path) from None
        if mean.ndim != 1 or matrix.shape != (len(mean), len(mean)):
            shapes = f"its mean is {tuple(mean.shape)}, its matrix {tuple(matrix.shape)}"
            raise _unread(f"not a whitening file: {shapes}", path)
        return found


def _unread(what: str, path: Path) -> BadInputError:
    hint = "give the .whitening.safetensors file that effconv embed --whiten wrote"
    return BadInputError(what, where=str(path), hint=hint)


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
