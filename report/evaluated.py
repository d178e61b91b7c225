"""Prints the result of `effconv eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .console import new_console, print_json

if TYPE_CHECKING:
    from ..eval.run import Evaluated


def show_evaluated(evaluated: Evaluated, *, as_json: bool) -> None:
    if as_json:
        return print_json(evaluated.described())
    console, record = new_console(), evaluated.record
    compared = record["against"] is not None
    table = Table(title=f"{escape(record['model'])}, up to {record['max_length']:,} tokens", title_justify="left")
    for column in ("task", "split", "metric"):
        table.add_column(column)
    for column in ("score", *(("source", "difference") if compared else ())):
        table.add_column(column, justify="right")
    for row in record["results"]:
        name = row["task"] if row["subset"] == "default" else f"{row['task']} ({row['subset']})"
        figures = [f"{row['score']:.4f}"]
        figures += [f"{row['against']:.4f}", f"{row['difference']:+.4f}"] if compared else []
        table.add_row(escape(name), escape(row["split"]), row["metric"], *figures)
    console.print(table)
    if compared:
        console.print(
            f"source: {escape(record['against'])}, up to {record['against_max_length']:,} tokens", soft_wrap=True
        )
    if evaluated.card is not None:
        console.print(f"written into {escape(str(evaluated.card))}", soft_wrap=True)
    for note in evaluated.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    return None
