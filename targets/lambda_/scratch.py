"""How a new lambda model begins: as the emitted code's own `reset_parameters`, by tensor and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...convert.families.grammar import Weight, shape_of
from ...convert.io.dtypes import Array, from_float32
from ...convert.ops import Shape, generator
from ...convert.target import Context, Rule

Kind = Literal["landmarks", "mean", "zeros"]


@dataclass(frozen=True, slots=True)
class LambdaStart:
    """Uniform attention whatever the query, and landmarks that differ, so that training can part them.

    Args:
        name: the canonical name, which with `seed` decides a draw.
        size: the shape; the second axis is that of the landmarks, of which the last one is the mean of the values.
        kind: landmarks N(0, 1/d) but for the last, which is 0; mean: 1 for the last landmark; zeros.
    """

    name: str
    size: Shape
    kind: Kind
    seed: int
    dtype: str = "F32"
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        values = np.zeros(self.size, np.float32)
        if self.kind == "landmarks":
            values = generator(self.seed, self.name).standard_normal(self.size, dtype=np.float32)
            values *= np.float32(self.size[-1] ** -0.5)
            values[:, -1] = 0.0
        elif self.kind == "mean":
            values[:, -1] = 1.0
        return from_float32(values, self.dtype)


KINDS: dict[str, Kind] = {"landmarks": "landmarks", "content_bias": "mean"}
WHY = {"landmarks": "random landmarks", "mean": "the mean of the values", "zeros": "zeros"}


def starting_rules(context: Context, weights: Sequence[Weight]) -> list[Rule]:
    """The rules of the attention's own tensors."""
    rules = []
    for weight in weights:
        kind: Kind = KINDS.get(weight.name.rpartition(".")[2], "zeros")
        start = LambdaStart(weight.name, shape_of(weight, context.config), kind, context.seed)
        rules.append(Rule((), weight.name, start, WHY[kind]))
    return rules
