"""Words for numbers, in messages and on cards."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def six_digits(figure: float) -> float:
    """A figure that was computed in float32, without the digits that are noise: equal states have a cosine of 1."""
    return float(f"{figure:.6g}")
