"""The training against a teacher: phases, weights to train, schedule, held-out score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..convert.recipe import NEW_POSITIONS, Recipe
from ..data.documents import Corpus
from .batches import Batch, batches, check_enough, masked
from .checkpoints import Checkpoints, Place
from .contrastive import REMEMBERED, Pieces
from .heldout import WATCHED_TEXTS, HeldOut, score
from .loop import Loop, Tick, Watch, make_accelerator
from .models import Pair, new_tensors, select
from .objectives import Objective, Scales
from .options import AdaptOptions
from .positions import train_new_positions_alone
from .recipes import Phase, phase_steps

__all__ = ["Run", "Tick", "make_accelerator"]
BETAS, EPS = (0.9, 0.98), 1e-6


class Run(Loop):
    """A training run: `train` does it, and what cannot be trained is refused before.

    Args:
        lengths: of training texts, in tokens.
        checkpoints: read where the options say so, written on the way.
        watch: called after each step.

    Raises:
        UsageError: a phase in which nothing is trained. BadInputError: less text than one sequence.
    """

    options: AdaptOptions

    def __init__(
        self,
        accelerator: Any,
        pair: Pair,
        corpus: Corpus,
        heldout: HeldOut,
        phases: tuple[Phase, ...],
        recipe: Recipe,
        lengths: Sequence[int],
        options: AdaptOptions,
        checkpoints: Checkpoints,
        watch: Watch,
    ) -> None:
        budget = options.seconds()
        total = options.steps or (0 if budget else 300)
        super().__init__(
            accelerator,
            pair.student,
            phases,
            options,
            checkpoints,
            watch,
            steps=phase_steps(phases, total) if total else [0] * len(phases),
            budget=budget,
            clock=options.budget_clock,
        )
        self.pair, self.corpus, self.heldout, self.recipe = pair, corpus, heldout, recipe
        self.lengths = lengths
        check_enough(corpus, lengths)
        self.scales: Scales | None = heldout.scales() if pair.teacher is not None else None
        self.new = new_tensors(pair)
        # All that any phase trains: a best state is of all of it, whichever phase it was found in.
        self.trained = {name for phase in phases for name in select(pair, recipe.train, phase, self.new)}
        if recipe.train in NEW_POSITIONS:
            train_new_positions_alone(pair, recipe.train, accelerator)
        if options.gradient_checkpointing:
            pair.student.gradient_checkpointing_enable({"use_reentrant": False})

    def open_batches(self, place: Place) -> Iterator[Batch]:
        # Steps before the one to continue with, whose texts it is contrasted with.
        seen = "contrastive" in self.phases[place.phase].objectives
        self.seen = min(REMEMBERED, place.phase_step) if seen else 0
        return batches(
            self.corpus, self.lengths, self.options.batch_tokens, self.options.seed, skip=place.step - self.seen
        )

    def module(self, phase: Phase) -> nn.Module:
        self.chosen = select(self.pair, self.recipe.train, phase, self.new)
        return Objective(self.pair, phase.objectives, self.scales)

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._groups(phase, self.chosen), betas=BETAS, eps=EPS)

    def begin_phase(self, phase: Phase) -> None:
        self.pieces = None
        if "contrastive" in phase.objectives:
            self.pieces = Pieces(self.pair, self.options.piece_tokens, self.options.seed, self.accelerator.device)
            for step in range(self.place.step - self.seen, self.place.step):
                self.pieces.add(next(self.batches), step)
            self.seen = 0

    def _groups(self, phase: Phase, chosen: Mapping[str, bool]) -> list[dict[str, Any]]:
        """Parameter groups: weights of the source and the target's own, matrices with decay and the rest without."""
        parameters = dict(self.pair.student.named_parameters())
        groups = []
        for own in (False, True):
            for decays in (True, False):
                members = [p for name, p in parameters.items() if chosen.get(name) is own and (p.dim() > 1) is decays]
                if members:
                    rate = self.recipe.rate(phase.objectives, own)
                    # Decay would move the rows of a position table that are not trained.
                    decay = self.options.weight_decay if decays and self.recipe.train not in NEW_POSITIONS else 0.0
                    groups.append({"params": members, "lr": rate, "peak": rate, "weight_decay": decay})
        return groups

    def factor(self, phase: Phase) -> float:
        """From the share of the phase that is done."""
        share, options = self.place.share, self.options
        if share < options.warmup:
            return max(share / options.warmup, 0.05)
        rest = (share - options.warmup) / (1 - options.warmup)
        return {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest, "constant": 1.0}[options.schedule]

    def batch(self, phase: Phase) -> Batch:
        batch: Batch = next(self.batches)
        if self.pieces is not None:
            batch = self.pieces.add(batch, self.place.step)
        if "mlm" not in phase.objectives:
            return batch
        options, pair = self.options, self.pair
        return masked(
            batch,
            options.mask_share,
            pair.tokenizer.mask_token_id,
            pair.student.config.vocab_size,
            options.whole_words,
            (options.seed, 2, self.place.step),
        )

    def measured(self) -> tuple[list[dict[str, Any]], float]:
        # Judged by what is trained: where a target equals its source without training, training can only lose.
        rows = self.heldout.measure(self.pair.student, WATCHED_TEXTS, self.lengths)
        return rows, score(rows)
