"""Runs a training from end to end: open, read, train, measure, verify, publish. All or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.errors import UnsupportedError, UsageError
from ..convert.io.source import go_offline
from ..convert.io.tensorfile import file_sha256
from ..convert.options import Progress
from ..convert.recipe import Recipe
from ..convert.repo.manifest import check_hashes, read_manifest, repo_folder
from ..convert.target import Target
from ..convert.verify.against import named_source, source_of
from ..targets.registry import target_named
from ..version import __version__
from .logits import VALUES
from .opening import CHANGEABLE, by_name, first_alone, output_of, require_place, require_trainable, stoppable
from .options import AdaptOptions
from .recipes import Phase, phases_of, recipe_of, require_beyond_the_source, training_lengths
from .refusals import require_data, require_effect, require_objectives
from .sentence import require_whitenable

if TYPE_CHECKING:  # what trains brings torch along
    from .checkpoints import Checkpoints


def adapt_repo(
    repo: str | os.PathLike[str],
    options: AdaptOptions,
    *,
    progress: Progress = lambda step, done, total: None,
    watch: Any = lambda tick: None,
) -> Any:
    """Trains a converted repo and writes a new repo.

    Args:
        progress: called with the name of each step before and after training.
        watch: called with a `Tick` after each step of the training.

    Returns:
        The `Adapted`. None on all ranks but rank 0.

    Raises:
        EffconvError: repo, teacher, text or options cannot be used. No output is written.
    """
    asked = open_run(repo, options, progress)
    finished = train(asked, progress, watch)
    return None if finished is None else publish(asked, finished, progress)


@dataclass(frozen=True)
class Asked:
    """A repo and the requested training, checked from files alone.

    Attributes:
        folder: of the repo. teacher: of the source, None where no phase needs it. output: where the result goes.
        doubt: how the teacher differs from the source that the manifest names; "" where nothing is known to.
        lengths: tokens of the training texts.
    """

    folder: Path
    manifest: dict[str, Any]
    target: Target
    options: AdaptOptions
    recipe: Recipe
    phases: tuple[Phase, ...]
    lengths: Sequence[int]
    teacher: Path | None
    doubt: str
    output: Path


@dataclass(frozen=True)
class Finished:
    """Result of a finished training.

    Attributes:
        state: the trained tensors by name. matrix: of the dense layer that whitens; None without one.
        record: the manifest's record of the training. checkpoints: of the run, removed after the result is saved.
    """

    state: Mapping[str, Any]
    matrix: Any
    record: dict[str, Any]
    findings: list[str]
    checkpoints: Checkpoints


def open_run(repo: str | os.PathLike[str], options: AdaptOptions, progress: Progress) -> Asked:
    """Checks files and options before torch is imported.

    Returns:
        The requested run.
    """
    folder = repo_folder(repo).absolute()
    manifest = read_manifest(folder)
    target = target_named(manifest["target"])
    recipe = recipe_of(target, options)
    phases = phases_of(recipe.objective)
    require_trainable(folder, manifest, target, "adapt")
    require_data(options)
    taught = any(phase.needs_teacher for phase in phases)
    if taught and options.teacher is None:
        raise UsageError(
            f"the objective {recipe.objective} needs a teacher",
            where="--teacher",
            hint="pass --teacher with the source of the repo"
            + (", or --objective mlm" if "AutoModelForMaskedLM" in (manifest["auto"], *manifest["heads"]) else ""),
        )
    if taught and not manifest.get("dense_source", True):
        raise UnsupportedError(
            "the repo was not made from a dense source, so it has no teacher",
            where=str(folder),
            hint="train without a teacher: --objective mlm",
        )
    require_objectives(folder, manifest, target, phases, recipe.train, trust_remote_code=options.trust_remote_code)
    require_effect(options, phases)
    if options.offline:
        go_offline()  # the teacher may be a folder, and the data a dataset
    if options.whiten:
        require_whitenable(folder)
    lengths = training_lengths(target, manifest, options.training_lengths(), phases)
    require_beyond_the_source(recipe.train, manifest, lengths)
    output = output_of(folder, options.output, "-adapted")
    progress("compare every file with the manifest", 0, 0)
    check_hashes(folder, manifest)
    teacher, doubt = None, ""
    if taught and options.teacher is not None:
        given = source_of(options.teacher, folder, manifest, options.token, options.offline)
        teacher, doubt = given.folder, given.doubt
    # the repo, and two checkpoints with the optimizer's state
    require_place(folder, manifest, output, overwrite=options.overwrite, times=6, teacher=teacher)
    return Asked(folder, manifest, target, options, recipe, phases, lengths, teacher, doubt, output)


def train(asked: Asked, progress: Progress, watch: Any) -> Finished | None:
    """Loads both models and the text, and trains.

    Returns:
        The trained tensors and the measurements. None on all ranks but rank 0.
    """
    from ..data.documents import read_corpus
    from .checkpoints import Checkpoints
    from .dense import fitted, pieces_of
    from .heldout import HeldOut
    from .models import load_pair
    from .trainer import Run, make_accelerator

    folder, manifest, options, output = asked.folder, asked.manifest, asked.options, asked.output
    recipe, phases, lengths, teacher = asked.recipe, asked.phases, asked.lengths, asked.teacher
    beside = output.with_name(output.name + ".checkpoints")
    accelerator = make_accelerator(
        bf16=options.bf16, tensorboard=options.tensorboard, folder=output.with_name(output.name + ".tensorboard")
    )
    if not accelerator.is_main_process:  # only rank 0 prints
        progress, watch = lambda step, done, total: None, lambda tick: None
    progress("models", 0, 0)
    pair = load_pair(
        folder, teacher, manifest, phases, trust_remote_code=options.trust_remote_code, whiten=options.whiten
    )
    progress("text", 0, 0)
    corpus = read_corpus(
        options.data,
        options.heldout,
        pair.tokenizer,
        pair.student.get_input_embeddings().num_embeddings,
        seed=options.seed,
        column=options.text_column,
        streaming=options.streaming,
        token=options.token,
    )
    pieces = pieces_of(corpus, options.piece_tokens, int(pair.base.config.hidden_size)) if options.whiten else None
    progress("training", 0, 0)
    checkpoints = Checkpoints(beside, _started_with(folder, manifest, options, recipe, corpus.record), AdaptOptions)
    pair.student.to(accelerator.device)
    if pair.teacher is not None:
        pair.teacher.to(accelerator.device)
    # The report also covers short texts, not only the lengths of training.
    shown = sorted({*lengths, *(n for n in (128, 512) if n <= max(lengths))})
    found_by = options.piece_tokens if any("contrastive" in phase.objectives for phase in phases) else None
    heldout = HeldOut(pair, corpus, shown, options.mask_share, accelerator.device, found_by)
    before = heldout.measure(pair.student)
    run = Run(accelerator, pair, corpus, heldout, phases, recipe, lengths, options, checkpoints, watch)
    first_alone(accelerator, lambda: checkpoints.begin(resume=options.resume, overwrite=options.overwrite))
    with stoppable(checkpoints, "--checkpoint-every"):
        trained = run.train()
    if not accelerator.is_main_process:
        return None
    matrix, whitening = None, {}
    if pieces is not None:
        progress("whiten", 0, 0)
        began = time.process_time()
        matrix = fitted(pair, pieces, accelerator.device)
        seconds = time.process_time() - began
        whitening = {"whitening": {"texts": len(pieces), "tokens": options.piece_tokens, "cpu_seconds": seconds}}
    progress("measure", 0, 0)
    place = trained.place
    record = {
        "objective": recipe.objective,
        "train": recipe.train,
        "teacher": None if teacher is None else _name_of_teacher(asked),
        "options": _stated(options),
        "lengths": list(lengths),
        "learning_rates": {
            phase.name: [recipe.rate(phase.objectives, own) for own in (False, True)] for phase in phases
        },
        "data": corpus.record,
        "steps": place.step,
        "best_step": place.best_step,
        "tokens": place.tokens,
        "spent": {"wall_seconds": place.wall, "cpu_seconds": place.cpu, "processes": trained.processes},
        "before": before,
        "after": heldout.measure(pair.student),
        "history": place.history,
        **whitening,
    }
    findings = [*([f"the teacher is another checkpoint: {asked.doubt}"] if asked.doubt else []), *corpus.findings]
    if pair.logits == VALUES and any("logits" in phase.objectives for phase in phases):
        findings.append("logits: the head does not output a distribution, so squared differences were trained")
    if not place.best_step:
        findings.append("training did not improve the held-out score: the weights are unchanged")
    return Finished(trained.state, matrix, record, findings, checkpoints)


def publish(asked: Asked, finished: Finished, progress: Progress) -> Any:
    """Writes the new repo, checks it and puts it in its place.

    Returns:
        The `Adapted`.
    """
    from .dense import add_dense
    from .publish import publish_trained
    from .results import Adapted, add_results, copy_repo, with_record

    def write(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
        hashes = copy_repo(asked.folder, folder, asked.manifest, finished.state)
        if finished.matrix is not None:
            add_dense(folder, finished.matrix)
        return with_record(asked.manifest, finished.record, __version__, finished.state), hashes

    measured = publish_trained(asked, write, add_results, source=asked.teacher, progress=progress)
    finished.checkpoints.clear()
    progress("done", 0, 0)
    return Adapted(asked.output, finished.record, measured, finished.findings)


def _name_of_teacher(asked: Asked) -> str:
    """The source's name, or that of the other checkpoint that taught."""
    return os.path.basename(str(asked.options.teacher)) if asked.doubt else named_source(asked.manifest)


def _stated(options: AdaptOptions) -> dict[str, Any]:
    """The options as the manifest states them: files by name, nothing secret."""
    values = {name: value for name, value in asdict(options).items() if name not in (*CHANGEABLE, "teacher")}
    for name in ("data", "heldout"):
        values[name] = by_name(values[name])
    return values


def _started_with(
    folder: Path, manifest: Mapping[str, Any], options: AdaptOptions, recipe: Any, data: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    return {
        **_stated(options),
        "repo": file_sha256(folder / "effconv.json"),
        "recipe": asdict(recipe),
        "text": {key: data[key] for key in ("sha256", "heldout_sha256") if key in data},
    }
