"""Tensor operations. Each has a shape rule that needs only headers, so a plan is checked before it runs."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .io.dtypes import FLOATS, SIZES, Array, from_float32

Shape = tuple[int, ...]


class Op(Protocol):
    """One operation. `action` is its name in the plan: copy, rename, tile, derive or new."""

    @property
    def action(self) -> str: ...

    def shape(self, *inputs: Shape) -> Shape:
        """Shape of the result. Raises ValueError for inputs that do not fit."""
        ...

    def apply(self, *inputs: Array) -> Array:
        """The result, in the type of the first input."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """The same bytes. The executor copies them as a byte range, without decoding."""

    action = "copy"

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0]

    def apply(self, *inputs: Array) -> Array:
        return inputs[0]


@dataclass(frozen=True, slots=True)
class Transpose:
    """The transposed matrix: a dense layer's weight is (inputs, outputs) in JAX and (outputs, inputs) in torch.

    It is its own inverse.
    """

    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 2:
            raise ValueError(f"expected a matrix, got shape {inputs[0]}")
        return inputs[0][::-1]

    def apply(self, *inputs: Array) -> Array:
        data, dtype = inputs[0]
        return Array(data.T, dtype)


@dataclass(frozen=True, slots=True)
class TilePositions:
    """Rows repeated until the table is long enough: special rows first, then body[t mod n] for t = 0 .. length - 1.

    Args:
        length: positions of the new table, special rows not counted.
        special: leading rows that no token uses (RoBERTa: 2).
    """

    length: int
    special: int = 0
    action = "tile"

    def shape(self, *inputs: Shape) -> Shape:
        return _resized(inputs[0], self.special, self.length)

    def apply(self, *inputs: Array) -> Array:
        data, dtype = inputs[0]
        body = data.shape[0] - self.special
        rows = np.concatenate([np.arange(self.special), self.special + np.arange(self.length) % body])
        return Array(data[rows], dtype)


@dataclass(frozen=True, slots=True)
class InterpolatePositions:
    """Linear interpolation: new position t is at t (n - 1) / (length - 1) in the old table."""

    length: int
    special: int = 0
    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        return _resized(inputs[0], self.special, self.length)

    def apply(self, *inputs: Array) -> Array:
        table = inputs[0].float32()
        body = table[self.special :]
        at = np.linspace(0.0, len(body) - 1.0, self.length)
        low = np.minimum(at.astype(np.int64), len(body) - 1)
        high = np.minimum(low + 1, len(body) - 1)
        share = (at - low).astype(np.float32)[:, None]
        between = body[low] * (1 - share) + body[high] * share
        return from_float32(np.concatenate([table[: self.special], between]), inputs[0].dtype)


@dataclass(frozen=True, slots=True)
class New:
    """A new tensor, drawn from a random generator seeded with its name.

    Args:
        name: the canonical name. Name and `seed` alone decide the values.
        size: the shape.
        init: normal (N(0, std)), fan-in (U(±1/√n), n the second axis: torch's default), zeros or ones.
    """

    name: str
    size: Shape
    init: str
    std: float
    seed: int
    dtype: str
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        if self.dtype not in FLOATS:
            return Array(np.full(self.size, self.init == "ones", dtype=f"<i{SIZES[self.dtype]}"), self.dtype)
        random = generator(self.seed, self.name)
        if self.init == "normal":
            values = random.standard_normal(self.size, dtype=np.float32) * np.float32(self.std)
        elif self.init == "fan-in":
            values = random.uniform(-1.0, 1.0, self.size).astype(np.float32) / np.float32(np.sqrt(self.size[1]))
        else:
            values = np.full(self.size, 1.0 if self.init == "ones" else 0.0, dtype=np.float32)
        return from_float32(values, self.dtype)


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor with computed values, which is not trained.

    Args:
        size: the shape.
        init: zeros, or sinusoids (see `sinusoids`).
        dtype: of the tensor.
    """

    size: Shape
    init: str
    dtype: str
    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        values = sinusoids(*self.size) if self.init == "sinusoids" else np.zeros(self.size, np.float32)
        return from_float32(values, self.dtype)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A tensor whose values come from running the source on text, before anything is written.

    Args:
        name: the canonical name, the key of the calibration's values.
        size: the shape.
        method: how it is found, for the plan.
        dtype: of the tensor.
    """

    name: str
    size: Shape
    method: str
    dtype: str
    action = "derive"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        raise AssertionError(f"{self.name} has no values before the calibration has run")


def generator(seed: int, name: str) -> np.random.Generator:
    """A random generator that depends on the seed and the tensor's name only, not on the order of tensors."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Positions (length, width), float32: "Attention Is All You Need" (arXiv 1706.03762), section 3.5.

    All sines come before all cosines, as in Pegasus. Computed in float64.
    """
    angles = np.arange(length)[:, None] / np.power(10000.0, 2 * np.arange((width + 1) // 2) / width)
    table = np.empty((length, width), np.float32)
    table[:, : angles.shape[1]] = np.sin(angles)
    table[:, angles.shape[1] :] = np.cos(angles[:, : width // 2])
    return table


def elements(shape: Shape) -> int:
    return math.prod(shape)


def _resized(table: Shape, special: int, length: int) -> Shape:
    if len(table) != 2 or table[0] <= special:
        raise ValueError(f"a position table of shape {table} has no rows beyond the {special} reserved ones")
    if length < 1:
        raise ValueError(f"a position table needs at least 1 row, got {length}")
    return (special + length, table[1])
