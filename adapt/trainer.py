"""The training loop, on accelerate: phases, steps, schedule, budget, the best state, and a stop at NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..convert.errors import CheckFailedError, UsageError
from ..convert.recipe import Recipe
from ..data.documents import Corpus
from .batches import Batch, batches, check_enough, masked
from .checkpoints import Checkpoints, Place
from .contrastive import REMEMBERED, Pieces
from .heldout import WATCHED_TEXTS, HeldOut, score
from .models import Pair, load_state, new_tensors, select, state_of
from .objectives import Objective, Scales
from .options import AdaptOptions
from .recipes import Phase, phase_steps

CLIP = 1.0  # of the gradient's norm
BETAS, EPS = (0.9, 0.98), 1e-6


@dataclass(frozen=True, slots=True)
class Tick:
    """Progress after a training step.

    Attributes:
        share: of the whole run that is done, 0 to 1. losses: by objective. score: at the last evaluation.
        rate: tokens a second. left: seconds, or None where nobody knows yet.
    """

    phase: str
    step: int
    share: float
    losses: Mapping[str, float]
    score: float
    rate: float
    left: float | None
    evaluated: bool


Watch = Callable[[Tick], None]


@dataclass
class Trained:
    """The student holds the best state now; this is how it came about."""

    place: Place
    state: dict[str, Tensor]
    processes: int


def make_accelerator(options: AdaptOptions, folder: Path) -> Any:
    """The Accelerator of accelerate, which finds devices, processes and nodes from its environment.

    Args:
        folder: for TensorBoard's files, where they are asked for.

    Raises:
        UsageError: a package is not installed.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
        from accelerate.utils import is_tensorboard_available
    except ImportError:
        raise UsageError(
            "the package accelerate is not installed", where="effconv adapt", hint="pip install 'effconv[adapt]'"
        ) from None
    # Parameters may be out of a step's graph: a Linformer's E and F, for texts that it does not project.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    if options.tensorboard and not is_tensorboard_available():
        raise UsageError(
            "the package tensorboard is not installed", where="--tensorboard", hint="pip install tensorboard"
        )
    precision = "bf16" if options.bf16 else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # of an earlier run in this process: its precision cannot be changed
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not torch.accelerator.is_available(),  # else processes on a machine without one would not find each other
        kwargs_handlers=[unused],
        log_with="tensorboard" if options.tensorboard else None,
        project_dir=folder,
    )
    if options.tensorboard:
        accelerator.init_trackers("adapt")
    return accelerator


class Run:
    """A training run: `train` does it, and what cannot be trained is refused before.

    Args:
        lengths: of training texts, in tokens.
        checkpoints: read where the options say so, written on the way.
        watch: called after each step.

    Raises:
        UsageError: a phase in which nothing is trained. BadInputError: less text than one sequence.
    """

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
        self.accelerator, self.pair, self.corpus, self.heldout = accelerator, pair, corpus, heldout
        self.phases, self.recipe, self.options, self.checkpoints, self.watch = (
            phases,
            recipe,
            options,
            checkpoints,
            watch,
        )
        self.lengths = lengths
        check_enough(corpus, lengths)
        self.best: dict[str, Tensor] = {}
        self.budget = options.seconds()
        total = options.steps or (0 if self.budget else 300)
        self.steps = phase_steps(phases, total) if total else [0] * len(phases)
        self.total = total
        self.scales: Scales | None = heldout.scales() if pair.teacher is not None else None
        self.new = new_tensors(pair)
        # All that any phase trains: a best state is of all of it, whichever phase it was found in.
        self.trained = {name for phase in phases for name in select(pair, recipe.train, phase, self.new)}
        if options.gradient_checkpointing:
            pair.student.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self) -> Trained:
        """Trains the student and leaves the best state in it.

        Raises:
            CheckFailedError: a loss or a gradient that is not finite; the last checkpoint stays.
        """
        self.continues = self.options.resume
        self.place = self.checkpoints.place() if self.continues else Place()
        self.kept = self.place.step  # the step of the last checkpoint
        # Steps before the one to continue with, whose texts it is contrasted with.
        seen = "contrastive" in self.phases[self.place.phase].objectives
        self.seen = min(REMEMBERED, self.place.phase_step) if seen else 0
        self.batches = batches(
            self.corpus, self.lengths, self.options.batch_tokens, self.options.seed, skip=self.place.step - self.seen
        )
        self._clock = (time.monotonic() - self.place.wall, time.process_time() - self.place.cpu)
        if not self.continues:
            self._evaluate({})
        for index in range(self.place.phase, len(self.phases)):
            self._phase(index)
        load_state(self.pair.student, self.best)
        if self.options.tensorboard:
            self.accelerator.end_training()
        return Trained(self.place, self.best, self.accelerator.num_processes)

    def _phase(self, index: int) -> None:
        phase, place, accelerator = self.phases[index], self.place, self.accelerator
        chosen = select(self.pair, self.recipe.train, phase, self.new)
        objective = Objective(self.pair, phase.objectives, self.scales)
        optimizer = torch.optim.AdamW(self._groups(phase, chosen), betas=BETAS, eps=EPS)
        model, optimizer = accelerator.prepare(objective, optimizer)
        model.train()
        if self.continues:
            self.best, self.continues = self.checkpoints.restore(accelerator), False
        self.pieces = None
        if "contrastive" in phase.objectives:
            self.pieces = Pieces(self.pair, self.options.piece_tokens, self.options.seed, accelerator.device)
            for step in range(place.step - self.seen, place.step):
                self.pieces.add(next(self.batches), step)
            self.seen = 0
        begin = self._spent()
        share_before = place.share
        while place.share < 1 and (not self.total or place.phase_step < self.steps[index]):
            every = self.options.checkpoint_every
            if every and place.step > self.kept and place.step % every == 0:
                self.checkpoints.save(accelerator, place, self.best)
                self.kept = place.step
            self._schedule(optimizer)
            batch = self._batch(phase)
            losses = self._step(model, optimizer, batch)
            place.step, place.phase_step = place.step + 1, place.phase_step + 1
            place.tokens += batch.tokens
            place.share = self._share(index, begin, share_before)
            ended = place.share >= 1
            place.wall, place.cpu = time.monotonic() - self._clock[0], time.process_time() - self._clock[1]
            evaluated = ended or place.step % self.options.evaluate_every == 0
            if evaluated:
                self._evaluate(losses)
            self._tell(phase, losses, evaluated)
        if index + 1 < len(self.phases):
            place.phase, place.phase_step, place.share = index + 1, 0, 0.0
        accelerator.free_memory(model, optimizer)

    def _groups(self, phase: Phase, chosen: Mapping[str, bool]) -> list[dict[str, Any]]:
        """Parameter groups: weights of the source and the target's own, matrices with decay and the rest without."""
        parameters = dict(self.pair.student.named_parameters())
        groups = []
        for own in (False, True):
            for decays in (True, False):
                members = [p for name, p in parameters.items() if chosen.get(name) is own and (p.dim() > 1) is decays]
                if members:
                    rate = self.recipe.rate(phase.objectives, own)
                    decay = self.options.weight_decay if decays else 0.0
                    groups.append({"params": members, "lr": rate, "peak": rate, "weight_decay": decay})
        return groups

    def _schedule(self, optimizer: Any) -> None:
        """The learning rate of the next step, from the share of the phase that is done."""
        share, options = self.place.share, self.options
        if share < options.warmup:
            factor = max(share / options.warmup, 0.05)
        else:
            rest = (share - options.warmup) / (1 - options.warmup)
            factor = {"cosine": (1 + math.cos(math.pi * rest)) / 2, "linear": 1 - rest, "constant": 1.0}[
                options.schedule
            ]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _batch(self, phase: Phase) -> Batch:
        batch = next(self.batches)
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

    def _step(self, model: Any, optimizer: Any, batch: Batch) -> dict[str, float]:
        """One step on the global batch; the losses are those of all of it."""
        accelerator, parts = self.accelerator, self.options.accumulation
        sums: dict[str, Tensor] = {}
        for i in range(parts):
            part, counts = batch.part(accelerator.process_index * parts + i, accelerator.num_processes * parts)
            with accelerator.no_sync(model) if i + 1 < parts else nullcontext():
                losses = model(part.to(accelerator.device))
                losses = losses if counts else {name: 0.0 * loss for name, loss in losses.items()}
                # Gradients are averaged over processes, and these losses are to be added.
                accelerator.backward(sum(losses.values()) * accelerator.num_processes)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = accelerator.clip_grad_norm_(trained, CLIP)
        total = accelerator.reduce(torch.stack([*sums.values()]), "sum")
        if not bool(torch.isfinite(total).all()) or not bool(torch.isfinite(norm)):
            raise self._not_finite(dict(zip(sums, total.tolist(), strict=True)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return dict(zip(sums, total.tolist(), strict=True))

    def _not_finite(self, losses: Mapping[str, float]) -> CheckFailedError:
        last = self.checkpoints.last()
        shown = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        state = f"the state of {last.name.replace('-', ' ')} is kept" if last else "there is no checkpoint yet"
        return CheckFailedError(
            f"training stopped at step {self.place.step + 1}: the loss or gradient is not finite ({shown}); {state}",
            where=str(last or self.checkpoints.folder),
            hint="start again with a lower --learning-rate and --overwrite; the repo is unchanged",
        )

    def _spent(self) -> float:
        clock = time.process_time if self.options.budget_clock == "cpu" else time.monotonic
        return clock()

    def _share(self, index: int, begin: float, before: float) -> float:
        """Of the phase that is done; by the first process's clock, so that all of them stop together."""
        if self.total:
            return self.place.phase_step / max(self.steps[index], 1)
        from accelerate.utils import broadcast

        assert self.budget is not None
        share = before + (self._spent() - begin) / (self.budget * self.phases[index].share)
        told = broadcast(torch.tensor([share], dtype=torch.float64, device=self.accelerator.device))
        return min(float(told), 1.0)

    def _evaluate(self, losses: Mapping[str, float]) -> None:
        place = self.place
        # Judged by what is trained: where a target equals its source without training, training can only lose.
        rows = self.heldout.measure(self.pair.student, WATCHED_TEXTS, self.lengths)
        found = score(rows)
        place.history.append({"step": place.step, "score": found, "losses": dict(losses), "rows": rows})
        if found > place.score:
            place.score, place.best_step = found, place.step
            self.best = state_of(self.pair.student, self.trained)

    def _tell(self, phase: Phase, losses: Mapping[str, float], evaluated: bool) -> None:
        place = self.place
        done = sum(p.share for p in self.phases[: place.phase]) + phase.share * min(place.share, 1.0)
        if self.options.tensorboard and self.accelerator.is_main_process:
            self.accelerator.log({**{f"loss/{name}": loss for name, loss in losses.items()}}, step=place.step)
            if evaluated:
                self.accelerator.log({"heldout/score": place.history[-1]["score"]}, step=place.step)
        rate = place.tokens / max(place.wall, 1e-9)
        left = place.wall * (1 - done) / done if done > 0 else None
        self.watch(Tick(phase.name, place.step, done, losses, place.history[-1]["score"], rate, left, evaluated))
