"""Options of `effconv adapt`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..convert.errors import UsageError
from ..convert.options import option, require_sound

Clock = Literal["wall", "cpu"]
Schedule = Literal["cosine", "linear", "constant"]
Trained = Literal["new", "globals", "positions", "offsets", "attention", "all"]
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
DATA, TRAINING, MACHINE, DANGER = "Text", "Training", "Machine", "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """Options of `effconv adapt`."""

    teacher: str | None = option(None, "Source model of the repo, a folder or a Hub id. Not needed for mlm alone.")
    data: tuple[str, ...] = option((), "Text, JSONL, CSV or parquet file, or Hub dataset, can be repeated. [required]")
    output: Path | None = option(None, "Output folder. [default: REPO-adapted]", short="-o")
    heldout: tuple[str, ...] = option(
        (), "Text to evaluate on, never trained on, can be repeated. [default: some documents of the data]", panel=DATA
    )
    text_column: str = option("text", "Column with the text in JSONL, CSV, parquet and datasets.", panel=DATA)
    streaming: bool = option(False, "Read the data while training, without loading all of it.", panel=DATA)
    lengths: str | None = option(
        None, "Lengths of training texts in tokens, such as 128,512. [default: from the repo]", panel=DATA
    )
    objective: str | None = option(
        None,
        "Losses: attention, hidden, logits, sentence, contrastive, mlm. Example: hidden:0.5,hidden+sentence trains "
        "hidden for the first half, then both losses. attention needs a repo without global tokens (LSG has one unless "
        "it was made with --num-global-tokens 0), logits a head, mlm a masked-LM head. [default: from the target]",
        panel=TRAINING,
    )
    train: Trained | None = option(
        None,
        "Weights to train: new ones, global tokens, attention or all. positions: only those beyond the source's "
        "length, so that nothing changes on shorter texts. offsets: only one vector for each copy of the source's "
        "positions. "
        "[default: from the target]",
        panel=TRAINING,
    )
    steps: int | None = option(None, "Total number of steps. [default: 300 without --budget]", panel=TRAINING)
    budget: str | None = option(
        None, "Training time instead of steps, such as 90s, 10m or 2h. A plain number is seconds.", panel=TRAINING
    )
    budget_clock: Clock = option(
        "wall", "Time that the budget counts: wall time, or CPU time of this process.", panel=TRAINING
    )
    learning_rate: float | None = option(
        None, "Peak learning rate of weights from the source. [default: from the target]", panel=TRAINING
    )
    new_learning_rate: float | None = option(
        None, "Peak learning rate of new weights. [default: from the target]", panel=TRAINING
    )
    schedule: Schedule = option("cosine", "Decay of the learning rate after the peak.", panel=TRAINING)
    warmup: float = option(0.05, "Fraction of each phase used for warmup.", panel=TRAINING)
    weight_decay: float = option(0.01, "AdamW weight decay, for matrices only.", panel=TRAINING)
    batch_tokens: int = option(2048, "Tokens per step over all processes.", panel=TRAINING)
    accumulation: int = option(1, "Gradient accumulation: parts into which each process splits a step.", panel=TRAINING)
    mask_share: float = option(0.15, "Fraction of tokens that mlm masks.", panel=TRAINING)
    piece_tokens: int = option(32, "Tokens per passage, for contrastive and --whiten.", panel=TRAINING)
    whole_words: bool = option(False, "Mask whole words in mlm.", panel=TRAINING)
    whiten: bool = option(
        False,
        "After training, add a dense layer that makes all directions of the sentence embeddings equally strong.",
        panel=TRAINING,
    )
    seed: int = option(123, "Random seed for data order and masking.", panel=TRAINING)
    evaluate_every: int = option(
        50, "Steps between evaluations on the held-out text. The best state is kept.", panel=TRAINING
    )
    checkpoint_every: int = option(100, "Steps between checkpoints, 0 for none.", panel=TRAINING)
    resume: bool = option(False, "Continue the run from its last checkpoint.", panel=TRAINING)
    overwrite: bool = option(
        False, "Replace the output folder. Without --resume, checkpoints of an earlier run are discarded."
    )
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it is saved.")
    bf16: bool = option(False, "Train with autocast to bfloat16.", panel=MACHINE)
    gradient_checkpointing: bool = option(False, "Use less memory, with about a third more computation.", panel=MACHINE)
    tensorboard: bool = option(False, "Write TensorBoard logs next to the output.", panel=MACHINE)
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel="Hub")
    trust_remote_code: bool = option(False, "Allow the Python code of the teacher to run.", panel=DANGER)

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        for name, least in (
            ("steps", 1),
            ("batch_tokens", 8),
            ("accumulation", 1),
            ("evaluate_every", 1),
            ("piece_tokens", 4),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                faults.append(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.checkpoint_every < 0:
            faults.append(f"--checkpoint-every must be at least 0, got {self.checkpoint_every}")
        for name in ("learning_rate", "new_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                faults.append(f"--{name.replace('_', '-')} must be between 0 and 1, got {value}")
        if not 0 <= self.warmup < 1:
            faults.append(f"--warmup must be at least 0 and below 1, got {self.warmup}")
        if not 0 < self.mask_share < 1:
            faults.append(f"--mask-share must be between 0 and 1, got {self.mask_share}")
        if not 0 <= self.weight_decay < 1:
            faults.append(f"--weight-decay must be at least 0 and below 1, got {self.weight_decay}")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"--seed must be from 0 to 2^32 - 1, got {self.seed}")
        if self.steps is not None and self.budget is not None:
            faults.append("--steps and --budget exclude each other: give only one")
        require_sound("adapt", faults)
        self.seconds()
        self.training_lengths()

    def seconds(self) -> float | None:
        """The budget in seconds, or None.

        Raises:
            UsageError: it is not a time.
        """
        if self.budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", self.budget.strip())
        if not match or not float(match[1]):
            raise UsageError(
                f"{self.budget!r} is not a time", where="--budget", hint="give a time such as 90s, 10m or 2h"
            )
        return float(match[1]) * SECONDS[match[2]]

    def training_lengths(self) -> tuple[int, ...] | None:
        """The requested lengths in tokens, or None.

        Raises:
            UsageError: they are not numbers of tokens.
        """
        if self.lengths is None:
            return None
        parts = [part.strip() for part in self.lengths.split(",")]
        if not all(part.isdigit() and int(part) >= 8 for part in parts):
            raise UsageError(
                f"--lengths must be numbers of at least 8 tokens, got {self.lengths!r}",
                where="--lengths",
                hint="separate lengths by commas, such as 128,512",
            )
        return tuple(sorted({int(part) for part in parts}))
