"""The public Python API: each function does what the command of that name does.

`convert` is every converting command and `plan` its `--plan`. `load` has no command. The file is over 400 lines because
every function is here with its docstring, as the reference shows them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .adapt.retrieval import retrieval as retrieval_of
from .adopt.run import adopt
from .adopt.view import reads_repos
from .convert.errors import EffconvError, UsageError
from .convert.options import Progress, Settings
from .convert.plan import Plan
from .convert.prepare import prepare as prepare_source
from .convert.repo.manifest import Measured, check_hashes, read_manifest
from .convert.run import Result, convert_source
from .convert.target import Target
from .convert.text import one_or_several
from .convert.verify.recheck import fidelity_of, verify_repo
from .hub.options import PushOptions
from .hub.push import push as push_to_hub
from .inspection import inspect_source as inspect
from .targets.registry import TARGETS, target_named

__all__ = [
    "adapt",
    "adopt",
    "bench",
    "convert",
    "embed",
    "eval",
    "export",
    "fidelity",
    "finetune",
    "inspect",
    "load",
    "new",
    "pieces",
    "plan",
    "prepare",
    "pretrain",
    "push_to_hub",
    "retrieval",
    "verify",
]


Options = TypeVar("Options")

fidelity = reads_repos(fidelity_of)
retrieval = reads_repos(retrieval_of)


def _quiet(step: str, done: int, total: int) -> None:
    """Default progress callback, which prints nothing."""


def convert(source: str | os.PathLike[str], target: str, *, progress: Progress = _quiet, **options: Any) -> Result:
    """Converts a checkpoint into a repo that loads with `trust_remote_code=True`.

    Args:
        source: a local folder or a Hub id.
        target: name of a target, such as `lsg` (`effconv targets` lists them).
        progress: called with the name of the step, the bytes done and the bytes in total (0 if not counted).
        options: the flags of the command as keyword arguments, with underscores
            (`max_length`, `block_size`, `output`, `overwrite`, `verify`, `push_to_hub`, `private`, ...).

    Returns:
        A `Result`: the output folder, the plan, the manifest, one entry per check, and the push if there was one.

    Raises:
        EffconvError: the conversion failed, and no output was written. If only the push failed, the output folder
            is complete and the error's `made` is the result.
    """
    from .hub.sharing import check_sharing, push_converted

    sharing = _sharing(options)
    found, chosen, settings = _split(target, options)
    check_sharing(sharing, settings)
    result = convert_source(source, found, chosen, settings, progress)
    if sharing.push_to_hub is None:
        return result
    try:
        return dataclasses.replace(result, pushed=push_converted(result.output, sharing, settings, progress))
    except EffconvError as error:
        error.made = result
        raise


def new(target: str, *, progress: Progress = _quiet, **options: Any) -> Result:
    """Makes a repo with random weights, to train from scratch.

    Args:
        target: name of a target with a command of `effconv new`, such as `linformer`, `bigs` or `dense`.
        progress: called with the name of the step, the bytes done and the bytes in total (0 if not counted).
        options: the flags of the command as keyword arguments, with underscores (`like`, `family`, `length`,
            `tokenizer`, `causal`, `layers`, `hidden`, `proj_dim`, `output`, ...). `preset` is another name of `like`.

    Returns:
        A `Result`, as `convert`.

    Raises:
        EffconvError: there is no such model, or its checks failed. No output was written.
    """
    from .new.options import NewOptions
    from .new.run import new_repo
    from .targets.registry import CREATABLE

    if target not in CREATABLE:
        raise UsageError(
            f"effconv new makes no {target!r}", where="effconv new", hint="use one of " + ", ".join(CREATABLE)
        )
    if "preset" in options:
        options["like"] = options.pop("preset")
    own = {field.name for field in dataclasses.fields(TARGETS[target].options)} - {"max_length"}
    common = {field.name for field in dataclasses.fields(NewOptions)}
    _refuse_unknown(f"new {target}", options.keys(), own | common)
    for name, kind in (("output", Path), ("tokenizer", os.fspath)):
        if options.get(name) is not None:
            options[name] = kind(options[name])
    chosen = NewOptions(**{name: value for name, value in options.items() if name in common})
    return new_repo(target, chosen, {name: value for name, value in options.items() if name in own}, progress)


def plan(source: str | os.PathLike[str], target: str, **options: Any) -> Plan:
    """Plans a conversion: what `convert` would do to every tensor. Reads only headers and config, writes nothing.

    Raises:
        EffconvError: as `convert`.
    """
    from .hub.sharing import require_sound_sharing

    require_sound_sharing(_sharing(options))
    found, chosen, settings = _split(target, options)
    ready = prepare_source(source, found, chosen, settings, remote=True)
    ready.checkpoint.close()
    return ready.plan


@reads_repos
def verify(
    repo: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = _quiet,
) -> list[Measured]:
    """Checks a converted repo: file hashes, then the target's checks in a fresh process.

    Args:
        against: the source model. Without it, checks that compare with the source are skipped.

    Raises:
        CheckFailedError: files or outputs differ; the message lists all of them.
    """
    return verify_repo(
        repo,
        TARGETS,
        against=against,
        token=token,
        offline=offline,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )


@reads_repos
def adapt(
    repo: str | os.PathLike[str],
    *,
    progress: Progress = _quiet,
    watch: Callable[[Any], None] = lambda tick: None,
    **options: Any,
) -> Any:
    """Trains a converted repo to match its source, and writes a new repo.

    Args:
        repo: folder of the repo, which is not changed.
        progress: called with the name of each step before and after training.
        watch: called with an `effconv.adapt.loop.Tick` after each step of the training.
        options: the command's flags as keyword arguments, with underscores (`teacher`, `data`, `output`, `steps`, ...).

    Returns:
        An `effconv.adapt.results.Adapted`: the output folder, the measurements before and after, the checks. None on
        all ranks but rank 0.

    Raises:
        EffconvError: the training failed, and no output was written.
    """
    from .adapt.options import AdaptOptions
    from .adapt.run import adapt_repo

    return adapt_repo(repo, _chosen("adapt", AdaptOptions, options), progress=progress, watch=watch)


@reads_repos
def pretrain(
    repo: str | os.PathLike[str],
    *,
    progress: Progress = _quiet,
    watch: Callable[[Any], None] = lambda tick: None,
    **options: Any,
) -> Any:
    """Pretrains a repo on text, from random weights or onward, and writes a new repo.

    Args:
        repo: folder of the repo, which is not changed.
        progress: called with the name of each step before and after training.
        watch: called with an `effconv.adapt.loop.Tick` after each step of the training.
        options: the command's flags as keyword arguments, with underscores (`data`, `objective`, `preset`, `steps`,
            `batch_size`, `output`, ...).

    Returns:
        An `effconv.adapt.results.Adapted`: the output folder, the figures before and after, the checks. None on all
        ranks but rank 0.

    Raises:
        EffconvError: the training failed, and no output was written.
    """
    from .pretrain.options import PretrainOptions
    from .pretrain.run import pretrain_repo

    return pretrain_repo(repo, _chosen("pretrain", PretrainOptions, options), progress=progress, watch=watch)


@reads_repos
def finetune(
    repo: str | os.PathLike[str],
    *,
    progress: Progress = _quiet,
    watch: Callable[[Any], None] = lambda tick: None,
    **options: Any,
) -> Any:
    """Fine-tunes a converted repo for a task with transformers' Trainer, and writes a new repo.

    Args:
        repo: folder of the repo, which is not changed.
        progress: called with the name of each step before and after training.
        watch: called with an `effconv.finetune.trainer.Tick` after each step of the training.
        options: the command's flags as keyword arguments, with underscores (`data`, `eval`, `task`, `max_length`,
            `learning_rate`, `epochs`, `output`, ...).

    Returns:
        An `effconv.finetune.results.Finetuned`: the output folder, the metrics before and after, the checks. None on
        all ranks but rank 0.

    Raises:
        EffconvError: the training failed, and no output was written.
    """
    from .finetune.options import FinetuneOptions
    from .finetune.run import finetune_repo

    return finetune_repo(repo, _chosen("finetune", FinetuneOptions, options), progress=progress, watch=watch)


@reads_repos
def export(repo: str | os.PathLike[str], *, progress: Progress = _quiet, **options: Any) -> Any:
    """Exports a converted repo as an ONNX graph or a torch.export program for every length and batch.

    Args:
        repo: folder of the repo.
        progress: called with the name of each step.
        options: the command's flags as keyword arguments, with underscores (`int8`, `fp16`, `torch`, `output`, ...).

    Returns:
        An `effconv.export.run.ExportResult`: the output folder, and the record with files, checks and measurements.

    Raises:
        EffconvError: the repo cannot be exported, or the graph does not give its outputs. No output was written.
    """
    from .export.options import ExportOptions
    from .export.run import export_repo

    return export_repo(repo, _chosen("export", ExportOptions, options), progress=progress)


@reads_repos
def embed(repo: str | os.PathLike[str], *, progress: Progress = _quiet, **options: Any) -> Any:
    """Embeds the texts of files: one vector a text, or one a chunk in the context of its text.

    `effconv.embed.ChunkEncoder` is the same for texts in memory.

    Args:
        repo: folder of the repo, or of another sentence-transformers model.
        progress: called with the name of each step.
        options: the command's flags as keyword arguments, with underscores (`data`, `chunks`, `output`, ...).

    Returns:
        An `effconv.embed.run.Embedded`: the output file, and the counts of texts and vectors.

    Raises:
        EffconvError: the repo or a text cannot be used. No output was written.
    """
    from .embed.options import EmbedOptions
    from .embed.run import embed_texts

    _refuse_unknown("embed", options.keys(), {field.name for field in dataclasses.fields(EmbedOptions)})
    options["data"] = tuple(os.fspath(value) for value in one_or_several(options.get("data")))
    if options.get("output") is not None:
        options["output"] = Path(options["output"])
    return embed_texts(repo, EmbedOptions(**options), progress=progress)


@reads_repos
def pieces(repo: str | os.PathLike[str], *, progress: Progress = _quiet, **options: Any) -> Any:
    """Makes a repo of sentence-transformers whose `encode_document` averages whitened pieces of a text.

    `encode` stays as it is. `effconv.embed.PieceEncoder` is the same for texts in memory.

    Args:
        repo: folder of the repo, or of another sentence-transformers model.
        progress: called with the name of each step.
        options: the command's flags as keyword arguments, with underscores (`data`, `whitening`, `pieces`, `output`,
            ...).

    Returns:
        An `effconv.embed.repo.Made`: the new folder, and what was fitted and checked.

    Raises:
        EffconvError: the model, a text or the whitening cannot be used. No output was written.
    """
    from .embed.options import PiecesOptions
    from .embed.repo import make_pieces

    chosen = _chosen("pieces", PiecesOptions, options)
    return make_pieces(repo, chosen, progress=progress)


def eval(repo: str | os.PathLike[str], *, progress: Progress = _quiet, **options: Any) -> Any:
    """Measures a repo on tasks of mteb, or on a retrieval task of your own, and writes the scores into its model card.

    Args:
        repo: folder of the repo, or of another sentence-transformers model, which gets no card.
        progress: called with the name of each step.
        options: the command's flags as keyword arguments, with underscores (`tasks`, `against`, `split`, `card`,
            `results`, ...).

    Returns:
        An `effconv.eval.run.Evaluated`: the scores, and the card that has them.

    Raises:
        EffconvError: the repo, a task or its data cannot be used. Nothing was written.
    """
    from .eval.options import EvalOptions
    from .eval.run import evaluate_repo

    return evaluate_repo(repo, _chosen("eval", EvalOptions, options), progress=progress)


def prepare(
    texts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, progress: Progress = _quiet, **options: Any
) -> Any:
    """Makes pretraining examples of texts and writes them as parquet files.

    Args:
        texts: text, JSONL, CSV or parquet files or Hub datasets; or HDF5 and TFRecord shards with masks.
        progress: called with each step, and with the bytes of text that were read.
        options: the command's flags as keyword arguments, with underscores (`tokenizer`, `objective`, `length`,
            `documents`, `masks`, `output`, ...).

    Returns:
        An `effconv.data.prepare.Prepared`: the output folder, and what effconv-data.json says.

    Raises:
        EffconvError: a text, the tokenizer or an option cannot be used. No output was written.
    """
    from .data.prepare import prepare_texts
    from .data.pretraining_options import PrepareOptions

    chosen = _chosen("prepare", PrepareOptions, options)
    return prepare_texts([os.fspath(text) for text in one_or_several(texts)], chosen, progress)


def bench(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, progress: Progress = _quiet, **options: Any
) -> Any:
    """Compares speed, memory and cost of models or, with `data` and one model, recommends LSG options for these texts.

    Args:
        models: folders or Hub ids. With `data`, several (or `advice=False`) are compared by what these texts cost.
        progress: called with each step.
        options: the command's flags as keyword arguments, with underscores (`lengths=[512, 4096]`, `batch`, `dtype`,
            `train`, `with_`, `threads`, `plot`, `data`, `memory`, ...).

    Returns:
        An `effconv.bench.run.BenchReport` or, as advice, an `effconv.bench.advice.Advice`. `described()` gives JSON
        values. `Advice.advised` is None if no conversion is needed. After Ctrl-C the report has the results measured so
        far, and its `interrupted` is True.

    Raises:
        EffconvError: an option, a model or a text cannot be used.
    """
    from .bench.options import BenchOptions, bench_options

    known = {field.name for field in dataclasses.fields(BenchOptions)}
    _refuse_unknown("bench", options.keys(), known)
    chosen = bench_options(dict(options))
    names = [os.fspath(model) for model in ([models] if isinstance(models, (str, os.PathLike)) else models)]
    if chosen.data and chosen.advice and len(names) == 1:
        from .bench.advice import advise

        return advise(names, chosen, progress)
    from .bench.picture import draw, require_drawable
    from .bench.run import bench_models

    require_drawable(chosen.plot)
    report = bench_models(names, chosen, progress)
    for path in chosen.plot:
        draw(path, report)
    return report


@reads_repos
def load(repo: str | os.PathLike[str], *, auto: str | None = None, int8: bool = False, **overrides: Any) -> Any:
    """Loads the model of a converted repo after comparing every file with the manifest.

    Args:
        repo: folder of the repo.
        auto: Auto class to load with. By default that of the repo's architecture.
        int8: make the dense layers 8-bit, for inference on x86-64 CPUs (`effconv.int8`).
        overrides: arguments of `from_pretrained`: config fields (block_size=64), dtype, device_map.

    Raises:
        CheckFailedError: a file differs from the manifest. The repo's code is not run.
        UnsupportedError: 8-bit dense layers cannot run on this machine.
    """
    folder = Path(repo)
    if int8:
        from . import eight_bits

        eight_bits.require_int8()
        overrides.setdefault("dtype", "float32")
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    import transformers

    auto_class = getattr(transformers, auto or manifest["auto"])
    model = auto_class.from_pretrained(folder, trust_remote_code=True, **overrides)
    return eight_bits.int8(model) if int8 else model


def _sharing(options: dict[str, Any]) -> PushOptions:
    """Takes the options of a push out of keyword arguments."""
    shared = {field.name: field.default for field in dataclasses.fields(PushOptions)}
    return PushOptions(**{name: options.pop(name, default) for name, default in shared.items()})


def _chosen(function: str, options_class: type[Options], given: Mapping[str, Any]) -> Options:
    """Keyword arguments as options: a path, or one name where several may be given, in the form of the command line."""
    fields = {field.name: field for field in dataclasses.fields(options_class)}  # type: ignore[arg-type]
    _refuse_unknown(function, given, set(fields))
    options = dict(given)
    for name, value in given.items():
        if fields[name].default == ():
            options[name] = tuple(os.fspath(item) for item in one_or_several(value))
        elif name in ("output", "results") and value is not None:
            options[name] = Path(value)
        elif isinstance(value, os.PathLike):
            options[name] = os.fspath(value)
    return options_class(**options)


def _refuse_unknown(function: str, given: Iterable[str], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(
            f"{function} has no option {', '.join(unknown)}",
            where=f"{function}(...)",
            hint="valid options: " + ", ".join(sorted(known)),
        )


def _split(name: str, options: dict[str, Any]) -> tuple[Target, Any, Settings]:
    """Splits keyword arguments into the target, its own options and the common options."""
    target = target_named(name)
    own = {field.name for field in dataclasses.fields(target.options)}
    common = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(options.keys() - own - common)
    if unknown:
        raise UsageError(
            f"{name} has no option {', '.join(unknown)}",
            where=f"convert(..., {name!r})",
            hint="valid options: " + ", ".join(sorted(own | common)),
        )
    settings = {key: value for key, value in options.items() if key in common}
    if settings.get("output") is not None:
        settings["output"] = Path(settings["output"])
    chosen = target.options(**{key: options[key] for key in options.keys() & own})
    return target_named(name, chosen), chosen, Settings(**settings)
