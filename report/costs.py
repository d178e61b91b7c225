"""Prints what documents cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from ..bench.cost import Cost

TIMED = "Time of the model alone, without loading, reading and tokenizing."


def print_costs(console: Console, costs: Sequence[Cost], settings: Mapping[str, Any], cores: int) -> None:
    """The table, and under it what the figures leave out."""
    if not costs:
        return
    texts, priced = costs[0].texts, costs[0].price is not None
    several = {name: len({getattr(cost.case, name) for cost in costs}) > 1 for name in ("dtype", "batch")}
    verb = "training steps on " if costs[0].case.train else ""
    size = f"as long as the {texts:,} texts" if texts else "of the measured lengths"
    table = Table()
    names = ["model", "read" if texts else "tokens", *(["type"] if several["dtype"] else [])]
    names += [*(["batch"] if several["batch"] else []), "documents/s", "hours", *(["price"] if priced else [])]
    for name in names:
        table.add_column(name, justify="left" if name in ("model", "read", "type") else "right")
    for cost in costs:
        kind = [cost.case.dtype] if several["dtype"] else []
        kind += [str(cost.case.batch)] if several["batch"] else []
        money = [f"{cost.money:,.2f}"] if cost.money is not None else []
        read = _reading(cost) if texts else f"{cost.case.length:,}"
        table.add_row(escape(cost.model), read, *kind, figure(cost.documents_per_second), figure(cost.hours), *money)
    title = f"\nCost of {verb}a million documents {size}, {_where(settings, cores)}"
    console.print(title, soft_wrap=True, highlight=False)  # a title of a table wraps at its width
    console.print(table)
    for note in notes(costs, settings, cores):
        console.print(escape(note), highlight=False, soft_wrap=True)


def notes(costs: Sequence[Cost], settings: Mapping[str, Any], cores: int) -> list[str]:
    """What a reader must know of the figures, one sentence or two each."""
    found = [TIMED]
    outside = max(cost.outside / cost.texts if cost.texts else 0 for cost in costs)
    if costs[0].texts:
        found.append("Times between measured lengths are interpolated.")
    if outside:
        found[-1] += f" Up to {outside:.2f} runs a text are shorter or longer than all measured lengths: extrapolated."
    if any(cost.beyond for cost in costs):
        found.append(
            "Truncated: what is beyond the length is not read. In pieces: one run a piece, and several outputs a text."
        )
    if settings["device"] == "cpu" and settings["threads"] < cores:
        found.append(
            f"Hours are those of {settings['threads']} of {cores} hardware threads. More processes at once share them."
        )
    if costs[0].price is None:
        found.append("For a price, add --price-per-hour with the price of this machine.")
    return found


def figure(value: float) -> str:
    """Three digits at least, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _reading(cost: Cost) -> str:
    if not cost.beyond:
        return "whole"
    at = "truncated to" if cost.reading == "truncated" else "in pieces of"
    return f"{at} {cost.limit:,} ({cost.beyond:,} {'text' if cost.beyond == 1 else 'texts'})"


def _where(settings: Mapping[str, Any], cores: int) -> str:
    if settings["device"] != "cpu":
        return f"on {settings['device']}"
    threads = settings["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}" + (f" of {cores}" if cores != threads else "")
