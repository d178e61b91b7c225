"""Timing that holds on a shared machine: the forms in turn, the median of several rounds, and the spread.

On one thread the clock is the CPU time of the process, which other people's work hardly moves; on several it is wall
time, for threads that wait for each other spend CPU time too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The median of several rounds, the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def scaled(self, factor: float) -> Spread:
        return Spread(*(factor * value for value in self))


def rounds_in_words(rounds: int) -> str:
    """What a figure of so many rounds is."""
    return "one round" if rounds == 1 else f"median of {rounds} rounds in turn"


def clock_name(threads: int) -> str:
    """What is counted on so many threads: "cpu" or "wall"."""
    return "cpu" if threads == 1 else "wall"


def clock(threads: int) -> Callable[[], float]:
    """The clock for so many threads, in seconds."""
    return time.process_time if threads == 1 else time.perf_counter


def interleaved(forms: Mapping[str, Callable[[], Any]], rounds: int = 7, threads: int = 1) -> dict[str, list[float]]:
    """Milliseconds of each form in every round, all forms in turn; the first round is a warm-up."""
    import torch

    torch.set_num_threads(threads)
    now = clock(threads)
    found: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            begin = now()
            form()
            if number:
                found[name].append(1000 * (now() - begin))
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster `fast` is, round by round."""
    return Spread.of(a / b for a, b in zip(slow, fast, strict=True))
