"""Whole models of BERT-base's size, forward, side by side: LSG, BERT with SDPA, Longformer, BigBird, ModernBERT.

LSG has block 128, sparse block 128, factor 2, "norm", one global token; BERT's positions are as many as asked for;
Longformer has a window of 512, BigBird blocks of 64 and 3 random ones; ModernBERT is ModernBERT-base (22 layers). The
weights are random. Where the processor multiplies in bfloat16, a model of the size of all-MiniLM-L6-v2 follows: LSG and
BERT in float32 and in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.bars import Bar, Section, faster
from benchmarks.conversion import COMMON, SHAPES
from effconv.bench.models import as_lsg, shape, stretched
from effconv.bench.options import SHAPES as PEERS
from effconv.bench.timing import clock_name, ratio
from effconv.bench.whole import Case, Row, measure
from effconv.templates.lsg_kernel_cpu import multiplies_bfloat16

SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12}
HALF_LIMITS = {"float32": 4.0, "bfloat16": 3.5}  # LSG in bfloat16 against BERT in each
BASE: Mapping[str, Any] = {**COMMON, **SHAPES["base"]}
ATTENTION = {"block_size": 128, "sparse_block_size": 128, "sparsity_factor": 2, "sparsity_type": "norm"}
LIMITS: Mapping[str, dict[str, float]] = {
    "BERT, SDPA": {"limit": 1.6},
    "Longformer": {"limit": 1.8, "aim": 2.2},
    "BigBird": {"limit": 2.3, "aim": 2.6},
    "ModernBERT": {"limit": 2.7},
}


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
            Bar(what, ratio(times[name], times["LSG"]), **limit) if known else Bar(what, None, **limit, why="it failed")
        )
    title = f"Models of BERT-base's size at {length:,} tokens, batch 1, float32, forward, {clock_name(threads)} ms"
    yield Section(title, times, bars, notes)
    if multiplies_bfloat16():
        yield _precisions(threads, rounds, length)


def _precisions(threads: int, rounds: int, length: int) -> Section:
    """LSG and BERT of the small size, each in float32 and in bfloat16."""
    small = {**COMMON, **SMALL}
    subjects = [as_lsg("LSG", "", small, length, ATTENTION), stretched("BERT, SDPA", small, length, 512)]
    rows: list[Row] = []
    measure(subjects, [Case(length, dtype=dtype) for dtype in HALF_LIMITS], rows, rounds=rounds, threads=threads)
    times = {f"{row.model}, {row.case.dtype}": [1000 * value for value in row.seconds] for row in rows if row.seconds}
    bars = [
        bar
        for dtype, limit in HALF_LIMITS.items()
        for bar in faster(
            f"LSG model (6 layers of 384) in bfloat16 against BERT, SDPA, in {dtype}, forward, {length:,}",
            times,
            f"BERT, SDPA, {dtype}",
            "LSG, bfloat16",
            limit,
        )
    ]
    title = f"Models of 6 layers of 384 at {length:,} tokens, batch 1, forward, {clock_name(threads)} ms"
    return Section(title, times, bars, [f"{row.model}, {row.case.dtype}: {row.failed}" for row in rows if row.failed])


def _milliseconds(rows: list[Row]) -> dict[str, list[float]]:
    return {row.model: [1000 * value for value in row.seconds] for row in rows if row.seconds}
