"""The command line: parse, call one function, print. Results on stdout, progress and errors on stderr.

Nothing heavy is imported at the top, so that --help answers at once. A converting command is made when it is asked for,
from the fields of its target's options, which carry their flags and help (commands.py). The file is over 400 lines
because each other command is here with its flags: a reader finds all of them in one place.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .adapt.controls import SAYS
from .commands import (
    CONTEXT,
    CONVERTING,
    EMBEDDING,
    EVALUATING,
    EXPORTING,
    MEASURING,
    PREPARING,
    TRAINING,
    Json,
    MoreData,
    Quiet,
    Source,
    converting_command,
    embedding_command,
    evaluating_command,
    exporting_command,
    hub_progress,
    measuring_command,
    new_command,
    preparing_command,
    together,
    training_command,
)
from .endings import complain, end_unread, signals_as_ctrl_c, stop
from .plain_help import PlainCommand, PlainGroup
from .targets.registry import CREATABLE

if TYPE_CHECKING:
    from typer._click.core import Command, Context


class NewCommands(PlainGroup):
    """`effconv new TARGET`: each built on demand."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(CREATABLE)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        if cmd_name not in self.commands:
            for name in (cmd_name,) if cmd_name in CREATABLE else CREATABLE:
                self.commands[name] = new_command(name)
        return super().get_command(ctx, cmd_name)

    def listed(self) -> Iterator[tuple[str, str, str]]:
        yield from (("Targets", name, row.new) for name, row in CREATABLE.items())


class Commands(PlainGroup):
    """All commands. Those that convert, train or measure are built on demand, since a run needs one at most."""

    def list_commands(self, ctx: Context) -> list[str]:
        made_later = [*CONVERTING, *PREPARING, *TRAINING, *EXPORTING, *EMBEDDING, *MEASURING, *EVALUATING]
        return [*made_later, *(name for name in super().list_commands(ctx) if name not in made_later)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            # Unknown command: build all of them, so that Typer can suggest one.
            makers = dict.fromkeys(CONVERTING, converting_command) | dict.fromkeys(TRAINING, training_command)
            makers |= dict.fromkeys(PREPARING, preparing_command) | dict.fromkeys(EMBEDDING, embedding_command)
            makers |= dict.fromkeys(EXPORTING, exporting_command) | dict.fromkeys(MEASURING, measuring_command)
            makers |= dict.fromkeys(EVALUATING, evaluating_command)
            for name in (cmd_name,) if cmd_name in makers else makers:
                self.commands[name] = makers[name](name)
            found = super().get_command(ctx, cmd_name)
        return found

    def listed(self) -> Iterator[tuple[str, str, str]]:
        yield from (("Convert", name, row.help) for name, row in CONVERTING.items())
        yield from (("Train", name, help) for name, help in (PREPARING | TRAINING).items())
        yield from (("Inspect and measure", name, help) for name, help in (MEASURING | EVALUATING).items())
        yield from (("Serve", name, help) for name, help in (EXPORTING | EMBEDDING).items())
        made_later = (*CONVERTING, *PREPARING, *TRAINING, *EXPORTING, *EMBEDDING, *MEASURING, *EVALUATING)
        yield from (row for row in super().listed() if row[1] not in made_later)


app = typer.Typer(
    name="effconv",
    cls=Commands,
    help="Convert pretrained text encoders into efficient ones, checked against their source.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)
new_models = typer.Typer(
    cls=NewCommands, no_args_is_help=True, rich_markup_mode=None, context_settings=CONTEXT, add_completion=False
)
app.add_typer(
    new_models, name="new", help="Make a repo with random weights, to train from scratch.", rich_help_panel="Train"
)
WAYS = "; ".join(f"{name} ({says})" for name, says in SAYS.items())  # of `effconv retrieval`
REPORT = "internal error in effconv. Please report it with the command and the lines above."

Token = Annotated[
    str | None, typer.Option(help="Hub access token. [default: HF_TOKEN, else the stored login]", show_default=False)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub source. [default: main]", show_default=False)
]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network. Read Hub files from the local cache.")]


def main() -> None:
    """Runs the command line and turns what went wrong into a message and an exit code."""
    from .convert.errors import (
        MEMORY,
        MEMORY_EXIT_CODE,
        NO_EMBEDDING,
        EffconvError,
        StoppedError,
        beyond_a_table,
        memory_ran_out,
    )
    from .convert.io.system import require_supported_system

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the run lasts
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × still shows the rest
    signals = signals_as_ctrl_c()
    try:
        try:
            require_supported_system()
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is not an error
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Typer exits with 1
            end_unread()
        if ended.code == StoppedError.exit_code:  # what Typer makes of Ctrl-C
            stop(signals, "interrupted; no output was written")
        raise
    except BrokenPipeError:
        end_unread()
    except (KeyboardInterrupt, StoppedError) as stopped:
        stop(signals, str(stopped) or "interrupted; no output was written")
    except EffconvError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if memory_ran_out(said):
            complain(f"{MEMORY}\n  where: {str(error).strip() or type(error).__name__}")
            sys.exit(MEMORY_EXIT_CODE)
        if beyond_a_table(said):
            complain(str(NO_EMBEDDING))
            sys.exit(NO_EMBEDDING.exit_code)
        import traceback

        traceback.print_exc()
        complain(REPORT)
        sys.exit(1)


def _version(asked: bool) -> None:
    if asked:
        from .version import __version__

        typer.echo(f"effconv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("inspect", cls=PlainCommand, rich_help_panel="Inspect and measure")
def inspect_command(
    source: Source, revision: Revision = None, token: Token = None, offline: Offline = False, json: Json = False
) -> None:
    """Show what a source model is and which targets accept it. Reads only config and headers."""
    from .api import inspect as inspect_source
    from .report.conversion import show_inspection
    from .targets.registry import TARGETS

    found = inspect_source(source, revision=revision, token=token, offline=offline)
    show_inspection(found, TARGETS, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def verify(
    repo: Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a repo that effconv made.", show_default=False)
    ],
    against: Annotated[
        str | None, typer.Option(help="Source model (folder or Hub id) to compare outputs with.", show_default=False)
    ] = None,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a converted repo: file hashes and the checks of its target. Runs in a fresh process.

    The model card (README.md) may be edited: its hash is not compared.
    """
    from .api import verify as verify_repo
    from .report.console import Progress
    from .report.conversion import show_checks

    with Progress(quiet=quiet) as progress:
        measured = verify_repo(
            repo, against=against, token=token, offline=offline, trust_remote_code=trust_remote_code, progress=progress
        )
    show_checks(measured, repo, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def fidelity(
    repo: Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a repo that effconv made.", show_default=False)
    ],
    against: Annotated[str, typer.Option(help="Source model (folder or Hub id).", show_default=False)],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Text, .jsonl, .csv or .parquet file (column text), can be repeated. [default: built-in English text]",
            show_default=False,
        ),
    ] = None,
    more: MoreData = None,
    lengths: Annotated[str, typer.Option(help="Text lengths in tokens, separated by commas.")] = "128,256,512",
    texts: Annotated[int, typer.Option(help="Number of texts per length.")] = 32,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how similar a converted model's outputs are to its source's."""
    from .api import fidelity as measure
    from .report.console import Progress
    from .report.conversion import show_fidelity

    with Progress(quiet=quiet) as progress:
        rows = measure(
            repo,
            against=against,
            data=together("--data", data, more),
            lengths=lengths,
            texts=texts,
            token=token,
            offline=offline,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_fidelity(rows, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def retrieval(
    repos: Annotated[
        list[Path], typer.Argument(metavar="REPO", help="Converted repos of one source.", show_default=False)
    ],
    against: Annotated[str, typer.Option(help="Source model (folder or Hub id).", show_default=False)],
    data: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Text, .jsonl, .csv or .parquet file, can be repeated.", show_default=False),
    ],
    documents: Annotated[int, typer.Option(help="Maximum number of documents.", min=2)] = 50,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=64)] = 2048,
    queries: Annotated[
        int | None,
        typer.Option(help="Queries per document. [default: 16, or as many as fit]", min=1, show_default=False),
    ] = None,
    query_tokens: Annotated[int, typer.Option(help="Tokens per query.", min=4)] = 32,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with", help=f"Ways to embed documents, separated by commas. {WAYS}. [default: all]", show_default=False
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Use whole documents (rows, articles, files) instead of windows. Queries are cut out of them.",
        ),
    ] = False,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens per chunk. [default: as many as the source takes]", min=1, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the choice of sentences with --whole.")] = 123,
    text_column: Annotated[str, typer.Option(help="Column with the text in .jsonl, .csv and .parquet files.")] = "text",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep embeddings here, to compute them only once.", show_default=False),
    ] = None,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well passages find their long document, with the source and with converted repos.

    R@1 is the share of queries that rank their own document first. MRR is the mean of 1/rank of that document.
    """
    from .api import retrieval as measure
    from .report.console import Progress
    from .report.training import show_retrieval

    # Repos are folders, so a file among them is another file for --data.
    texts = [path for path in repos if path.is_file()]
    with Progress(quiet=quiet) as progress:
        found = measure(
            [path for path in repos if path not in texts],
            against=against,
            data=together("--data", data, texts),
            documents=documents,
            tokens=tokens,
            queries=queries,
            query_tokens=query_tokens,
            with_=with_,
            whole=whole,
            chunk_tokens=chunk_tokens,
            seed=seed,
            text_column=text_column,
            cache=cache,
            token=token,
            offline=offline,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_retrieval(found, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def targets(json: Json = False) -> None:
    """List the conversion targets."""
    from .report.conversion import show_targets
    from .targets.registry import TARGETS

    show_targets(TARGETS.values(), as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def families(json: Json = False) -> None:
    """List the supported architectures with their heads and targets."""
    from .report.conversion import show_families
    from .targets.registry import TARGETS
    from .targets.registry import families as all_families

    show_families(all_families().values(), TARGETS.values(), as_json=json)


@app.command("push-to-hub", cls=PlainCommand, rich_help_panel="Share on the Hub")
def push_to_hub(
    repo: Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a repo that effconv made.", show_default=False)
    ],
    repo_id: Annotated[
        str | None,
        typer.Argument(
            metavar="user/name",
            help="Hub id to push to. [default: your user name and the folder name]",
            show_default=False,
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of a newly created Hub repo. [default: private if the source is gated or private]",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="License if the model card names none, such as apache-2.0.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to, created if missing. [default: main]", show_default=False)
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    commit_message: Annotated[
        str | None, typer.Option(help="First line of the commit message.", show_default=False)
    ] = None,
    token: Token = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network: a push stops with an error, and so does --dry-run.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the files that would be uploaded, and upload nothing. Needs a token."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a converted repo to the Hub. Checks it first, sends changed files in one commit. Safe to run again."""
    from .hub.push import push
    from .report.hub import show_push

    with hub_progress(quiet) as progress:
        pushed = push(
            repo,
            repo_id,
            private=private,
            license=license,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
            offline=offline,
            dry_run=dry_run,
            progress=progress,
        )
    show_push(pushed, as_json=json, quiet=quiet)


@app.command(cls=PlainCommand, rich_help_panel="Share on the Hub")
def adopt(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Where Trainer or another program saved a converted model.", show_default=False
        ),
    ],
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REPO",
            help="The repo that was trained (folder or Hub id). Needed only if the folder does not say what it is.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder. [default: the folder itself]", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Run the checks that hold for a trained model.")] = True,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a converted model that was saved after training into a repo again: manifest, model card, checks.

    Weights and settings are taken as they are: adopt cannot tell training from damage.
    """
    from .api import adopt as adopt_folder
    from .report.console import Progress
    from .report.hub import show_adopted

    with Progress(quiet=quiet) as progress:
        adopted = adopt_folder(
            folder,
            origin=origin,
            output=output,
            verify=verify,
            token=token,
            offline=offline,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_adopted(adopted, as_json=json, quiet=quiet)


@app.command(cls=PlainCommand, rich_help_panel="Share on the Hub")
def refresh(
    repo: Annotated[
        str,
        typer.Argument(metavar="REPO_DIR|user/name", help="Converted repo: a folder or a Hub id.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder. [default: update the repo in place]", show_default=False),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Open a pull request on the Hub with the changes.")] = False,
    to: Annotated[
        str | None,
        typer.Option(
            help="Hub id for --push of a local folder. [default: your user name and the folder name]",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Run the checks of the target if the code changes.")] = True,
    against: Annotated[
        str | None, typer.Option(help="Source model (folder or Hub id) to compare outputs with.", show_default=False)
    ] = None,
    revision: Revision = None,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Update code, model card (README.md) and manifest (effconv.json) of a repo. Weights and hand-written text stay."""
    from .hub.refresh import refresh as refresh_repo
    from .report.hub import show_refreshed

    with hub_progress(quiet) as progress:
        refreshed = refresh_repo(
            repo,
            output=output,
            push=push,
            to=to,
            verify=verify,
            against=against,
            revision=revision,
            token=token,
            offline=offline,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    show_refreshed(refreshed, as_json=json, quiet=quiet)


if __name__ == "__main__":
    main()
