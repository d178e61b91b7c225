"""transformers' Trainer for `effconv finetune`: its arguments, its sampler, its progress, and a stop at NaN."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..convert.errors import CheckFailedError, UsageError
from .buckets import Buckets, steps_of
from .features import Features
from .losses import loss_of
from .metrics import Metrics, reduced
from .options import FinetuneOptions
from .tasks import LOWER_IS_BETTER, Task

EPSILON = 1e-6  # BERT's. With Adam's 1e-8, gradients that are 0 but for rounding (biases of keys) move weights.
FAST, SLOW = 5e-5, 1e-3  # peak rates: of whole models, and of few new weights
LOGS = 20  # of a run, at least


@dataclass(frozen=True, slots=True)
class Tick:
    """Progress after a step.

    Attributes:
        share: of the run that is done, 0 to 1. losses: the loss. score: the first metric at the last evaluation.
        rate: tokens a second. left: seconds. evaluated: whether the score is new.
    """

    step: int
    share: float
    losses: Mapping[str, float]
    score: float
    rate: float
    left: float | None
    evaluated: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is, in steps. `every` is between evaluations."""

    steps: int
    every: int
    per_epoch: int


def plan_of(options: FinetuneOptions, rows: int) -> Plan:
    """The steps of a run over this many rows."""
    per_epoch = steps_of(rows, options.batch)
    epochs = 3.0 if options.epochs is None else options.epochs
    steps = options.steps or max(1, math.ceil(epochs * per_epoch))
    return Plan(steps, min(options.evaluate_every or per_epoch, steps), per_epoch)


def rate_of(options: FinetuneOptions) -> float:
    """The peak learning rate."""
    if options.learning_rate is not None:
        return options.learning_rate
    return SLOW if options.freeze in ("encoder", "all-but-globals") else FAST


def arguments_of(
    task: Task, options: FinetuneOptions, metrics: Sequence[str], plan: Plan, folder: Path
) -> TrainingArguments:
    """Trainer's arguments. Processes, FSDP and DeepSpeed come from the environment that `accelerate launch` sets.

    Args:
        folder: for checkpoints.

    Raises:
        UsageError: a batch that cannot be divided among the processes.
    """
    values: dict[str, Any] = {
        **recipe_of(options, plan),
        "output_dir": str(folder),
        "eval_strategy": "steps",
        "eval_steps": plan.every,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": plan.every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": metrics[0],
        "greater_is_better": metrics[0] not in LOWER_IS_BETTER,
        "logging_steps": max(1, min(plan.every, plan.steps // LOGS)),
    }
    if task.name != "summarize":
        return TrainingArguments(**values)
    return Seq2SeqTrainingArguments(**values, predict_with_generate=True, generation_max_length=options.target_length)


def recipe_of(options: FinetuneOptions, plan: Plan) -> dict[str, Any]:
    """Trainer's arguments for what a step does, without evaluation and checkpoints."""
    accelerated = torch.accelerator.is_available()
    recipe: dict[str, Any] = {
        "max_steps": plan.steps,
        "gradient_accumulation_steps": options.accumulation,
        "learning_rate": rate_of(options),
        "lr_scheduler_type": options.schedule if options.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": round(options.warmup * plan.steps),
        "weight_decay": options.weight_decay,
        "adam_epsilon": EPSILON,
        "seed": options.seed,
        "data_seed": options.seed,
        "bf16": options.bf16,
        "use_cpu": not accelerated,
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "dataloader_pin_memory": accelerated,
        "ddp_find_unused_parameters": not options.gradient_checkpointing,  # short texts do not use every tensor
        **_batches(options),
    }
    if options.gradient_checkpointing:
        names = {field.name for field in fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"  # 5 | 4
        recipe |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return recipe


def _batches(options: FinetuneOptions) -> dict[str, int]:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    own, rest = divmod(options.batch, processes * options.accumulation)
    if rest or not own:
        raise UsageError(
            f"a batch of {options.batch} cannot be divided by {processes} processes times {options.accumulation} parts",
            where="--batch, --accumulation",
            hint=f"give a --batch that is a multiple of {processes * options.accumulation}",
        )
    return {"per_device_train_batch_size": own, "per_device_eval_batch_size": own}


class Complete(Exception):
    """Raised by a resumed run that has nothing more to train: Trainer would take one more step."""


def out_of_patience(history: Sequence[Mapping[str, Any]], metric: str, patience: int | None) -> bool:
    """Whether so many evaluations after the first step were no better than the best one before them.

    Args:
        history: of the run, as Trainer logs it, so that a resumed run knows it too.
    """
    name, lower = f"eval_{metric}", metric in LOWER_IS_BETTER
    values = [(-e[name] if lower else e[name]) for e in history if name in e and e["step"]]
    return patience is not None and bool(values) and len(values) - 1 - values.index(max(values)) >= patience


class _Finetuning:
    """What a Trainer of effconv does in its own way; goes before Trainer in the bases."""

    steps: _Steps | None = None
    visible: Tensor | None = None
    state: Any
    seed: int
    whole_batch: int
    args: Any
    train_dataset: Any

    def _get_train_sampler(self, *_: Any) -> Any:
        return Buckets(self.train_dataset.lengths, self.whole_batch, self.seed)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.visible = inputs.get("attention_mask")  # for losses that must leave out padding
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.steps and self.state.global_step and self.steps.complete(self.state):
            raise Complete
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not bool(torch.isfinite(loss)):
            raise CheckFailedError(
                f"the loss of step {self.state.global_step + 1} is {float(loss)}",
                where="--lr",
                hint="use a lower --lr; the last checkpoint is kept, and --overwrite starts again",
            )
        return loss


class FinetuneTrainer(_Finetuning, Trainer):
    """Trainer with bucketed batches."""


class GeneratingTrainer(_Finetuning, Seq2SeqTrainer):
    """Seq2SeqTrainer with bucketed batches."""


class _Steps(TrainerCallback):
    """Evaluates and saves after the last step too, and tells `watch` how far the run is."""

    def __init__(
        self, watch: Callable[[Tick], None], metric: str, tokens: int, plan: Plan, patience: int | None
    ) -> None:
        self.watch, self.metric, self.plan, self.patience = watch, metric, plan, patience
        self.per_step = tokens / plan.per_epoch
        self.loss = self.score = float("nan")
        self.evaluated, self.began, self.first = False, time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        self._tell(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.loss = float((logs or {}).get("loss", self.loss))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.score = float((metrics or {}).get(f"eval_{self.metric}", math.nan))
        if self.complete(state):
            control.should_training_stop = True
        self.evaluated = state.global_step > self.first
        if self.evaluated:
            self._tell(state.global_step)

    def complete(self, state: Any) -> bool:
        ended = state.global_step >= state.max_steps
        return ended or out_of_patience(state.log_history, self.metric, self.patience)

    def _tell(self, step: int) -> None:
        done, seconds = step - self.first, max(time.monotonic() - self.began, 1e-9)
        left = seconds / done * (self.plan.steps - step) if done else None
        rate = done * self.per_step / seconds
        losses = {} if math.isnan(self.loss) else {"loss": self.loss}
        told = Tick(step, step / self.plan.steps, losses, self.score, rate, left, self.evaluated)
        self.evaluated = False
        self.watch(told)


def make_trainer(
    model: Any,
    task: Task,
    options: FinetuneOptions,
    metrics: Sequence[str],
    plan: Plan,
    args: TrainingArguments,
    train: Features,
    heldout: Features,
    collate: Callable[[list[Any]], Any],
    compute: Metrics,
    watch: Callable[[Tick], None],
    logs: Path | None,
) -> Any:
    """The Trainer of a run.

    Args:
        logs: folder for TensorBoard's files, None without.
    """
    steps = _Steps(watch, metrics[0], train.tokens, plan, options.patience)
    callbacks: list[Any] = [steps]
    if logs is not None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        callbacks.append(TensorBoardCallback(SummaryWriter(log_dir=str(logs))))
    kind: Any = GeneratingTrainer if task.name == "summarize" else FinetuneTrainer
    trainer: Any = kind(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=collate,
        compute_loss_func=loss_of(task, lambda: trainer.visible),
        compute_metrics=compute,
        preprocess_logits_for_metrics=reduced(task),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.steps, trainer.seed, trainer.whole_batch = steps, options.seed, options.batch
    return trainer


def evaluations(trainer: Any, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics at each evaluation, with its step."""
    found: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        if f"eval_{metrics[0]}" in entry:
            values = {name: float(entry[f"eval_{name}"]) for name in dict.fromkeys((*metrics, "loss"))}
            found.setdefault(int(entry["step"]), {"step": int(entry["step"]), **values})
    return [found[step] for step in sorted(found)]


def losses(trainer: Any) -> list[dict[str, float]]:
    """The training loss as it was logged, with its step."""
    entries = {int(e["step"]): float(e["loss"]) for e in trainer.state.log_history if "loss" in e}
    return [{"step": step, "loss": loss} for step, loss in sorted(entries.items())]
