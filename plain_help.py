"""Help pages as plain text, in sections: what Typer's own ones show, without the third of a second that rich takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from gettext import gettext as _
from typing import TYPE_CHECKING

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Command as AnyCommand
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

    Rows = Iterable[tuple[str, str, str]]


class PlainCommand(TyperCommand):
    """A command whose options stand under the names of their panels."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        _write(formatter, _parameters(self, ctx))


class PlainGroup(TyperGroup):
    """A group whose options and commands stand under the names of their panels."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        _write(formatter, _parameters(self, ctx))
        _write(formatter, self.listed())

    def listed(self) -> Rows:
        """Panel, name and help of every command that has been made."""
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                yield panel or _("Commands"), name, command.get_short_help_str(limit=200)


def _parameters(command: AnyCommand, ctx: Context) -> Rows:
    for parameter in command.get_params(ctx):
        row = parameter.get_help_record(ctx)
        if row is not None:
            panel, (name, help) = getattr(parameter, "rich_help_panel", None), row
            argument = parameter.param_type_name == "argument"
            name = parameter.metavar or name if argument else name  # without the type of what has a name of its own
            yield panel or (_("Arguments") if argument else _("Options")), name, help


def _write(formatter: HelpFormatter, rows: Rows) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for panel, name, help in rows:
        panels.setdefault(panel, []).append((name, help))
    for panel, lines in panels.items():
        heading = panel if "NO_COLOR" in os.environ else typer.style(panel, bold=True)  # taken out where no terminal is
        with formatter.section(heading):
            formatter.write_dl(lines)
