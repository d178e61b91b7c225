"""Options of `effconv pretrain`: flags, help and valid values. Imports nothing heavy.

An option that a recipe may state is None until it is given: `settings` takes it from the command, else from the preset,
else from `USUAL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

from ..convert.errors import UsageError
from ..convert.options import asked_by, option, require_sound
from ..data.pretraining_options import Documents, Objective, PretrainingOptions, Sentences
from .presets import PRESETS
from .schedules import ENDING, SCHEDULES, Schedule

Optimizer = Literal["adamw", "adam"]
Decay = Literal["matrices", "all"]
Keep = Literal["last", "best"]
PresetName = Literal["bigs", "lambdabert", "transnormer-clm", "transnormer-roberta", "linformer"]
DATA, RATE, TRAINING, MACHINE, DANGER = (
    "Text", "Optimizer and learning rate", "Training", "Machine", "Dangerous: only for sources you trust",
)  # fmt: skip
# What holds where neither the command nor a preset says anything.
USUAL: Mapping[str, Any] = {
    "objective": "mlm", "batch_size": 32, "optimizer": "adamw", "learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.98,
    "eps": 1e-8, "weight_decay": 0.01, "decay": "matrices", "schedule": "linear", "warmup_steps": 0, "warmup_from": 0.0,
    "end_rate": 0.0, "power": 1.0, "clip": 1.0, "mask_share": 0.15, "evaluate_every": 100,
    "documents": "blank", "sentences": "line", "across_documents": False,
}  # fmt: skip
CHOICES = {
    "optimizer": get_args(Optimizer), "decay": get_args(Decay), "schedule": SCHEDULES, "keep": get_args(Keep),
}  # fmt: skip
STEPS = 1_000  # without --steps and --epochs


def _open(name: str, help: str, **more: Any) -> Any:
    """An option that a preset may set, with what holds without one in its help."""
    usual = USUAL.get(name)
    if isinstance(usual, bool):
        return option(None, help, fallback=usual, **more)
    shown = f" [default: {usual}]" if usual is not None and "[default" not in help else ""
    return option(None, help + shown, **more)


def _text(name: str, default: Any = None) -> Any:
    """An option of `effconv prepare` that says how texts become examples."""
    theirs = next(known for known in fields(PretrainingOptions) if known.name == name)
    help = str(theirs.metadata["help"])
    return _open(name, help, panel=DATA) if default is None else option(default, help, panel=DATA)


@dataclass(frozen=True, slots=True)
class PretrainOptions:
    """Options of `effconv pretrain`."""

    data: tuple[str, ...] = option(
        (), "Text, JSONL, CSV or parquet file, Hub dataset, or folder of effconv prepare, can be repeated. [required]"
    )
    output: Path | None = option(None, "Output folder. [default: REPO-pretrained]", short="-o")
    preset: PresetName | None = option(
        None, "Published recipe: " + ", ".join(PRESETS) + ". Options that are given override its values."
    )
    objective: Objective | None = _open("objective", "What is trained: mlm, mlm+nsp, mlm+sop (pairs of texts) or clm.")
    heldout: tuple[str, ...] = option((), "Text or prepared folder to evaluate on, can be repeated.", panel=DATA)
    heldout_share: float = option(
        0.05, "Fraction of documents to evaluate on, chosen by their hash. Not used with --heldout.", panel=DATA
    )
    heldout_examples: int = option(512, "Examples to evaluate on, at most.", panel=DATA)
    length: int | None = option(None, "Tokens of an example, at most. [default: what the repo takes]", panel=DATA)
    text_column: str = _text("text_column", "text")
    documents: Documents | None = _text("documents")
    multiple_docs_separator: str | None = _text("multiple_docs_separator")
    sentences: Sentences | None = _text("sentences")
    across_documents: bool | None = _text("across_documents")
    separator_token: str | None = _text("separator_token")
    overlap: int = _text("overlap", 0)
    short_share: float | None = _text("short_share")
    buffer: int = _text("buffer", 1000)
    shuffle: int = option(10_000, "Examples in the buffer that shuffles them. 0 keeps the order.", panel=DATA)
    mask_share: float | None = _open(
        "mask_share", "Fraction of tokens that are masked. Examples with static masks keep their own.", panel=DATA
    )
    max_predictions: int | None = _open(
        "max_predictions",
        "Masked tokens of an example, at most. Examples with static masks keep their own. [default: any]",
        panel=DATA,
    )
    whole_words: bool = _text("whole_words", False)
    batch_size: int | None = _open("batch_size", "Examples per step over all processes.", panel=TRAINING)
    accumulation: int = option(1, "Gradient accumulation: parts into which each process splits a step.", panel=TRAINING)
    steps: int | None = option(None, f"Number of steps. [default: {STEPS} without --epochs]", panel=TRAINING)
    epochs: float | None = option(None, "Passes over the examples, instead of steps.", panel=TRAINING)
    dropout: float | None = option(None, "Dropout while training. [default: the model's]", panel=TRAINING)
    keep: Keep = option("last", "Weights to keep: of the last step, or of the best evaluation.", panel=TRAINING)
    seed: int = option(123, "Random seed for examples, masks and dropout.", panel=TRAINING)
    evaluate_every: int | None = _open("evaluate_every", "Steps between evaluations.", panel=TRAINING)
    log_every: int = option(10, "Steps between lines of the log, OUTPUT.log.jsonl.", panel=TRAINING)
    checkpoint_every: int = option(500, "Steps between checkpoints, 0 for none.", panel=TRAINING)
    resume: bool = option(False, "Continue the run from its last checkpoint.", panel=TRAINING)
    optimizer: Optimizer | None = _open(
        "optimizer", "adamw, or adam, whose weight decay is a part of the gradient.", panel=RATE
    )
    learning_rate: float | None = _open("learning_rate", "Peak learning rate.", panel=RATE)
    beta1: float | None = _open("beta1", "Decay of the gradient's mean.", panel=RATE)
    beta2: float | None = _open("beta2", "Decay of the gradient's mean square.", panel=RATE)
    eps: float | None = _open("eps", "Term added to the root of the mean square.", panel=RATE)
    weight_decay: float | None = _open("weight_decay", "Weight decay.", panel=RATE)
    decay: Decay | None = _open("decay", "Weights that decay: matrices alone, or all.", panel=RATE)
    schedule: Schedule | None = _open("schedule", f"Learning rate after warmup: {', '.join(SCHEDULES)}.", panel=RATE)
    warmup_steps: int | None = _open("warmup_steps", "Steps in which the rate rises to its peak.", panel=RATE)
    warmup_from: float | None = _open("warmup_from", "Learning rate of the first step of the warmup.", panel=RATE)
    end_rate: float | None = _open("end_rate", f"Rate after the last step of {', '.join(ENDING)}.", panel=RATE)
    power: float | None = _open("power", "Power of the polynomial.", panel=RATE)
    clip: float | None = _open("clip", "Largest norm of the gradient. 0 turns clipping off.", panel=RATE)
    overwrite: bool = option(
        False, "Replace the output folder. Without --resume, checkpoints of an earlier run are discarded."
    )
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it is saved.")
    bf16: bool = option(False, "Train with autocast to bfloat16.", panel=MACHINE)
    gradient_checkpointing: bool = option(False, "Use less memory, with about a third more computation.", panel=MACHINE)
    tensorboard: bool = option(False, "Write TensorBoard logs next to the output.", panel=MACHINE)
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel="Hub")
    trust_remote_code: bool = option(False, "Allow the Python code of the tokenizer to run.", panel=DANGER)

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(
                f"unknown preset {self.preset!r}", where="--preset", hint="use one of " + ", ".join(PRESETS)
            )
        chosen = settings(self)
        require_sound("pretrain", [*_wrong_numbers(chosen), *_wrong_choices(self, chosen)], PretrainOptions)
        self.text_options(8)

    def text_options(self, length: int) -> PretrainingOptions:
        """How texts become examples of this length."""
        chosen = settings(self)
        names = {known.name for known in fields(PretrainingOptions)} - {"length", "masks", "copies", "shortest"}
        values = {name: getattr(chosen, name) for name in names}
        share = 0.0 if self.heldout else self.heldout_share
        with asked_by("pretrain", "prepare"):
            return PretrainingOptions(**{**values, "length": length, "heldout_share": share})


def settings(options: PretrainOptions) -> Any:
    """The options with what the preset and `USUAL` say of those that were not given."""
    preset = PRESETS[options.preset].values if options.preset else {}
    given = {name: value for name, value in asdict(options).items() if value is not None}
    if "steps" in given or "epochs" in given:  # one given takes the place of the preset's other
        preset = {name: value for name, value in preset.items() if name not in ("steps", "epochs")}
    empty = {known.name: None for known in fields(options)}
    return SimpleNamespace(**{**empty, **USUAL, **preset, **given})


def _wrong_numbers(chosen: Any) -> list[str]:
    least = {
        "batch_size": 1, "accumulation": 1, "steps": 1, "evaluate_every": 1, "log_every": 1, "checkpoint_every": 0,
        "warmup_steps": 0, "warmup_from": 0, "end_rate": 0, "power": 0, "clip": 0, "length": 8, "heldout_examples": 1,
    }  # fmt: skip
    faults = [
        f"{name} must be at least {number}, got {getattr(chosen, name)}"
        for name, number in least.items()
        if getattr(chosen, name) is not None and getattr(chosen, name) < number
    ]
    if chosen.epochs is not None and chosen.epochs <= 0:
        faults.append(f"epochs must be above 0, got {chosen.epochs}")
    for name in ("learning_rate", "eps"):
        if not 0 < getattr(chosen, name) < 1:
            faults.append(f"{name} must be between 0 and 1, got {getattr(chosen, name)}")
    for name in ("beta1", "beta2", "weight_decay", "dropout", "heldout_share"):
        value = getattr(chosen, name)
        if value is not None and not 0 <= value < 1:
            faults.append(f"{name} must be at least 0 and below 1, got {value}")
    return faults


def _wrong_choices(options: PretrainOptions, chosen: Any) -> list[str]:
    faults = [
        f"{name} must be one of {', '.join(known)}, got {getattr(chosen, name)!r}"
        for name, known in CHOICES.items()
        if getattr(chosen, name) not in known
    ]
    if chosen.steps is not None and chosen.epochs is not None:
        faults.append("steps and epochs exclude each other: give only one")
    if options.end_rate is not None and chosen.schedule not in ENDING:
        faults.append(f"end_rate has no effect with --schedule {chosen.schedule}")
    if options.power is not None and chosen.schedule != "polynomial":
        faults.append(f"power has no effect with --schedule {chosen.schedule}")
    if options.warmup_from is not None and not chosen.warmup_steps:
        faults.append("warmup_from has no effect without --warmup-steps")
    if chosen.objective == "clm":
        given = {"mask_share": options.mask_share, "max_predictions": options.max_predictions}
        faults += [f"{name} has no effect with --objective clm" for name, value in given.items() if value is not None]
        faults += ["whole_words has no effect with --objective clm"] * options.whole_words
    return faults
