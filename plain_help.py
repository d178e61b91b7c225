"""Plain-text help pages with sections, like Typer's own but without importing rich, which takes 0.3 s."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from gettext import gettext as _
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Command as AnyCommand
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

    Rows = Iterable[tuple[str, str, str]]

MORE = "more"  # the argument for further files of an option, whose flag its help names first
FLAG = re.compile(r"--[a-z-]+")
NEEDED = "[required]"  # ends the help of an option that the command always needs, whatever its default is
REQUIRED = re.compile(r"\{(.*)\}")  # Typer's form of an argument that must be given


class PlainCommand(TyperCommand):
    """A command with its options grouped by panel."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        _write(formatter, _parameters(self, ctx))

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """The arguments without braces, and further files behind the option that they belong to.

        They are an argument for them alone, or stand among the models of a command that takes several.
        """
        pieces = [REQUIRED.sub(r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
        more = next((argument for argument in self.params if argument.name == MORE), None)
        if more is not None:
            own, shown = (
                more.get_usage_pieces(ctx),
                self._usage_of(FLAG.findall(getattr(more, "help", ""))[0], more.metavar),
            )
            pieces = [shown if piece in own else piece for piece in pieces]
        elif any(parameter.nargs == -1 for parameter in self.params) and self._option("--data") is not None:
            pieces.append(self._usage_of("--data", "FILE"))
        return pieces

    def _option(self, flag: str) -> Any:
        return next((parameter for parameter in self.params if flag in parameter.opts), None)

    def _usage_of(self, flag: str, others: str | None) -> str:
        """An option for several files, in brackets unless the command needs it. `others`: name of the further files."""
        option = self._option(flag)
        shown = f"{flag} FILE [{others}]..."
        return shown if option.required or (option.help or "").endswith(NEEDED) else f"[{shown}]"

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _plainly(error)
            raise


def _plainly(error: typer.BadParameter) -> str:
    """What is wrong with a value, in words that name it. Typer 0.27 and later pass on what pydantic says."""
    faults = getattr(error.__cause__, "errors", None)
    if faults is None:
        return str(error.message)
    fault = faults()[0]
    kind, value, bounds = fault["type"], fault["input"], fault.get("ctx", {})
    if kind in ("int_parsing", "int_from_float", "int_type"):
        return f"{value!r} is not an integer"
    if kind in ("float_parsing", "float_type"):
        return f"{value!r} is not a number"
    if kind == "greater_than_equal":
        return f"must be at least {bounds['ge']}, got {value}"
    if kind == "less_than_equal":
        return f"must be at most {bounds['le']}, got {value}"
    return str(error.message).removeprefix("Value error, ")


class PlainGroup(TyperGroup):
    """A group with its options and commands grouped by panel."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        _write(formatter, _parameters(self, ctx))
        _write(formatter, self.listed())

    def listed(self) -> Rows:
        """Panel, name and help of every registered command."""
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
            name = parameter.metavar or name if argument else name  # a metavar is shown without the type
            yield panel or (_("Arguments") if argument else _("Options")), name, help


def _write(formatter: HelpFormatter, rows: Rows) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for panel, name, help in rows:
        panels.setdefault(panel, []).append((name, help))
    for panel, lines in panels.items():
        heading = (
            panel if "NO_COLOR" in os.environ else typer.style(panel, bold=True)
        )  # removed if stdout is not a terminal
        with formatter.section(heading):
            formatter.write_dl(lines)
