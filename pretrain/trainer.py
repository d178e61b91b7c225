"""The training on text alone: optimizer, schedule, batches, held-out figures and the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapt.checkpoints import Checkpoints, Place
from ..adapt.loop import Loop, Watch
from ..adapt.recipes import Phase
from .batches import Batch, Collator, batches
from .corpus import Examples
from .heldout import HeldOut, score
from .log import Log
from .models import Losses, averages, has_dropout, load_values
from .objectives import pair_kind, words_of
from .schedules import Rates

KINDS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


class Pretraining(Loop):
    """A pretraining: `train` does it.

    Args:
        chosen: `settings` of the options. rates: the schedule.
        log: written by the first process alone; None on the others.
    """

    options: Any

    def __init__(
        self,
        accelerator: Any,
        student: Any,
        examples: Examples,
        heldout: HeldOut,
        collate: Collator,
        chosen: Any,
        rates: Rates,
        checkpoints: Checkpoints,
        watch: Watch,
        log: Log | None,
    ) -> None:
        phases = (Phase((chosen.objective,), 1.0),)
        super().__init__(accelerator, student, phases, chosen, checkpoints, watch, steps=[rates.total])
        self.examples, self.heldout, self.collate = examples, heldout, collate
        self.rates, self.lines = rates, log
        self.clip = chosen.clip or None
        self.keeps_best = chosen.keep == "best"
        self.draws = has_dropout(student)
        self.trained = {name for name, _ in student.named_parameters()}
        if chosen.gradient_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})

    def open_batches(self, place: Place) -> Iterator[Batch]:
        chosen = self.options
        return batches(self.examples, self.collate, chosen.batch_size, chosen.seed, skip=place.step)

    def module(self, phase: Phase) -> nn.Module:
        return Losses(self.student, words_of(self.options.objective), pair_kind(self.options.objective))

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        chosen = self.options
        return KINDS[chosen.optimizer](
            groups_of(self.student, chosen), lr=chosen.learning_rate, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps
        )

    def factor(self, phase: Phase) -> float:
        return self.rates.at(self.place.step) / self.rates.peak

    def before_part(self, part: int) -> None:
        if self.draws:  # from the step and the part alone, so that a resumed run draws what an unbroken one draws
            state = np.random.SeedSequence([self.options.seed, 3, self.place.step, part]).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))

    def measured(self) -> tuple[list[dict[str, Any]], float]:
        row = self.heldout.measure(self.student)
        return [row], score(row)

    def state(self) -> dict[str, Tensor]:
        moved = {name: value.detach().to("cpu", copy=True) for name, value in averages(self.student).items()}
        return super().state() | moved

    def load(self, state: Mapping[str, Tensor]) -> None:
        load_values(self.student, state)

    def evaluated(self) -> dict[str, float]:
        row = self.place.history[-1]["rows"][0]
        return {f"heldout/{name}": value for name, value in row.items() if name not in ("tokens", "texts", "predicted")}

    def log(self, values: Mapping[str, float], step: int, evaluated: bool) -> None:
        place = self.place
        figures = {
            **values,
            "learning_rate": self.rates.at(step - 1),
            "tokens": place.tokens,
            "tokens_per_second": round(place.tokens / max(place.wall, 1e-9), 1),
        }
        super().log(figures, step, evaluated)
        if self.lines is not None and (evaluated or step % self.options.log_every == 0):
            self.lines.write(step, figures)


def groups_of(model: nn.Module, chosen: Any) -> list[dict[str, Any]]:
    """Parameter groups: those that decay and the others."""
    found = []
    for decays in (True, False):
        members = [p for p in model.parameters() if (chosen.decay == "all" or p.dim() > 1) is decays]
        if members:
            decay = chosen.weight_decay if decays else 0.0
            found.append({"params": members, "peak": chosen.learning_rate, "weight_decay": decay})
    return found
