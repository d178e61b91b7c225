"""Prints the results of the trainings and of `effconv retrieval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..convert.text import counted
from .console import new_console, print_checks, print_json

if TYPE_CHECKING:
    from ..adapt.results import Adapted
    from ..finetune.results import Finetuned


def show_adapted(adapted: Adapted, *, as_json: bool) -> None:
    if as_json:
        return print_json(adapted.described())
    console, record = new_console(), adapted.record
    console.print(f"[bold]{escape(str(adapted.output))}[/bold]", soft_wrap=True)
    table = Table(title="held-out text, before and after", title_justify="left")
    names = [name for name in record["after"][0] if name not in ("tokens", "texts")]
    for column in (
        "tokens",
        "texts",
        *(f"{name.replace('_', ' ')}, {when}" for name in names for when in ("before", "after")),
    ):
        table.add_column(column, justify="right")
    for before, after in zip(record["before"], record["after"], strict=True):
        cells = [f"{row[name]:.4f}" for name in names for row in (before, after)]
        table.add_row(str(after["tokens"]), str(after["texts"]), *cells)
    console.print(table)
    _print_outcome(console, adapted)
    spent = record["spent"]
    console.print(
        f"{counted(record['steps'], 'step')}, {record['tokens']:,} tokens, {spent['wall_seconds']:,.0f} s "
        f"({spent['cpu_seconds']:,.0f} s of CPU time); the state of step {record['best_step']:,} was kept"
    )
    return None


def show_pretrained(pretrained: Adapted, *, as_json: bool) -> None:
    from ..adapt.results import FIGURES

    if as_json:
        return print_json(pretrained.described())
    console, record = new_console(), pretrained.record
    console.print(f"[bold]{escape(str(pretrained.output))}[/bold]", soft_wrap=True)
    (before,), (after,) = record["before"], record["after"]
    title = f"{counted(after['texts'], 'held-out example')}, {after['predicted']:,} predicted tokens"
    table = Table("held-out text", "before", "after", title=title)
    for name in (name for name in FIGURES if name in after):
        table.add_row(FIGURES[name], f"{before[name]:.4f}", f"{after[name]:.4f}")
    console.print(table)
    _print_outcome(console, pretrained)
    spent = record["spent"]
    console.print(
        f"{record['objective']}: {counted(record['steps'], 'step')}, {record['tokens']:,} tokens, "
        f"{spent['wall_seconds']:,.0f} s; the state of step {record['best_step']:,} was kept"
    )
    return None


def show_finetuned(finetuned: Finetuned, *, as_json: bool) -> None:
    if as_json:
        return print_json(finetuned.described())
    console, record = new_console(), finetuned.record
    console.print(f"[bold]{escape(str(finetuned.output))}[/bold]", soft_wrap=True)
    table = Table("metric", "before", "after", title=f"{counted(record['heldout']['rows'], 'evaluation row')}")
    for name in dict.fromkeys((*record["metrics"], "loss")):
        table.add_row(name, *(f"{record[when][name]:.4f}" for when in ("before", "after")))
    console.print(table)
    _print_outcome(console, finetuned)
    spent = record["spent"]
    console.print(
        f"{record['task']}: {counted(record['steps'], 'step')}, {record['trained']:,} of {record['parameters']:,} "
        f"parameters trained, {spent['wall_seconds']:,.0f} s; the state of step {record['best_step']:,} was kept"
    )
    return None


def _print_outcome(console: Console, trained: Adapted | Finetuned) -> None:
    """Findings and checks of a training."""
    for finding in trained.findings:
        console.print(f"[yellow]note:[/yellow] {escape(finding)}", soft_wrap=True)
    if trained.measured is None:
        console.print("[yellow]not verified[/yellow] (--no-verify)")
    else:
        print_checks(console, trained.measured)


def show_retrieval(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        return print_json(found)
    task = found["task"]
    title = "{documents} documents of {tokens} tokens, {queries} queries of {query_tokens} tokens".format(**task)
    table = Table("document embedding", "R@1", "MRR", "R@1 vs chunk average", title=title, title_justify="left")
    for row in found["rows"]:
        over = f"{row['over_chunk_average']:+.3f} ± {row['over_chunk_average_error']:.3f}"
        known = row["documents"] != "chunk average"
        table.add_row(escape(row["documents"]), f"{row['r@1']:.3f}", f"{row['mrr']:.3f}", over if known else "–")
    new_console().print(table)
    new_console().print("± is the standard error of the difference in R@1.", highlight=False)
    return None
