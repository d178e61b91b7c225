"""Prints the results of `effconv push-to-hub`, `effconv refresh` and `effconv adopt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from .console import new_console, print_checks, print_json, size_text

if TYPE_CHECKING:
    from ..adopt.run import Adopted
    from ..hub.push import Pushed
    from ..hub.refresh import Refreshed


def show_push(pushed: Pushed, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        return print_json(pushed.described())
    if quiet:
        return print(pushed.url)
    console, changes = new_console(), pushed.changes
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = [("added", file) for file in changes.added] + [("changed", file) for file in changes.changed]
    for what, file in rows:
        table.add_row(what, escape(file.name), size_text(file.size))
    for name in changes.removed:
        table.add_row("removed", escape(name), "")
    if pushed.dry_run:
        for file in changes.left:
            table.add_row("unchanged", escape(file.name), size_text(file.size))
    elif changes.left:
        table.add_row("unchanged", f"{len(changes.left)} files", size_text(sum(file.size for file in changes.left)))
    console.print(table)
    for note in pushed.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    if pushed.dry_run:
        console.print("dry run: nothing was uploaded" if changes else "dry run: nothing to do")
    elif not changes:
        console.print("nothing to do: the Hub repo is up to date")
    console.print(pushed.url, soft_wrap=True, highlight=False)
    if pushed.commit:
        console.print(
            f'at commit {pushed.commit} (load it with revision="{pushed.commit}")', soft_wrap=True, highlight=False
        )
    return None


def show_refreshed(refreshed: Refreshed, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        return print_json(refreshed.described())
    console = new_console()
    if not quiet:
        for name in refreshed.changed:
            console.print(f"rewritten  {escape(name)}", highlight=False)
        for name in refreshed.removed:
            console.print(f"removed    {escape(name)}", highlight=False)
        if refreshed.measured is not None:
            print_checks(console, refreshed.measured)
        for note in refreshed.notes:
            console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
        if not refreshed.changed:
            console.print("nothing to do: the repo is up to date")
    if refreshed.output:
        console.print(escape(str(refreshed.output)), soft_wrap=True, highlight=False)
    if refreshed.pushed:
        show_push(refreshed.pushed, as_json=False, quiet=quiet)
    return None


def show_adopted(adopted: Adopted, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        return print_json(adopted.described())
    console = new_console()
    if not quiet:
        for name in adopted.written:
            console.print(f"written  {escape(name)}", highlight=False)
        if adopted.measured is not None:
            print_checks(console, adopted.measured)
        for finding in adopted.findings:
            console.print(f"[yellow]note:[/yellow] {escape(finding)}", soft_wrap=True)
    console.print(escape(str(adopted.output)), soft_wrap=True, highlight=False)
    return None
