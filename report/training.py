"""Prints the results of the trainings and of `effconv retrieval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..convert.text import counted
from .console import new_console, print_checks, print_json, size_text

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
    task, console = found["task"], new_console()
    about = "up to {tokens} tokens" if task["kind"] == "whole" else "{tokens} tokens"
    title = ("{documents} documents of " + about + ", {queries} queries of {query_tokens} tokens").format(**task)
    table = Table(title=title, title_justify="left")
    for column in ("document embedding", "R@1", "MRR", "R@1 vs chunk average", "R@1 vs chunk maximum"):
        table.add_column(column)
    for column in ("vectors", "CPU s", "peak memory"):
        table.add_column(column, justify="right")
    for row in found["rows"]:
        over = [
            "–" if row["documents"] == base else _with_error(row, f"over_{base.replace(' ', '_')}", "+.3f")
            for base in ("chunk average", "chunk maximum")
        ]
        peak = "–" if row["peak_bytes"] is None else size_text(row["peak_bytes"])
        cost = (f"{row['vectors']:.3g}", f"{row['cpu_seconds']:.3f}", peak)
        table.add_row(escape(row["documents"]), _with_error(row, "r@1"), _with_error(row, "mrr"), *over, *cost)
    console.print(table)
    unit = counted(task["units"], f"independent {task['unit']}")
    console.print(
        f"± is the standard error over {unit}. Vectors, CPU time and memory are per document.", highlight=False
    )
    if task["kind"] == "whole":
        left_out, cut = found["data"]["left_out"], found["data"]["cut"]
        console.print(
            f"{counted(left_out, 'document')} left out (short, or without a fitting sentence), {cut:,} cut.",
            highlight=False,
        )
    return None


def _with_error(row: Mapping[str, Any], name: str, form: str = ".3f") -> str:
    """A figure and its standard error; a dash for one that was not measured."""
    if name not in row:
        return "–"
    error = row[f"{name}_error"]
    return format(row[name], form) + ("" if error is None else f" ± {error:.3f}")
