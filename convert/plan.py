"""The plan: what happens to every tensor, decided from headers and configs before a byte is written.

Every stored tensor is used or dropped with a reason. Every tensor of the new model is produced exactly once, in the
right shape. All faults are collected and raised together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from .io.dtypes import SIZES
from .ops import Copy, Op, Shape, elements

BASE_MEMORY = 64 << 20  # bytes: interpreter, numpy and the command line, measured


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the plan.

    `sources` are names as stored. `target` is the emitted name, None for a dropped tensor. `equals` names the stored
    tensor that a dropped one must be equal to (tied weights), which the executor checks before it writes.
    """

    action: str
    sources: tuple[str, ...]
    target: str | None
    shape: Shape
    dtype: str
    op: Op
    why: str = ""
    equals: str | None = None

    @property
    def nbytes(self) -> int:
        return elements(self.shape) * SIZES[self.dtype] if self.target else 0

    def described(self) -> dict[str, Any]:
        """The row as JSON values."""
        op = {"op": type(self.op).__name__, **(_plain(asdict(self.op)) if is_dataclass(self.op) else {})}
        return {
            "action": self.action,
            "sources": list(self.sources),
            "target": self.target,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "operation": op,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All rows in writing order, and their cost."""

    target: str
    family: str
    architecture: str
    rows: tuple[Row, ...]
    carried: frozenset[str] = frozenset()  # emitted names that the repo's own class does not read

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {action}" for action, count in self.counts().items())
        return f"<Plan for {self.architecture}: {counts}; {self.bytes_out / 1e6:,.1f} MB>"

    @property
    def bytes_out(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def peak_memory(self) -> int:
        """Bytes: the base plus the largest tensor that is computed (its inputs, its result and the work between)."""
        derived = (row for row in self.rows if row.target and not isinstance(row.op, Copy))
        return BASE_MEMORY + max((4 * row.nbytes for row in derived), default=0)

    @property
    def sha256(self) -> str:
        text = json.dumps([row.described() for row in self.rows], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Rows by action."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.action] = found.get(row.action, 0) + 1
        return found

    def described(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "family": self.family,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "bytes_out": self.bytes_out,
            "peak_memory": self.peak_memory,
            "counts": self.counts(),
            "rows": [row.described() for row in self.rows],
        }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
