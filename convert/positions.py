"""The rules for the position table, the same for every target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import UsageError
from .ops import InterpolatePositions, TilePositions
from .target import Context, Rule


def position_rules(context: Context, length: int, how: str = "repeat") -> list[Rule]:
    """The rules that resize position tables to `length` tokens. None if the source has this length.

    Raises:
        UsageError: the option --positions has no effect for this source.
    """
    family = context.family
    if family.computes_positions or not family.positions:  # for any length, by the plan or by the bias on scores
        if how != "repeat":
            has = "computes its positions for every length" if family.positions else "has no position table"
            raise UsageError(
                f"{family.name} {has}: positions cannot be {how}d",
                where="--positions",
                hint="leave it out",
            )
        return []
    stored = family.longest(context.config)
    if length == stored:
        if how != "repeat":
            raise UsageError(
                f"the source and the result both take {stored} tokens: the position table does not change",
                where="--positions",
                hint="leave out --positions, or give another --max-len",
            )
        return []
    why = f"drops the last {stored - length} of {stored} positions" if length < stored and how == "repeat" else ""
    resize = TilePositions if how == "repeat" else InterpolatePositions
    tables = family.position_tables(context.head)
    return [Rule((table,), table, resize(length, family.special_rows(context.config)), why) for table in tables]


def equal_positions(manifest: Mapping[str, Any]) -> str:
    """Why a repo cannot equal its source up to the source's length (see `Check.applies`), "" if it can."""
    if manifest["options"].get("positions", "repeat") != "repeat":
        return "interpolated positions differ from the source's"
    return "the weights were cast" if manifest["settings"]["dtype"] else ""
