"""Prints the results of converting and verifying commands to stdout, as tables or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..convert.repo.manifest import NAME
from .console import bytes_text, new_console, print_checks, print_json, shape_text
from .hub import show_push

if TYPE_CHECKING:
    from pathlib import Path

    from ..convert.families.grammar import Family
    from ..convert.plan import Plan, Row
    from ..convert.repo.manifest import Measured
    from ..convert.run import Result
    from ..convert.target import Target
    from ..inspection import Inspection

NUMBER = re.compile(r"\.\d+\.")


def show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        return print_json(plan.described())
    table = Table(title=f"{plan.architecture}: what happens to every tensor", title_justify="left", box=None)
    table.add_column("action")
    table.add_column("tensor", no_wrap=True)
    for column in ("shape", "type", "source and reason"):
        table.add_column(column, overflow="fold")
    for row, count in _alike(plan.rows):
        name = row.target or row.sources[0]
        shown = NUMBER.sub(f".0-{count - 1}.", name, count=1) if count > 1 else name
        origin = [] if row.sources in ((name,), ()) or count > 1 else [", ".join(row.sources)]
        table.add_row(
            row.action,
            escape(shown),
            shape_text(row.shape),
            row.dtype,
            escape("; ".join([*origin, row.why] if row.why else origin)),
        )
    console = new_console()
    console.print(table)
    counts = ", ".join(f"{count} {action}" for action, count in plan.counts().items())
    console.print(
        f"{counts}. Weights: {bytes_text(plan.bytes_out)}. Memory: about {bytes_text(plan.peak_memory)}. "
        f"Plan hash: {plan.sha256[:12]}"
    )
    return None


def show_result(result: Result, *, as_json: bool) -> None:
    if as_json:
        return print_json(result.described())
    console = new_console()
    console.print(f"[bold]{escape(str(result.output))}[/bold]", soft_wrap=True)
    counts = ", ".join(f"{count} {action}" for action, count in result.plan.counts().items())
    length = f"{result.manifest['max_length']:,} tokens"
    console.print(f"{result.plan.architecture}, {length}: {bytes_text(result.plan.bytes_out)} of weights ({counts})")
    for finding in result.findings:
        console.print(f"[yellow]note:[/yellow] {escape(finding)}")
    if result.measured is None:
        console.print("[yellow]not verified[/yellow] (--no-verify)")
    else:
        print_checks(console, result.measured)
    rows = result.manifest["measurements"].get("fidelity", [])
    print_fidelity(console, rows, "similarity to the source, untrained, on the built-in text")
    console.print(
        f"{'made' if 'random' in result.manifest['source'] else 'converted'} in {result.seconds['convert']:.1f} s"
        + (f", verified in {result.seconds['verify']:.1f} s" if "verify" in result.seconds else "")
    )
    return None if result.pushed is None else show_push(result.pushed, as_json=False)


def show_checks(measured: Sequence[Measured], repo: Path, *, as_json: bool) -> None:
    if as_json:
        return print_json([asdict(result) for result in measured])
    console = new_console()
    if (repo.expanduser() / NAME).is_file():
        console.print("all files match the manifest (README.md, which may be edited, is not compared)")
    else:
        again = f"effconv adopt {escape(str(repo))}"
        console.print(f"no {NAME}, but the code files are effconv's. To make it a repo again: {again}", soft_wrap=True)
    print_checks(console, measured)
    return None


def show_fidelity(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return print_json(list(rows))
    print_fidelity(new_console(), rows, "similarity to the source")
    return None


def show_inspection(found: Inspection, targets: Mapping[str, Target], *, as_json: bool) -> None:
    if as_json:
        return print_json(found.described())
    console = new_console()
    table = Table(show_header=False, box=None)
    types = ", ".join(f"{name} ({count:,})" for name, count in found.dtypes.items())
    rows = {
        "source": found.name + (f" at {found.commit}" if found.commit else ""),
        "family": found.family,
        "architecture": (found.architecture or "not given")
        + (" (sentence-transformers)" if found.sentence_transformers else ""),
        "head": found.head or "–",
        "parameters": f"{found.parameters:,} in {found.tensors} tensors, {bytes_text(found.bytes)}",
        "dtype": types,
        "tokens": f"{found.max_length:,}" if found.max_length else "–",
        "tokenizer": found.tokenizer,
        "targets": ", ".join(targets[name].asked_for for name in found.becomes) or f"none: {found.why_not}",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    return None


def show_targets(targets: Iterable[Target], *, as_json: bool) -> None:
    rows = [
        {
            "name": target.name,
            "command": f"effconv {target.asked_for}",
            "says": target.summary,
            "families": list(target.families),
        }
        for target in targets
    ]
    if as_json:
        return print_json(rows)
    table = Table("target", "command", "description", "families")
    for row in rows:
        table.add_row(str(row["name"]), str(row["command"]), escape(str(row["says"])), ", ".join(row["families"]))
    new_console().print(table)
    return None


def show_families(families: Iterable[Family], targets: Iterable[Target], *, as_json: bool) -> None:
    targets = list(targets)
    rows = [
        {
            "name": family.name,
            "heads": [head.suffix for head in family.heads],
            "becomes": [target.name for target in targets if family.name in target.families],
        }
        for family in families
    ]
    if as_json:
        return print_json(rows)
    commands = {target.name: target.asked_for for target in targets}
    table = Table("family", "heads", "targets")
    for row in rows:
        becomes = ", ".join(commands[name] for name in row["becomes"])
        table.add_row(str(row["name"]), ", ".join(row["heads"]), becomes)
    new_console().print(table)
    return None


def print_fidelity(console: Console, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    names = [name for name in rows[0] if name not in ("tokens", "texts", "layer_error")]
    for column in ("tokens", "texts", *names, "error after each layer"):
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        layers = " ".join(f"{error:.2f}" for error in row["layer_error"][1:])
        table.add_row(str(row["tokens"]), str(row["texts"]), *(f"{row[name]:.4f}" for name in names), layers)
    console.print(table)


def _alike(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """Rows that differ in the layer only, as one row and their count, in the order of the first of each."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        name = row.target or row.sources[0]
        key = (row.action, NUMBER.sub(".#.", name, count=1), shape_text(row.shape), row.dtype, row.why)
        found.setdefault(key, []).append(row)
    return [(group[0], len(group)) for group in found.values()]
