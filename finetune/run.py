"""Runs a fine-tuning from end to end: open, read, train, verify, publish. All or nothing."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapt.opening import CHANGEABLE as FOR_ALL
from ..adapt.opening import first_alone, output_of, refuse_pieces, require_place, stoppable
from ..convert.errors import UsageError
from ..convert.families.grammar import Head
from ..convert.io.source import go_offline
from ..convert.io.staging import output_errors
from ..convert.io.tensorfile import file_sha256
from ..convert.io.tokenizer import require_tokenizer
from ..convert.options import Progress
from ..convert.repo.manifest import check_hashes, config_of, read_manifest, repo_folder
from ..convert.target import PADDING_CHANGES_NOTHING, Target
from ..convert.text import counted
from ..data.rows import Rows, held_out, require_datasets
from ..targets.registry import target_named
from ..version import __version__
from .heads import Stored, stored_of, trains
from .labels import Labels, read_labels, task_of
from .options import FinetuneOptions
from .reading import choices_of, read_rows, require_texts
from .tasks import LOWER_IS_BETTER, TASKS, Task, head_for, metrics_of, task_named

if TYPE_CHECKING:  # what trains brings torch along
    from .checkpoints import TrainerCheckpoints
    from .features import Texts
    from .results import Finetuned

# From a run to its --resume, these may differ.
CHANGEABLE = (*FOR_ALL, "trust_remote_code")
FILES = ("data", "eval")


def finetune_repo(
    repo: str | os.PathLike[str],
    options: FinetuneOptions,
    *,
    progress: Progress = lambda step, done, total: None,
    watch: Any = lambda tick: None,
) -> Finetuned | None:
    """Fine-tunes a converted repo and writes a new repo.

    Args:
        progress: called with the name of each step before and after training.
        watch: called with a `Tick` after each step of the training.

    Returns:
        The `Finetuned`. None on all ranks but rank 0.

    Raises:
        EffconvError: repo, data or options cannot be used. No output is written.
    """
    if int(os.environ.get("RANK", "0")):  # only rank 0 prints
        progress, watch = _silent, _silent
    asked = open_run(repo, options, progress)
    finished = train(asked, progress, watch)
    return None if finished is None else publish(asked, finished, progress)


@dataclass(frozen=True)
class Asked:
    """A repo, the requested training and its rows, checked before torch is imported.

    Attributes:
        column: with the labels. choices: columns, or one column of lists. trained: whether a parameter is trained.
        split: evaluation rows were held out of the data. output: where the result goes.
    """

    folder: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    options: FinetuneOptions
    task: Task
    head: Head
    metrics: tuple[str, ...]
    stored: Stored
    trained: Callable[[str], bool]
    rows: tuple[Rows, Rows]
    columns: Mapping[str, Any]
    labels: Labels
    max_length: int
    split: bool
    output: Path

    @property
    def target(self) -> Target:
        return self.stored.target


@dataclass(frozen=True)
class Finished:
    """Result of a training: tensors by name, those that were not trained, and the manifest's record of it."""

    state: Mapping[str, Any]
    frozen: frozenset[str]
    record: dict[str, Any]
    findings: list[str]
    checkpoints: TrainerCheckpoints


def open_run(repo: str | os.PathLike[str], options: FinetuneOptions, progress: Progress) -> Asked:
    """Checks files, options and rows before torch is imported."""
    folder = repo_folder(repo).absolute()
    manifest = read_manifest(folder)
    refuse_pieces(folder)
    target = target_named(manifest["target"])
    stored = stored_of(folder, manifest, target)
    config = config_of(folder)
    task = task_named(options.task) if options.task else None
    if task:
        head_for(stored.family, task)
        metrics_of(task, options.metric)
    require_packages(options)
    require_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    max_length = _max_length(options, manifest)
    if options.offline:
        go_offline()
    output = output_of(folder, options.output, "-finetuned")
    # the repo, and checkpoints with the optimizer's state
    require_place(folder, manifest, output, overwrite=options.overwrite, times=8)
    trains(options.freeze, stored, stored.own, config, folder)
    progress("text", 0, 0)
    train_rows, heldout, columns = read_rows(options, task)
    task = task or TASKS[task_of(train_rows, columns["label"])]
    head = head_for(stored.family, task)
    metrics = metrics_of(task, options.metric)
    split = heldout is None
    if heldout is None:
        train_rows, heldout = held_out(train_rows, columns["label"], options.seed)
    labels = read_labels(
        task,
        columns["label"],
        train_rows,
        heldout,
        config,
        trained=stored.trained(head),
        new_head=options.new_head,
    )
    for rows in (train_rows, heldout):
        require_texts(task, rows, columns)
    chosen = trains(options.freeze, stored, head, config, folder)
    progress("compare every file with the manifest", 0, 0)
    check_hashes(folder, manifest)
    return Asked(
        folder, manifest, config, options, task, head, metrics, stored, chosen, (train_rows, heldout), columns, labels,
        max_length, split, output,
    )  # fmt: skip


def require_packages(options: FinetuneOptions) -> None:
    """Raises UsageError for a package of the extra that is not installed."""
    dataset = [options.dataset or options.task or ""] if not options.data else []
    require_datasets([*options.data, *options.eval, *filter(None, dataset)], "effconv finetune")
    needed = {"accelerate": "accelerate", "sklearn": "scikit-learn"}
    needed |= {"tensorboard": "tensorboard"} if options.tensorboard else {}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f"the package {' and '.join(missing)} is not installed",
            where="--tensorboard" if missing == ["tensorboard"] else "effconv finetune",
            hint="pip install tensorboard" if missing == ["tensorboard"] else "pip install 'effconv[finetune]'",
        )


def _max_length(options: FinetuneOptions, manifest: Mapping[str, Any]) -> int:
    longest = int(manifest["max_length"])
    if options.max_length is not None and options.max_length > longest:
        raise UsageError(
            f"texts of {options.max_length} tokens are too long: the repo takes {longest}",
            where="--max-len",
            hint=f"give at most {longest}",
        )
    return options.max_length or longest


def texts_of(asked: Asked, rows: Rows, labels: list[Any]) -> Texts:
    from .features import Texts

    columns = asked.columns
    second = rows.columns[columns["pair"]] if columns["pair"] else None
    choices = choices_of(rows, columns) if asked.task.name == "choice" else None
    return Texts(rows.columns[columns["text"]], second, choices, labels)


def train(asked: Asked, progress: Progress, watch: Any) -> Finished | None:
    """Loads the model, tokenizes the rows, and trains.

    Returns:
        The trained tensors and the measurements. None on all ranks but rank 0.
    """
    from accelerate import PartialState

    from .checkpoints import TrainerCheckpoints
    from .features import collator, features_of
    from .metrics import metrics_for
    from .models import choose, load_model, tokenizer_of
    from .trainer import Complete, arguments_of, evaluations, losses, make_trainer, plan_of, rate_of

    options, task, output, labels = asked.options, asked.task, asked.output, asked.labels
    beside = output.with_name(output.name + ".checkpoints")
    plan = plan_of(options, len(asked.rows[0]))
    if task.name != "question":  # whose rows become windows, counted below
        args = arguments_of(task, options, asked.metrics, plan, beside)
    progress("models", 0, 0)
    model = load_model(asked.folder, task, asked.head, labels, asked.stored, seed=options.seed, dropout=options.dropout)
    counts = choose(model, asked.trained)
    tokenizer = tokenizer_of(asked.folder, task)
    progress("texts", 0, 0)
    texts = [texts_of(asked, rows, each) for rows, each in zip(asked.rows, (labels.train, labels.heldout), strict=True)]
    features, heldout = (
        features_of(task, part, tokenizer, asked.max_length, len(labels.names), options.target_length) for part in texts
    )
    heldout = heldout.by_length()
    if task.name == "question":
        plan = plan_of(options, len(features))
        args = arguments_of(task, options, asked.metrics, plan, beside)
    shifted = model.prepare_decoder_input_ids_from_labels if task.name == "summarize" else None
    checkpoints = TrainerCheckpoints(beside, _started_with(asked), FinetuneOptions)
    first_alone(PartialState(), lambda: _begin(checkpoints, options))  # Trainer makes the folder if it is missing
    with stoppable(checkpoints, "--evaluate-every"), output_errors(beside):
        trainer = make_trainer(
            model,
            task,
            options,
            asked.metrics,
            plan,
            args,
            features,
            heldout,
            collator(task, tokenizer, shifted),
            metrics_for(task, asked.metrics, labels.names, tokenizer)(heldout, texts[1]),
            watch,
            output.with_name(output.name + ".tensorboard") if options.tensorboard and args.process_index == 0 else None,
        )
        progress("training", 0, 0)
        resumed = checkpoints.last() if options.resume else None
        began, cpu = time.monotonic(), time.process_time()
        try:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        except Complete:
            trainer._load_best_model()
    spent = {"wall_seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return None
    found = evaluations(trainer, asked.metrics)
    best = int(trainer.state.best_global_step or trainer.state.global_step)
    after = next(entry for entry in found if entry["step"] == best)
    record = {
        "task": f"glue:{task.glue}" if task.glue else task.name,
        "metrics": list(asked.metrics),
        "options": _stated(options),
        "labels": list(labels.names),
        "head": "kept" if labels.kept else "new",
        "learning_rate": rate_of(options),
        "max_length": asked.max_length,
        "data": asked.rows[0].record,
        "heldout": asked.rows[1].record,
        "held_out": asked.split,
        "tokens": {"train": features.tokens, "heldout": heldout.tokens, "longest": max(features.lengths)},
        **counts,
        "steps": int(trainer.state.global_step),
        "best_step": best,
        "spent": {**spent, "processes": args.world_size, "resumed": resumed is not None},
        "before": {name: value for name, value in found[0].items() if name != "step"},
        "after": {name: value for name, value in after.items() if name != "step"},
        "history": found,
        "losses": losses(trainer),
    }
    frozen = frozenset(name for name, p in model.named_parameters() if not asked.trained(name))
    return Finished(state, frozen, record, _findings(asked, features.cut, found, after), checkpoints)


def publish(asked: Asked, finished: Finished, progress: Progress) -> Finetuned:
    """Writes the new repo, checks it and puts it in its place."""
    from ..adapt.publish import publish_trained
    from .results import Finetuned, new_config, with_record, with_results_of, write_files

    stored, head, frozen = asked.stored, asked.head, finished.frozen
    config = new_config(asked.config, stored, head, asked.task, asked.labels)

    def write(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
        hashes = write_files(asked.folder, folder, asked.manifest, stored, head, finished.state, frozen, config)
        written = stored_of(folder, asked.manifest, stored.target)
        trained = {str(stored.family.canonical_name(name)): name not in frozen for name in finished.state}
        new = with_record(asked.manifest, finished.record, __version__, stored, head, written.shapes, config, trained)
        return new, hashes

    def add_results(folder: Path, manifest: dict[str, Any], card: str) -> str:
        return with_results_of(asked.task, finished.record, folder, manifest, card, asked.output.name)

    measured = publish_trained(asked, write, add_results, source=None, progress=progress)
    finished.checkpoints.clear()
    progress("done", 0, 0)
    return Finetuned(asked.output, finished.record, measured, finished.findings)


def _begin(checkpoints: TrainerCheckpoints, options: FinetuneOptions) -> None:
    checkpoints.begin(resume=options.resume, overwrite=options.overwrite)
    checkpoints.remove_unfinished()


def _silent(*_: Any) -> None:
    """A callback that prints nothing."""


def _findings(asked: Asked, cut: int, found: list[dict[str, Any]], after: Mapping[str, Any]) -> list[str]:
    findings = []
    if asked.split:
        findings.append(
            f"no --eval: held out {counted(len(asked.rows[1]), 'row')} of the data to choose the best state"
        )
    if cut:
        findings.append(f"{counted(cut, 'text')} longer than {asked.max_length:,} tokens were cut")
    padding = next((c for c in asked.stored.target.checks if c.name == PADDING_CHANGES_NOTHING.name), None)
    if padding and (why := padding.left_out(asked.manifest)):
        findings.append(f"batches are padded to their longest text, and this repo's outputs depend on padding: {why}")
    if asked.labels.replaced:
        findings.append("the repo's trained head was replaced by a new one (--new-head)")
    name = asked.metrics[0]
    gained = after[name] - found[0][name]
    if (-gained if name in LOWER_IS_BETTER else gained) <= 0:
        findings.append(f"training did not improve {name}: {found[0][name]:.4f} before, {after[name]:.4f} after")
    return findings


def _stated(options: FinetuneOptions) -> dict[str, Any]:
    """The options as the manifest states them: files by name, nothing secret."""
    values = {name: value for name, value in asdict(options).items() if name not in CHANGEABLE}
    for name in FILES:
        values[name] = [Path(item).name for item in values[name]]
    if values["dataset"] and Path(values["dataset"]).exists():
        values["dataset"] = Path(values["dataset"]).name
    return values


def _started_with(asked: Asked) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    return {
        **_stated(asked.options),
        "repo": file_sha256(asked.folder / "effconv.json"),
        "rows": [rows.record for rows in asked.rows],
    }
