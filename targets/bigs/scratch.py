"""How a new BiGS begins: its state-space models as in the published code, by tensor and seed (arXiv 2212.10544)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...convert.errors import UsageError
from ...convert.families.grammar import Weight, shape_of
from ...convert.io.dtypes import Array, from_float32
from ...convert.ops import Shape, generator
from ...convert.target import Context, Rule

REAL_PART = -0.5
SHORTEST, LONGEST = 0.01, 1.0  # steps, drawn evenly on a logarithmic scale
SCALINGS = ("hippo", "lin", "inv")
WHY = {
    "A_re": f"{REAL_PART} for every mode",
    "A_im": "frequencies of the modes",
    "C": "normal, of variance 1/2",
    "log_step": f"log of steps from {SHORTEST} to {LONGEST}",
}


@dataclass(frozen=True, slots=True)
class KernelStart:
    """A tensor of a state-space kernel.

    Args:
        name: the canonical name, which with `seed` decides a draw.
        size: the shape, with an axis of heads first where there are several.
        part: A_re, A_im, C or log_step. scaling: hippo, lin or inv: which frequencies A_im gets.
    """

    name: str
    size: Shape
    part: str
    scaling: str
    seed: int
    dtype: str = "F32"
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        random = generator(self.seed, self.name)
        if self.part == "A_re":
            values = np.full(self.size, REAL_PART, np.float32)
        elif self.part == "A_im":
            values = np.broadcast_to(np.asarray(frequencies(self.scaling, self.size[-1]), np.float32), self.size)
        elif self.part == "C":
            values = random.standard_normal(self.size, dtype=np.float32) * np.float32(math.sqrt(0.5))
        else:
            values = random.uniform(math.log(SHORTEST), math.log(LONGEST), self.size).astype(np.float32)
        return from_float32(values, self.dtype)


def frequencies(scaling: str, modes: int) -> list[float]:
    """A_im of a new kernel: S4D-Lin, S4D-Inv (arXiv 2206.11893, section 4) or those of HiPPO-LegS."""
    if scaling == "lin":
        return [math.pi * n for n in range(modes)]
    if scaling == "inv":
        return [modes / math.pi * (modes / (2 * n + 1) - 1) for n in range(modes)]
    root = np.sqrt(1 + 2 * np.arange(modes))
    lower = np.tril(root[:, None] * root[None, :], -1) / 2
    return [float(value) for value in np.linalg.eigvalsh(-1j * (lower.T - lower))]


def starting_rules(context: Context, weights: Sequence[Weight]) -> list[Rule]:
    """The rules of every kernel's tensors."""
    scaling = context.config.get("scaling") or "hippo"
    if scaling not in SCALINGS:
        raise UsageError(
            f"unknown scaling {scaling!r}", where="--set scaling", hint="use one of " + ", ".join(SCALINGS)
        )
    rules = []
    for weight in weights:
        part = weight.name.rpartition(".")[2]
        if ".kernel." in weight.name:
            size = shape_of(weight, context.config)
            start = KernelStart(weight.name, size, part, scaling, context.seed)
            rules.append(Rule((), weight.name, start, WHY[part]))
    return rules
