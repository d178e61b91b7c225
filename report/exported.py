"""Prints the result of `effconv export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .console import new_console, print_json

if TYPE_CHECKING:
    from ..export.run import ExportResult


def show_exported(result: ExportResult, *, as_json: bool) -> None:
    if as_json:
        return print_json(result.described())
    console, record = new_console(), result.record
    console.print(f"[bold]{escape(str(result.output))}[/bold]", soft_wrap=True)
    for name, check in record["checks"].items():
        console.print(
            f"{escape(name)}: agrees with the repo in {len(check['cases'])} cases up to "
            f"{record['repo']['max_length']:,} tokens, "
            f"largest difference {check['difference']:.1g} (tolerance {check['tolerance']:g})",
            soft_wrap=True,
        )
    console.print(f"inputs: {', '.join(record['inputs'])}; outputs: {', '.join(record['outputs'])}", soft_wrap=True)
    if record.get("measured"):
        table = Table(title="one text, against the repo in torch", title_justify="left")
        for column in ("tokens", "form", "cosine", "seconds", "torch seconds"):
            table.add_column(column, justify="left" if column == "form" else "right")
        for row in record["measured"]:
            for form, cosine in row["cosine"].items():
                seconds = row["seconds"]
                cells = (form, f"{cosine:.4f}", f"{seconds[form]:.3f}", f"{seconds['torch']:.3f}")
                table.add_row(f"{row['tokens']:,}", *cells)
        console.print(table)
    return None
