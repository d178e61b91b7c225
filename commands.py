"""The commands that take their options from a dataclass (converting, training, measuring), made when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from .plain_help import PlainCommand
from .targets.registry import CREATABLE, ROWS, at

if TYPE_CHECKING:
    from typer._click.core import Command

    from .convert.target import Target

CONVERTING = {name: row for name, row in ROWS.items() if row.options}


SOURCES = re.compile(r"\[default: the source's, else (\w+)\]")  # of a conversion; a new model has no source


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


MEASURING = {"bench": "Compare speed, memory and cost of models, or recommend LSG options for your texts (--data)."}


TRAINING = {
    "pretrain": "Pretrain a repo on text: masked or causal LM, NSP, SOP. Writes a new repo.",
    "adapt": "Train a converted repo to match its source. Writes a new repo.",
    "finetune": "Fine-tune a converted repo for a task on labelled rows. Writes a new repo.",
}


PREPARING = {"prepare": "Make pretraining examples from texts or from shards of other programs, as parquet files."}


EXPORTING = {"export": "Export a converted repo as ONNX or torch.export. The result runs without the repo's code."}


EMBEDDING = {
    "embed": "Embed texts with a repo: one vector per text, or one per chunk in the context of its text.",
    "pieces": "Make a repo that finds documents of any length by their whitened pieces, for sentence-transformers.",
}


EVALUATING = {"eval": "Measure a repo on tasks of mteb or on your own retrieval task. Scores go into its model card."}


ENCODER = (
    "Folder of a converted repo, or of another sentence-transformers model. The files of a converted repo are compared "
    "with its manifest; those of other models are not checked."
)


PLAN_HELP = (
    "Print what would happen to every tensor (copy; tile: repeat rows; derive: compute from others; new; drop), "
    "and convert nothing. The plan hash covers these operations. Options that change only config.json, such as "
    "--block-size, do not change it."
)


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]


def source_argument(example: str) -> Any:
    """The argument SOURCE; its help names an example."""
    help = f"Source model: a local folder or a Hub id, such as {example}."
    return Annotated[str, typer.Argument(metavar="SOURCE", help=help, show_default=False)]


Source = source_argument("bert-base-uncased")


def more_files(flag: str, metavar: str) -> Any:
    """The argument for further files of an option: the shell expands --data *.txt to several files."""
    help = f"More files for {flag}. Give them after it: {flag} FILE {metavar} ..."
    return Annotated[list[str] | None, typer.Argument(metavar=metavar, help=help, show_default=False)]


MoreData = more_files("--data", "DATA")


def converting_command(name: str) -> Command:
    """`effconv NAME SOURCE`, whose options are the fields of its target's options, `Settings` and `PushOptions`."""
    from .convert.options import Settings, flag_of
    from .hub.options import PushOptions

    options_class = at(CONVERTING[name].options)
    several = next((field for field in dataclasses.fields(options_class) if field.default == ()), None)

    def command(**values: Any) -> None:
        from .api import convert, plan
        from .convert.errors import EffconvError
        from .report.console import Progress
        from .report.conversion import show_plan, show_result

        source, plan_only, as_json = values.pop("source"), values.pop("plan"), values.pop("json")
        quiet = values.pop("quiet")
        sharing = {field.name: values.pop(field.name) for field in dataclasses.fields(PushOptions)}
        if several is not None:
            values[several.name] = together(flag_of(several), values[several.name], values.pop("more")) or None
        given = {key: value for key, value in values.items() if value is not None}
        if plan_only:
            show_plan(plan(source, name, **given, **sharing), as_json=as_json)
            return
        if sharing["push_to_hub"] is not None:
            quiet_hub(bars=not quiet)
        try:
            with Progress(quiet=quiet) as progress:
                result = convert(source, name, progress=progress, **given, **sharing)
        except EffconvError as error:
            if error.made is not None:  # the push failed, but the converted folder is complete
                show_result(error.made, as_json=as_json)
            raise
        show_result(result, as_json=as_json)

    parameters = [_keyword("source", source_argument(CONVERTING[name].example))]
    if several is not None:
        parameters.append(_keyword("more", more_files(flag_of(several), "FILE"), None))
    for part in (options_class, PushOptions, Settings):
        parameters += [_placed(parameter, CONVERTING[name].output) for parameter in _parameters(part)]
    plan_flag = typer.Option("--plan", help=PLAN_HELP)
    parameters.append(_keyword("plan", Annotated[bool, plan_flag], False))
    return _command(name, CONVERTING[name].help, command, parameters)


def _placed(parameter: inspect.Parameter, folder: str) -> inspect.Parameter:
    """`--output` with the target's default folder, where that is not the usual one."""
    if parameter.name == "output" and folder:
        get_args(parameter.annotation)[1].help = f"Output folder. [default: {folder}, in the current folder]"
    return parameter


def new_command(name: str) -> Command:
    """`effconv new NAME`, whose options are those of the target that do not concern a source, and `NewOptions`."""
    from .new.options import NewOptions
    from .new.presets import default_preset, presets_of

    options_class = at(CREATABLE[name].options)
    own = [field.name for field in dataclasses.fields(options_class) if field.name != "max_length"]

    def command(**values: Any) -> None:
        from .api import new
        from .report.console import Progress
        from .report.conversion import show_result

        as_json, quiet = values.pop("json"), values.pop("quiet")
        given = {key: value for key, value in values.items() if value is not None}
        if given.get("set") == []:
            given.pop("set")
        quiet_hub(bars=not quiet)
        with Progress(quiet=quiet) as progress:
            result = new(name, progress=progress, **given)
        show_result(result, as_json=as_json)

    target = at(CREATABLE[name].place)
    scratch = target.scratch
    parameters = [parameter for parameter in _parameters(options_class) if parameter.name in own]
    # None stands for "not given": what a new model has by default depends on --like and on other options.
    parameters = [_open(parameter, scratch.defaults) for parameter in parameters if parameter.name not in scratch.idle]
    parameters += [
        _fitted(parameter, target, presets_of(name), default_preset(name)) for parameter in _parameters(NewOptions)
    ]
    return _command(name, f"Make a repo with random weights. {CREATABLE[name].new}", command, parameters)


def _open(parameter: inspect.Parameter, usual: Mapping[str, Any]) -> inspect.Parameter:
    """An option without a value of its own: None where it is not given. Its help keeps the usual one."""
    hint, option = get_args(parameter.annotation)
    option.help = SOURCES.sub(r"[default: \1, or the preset's]", option.help)
    default = usual.get(parameter.name, parameter.default)
    if default is not None and option.show_default:
        shown = ("no", "yes")[default] if isinstance(default, bool) else default
        option.help, option.show_default = f"{option.help}  [default: {shown}, or the preset's]", False
    return parameter.replace(default=None, annotation=Annotated[hint | None, option])


def _fitted(parameter: inspect.Parameter, target: Target, presets: Iterable[str], first: str) -> inspect.Parameter:
    """An option of every `effconv new`, with what it takes for this target.

    Args:
        presets: names that `--like` takes. first: the one that it is by default.
    """
    option = get_args(parameter.annotation)[1]
    if parameter.name == "like":
        option.help = option.help.replace("NAMES", ", ".join(presets)).replace("FIRST", first)
    elif parameter.name == "family" and target.brings is not None:
        option.help = f"Family of the model: {target.brings.name} is the only one."
    elif parameter.name == "causal":
        option.hidden = not target.causal  # still parsed, for the error that says what can be causal
    return parameter


def training_command(name: str) -> Command:
    """`effconv adapt REPO` and the other trainings, whose options are the fields of their options' class."""
    from .adapt.options import AdaptOptions
    from .finetune.options import FinetuneOptions
    from .pretrain.options import PretrainOptions

    options_class: type = {"adapt": AdaptOptions, "finetune": FinetuneOptions, "pretrain": PretrainOptions}[name]

    def command(**values: Any) -> None:
        from . import api
        from .report.console import Progress, TrainingProgress
        from .report.training import show_adapted, show_finetuned, show_pretrained

        repo, as_json, more = values.pop("repo"), values.pop("json"), values.pop("more")
        values["data"] = together("--data", values["data"], more)
        quiet = values.pop("quiet")
        with Progress(quiet=quiet) as progress, TrainingProgress(quiet=quiet) as watch:
            trained = getattr(api, name)(repo, progress=progress, watch=watch, **values)
        if trained is not None:  # only rank 0 prints
            shows: dict[str, Callable[..., None]] = {
                "adapt": show_adapted,
                "finetune": show_finetuned,
                "pretrain": show_pretrained,
            }
            shows[name](trained, as_json=as_json)

    repo = Annotated[
        Path, typer.Argument(metavar="REPO", help="Folder of a repo that effconv made.", show_default=False)
    ]
    parameters = [_keyword("repo", repo)]
    parameters.append(_keyword("more", MoreData, None))
    parameters += _parameters(options_class)
    return _command(name, TRAINING[name], command, parameters)


def preparing_command(name: str) -> Command:
    """`effconv prepare TEXT...`, whose options are the fields of `PrepareOptions`."""
    from .data.pretraining_options import PrepareOptions

    def command(**values: Any) -> None:
        from .api import prepare
        from .report.console import Progress
        from .report.prepared import show_prepared

        texts, as_json = values.pop("texts"), values.pop("json")
        with Progress(quiet=values.pop("quiet")) as progress:
            prepared = prepare(texts, progress=progress, **values)
        show_prepared(prepared, as_json=as_json)

    help = "Text, JSONL, CSV or parquet files or Hub datasets; or HDF5 and TFRecord shards with masks."
    texts = Annotated[list[str], typer.Argument(metavar="TEXT", help=help, show_default=False)]
    parameters = [_keyword("texts", texts), *_parameters(PrepareOptions)]
    return _command(name, PREPARING[name], command, parameters)


def exporting_command(name: str) -> Command:
    """`effconv export REPO`, whose options are the fields of `ExportOptions`."""
    from .export.options import ExportOptions

    def command(**values: Any) -> None:
        from .api import export
        from .report.console import Progress
        from .report.exported import show_exported

        repo, as_json = values.pop("repo"), values.pop("json")
        with Progress(quiet=values.pop("quiet")) as progress:
            exported = export(repo, progress=progress, **values)
        show_exported(exported, as_json=as_json)

    help = "Folder of a repo that effconv made."
    repo = Annotated[Path, typer.Argument(metavar="REPO", help=help, show_default=False)]
    parameters = [_keyword("repo", repo), *_parameters(ExportOptions)]
    return _command(name, EXPORTING[name], command, parameters)


def embedding_command(name: str) -> Command:
    """`effconv embed REPO` and `effconv pieces REPO`, whose options are the fields of their options' class."""
    from .embed.options import EmbedOptions, PiecesOptions

    options_class: type = {"embed": EmbedOptions, "pieces": PiecesOptions}[name]

    def command(**values: Any) -> None:
        from . import api
        from .report.console import Progress
        from .report.exported import show_embedded, show_pieces

        repo, as_json, more = values.pop("repo"), values.pop("json"), values.pop("more")
        values["data"] = together("--data", values["data"], more)
        with Progress(quiet=values.pop("quiet")) as progress:
            made = getattr(api, name)(repo, progress=progress, **values)
        shows: dict[str, Callable[..., None]] = {"embed": show_embedded, "pieces": show_pieces}
        shows[name](made, as_json=as_json)

    repo = Annotated[Path, typer.Argument(metavar="REPO", help=ENCODER, show_default=False)]
    parameters = [_keyword("repo", repo), _keyword("more", MoreData, None), *_parameters(options_class)]
    return _command(name, EMBEDDING[name], command, parameters)


def evaluating_command(name: str) -> Command:
    """`effconv eval REPO`, whose options are the fields of `EvalOptions`."""
    from .eval.options import EvalOptions

    def command(**values: Any) -> None:
        from .api import eval as evaluate
        from .report.console import Progress
        from .report.evaluated import show_evaluated

        repo, as_json, quiet = values.pop("repo"), values.pop("json"), values.pop("quiet")
        values["tasks"] = tuple(values["tasks"] or ())
        quiet_hub(bars=not quiet)
        with Progress(quiet=quiet) as progress:
            evaluated = evaluate(repo, progress=progress, **values)
        show_evaluated(evaluated, as_json=as_json)

    repo = Annotated[Path, typer.Argument(metavar="REPO", help=ENCODER, show_default=False)]
    parameters = [_keyword("repo", repo), *_parameters(EvalOptions)]
    return _command(name, EVALUATING[name], command, parameters)


def measuring_command(name: str) -> Command:
    """`effconv bench MODEL...`, whose options are the fields of `BenchOptions`."""
    from .bench.options import BenchOptions

    def command(**values: Any) -> None:
        from .api import bench
        from .convert.errors import StoppedError
        from .data.files import is_text
        from .report.bench import show_advice, show_bench
        from .report.console import Progress

        models, as_json = values.pop("models"), values.pop("json")
        if values["data"]:  # the shell expands --data *.txt: the other files arrive as arguments
            texts = [name for name in models[1:] if is_text(name)]
            values["data"], models = (*values["data"], *texts), [name for name in models if name not in texts]
        with Progress(quiet=values.pop("quiet")) as progress:
            found = bench(models, progress=progress, **values)
        show = show_bench if hasattr(found, "rows") else show_advice
        show(found, as_json=as_json)
        if found.interrupted:
            raise StoppedError("interrupted; the results measured so far are above")

    model = typer.Argument(
        metavar="MODEL",
        help="Models to measure: converted repos, other model folders or Hub ids.",
        show_default=False,
    )
    parameters = [_keyword("models", Annotated[list[str], model])]
    parameters += _parameters(BenchOptions)
    return _command(name, MEASURING[name], command, parameters)


def _command(name: str, help: str, command: Callable[..., None], parameters: list[inspect.Parameter]) -> Command:
    """The command with these parameters, `--json` and `--quiet`."""
    parameters = [*parameters, _keyword("json", Json, False), _keyword("quiet", Quiet, False)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, help=help, cls=PlainCommand, context_settings=CONTEXT)(command)
    return typer.main.get_command(alone)


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def together(flag: str, first: Sequence[Any] | None, others: Sequence[Any] | None) -> tuple[Any, ...]:
    """All files of an option: for FLAG *.txt the shell gives the first to the option and the others as arguments."""
    if others and not first:
        from .convert.errors import UsageError

        raise UsageError(
            f"unexpected argument{'s' if len(others) > 1 else ''} {' '.join(map(str, others))}",
            where=flag,
            hint=f"give files with {flag} FILE ...",
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
        if fallback is not None and "[default" not in help:  # the value for a source that states none
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
            hint, default, option.metavar = list[get_args(hint)[0]], None, field.metadata["metavar"]  # type: ignore[misc]
        annotation = Annotated[hint, option]  # type: ignore[valid-type]
        parameters.append(_keyword(field.name, annotation, default))
    return parameters


def quiet_hub(*, bars: bool) -> None:
    """Keeps the Hub's client from writing to stderr, but for its bars on a terminal."""
    from huggingface_hub.utils import disable_progress_bars, logging

    if not bars or not sys.stderr.isatty():
        disable_progress_bars()
    logging.set_verbosity_error()  # effconv reports retries itself


@contextlib.contextmanager
def hub_progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Prints steps to stderr, with the Hub client's progress bars on a terminal; prints nothing when quiet."""
    from .report.console import Progress

    quiet_hub(bars=not quiet)
    if quiet:
        yield lambda step, done, total: None
        return
    with Progress(bar=False) as progress:
        yield progress
