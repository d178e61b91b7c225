"""Options of `effconv finetune`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..convert.options import option, require_sound

Freeze = Literal["none", "encoder", "all-but-globals", "kernels"]
Schedule = Literal["linear", "cosine", "constant"]
DATA, TRAINING, LOSSES, MACHINE = "Data", "Training", "Evaluation", "Machine"
DANGER = "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Options of `effconv finetune`."""

    data: tuple[str, ...] = option((), "JSONL, CSV or parquet file with training rows, can be repeated.")
    output: Path | None = option(None, "Output folder. [default: REPO-finetuned]", short="-o")
    eval: tuple[str, ...] = option(
        (), "File with evaluation rows, can be repeated. [default: a tenth of the training rows]", panel=DATA
    )
    dataset: str | None = option(
        None,
        "Dataset of the Hub or folder, as name, name:configuration or name@split, in place of --data. Its validation "
        "split is evaluated on.",
        panel=DATA,
    )
    task: str | None = option(
        None,
        "classification, multilabel, regression, tokens, question, choice, summarize, or glue:NAME such as glue:cola. "
        "[default: from the labels]",
        panel=DATA,
    )
    text: str | None = option(None, "Column with the text. [default: from the task, mostly text]", panel=DATA)
    pair: str | None = option(None, "Column with a second text. For question: the questions.", panel=DATA)
    label: str | None = option(None, "Column with the label. [default: from the task, mostly label]", panel=DATA)
    choices: str | None = option(
        None, "For choice: a column with a list of choices, or columns such as a,b,c. [default: choices]", panel=DATA
    )
    max_length: int | None = option(
        None, "Cut texts after this many tokens. [default: the repo's length]", flag="--max-len", panel=DATA
    )
    target_length: int = option(128, "For summarize: maximum tokens of a summary.", panel=DATA)
    new_head: bool = option(False, "Replace a trained head whose labels do not fit by a new, random one.", panel=DATA)
    freeze: Freeze = option(
        "none",
        "Weights to keep as they are: encoder (train the head), all-but-globals (LSG: train global tokens and head), "
        "kernels (BiGS: its convolutions and token types).",
        panel=TRAINING,
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate. [default: 5e-5, or 1e-3 with --freeze encoder and all-but-globals]",
        flag="--lr",
        panel=TRAINING,
    )
    epochs: float | None = option(None, "Passes over the training rows. [default: 3 without --steps]", panel=TRAINING)
    steps: int | None = option(None, "Number of steps, in place of --epochs.", panel=TRAINING)
    batch: int = option(16, "Texts per step, over all processes.", panel=TRAINING)
    accumulation: int = option(1, "Gradient accumulation: parts into which each process splits a step.", panel=TRAINING)
    schedule: Schedule = option("linear", "Decay of the learning rate after the peak.", panel=TRAINING)
    warmup: float = option(0.1, "Fraction of the steps used for warmup.", panel=TRAINING)
    weight_decay: float = option(0.01, "AdamW weight decay, for matrices only.", panel=TRAINING)
    dropout: float | None = option(None, "Dropout during training. [default: from the repo's config]", panel=TRAINING)
    seed: int = option(123, "Random seed for the new head, data order and dropout.", panel=TRAINING)
    resume: bool = option(False, "Continue the run from its last checkpoint.", panel=TRAINING)
    metric: str | None = option(
        None,
        "Metrics, such as accuracy,f1. The first one chooses the best state. [default: from the task]",
        panel=LOSSES,
    )
    evaluate_every: int | None = option(
        None, "Steps between evaluations and checkpoints. [default: once an epoch]", panel=LOSSES
    )
    patience: int | None = option(
        None, "Stop after this many evaluations without improvement. [default: never]", panel=LOSSES
    )
    overwrite: bool = option(
        False, "Replace the output folder. Without --resume, checkpoints of an earlier run are discarded."
    )
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it is saved.")
    bf16: bool = option(False, "Train with autocast to bfloat16.", panel=MACHINE)
    gradient_checkpointing: bool = option(False, "Use less memory, with about a third more computation.", panel=MACHINE)
    tensorboard: bool = option(False, "Write TensorBoard logs next to the output.", panel=MACHINE)
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel="Hub")
    trust_remote_code: bool = option(False, "Allow the Python code of the source's tokenizer to run.", panel=DANGER)

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        for name in ("steps", "batch", "accumulation", "evaluate_every", "patience", "target_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append(f"{name} must be at least 1, got {value}")
        if self.max_length is not None and self.max_length < 8:
            faults.append(f"max_length must be at least 8 tokens, got {self.max_length}")
        if self.epochs is not None and not self.epochs > 0:
            faults.append(f"epochs must be above 0, got {self.epochs}")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            faults.append(f"learning_rate must be between 0 and 1, got {self.learning_rate}")
        for name in ("warmup", "weight_decay", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                faults.append(f"{name} must be at least 0 and below 1, got {value}")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        if self.steps is not None and self.epochs is not None:
            faults.append("--steps and --epochs exclude each other: give only one")
        if self.data and self.dataset is not None:
            faults.append("--data and --dataset exclude each other: give only one")
        for name, values in (("freeze", Freeze), ("schedule", Schedule)):
            if getattr(self, name) not in values.__args__:  # type: ignore[attr-defined]
                faults.append(f"{name} must be one of {', '.join(values.__args__)}, got {getattr(self, name)!r}")  # type: ignore[attr-defined]
        require_sound("finetune", faults, self)


def given(options: FinetuneOptions) -> dict[str, object]:
    """The options that differ from their defaults."""
    return {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default}
