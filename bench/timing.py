"""Timing that holds on a shared machine: CPU time of one thread, the forms in turn, the median of several rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(forms: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, list[float]]:
    """CPU milliseconds of each form in every round, all forms in turn; the first round is a warm-up."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            begin = time.process_time()
            form()
            if number:
                found[name].append(1000 * (time.process_time() - begin))
    return found


def median(times: Mapping[str, list[float]], name: str) -> float:
    return statistics.median(times[name])


def ratio(times: Mapping[str, list[float]], slow: str, fast: str) -> tuple[float, float, float]:
    """How many times faster `fast` is: the median over rounds, the least and the most."""
    pairs = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)
