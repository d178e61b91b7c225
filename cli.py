"""The command line: parse, call one function, print. Results on stdout, progress and errors on stderr.

Nothing heavy is imported at the top, so that --help answers at once. A converting command is made when it is asked for,
from the fields of its target's options, which carry their flags and help.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args, get_type_hints

import typer

from .plain_help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from typer._click.core import Command, Context

CONVERTING = {  # command: its target's options and its help
    "lsg": (
        "lsgify.options:LSGOptions",
        "Convert to LSG: local, sparse and global attention (arXiv 2210.15497).",
    ),
    "linformer": (
        "targets.linformer.options:LinformerOptions",
        "Convert to Linformer: projected keys and values (arXiv 2006.04768).",
    ),
    "lambda": (
        "targets.lambda_.options:LambdaOptions",
        "Convert to lambda layers (LambdaNetworks), fitted on text (arXiv 2102.08602).",
    ),
    "transnormer": (
        "targets.transnormer.options:TransNormerOptions",
        "Convert to TransNormer: block, then linear attention, fitted on text (arXiv 2210.10340).",
    ),
    "jax2torch": (
        "targets.bigs.options:BiGSOptions",
        "Convert a BiGS checkpoint (gated state-space encoder, arXiv 2212.10544) from JAX to PyTorch.",
    ),
    "torch2jax": ("targets.bigs.options:BiGSOptions", "Convert a BiGS checkpoint from PyTorch to JAX."),
    "bigs": (
        "targets.bigs.options:BiGSOptions",
        "Change the maximum length or the GELU variant of a PyTorch BiGS checkpoint.",
    ),
}
MEASURING = {"bench": "Compare speed and memory of models, or recommend LSG options for your texts (--data)."}
TRAINING = {"adapt": "Train a converted repo to match its source. Writes a new repo."}


class Commands(PlainGroup):
    """All commands. Those that convert, train or measure are built on demand, since a run needs one at most."""

    def list_commands(self, ctx: Context) -> list[str]:
        made_later = [*CONVERTING, *TRAINING, *MEASURING]
        return [*made_later, *(name for name in super().list_commands(ctx) if name not in made_later)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            # Unknown command: build all of them, so that Typer can suggest one.
            makers = dict.fromkeys(CONVERTING, _converting_command) | dict.fromkeys(TRAINING, _training_command)
            makers |= dict.fromkeys(MEASURING, _measuring_command)
            for name in (cmd_name,) if cmd_name in makers else makers:
                self.commands[name] = makers[name](name)
            found = super().get_command(ctx, cmd_name)
        return found

    def listed(self) -> Iterator[tuple[str, str, str]]:
        yield from (("Convert", name, help) for name, (_, help) in CONVERTING.items())
        yield from (("Train", name, help) for name, help in TRAINING.items())
        yield from (("Inspect and measure", name, help) for name, help in MEASURING.items())
        yield from (row for row in super().listed() if row[1] not in (*CONVERTING, *TRAINING, *MEASURING))


app = typer.Typer(
    name="effconv",
    cls=Commands,
    help="Convert pretrained text encoders into efficient ones, checked against their source.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
REPORT = "internal error in effconv. Please report it with the command and the lines above."

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="Source model: a local folder or a Hub id such as bert-base-uncased.", show_default=False
    ),
]
Token = Annotated[
    str | None, typer.Option(help="Hub access token. [default: HF_TOKEN, else the stored login]", show_default=False)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a Hub source. [default: main]", show_default=False)
]
MoreData = Annotated[  # the shell expands --data *.txt to several files
    list[str] | None, typer.Argument(metavar="DATA", help="Additional files for --data.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use no network. Read Hub files from the local cache.")]


def main() -> None:
    """Runs the command line and turns what went wrong into a message and an exit code."""
    from .convert.errors import MEMORY, MEMORY_EXIT_CODE, EffconvError, StoppedError, memory_ran_out
    from .convert.io.system import require_supported_system

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the run lasts
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × still shows the rest
    signals = _signals_as_ctrl_c()
    try:
        try:
            require_supported_system()
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()  # here, where a closed pipe is not an error
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # Typer exits with 1
            _end_unread()
        if ended.code == StoppedError.exit_code:  # what Typer makes of Ctrl-C
            _stop(signals, "interrupted; no output was written")
        raise
    except BrokenPipeError:
        _end_unread()
    except (KeyboardInterrupt, StoppedError) as stopped:
        _stop(signals, str(stopped) or "interrupted; no output was written")
    except EffconvError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if memory_ran_out(f"{type(error).__name__}: {error}"):
            _complain(f"{MEMORY}\n  where: {str(error).strip() or type(error).__name__}")
            sys.exit(MEMORY_EXIT_CODE)
        import traceback

        traceback.print_exc()
        _complain(REPORT)
        sys.exit(1)


def _signals_as_ctrl_c() -> list[int]:
    """Lets SIGTERM and SIGHUP end a run as Ctrl-C does, with clean-up and report; returns those received."""
    from .convert.io.system import ending_signals

    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise KeyboardInterrupt

    for number in ending_signals():
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    return came


def _stop(signals: list[int], message: str) -> NoReturn:
    from .convert.errors import StoppedError

    _complain(message)
    sys.exit(128 + signals[0] if signals else StoppedError.exit_code)


def _end_unread() -> NoReturn:
    """Exits quietly with the exit code of SIGPIPE, as programs do when the reader of their output has closed it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is still buffered is discarded at exit
    sys.exit(128 + signal.SIGPIPE)


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


def _converting_command(name: str) -> Command:
    """`effconv NAME SOURCE`, whose options are the fields of its target's options, `Settings` and `PushOptions`."""
    from .convert.options import Settings, flag_of
    from .hub.options import PushOptions

    place, help = CONVERTING[name]
    module, _, options_name = place.partition(":")
    options_class = getattr(importlib.import_module(f".{module}", __package__), options_name)
    several = next((field for field in dataclasses.fields(options_class) if field.default == ()), None)

    def command(**values: Any) -> None:
        from .api import convert, plan
        from .convert.errors import EffconvError
        from .report.console import Progress
        from .report.conversion import show_plan, show_result

        source, plan_only, as_json = values.pop("source"), values.pop("plan"), values.pop("json")
        sharing = {field.name: values.pop(field.name) for field in dataclasses.fields(PushOptions)}
        if several is not None:
            values[several.name] = _together(flag_of(several), values[several.name], values.pop("more")) or None
        given = {key: value for key, value in values.items() if value is not None}
        if plan_only:
            show_plan(plan(source, name, **given), as_json=as_json)
            return
        if sharing["push_to_hub"] is not None:
            _quiet_hub(bars=True)
        try:
            with Progress() as progress:
                result = convert(source, name, progress=progress, **given, **sharing)
        except EffconvError as error:
            if error.made is not None:  # the push failed, but the converted folder is complete
                show_result(error.made, as_json=as_json)
            raise
        show_result(result, as_json=as_json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("source", keyword, annotation=Source)]
    if several is not None:
        more = typer.Argument(metavar="FILE", help=f"Additional files for {flag_of(several)}.", show_default=False)
        annotation = Annotated[list[str] | None, more]
        parameters.append(inspect.Parameter("more", keyword, default=None, annotation=annotation))
    for part in (options_class, PushOptions, Settings):
        parameters += _parameters(part)
    plan_flag = typer.Option("--plan", help="Print what would happen to every tensor, and convert nothing.")
    parameters.append(inspect.Parameter("plan", keyword, default=False, annotation=Annotated[bool, plan_flag]))
    parameters.append(inspect.Parameter("json", keyword, default=False, annotation=Json))
    return _command(name, help, command, parameters)


def _training_command(name: str) -> Command:
    """`effconv adapt REPO`, whose options are the fields of `AdaptOptions`."""
    from .adapt.options import AdaptOptions

    def command(**values: Any) -> None:
        from .api import adapt
        from .report.console import Progress, TrainingProgress
        from .report.training import show_adapted

        repo, as_json, more = values.pop("repo"), values.pop("json"), values.pop("more")
        values["data"] = _together("--data", values["data"], more)
        values["heldout"] = tuple(values["heldout"] or ())
        with Progress() as progress, TrainingProgress() as watch:
            adapted = adapt(repo, progress=progress, watch=watch, **values)
        if adapted is not None:  # only rank 0 prints
            show_adapted(adapted, as_json=as_json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    repo = Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a converted repo (made by effconv).", show_default=False)
    ]
    parameters = [inspect.Parameter("repo", keyword, annotation=repo)]
    parameters.append(inspect.Parameter("more", keyword, default=None, annotation=MoreData))
    parameters += _parameters(AdaptOptions)
    parameters.append(inspect.Parameter("json", keyword, default=False, annotation=Json))
    return _command(name, TRAINING[name], command, parameters)


def _measuring_command(name: str) -> Command:
    """`effconv bench MODEL...`, whose options are the fields of `BenchOptions`."""
    from .bench.options import BenchOptions

    def command(**values: Any) -> None:
        from .api import bench
        from .convert.errors import StoppedError
        from .report.bench import show_advice, show_bench
        from .report.console import Progress

        models, as_json = values.pop("models"), values.pop("json")
        if values["data"]:  # the shell expands --data *.txt: the other files arrive as arguments
            values["data"], models = (*values["data"], *models[1:]), models[:1]
        with Progress() as progress:
            found = bench(models, progress=progress, **values)
        show = show_advice if values["data"] else show_bench
        show(found, as_json=as_json)
        if found.interrupted:
            raise StoppedError("interrupted; the results measured so far are above")

    keyword = inspect.Parameter.KEYWORD_ONLY
    model = typer.Argument(
        metavar="MODEL", help="Models to measure: converted repos, other model folders or Hub ids.", show_default=False
    )
    parameters = [inspect.Parameter("models", keyword, annotation=Annotated[list[str], model])]
    parameters += _parameters(BenchOptions)
    parameters.append(inspect.Parameter("json", keyword, default=False, annotation=Json))
    return _command(name, MEASURING[name], command, parameters)


def _command(name: str, help: str, command: Callable[..., None], parameters: list[inspect.Parameter]) -> Command:
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, help=help, cls=PlainCommand, context_settings=app.info.context_settings)(command)
    return typer.main.get_command(alone)


def _together(flag: str, first: Sequence[Any] | None, others: Sequence[Any] | None) -> tuple[Any, ...]:
    """All files of an option: for FLAG *.txt the shell gives the first to the option and the others as arguments."""
    if others and not first:
        from .convert.errors import UsageError

        raise UsageError(
            f"unexpected argument{'s' if len(others) > 1 else ''} {' '.join(map(str, others))}",
            where=flag,
            hint=f"list files after {flag}",
        )
    return (*(first or ()), *(others or ()))


def _parameters(options_class: type) -> list[inspect.Parameter]:
    from .convert.options import flag_of

    hints = get_type_hints(options_class)
    parameters = []
    for field in dataclasses.fields(options_class):
        flag = flag_of(field)
        fallback = field.metadata["fallback"]
        names = [flag + (f"/--no-{flag[2:]}" if field.default is True or isinstance(fallback, bool) else "")]
        names += [field.metadata["short"]] if field.metadata.get("short") else []
        help = field.metadata["help"]
        if fallback is not None:  # the value for a source that states none
            usual = f"{'' if fallback else 'no-'}{flag[2:]}" if isinstance(fallback, bool) else fallback
            help = f"{help}  [default: {usual}]"
        option = typer.Option(
            *names,
            help=help,
            show_default=field.default is not None and field.default != (),
            rich_help_panel=field.metadata.get("panel") or "Options",
        )
        hint, default = hints[field.name], field.default
        if isinstance(default, tuple):  # an option that can be repeated: a list for Typer
            hint, default, option.metavar = list[get_args(hint)[0]], None, "FILE"  # type: ignore[misc]
        annotation = Annotated[hint, option]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return parameters


@app.command("inspect", cls=PlainCommand, rich_help_panel="Inspect and measure")
def inspect_command(
    source: Source, revision: Revision = None, token: Token = None, offline: Offline = False, json: Json = False
) -> None:
    """Show what a source model is and which targets accept it. Reads only config and headers."""
    from .inspection import inspect_source
    from .report.conversion import show_inspection
    from .targets.registry import TARGETS

    found = inspect_source(source, revision=revision, token=token, offline=offline)
    show_inspection(found, TARGETS, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def verify(
    repo: Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a converted repo (made by effconv).", show_default=False)
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
) -> None:
    """Check a converted repo: file hashes and the checks of its target. Runs in a fresh process."""
    from .api import verify as verify_repo
    from .report.console import Progress
    from .report.conversion import show_checks

    with Progress() as progress:
        measured = verify_repo(
            repo, against=against, token=token, offline=offline, trust_remote_code=trust_remote_code, progress=progress
        )
    show_checks(measured, as_json=json)


@app.command(cls=PlainCommand, rich_help_panel="Inspect and measure")
def fidelity(
    repo: Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a converted repo (made by effconv).", show_default=False)
    ],
    against: Annotated[str, typer.Option(help="Source model (folder or Hub id).", show_default=False)],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text file, can be repeated. [default: built-in English text]",
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
) -> None:
    """Measure how similar a converted model's outputs are to its source's."""
    from .api import fidelity as measure
    from .report.console import Progress
    from .report.conversion import show_fidelity

    with Progress() as progress:
        rows = measure(
            repo,
            against=against,
            data=_together("--data", data, more),
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
        list[Path], typer.Option(metavar="FILE", help="UTF-8 text file, can be repeated.", show_default=False)
    ],
    documents: Annotated[int, typer.Option(help="Maximum number of documents.", min=2)] = 50,
    tokens: Annotated[int, typer.Option(help="Tokens per document.", min=64)] = 2048,
    queries: Annotated[
        int | None,
        typer.Option(help="Queries per document. [default: 16, or as many as fit]", min=1, show_default=False),
    ] = None,
    query_tokens: Annotated[int, typer.Option(help="Tokens per query.", min=4)] = 32,
    token: Token = None,
    offline: Offline = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the Python code of the source to run.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure retrieval of long documents by passages, with the source and converted repos."""
    from .adapt.retrieval import retrieval as measure
    from .report.console import Progress
    from .report.training import show_retrieval

    # Repos are folders, so a file among them is another file for --data.
    texts = [path for path in repos if path.is_file()]
    with Progress() as progress:
        found = measure(
            [path for path in repos if path not in texts],
            against=against,
            data=_together("--data", data, texts),
            documents=documents,
            tokens=tokens,
            queries=queries,
            query_tokens=query_tokens,
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
        Path, typer.Argument(metavar="REPO", help="Folder of a converted repo (made by effconv).", show_default=False)
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
    offline: Offline = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files that would be uploaded, and upload nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Upload a converted repo to the Hub. Checks it first, sends changed files in one commit. Safe to run again."""
    from .hub.push import push
    from .report.hub import show_push

    with _hub_progress(quiet) as progress:
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
    """Update code, generated card sections and manifest of a repo. Weights and hand-written text stay."""
    from .hub.refresh import refresh as refresh_repo
    from .report.hub import show_refreshed

    with _hub_progress(quiet) as progress:
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


@contextlib.contextmanager
def _hub_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Prints steps to stderr, with the Hub client's progress bars on a terminal; prints nothing when quiet."""
    from .report.console import Progress

    _quiet_hub(bars=not quiet)
    if quiet:
        yield lambda step, done, total: None
        return
    with Progress(bar=False) as progress:
        yield progress


def _quiet_hub(*, bars: bool) -> None:
    """Keeps the Hub's client from writing to stderr, but for its bars on a terminal."""
    from huggingface_hub.utils import disable_progress_bars, logging

    if not bars or not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # effconv reports retries itself


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr is closed
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(message, err=True)


if __name__ == "__main__":
    main()
