"""Runs a pretraining from end to end: open, read, train, measure, verify, publish. All or nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapt.opening import (
    CHANGEABLE,
    by_name,
    first_alone,
    output_of,
    require_place,
    require_trainable,
    stoppable,
)
from ..convert.errors import BadInputError, UsageError
from ..convert.io.source import go_offline
from ..convert.io.tensorfile import file_sha256
from ..convert.io.tokenizer import require_tokenizer
from ..convert.options import Progress
from ..convert.repo.manifest import check_hashes, read_manifest, repo_folder
from ..convert.target import Target
from ..data.files import require_files
from ..targets.registry import target_named
from ..version import __version__
from .objectives import auto_for, pair_kind, words_of
from .options import STEPS, PretrainOptions, settings
from .presets import PRESETS
from .schedules import Rates

if TYPE_CHECKING:  # these bring torch along
    from ..adapt.checkpoints import Checkpoints
    from .batches import Collator


@dataclass(frozen=True)
class Asked:
    """A repo and the requested training, checked from files alone.

    Attributes:
        folder: of the repo. output: where the result goes. chosen: the options with presets and defaults filled in.
        auto: the Auto class with the heads of the objective. length: tokens of an example, at most.
    """

    folder: Path
    manifest: dict[str, Any]
    target: Target
    options: PretrainOptions
    chosen: Any
    auto: str
    length: int
    output: Path


def pretrain_repo(
    repo: str | os.PathLike[str],
    options: PretrainOptions,
    *,
    progress: Progress = lambda step, done, total: None,
    watch: Any = lambda tick: None,
) -> Any:
    """Trains a repo on text and writes a new repo.

    Args:
        progress: called with the name of each step before and after training.
        watch: called with a `Tick` after each step of the training.

    Returns:
        The `Adapted`. None on all ranks but rank 0.

    Raises:
        EffconvError: repo, text or options cannot be used. No output is written.
    """
    asked = open_run(repo, options, progress)
    return _train(asked, progress, watch)


def open_run(repo: str | os.PathLike[str], options: PretrainOptions, progress: Progress) -> Asked:
    """Checks files and options before torch is imported."""
    folder = repo_folder(repo).absolute()
    manifest = read_manifest(folder)
    target = target_named(manifest["target"])
    chosen = settings(options)
    require_trainable(folder, manifest, target, "pretrain")
    require_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    auto = auto_for(folder, manifest, target, chosen.objective)
    length = _length(chosen, manifest)
    _require_data(options)
    if options.offline:
        go_offline()
    output = output_of(folder, options.output, "-pretrained")
    progress("compare every file with the manifest", 0, 0)
    check_hashes(folder, manifest)
    # the repo, and two checkpoints with the optimizer's state
    require_place(folder, manifest, output, overwrite=options.overwrite, times=6)
    return Asked(folder, manifest, target, options, chosen, auto, length, output)


def _length(chosen: Any, manifest: Mapping[str, Any]) -> int:
    longest = int(manifest["max_length"])
    if chosen.length is not None and chosen.length > longest:
        by = (
            ""
            if chosen.preset is None
            else f" (the preset {chosen.preset} has {PRESETS[chosen.preset].values['length']})"
        )
        raise UsageError(
            f"examples of {chosen.length} tokens are too long: the repo takes {longest}{by}",
            where="--length",
            hint=f"pass --length {longest}, or let the repo take longer texts (docs/how-to/pretrain.md)",
        )
    return int(chosen.length or longest)


def _require_data(options: PretrainOptions) -> None:
    from ..data.prepared import is_prepared
    from ..data.shards import is_shard

    if not options.data:
        raise UsageError("no text to train on", where="--data", hint="give text files, or a folder of effconv prepare")
    shards = [name for name in (*options.data, *options.heldout) if is_shard(name)]
    if shards:
        raise UsageError(
            f"{shards[0]} is a shard of another program", where="--data", hint="prepare it first: effconv prepare"
        )
    for names, where in ((options.data, "--data"), (options.heldout, "--heldout")):
        require_files([name for name in names if not is_prepared(name)], where)


def _train(asked: Asked, progress: Progress, watch: Any) -> Any:
    """Loads the model and the text, trains and publishes."""
    from ..adapt.checkpoints import Checkpoints
    from ..adapt.loop import make_accelerator
    from .corpus import read_examples
    from .heldout import HeldOut
    from .log import Log
    from .trainer import Pretraining

    options, chosen, output = asked.options, asked.chosen, asked.output
    accelerator = make_accelerator(
        bf16=options.bf16,
        tensorboard=options.tensorboard,
        folder=output.with_name(output.name + ".tensorboard"),
        name="pretrain",
    )
    if not accelerator.is_main_process:  # only rank 0 prints
        progress, watch = lambda step, done, total: None, lambda tick: None
    progress("models", 0, 0)
    model, tokenizer = _load(asked)
    progress("text", 0, 0)
    examples = read_examples(options, chosen.objective, tokenizer, asked.length)
    steps = _steps(chosen, examples)
    rates = Rates(
        schedule=chosen.schedule,
        peak=chosen.learning_rate,
        total=steps,
        warmup=chosen.warmup_steps,
        warm_from=chosen.warmup_from,
        end=chosen.end_rate,
        power=chosen.power,
    )
    findings = [*examples.findings, *_findings(rates)]
    checkpoints = Checkpoints(
        output.with_name(output.name + ".checkpoints"), _started_with(asked, examples.record, steps), PretrainOptions
    )
    words, pair = words_of(chosen.objective), pair_kind(chosen.objective)
    collate = _collator(chosen, tokenizer, model, causal=words == "clm", pairs=pair is not None)
    model.to(accelerator.device)
    progress("training", 0, 0)
    heldout = HeldOut(examples.heldout, collate, words, pair, asked.length, accelerator.device)
    before = heldout.measure(model)
    first_alone(accelerator, lambda: checkpoints.begin(resume=options.resume, overwrite=options.overwrite))
    log, beside = None, output.with_name(output.name + ".log.jsonl")
    if accelerator.is_main_process:
        log = Log(beside, checkpoints.place().step if options.resume else 0)
    run = Pretraining(accelerator, model, examples, heldout, collate, chosen, rates, checkpoints, watch, log)
    with stoppable(checkpoints, "--checkpoint-every", beside):
        trained = run.train()
    if not accelerator.is_main_process:
        return None
    progress("measure", 0, 0)
    place = trained.place
    record = {
        "objective": chosen.objective,
        "train": "all",
        "teacher": None,
        "preset": options.preset,
        "options": _stated(asked, steps),
        "lengths": [asked.length],
        "data": examples.record,
        "steps": place.step,
        "best_step": place.best_step,
        "tokens": place.tokens,
        "spent": {"wall_seconds": place.wall, "cpu_seconds": place.cpu, "processes": trained.processes},
        "before": [before],
        "after": [heldout.measure(model)],
        "history": place.history,
    }
    return _publish(asked, trained.state, record, findings, checkpoints, progress)


def _publish(
    asked: Asked,
    state: Mapping[str, Any],
    record: dict[str, Any],
    findings: list[str],
    checkpoints: Checkpoints,
    progress: Progress,
) -> Any:
    from ..adapt.publish import publish_trained
    from ..adapt.results import Adapted, copy_repo, with_record
    from .results import add_results

    def write(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
        hashes = copy_repo(asked.folder, folder, asked.manifest, state)
        return with_record(asked.manifest, record, __version__, state, by="pretrain"), hashes

    measured = publish_trained(asked, write, add_results, source=None, progress=progress)
    checkpoints.clear()
    progress("done", 0, 0)
    return Adapted(asked.output, record, measured, findings)


def _load(asked: Asked) -> tuple[Any, Any]:
    """The model in float32 and training mode, and the tokenizer."""
    from transformers.utils import logging

    from ..adapt.models import set_dropout
    from ..convert.verify.loaded import DoesNotApply, Loaded

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = Loaded(asked.folder, None, asked.manifest, asked.options.trust_remote_code)
    model = loaded.model(asked.auto)
    try:
        tokenizer = loaded.tokenizer
    except DoesNotApply as reason:
        raise BadInputError(str(reason), where=str(asked.folder), hint="training needs the tokenizer") from None
    if asked.chosen.objective != "clm" and tokenizer.mask_token_id is None:
        raise BadInputError(
            "the tokenizer has no mask token", where=str(asked.folder), hint="use a tokenizer that has one"
        )
    if asked.chosen.dropout is not None:
        set_dropout(model, asked.chosen.dropout)
    return model.requires_grad_(True).train(), tokenizer


def _collator(chosen: Any, tokenizer: Any, model: Any, *, causal: bool, pairs: bool) -> Collator:
    from .batches import Collator

    return Collator(
        causal=causal,
        pairs=pairs,
        pad_id=tokenizer.pad_token_id or 0,
        mask_id=-1 if causal else tokenizer.mask_token_id,
        vocabulary=min(len(tokenizer), model.get_input_embeddings().num_embeddings),
        share=chosen.mask_share,
        most=chosen.max_predictions,
        whole_words=chosen.whole_words,
    )


def _steps(chosen: Any, examples: Any) -> int:
    """Steps of the training; those of some epochs by counting the examples of the first."""
    if chosen.epochs is None:
        return int(chosen.steps or STEPS)
    return max(1, math.ceil(chosen.epochs * examples.count() / chosen.batch_size))


def _findings(rates: Rates) -> Sequence[str]:
    if rates.warmup >= rates.total:
        return [f"the warmup ({rates.warmup} steps) does not end before the training: the peak rate is not reached"]
    return []


def _stated(asked: Asked, steps: int) -> dict[str, Any]:
    """The options as the manifest states them, filled in: files by name, nothing secret."""
    names = {known.name for known in fields(PretrainOptions)} - set(CHANGEABLE)
    values = {name: value for name, value in vars(asked.chosen).items() if name in names}
    for name in ("data", "heldout"):
        values[name] = by_name(values[name])
    return {**values, "steps": steps, "length": asked.length}


def _started_with(asked: Asked, data: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    return {
        **_stated(asked, steps),
        "repo": file_sha256(asked.folder / "effconv.json"),
        "text": {key: data[key] for key in ("sha256", "heldout_sha256") if key in data},
    }
