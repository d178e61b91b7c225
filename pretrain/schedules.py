"""Schedules: the learning rate of a step, in closed form. No heavy imports.

With s the number of steps that are done, W the warmup steps, T all steps, p the peak rate, r the rate to warm up from
and e the rate to end with:

    s < W       r + (p - r) s / W
    inverse     p sqrt(W / s); without warmup p / sqrt(s + 1)
    polynomial  e + (p - e) (1 - x)^power,  x = (s - W) / (T - W)
    linear      the same with power 1
    cosine      e + (p - e) (1 + cos(pi x)) / 2
    constant    p

So are they in transformers (`get_scheduler`), optax and fairseq.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["linear", "cosine", "polynomial", "inverse-sqrt", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
ENDING = ("linear", "cosine", "polynomial")  # schedules that reach an end rate at the last step


@dataclass(frozen=True, slots=True)
class Rates:
    """A schedule.

    Attributes:
        peak: rate after the warmup. warmup: steps. warm_from: rate of the first step.
        total: steps in all. end: rate after the last step. power: of the polynomial.
    """

    schedule: Schedule
    peak: float
    total: int
    warmup: int = 0
    warm_from: float = 0.0
    end: float = 0.0
    power: float = 1.0

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.warm_from + (self.peak - self.warm_from) * step / self.warmup
        if self.schedule == "constant":
            return self.peak
        if self.schedule == "inverse-sqrt":
            scale = max(self.warmup, 1)
            return self.peak * math.sqrt(scale / (scale + step - self.warmup))
        passed = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        if self.schedule == "cosine":
            left = (1 + math.cos(math.pi * passed)) / 2
        else:
            left = (1 - passed) ** (self.power if self.schedule == "polynomial" else 1.0)
        return self.end + (self.peak - self.end) * left
