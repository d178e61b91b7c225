"""The rule for the position table, which every target resizes alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import number
from .ops import InterpolatePositions, TilePositions
from .target import Context, Rule


def position_rules(context: Context, length: int, how: str = "repeat") -> list[Rule]:
    """The rule that makes a position table of `length` tokens; none where the source has that length."""
    family = context.family
    special = family.special_positions
    stored = number(context.config, "max_position_embeddings") - special
    if length == stored:
        return []
    why = f"drops the last {stored - length} of {stored} positions" if length < stored and how == "repeat" else ""
    resize = TilePositions if how == "repeat" else InterpolatePositions
    return [Rule((family.positions,), family.positions, resize(length, special), why)]


def equal_positions(manifest: Mapping[str, Any]) -> str:
    """Why a repo cannot equal its source up to the source's length, as `Check.applies`; "" where it can."""
    if manifest["options"].get("positions", "repeat") != "repeat":
        return "interpolated positions differ from the source's"
    if manifest["settings"]["dtype"]:
        return "the weights were cast"
    return "trained after the conversion" if manifest.get("adapted") else ""
