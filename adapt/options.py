"""Options of `effconv adapt`: their flags, their help, and what they may be. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..convert.errors import UsageError
from ..convert.options import option, require_sound

Clock = Literal["wall", "cpu"]
Schedule = Literal["cosine", "linear", "constant"]
Trained = Literal["new", "globals", "attention", "all"]
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
DATA, TRAINING, MACHINE, DANGER = "Text", "Training", "Machine", "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class AdaptOptions:
    """What `effconv adapt` takes beside the repo."""

    teacher: str | None = option(None, "The dense source that the repo was made from; not for mlm alone.")
    data: tuple[str, ...] = option((), "Text, JSONL or parquet file, or a dataset; may be given several times.")
    output: Path | None = option(None, "Folder to make. [default: the repo's name and -adapted]", short="-o")
    heldout: tuple[str, ...] = option(
        (), "Text never trained on, to measure with. [default: some documents of the data]", panel=DATA
    )
    text_column: str = option("text", "Column of JSONL, parquet and datasets that holds the text.", panel=DATA)
    streaming: bool = option(False, "Read the data as it is used, never all of it.", panel=DATA)
    lengths: str | None = option(None, "Tokens of training texts, such as 128,512. [default: by the repo]", panel=DATA)
    objective: str | None = option(
        None,
        "attention, hidden, logits, sentence, contrastive, mlm; + joins, a comma begins a phase, :.3 is its share. "
        "[default: by target]",
        panel=TRAINING,
    )
    train: Trained | None = option(
        None, "new, globals, attention or all: what is trained. [default: by target]", panel=TRAINING
    )
    steps: int | None = option(None, "Steps in all. [default: 300, without a budget]", panel=TRAINING)
    budget: str | None = option(None, "Time in place of steps, such as 90s, 10m or 2h.", panel=TRAINING)
    budget_clock: Clock = option("wall", "What the budget counts: wall, or cpu of this process.", panel=TRAINING)
    learning_rate: float | None = option(
        None, "Peak rate of weights from the source. [default: by target]", panel=TRAINING
    )
    new_learning_rate: float | None = option(
        None, "Peak rate of the target's own. [default: by target]", panel=TRAINING
    )
    schedule: Schedule = option("cosine", "From the peak: cosine or linear to zero, or constant.", panel=TRAINING)
    warmup: float = option(0.05, "Share of a phase that leads up to the peak.", panel=TRAINING)
    weight_decay: float = option(0.01, "AdamW's, on matrices.", panel=TRAINING)
    batch_tokens: int = option(2048, "Tokens of a step, over all processes.", panel=TRAINING)
    accumulation: int = option(1, "Parts that a process's share of a step is cut into.", panel=TRAINING)
    mask_share: float = option(0.15, "Share of tokens that mlm masks, anew each time.", panel=TRAINING)
    piece_tokens: int = option(
        32, "Tokens of the pieces that contrastive finds a long text by, and of whiten's texts.", panel=TRAINING
    )
    whole_words: bool = option(False, "Mask whole words.", panel=TRAINING)
    whiten: bool = option(
        False,
        "Then whiten the embeddings: a dense layer in the sentence-transformers modules, from training text.",
        panel=TRAINING,
    )
    seed: int = option(123, "Of the order of texts and of masks.", panel=TRAINING)
    evaluate_every: int = option(
        50, "Steps between two looks at the held-out text; the best state is kept.", panel=TRAINING
    )
    checkpoint_every: int = option(100, "Steps between two checkpoints; 0 for none.", panel=TRAINING)
    resume: bool = option(False, "Continue a run from its last checkpoint.", panel=TRAINING)
    overwrite: bool = option(False, "Replace an output folder, or the checkpoints of a run that is given up.")
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it appears.")
    bf16: bool = option(False, "Autocast to bfloat16.", panel=MACHINE)
    gradient_checkpointing: bool = option(False, "Less memory, a third more work.", panel=MACHINE)
    tensorboard: bool = option(False, "Write curves for TensorBoard, beside the output.", panel=MACHINE)
    token: str | None = option(None, "Hub token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Open no socket; read the Hub's cache.", panel="Hub")
    trust_remote_code: bool = option(False, "Let the teacher's own code run.", panel=DANGER)

    def __post_init__(self) -> None:
        """Raises UsageError with all values that mean nothing."""
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
                faults.append(f"--{name.replace('_', '-')} is {value}: at least {least}")
        if self.checkpoint_every < 0:
            faults.append(f"--checkpoint-every is {self.checkpoint_every}: at least 0")
        for name in ("learning_rate", "new_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                faults.append(f"--{name.replace('_', '-')} is {value}: between 0 and 1")
        if not 0 <= self.warmup < 1:
            faults.append(f"--warmup is {self.warmup}: from 0 to 1")
        if not 0 < self.mask_share < 1:
            faults.append(f"--mask-share is {self.mask_share}: between 0 and 1")
        if not 0 <= self.weight_decay < 1:
            faults.append(f"--weight-decay is {self.weight_decay}: from 0 to 1")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"--seed is {self.seed}: from 0 to 2^32 - 1")
        if self.steps is not None and self.budget is not None:
            faults.append("--steps and --budget: give one of them")
        require_sound("adapt", faults)
        self.seconds()
        self.training_lengths()

    def seconds(self) -> float | None:
        """The budget in seconds, or None.

        Raises:
            UsageError: it is no time.
        """
        if self.budget is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", self.budget.strip())
        if not match or not float(match[1]):
            raise UsageError(f"{self.budget!r} is no time", where="--budget", hint="such as 90s, 10m or 2h")
        return float(match[1]) * SECONDS[match[2]]

    def training_lengths(self) -> tuple[int, ...] | None:
        """The lengths asked for, in tokens, or None.

        Raises:
            UsageError: they are no numbers of tokens.
        """
        if self.lengths is None:
            return None
        parts = [part.strip() for part in self.lengths.split(",")]
        if not all(part.isdigit() and int(part) >= 8 for part in parts):
            raise UsageError(
                f"lengths are {self.lengths!r}", where="--lengths", hint="8 tokens and more, such as 128,512"
            )
        return tuple(sorted({int(part) for part in parts}))
