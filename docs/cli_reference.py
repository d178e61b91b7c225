"""The command line's reference: a page made of every command's --help, for the docs site and for nothing else.

mkdocs calls `on_files` while it builds (see mkdocs.yml), and `python docs/cli_reference.py` prints the page.
"""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.testing import CliRunner

from effconv.cli import app

PATH = "reference/command-line.md"
HEAD = """# Command line

What `effconv COMMAND --help` says of every command. Results go to stdout, progress and errors to stderr;
[exit codes](exit-codes.md) tell the kinds of errors apart.
"""
WIDTH = 90


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *(f"## {title}\n\n```text\n{text}\n```\n" for title, text in _sections())])


def _sections() -> Iterator[tuple[str, str]]:
    group = typer.main.get_command(app)
    yield "effconv", _help([])
    for name in group.list_commands(typer.Context(group)):
        yield f"effconv {name}", _help([name])
        command = group.get_command(typer.Context(group), name)
        for inner in getattr(command, "list_commands", lambda _: ())(typer.Context(group)):
            yield f"effconv {name} {inner}", _help([name, inner])


def _help(arguments: list[str]) -> str:
    settings = {"prog_name": "effconv", "env": {"NO_COLOR": "1"}, "terminal_width": WIDTH}
    run = CliRunner().invoke(app, [*arguments, "--help"], **settings)
    if run.exit_code:
        raise RuntimeError(f"effconv {' '.join(arguments)} --help: {run.output}")
    return run.output.strip()


def on_files(files, config):  # noqa: ANN001, ANN201 - a hook of mkdocs, which this environment may not have
    """Adds the page to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PATH, content=page()))
    return files


if __name__ == "__main__":
    print(page())
