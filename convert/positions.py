"""The rule for the position table, which every target resizes alike."""

from __future__ import annotations

from .family import number
from .ops import InterpolatePositions, TilePositions
from .target import Context, Rule


def position_rules(context: Context, length: int, how: str = "repeat") -> list[Rule]:
    """The rule that makes a position table of `length` tokens; none where the source has that length."""
    family = context.family
    special = family.special_positions
    if length == number(context.config, "max_position_embeddings") - special:
        return []
    resize = TilePositions if how == "repeat" else InterpolatePositions
    return [Rule((family.positions,), family.positions, resize(length, special))]
