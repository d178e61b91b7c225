"""Prints the result of `effconv prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from ..convert.text import counted
from .console import new_console, print_json

if TYPE_CHECKING:
    from ..data.prepare import Prepared


def show_prepared(prepared: Prepared, *, as_json: bool) -> None:
    if as_json:
        return print_json(prepared.described())
    console, record = new_console(), prepared.record
    console.print(f"[bold]{escape(str(prepared.output))}[/bold]", soft_wrap=True)
    for part in ("train", "heldout"):
        if part not in record:
            continue
        counts = record[part]
        said = [counted(counts["examples"], "example"), counted(counts["tokens"], "token")]
        if "masked" in counts:
            said.append(f"{counts['masked'] / counts['tokens']:.1%} of them masked")
        labels = [counts.get(f"next_sentence_label_{label}", 0) for label in (0, 1)]
        if any(labels):
            said.append(f"pairs with label 0 and 1: {labels[0]:,} and {labels[1]:,}")
        console.print(f"{part}: {', '.join(said)}", soft_wrap=True)
    return None
