"""Prints the results of `effconv export`, `effconv embed` and `effconv pieces`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..convert.text import counted
from .console import new_console, print_json

if TYPE_CHECKING:
    from ..embed.repo import Made
    from ..embed.run import Embedded
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


def show_embedded(embedded: Embedded, *, as_json: bool) -> None:
    if as_json:
        return print_json(embedded.described())
    console, record = new_console(), embedded.record
    console.print(f"[bold]{escape(str(embedded.output))}[/bold]", soft_wrap=True)
    longer, chunked = record["longer_than_the_model"], record["chunk_tokens"] is not None
    console.print(
        f"{counted(record['vectors'], 'vector')} of {record['width']} numbers, "
        f"{counted(record['texts'], 'text')}, {record['seconds']:,.1f} s",
        highlight=False,
    )
    if whitening := record.get("whitening"):
        console.print(f"whitened by {escape(str(whitening))}", soft_wrap=True)
    if left_out := record["rows_without_text"]:
        console.print(f"[yellow]note:[/yellow] {counted(left_out, 'row')} without text left out", soft_wrap=True)
    if longer and "piece_tokens" not in record:
        what = "read in windows that overlap" if chunked else "cut: --chunks embeds whole texts"
        console.print(f"[yellow]note:[/yellow] {counted(longer, 'text')} longer than the model, {what}", soft_wrap=True)
    _show_notes(console, record["notes"])
    return None


def show_pieces(made: Made, *, as_json: bool) -> None:
    if as_json:
        return print_json(made.described())
    console, record = new_console(), made.record
    console.print(f"[bold]{escape(str(made.output))}[/bold]", soft_wrap=True)
    fitted = record.get("whitened_on")
    what = (
        f"{counted(fitted['pieces'], 'piece')} of {counted(fitted['texts'], 'text')}" if fitted else record["whitening"]
    )
    console.print(f"pieces of {record['piece_tokens']} tokens, whitened on {escape(what)}", soft_wrap=True)
    if left_out := fitted and fitted["rows_without_text"]:
        console.print(f"[yellow]note:[/yellow] {counted(left_out, 'row')} without text left out", soft_wrap=True)
    for name, value in record["checks"].items():
        console.print(f"{name}: as computed by effconv, largest difference {value:.1g}", highlight=False)
    _show_notes(console, record["notes"])
    return None


def _show_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
