"""A training on the engine of `effconv finetune`; the rate is chosen on validation examples, test is looked at once."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers

from effconv.finetune.features import collator
from effconv.finetune.losses import loss_of
from effconv.finetune.metrics import reduced
from effconv.finetune.options import FinetuneOptions
from effconv.finetune.tasks import CLASSIFICATION
from effconv.finetune.trainer import FinetuneTrainer, plan_of, recipe_of

from .examples import PAD, Examples, Splits, features
from .models import loaded
from .presets import Size

PADDING = SimpleNamespace(pad_token_id=PAD, pad_token_type_id=0, padding_side="right")  # what a collator asks of it
ERRORS = 5  # standard errors that an accuracy must be above the majority class


@dataclass(frozen=True)
class Outcome:
    """What a model reached.

    Attributes:
        valid: accuracy on the validation examples, by which `rate` was chosen. right, count: of the test examples.
        majority: share of the most frequent label of the training examples among the test examples.
        seconds: CPU time of the chosen training, of all threads. parameters: of the model.
    """

    rate: float
    valid: float
    right: int
    count: int
    majority: float
    seconds: float
    parameters: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def errors(self) -> float:
        """How many standard errors the accuracy is above the majority class."""
        error = math.sqrt(max(self.majority * (1 - self.majority), 1e-9) / self.count)
        return (self.accuracy - self.majority) / error

    @property
    def learned(self) -> bool:
        return self.errors >= ERRORS


def measured(path: Path, splits: Splits, size: Size, pair: bool, seed: int, *, test: bool = True) -> Outcome:
    """Trains at each rate, keeps the best on the validation examples, and looks at the test examples once.

    Args:
        test: whether it does so; without, the validation examples stand in.
    """
    best: tuple[float, float, Any, float] | None = None
    for rate in size.rates:
        trainer, seconds = trained(path, splits, size, pair, seed, rate)
        valid = right_of(trainer, splits.valid, size.length) / len(splits.valid)
        print(f"{path.name}: rate {rate:g}: {valid:.3f} on validation, {seconds:.0f} s", file=sys.stderr, flush=True)
        if best is None or valid > best[0]:
            best = valid, rate, trainer, seconds
    assert best is not None
    valid, rate, trainer, seconds = best
    looked_at = splits.test if test else splits.valid
    right = right_of(trainer, looked_at, size.length)
    usual = max(set(splits.train.labels), key=splits.train.labels.count)
    share = looked_at.labels.count(usual) / len(looked_at)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    return Outcome(rate, valid, right, len(looked_at), share, seconds, count)


def trained(path: Path, splits: Splits, size: Size, pair: bool, seed: int, rate: float) -> tuple[Any, float]:
    """The trainer with its trained model, and the seconds of CPU time that it took."""
    options = FinetuneOptions(
        learning_rate=rate,
        steps=size.steps,
        batch=size.batch,
        warmup=size.warmup,
        schedule="cosine",
        weight_decay=size.weight_decay,
        seed=seed,
    )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)
    model = loaded(path, splits.classes, pair, size.dropout)
    with tempfile.TemporaryDirectory(prefix="effconv-lra-") as folder:
        recipe = recipe_of(options, plan_of(options, len(splits.train)))
        trainer: Any = FinetuneTrainer(
            model=model,
            args=transformers.TrainingArguments(output_dir=folder, save_strategy="no", logging_strategy="no", **recipe),
            train_dataset=features(splits.train, size.length),
            data_collator=collator(CLASSIFICATION, PADDING, None),
            compute_loss_func=loss_of(CLASSIFICATION),
            preprocess_logits_for_metrics=reduced(CLASSIFICATION),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.seed, trainer.whole_batch = seed, size.batch
        begin = time.process_time()
        trainer.train()
        return trainer, time.process_time() - begin


def right_of(trainer: Any, examples: Examples, length: int) -> int:
    """How many examples the model gets right."""
    found = trainer.predict(features(examples, length).by_length())
    return int((found.predictions == found.label_ids).sum())
