"""Whole models of BERT-base's size, forward, side by side: LSG, BERT with SDPA, Longformer, BigBird, ModernBERT.

LSG has block 128, sparse block 128, factor 2, "norm", one global token; BERT's positions are as many as asked for;
Longformer has a window of 512, BigBird blocks of 64 and 3 random ones; ModernBERT is ModernBERT-base (22 layers). The
weights are random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.bars import Bar, Section
from benchmarks.conversion import COMMON, SHAPES
from effconv.bench.models import as_lsg, shape, stretched
from effconv.bench.options import SHAPES as PEERS
from effconv.bench.timing import clock_name, ratio
from effconv.bench.whole import Case, Row, measure

BASE: Mapping[str, Any] = {**COMMON, **SHAPES["base"]}
ATTENTION = {"block_size": 128, "sparse_block_size": 128, "sparsity_factor": 2, "sparsity_type": "norm"}
LIMITS = {"BERT, SDPA": 1.6, "Longformer": 1.8, "BigBird": 2.3, "ModernBERT": 2.7}


def sections(threads: int, rounds: int, length: int) -> Iterator[Section]:
    """The models at one length."""
    lsg = as_lsg("LSG", "", BASE, length, ATTENTION)
    peers = [stretched("BERT, SDPA", BASE, length, 512), *(shape(kind, BASE, length) for kind in PEERS)]
    rows: list[Row] = []
    measure([lsg, *peers], [Case(length)], rows, rounds=rounds, threads=threads)
    times = _milliseconds(rows)
    notes = [f"{row.model}: {row.failed}" for row in rows if row.failed]
    notes += [f"{row.model}: peak memory {row.peak / 1e9:.2f} GB" for row in rows if row.peak]
    bars = []
    for name, limit in LIMITS.items():
        what = f"LSG model (BERT-base size) against {name}, forward, {length:,}"
        known = "LSG" in times and name in times
        bars.append(
            Bar(what, ratio(times[name], times["LSG"]), limit) if known else Bar(what, None, limit, why="it failed")
        )
    title = f"Models of BERT-base's size at {length:,} tokens, batch 1, float32, forward, {clock_name(threads)} ms"
    yield Section(title, times, bars, notes)


def _milliseconds(rows: list[Row]) -> dict[str, list[float]]:
    return {row.model: [1000 * value for value in row.seconds] for row in rows if row.seconds}
