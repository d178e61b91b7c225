"""The training loop, on accelerate: phases, steps, checkpoints, a budget, the best state, and a stop at NaN.

A subclass says what is trained on what, and how it is judged: `adapt/trainer.py` with a teacher, `pretrain/trainer.py`
on text alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..convert.errors import CheckFailedError, UsageError
from .checkpoints import Checkpoints, Place
from .models import load_state, state_of
from .recipes import Phase

CLIP = 1.0  # of the gradient's norm


class Steps(Protocol):
    """The options that every training has."""

    @property
    def resume(self) -> bool: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def tensorboard(self) -> bool: ...


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


def make_accelerator(*, bf16: bool, tensorboard: bool, folder: Path, name: str = "adapt") -> Any:
    """The Accelerator of accelerate, which finds devices, processes and nodes from its environment.

    Args:
        folder: for TensorBoard's files, where they are asked for. name: of the command.

    Raises:
        UsageError: a package is not installed.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
        from accelerate.utils import is_tensorboard_available
    except ImportError:
        raise UsageError(
            "the package accelerate is not installed", where=f"effconv {name}", hint=f"pip install 'effconv[{name}]'"
        ) from None
    # Parameters may be out of a step's graph: a Linformer's E and F, for texts that it does not project.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    if tensorboard and not is_tensorboard_available():
        raise UsageError(
            "the package tensorboard is not installed", where="--tensorboard", hint="pip install tensorboard"
        )
    precision = "bf16" if bf16 else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # of an earlier run in this process: its precision cannot be changed
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not torch.accelerator.is_available(),  # else processes on a machine without one would not find each other
        kwargs_handlers=[unused],
        log_with="tensorboard" if tensorboard else None,
        project_dir=folder,
    )
    if tensorboard:
        accelerator.init_trackers(name)
    return accelerator


class Loop:
    """A training: `train` does it. A subclass says what a batch, a loss, an optimizer and a score are.

    Args:
        student: the model whose parameters are trained.
        phases: of the training, each with its share of all steps.
        steps: of each phase; all 0 where a budget counts. budget: seconds; None where steps count.
        clock: of the budget, "wall" or "cpu".
        checkpoints: read where the options say so, written on the way.
        watch: called after each step.
    """

    clip: float | None = CLIP
    keeps_best = True  # the state with the best score, or else the last one

    def __init__(
        self,
        accelerator: Any,
        student: Any,
        phases: Sequence[Phase],
        options: Steps,
        checkpoints: Checkpoints,
        watch: Watch,
        *,
        steps: Sequence[int],
        budget: float | None = None,
        clock: str = "wall",
    ) -> None:
        self.accelerator, self.student, self.phases = accelerator, student, tuple(phases)
        self.options, self.checkpoints, self.watch = options, checkpoints, watch
        self.steps, self.budget, self.clock = list(steps), budget, clock
        self.total = sum(steps)
        self.best: dict[str, Tensor] = {}
        self.trained: set[str] = set()  # names of all that any phase trains

    # What a subclass says.

    def open_batches(self, place: Place) -> Iterator[Any]:
        """The global batches from this place on."""
        raise NotImplementedError

    def module(self, phase: Phase) -> nn.Module:
        """The student, whose forward takes a part of a batch and returns the losses by name."""
        raise NotImplementedError

    def optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """Its parameter groups state their `peak` rate."""
        raise NotImplementedError

    def factor(self, phase: Phase) -> float:
        """What the peak rates are multiplied by in the next step."""
        raise NotImplementedError

    def measured(self) -> tuple[list[dict[str, Any]], float]:
        """Figures on held-out text, and the one to keep the best state by, higher is better."""
        raise NotImplementedError

    def begin_phase(self, phase: Phase) -> None:
        """Called before the first step of a phase, and after a checkpoint was loaded."""

    def batch(self, phase: Phase) -> Any:
        """The next global batch."""
        return next(self.batches)

    def before_part(self, part: int) -> None:
        """Called before a part of a batch is run.

        Args:
            part: its number among all parts of the global batch.
        """

    def state(self) -> dict[str, Tensor]:
        """A copy of all that is trained."""
        return state_of(self.student, self.trained)

    def load(self, state: Mapping[str, Tensor]) -> None:
        load_state(self.student, state)

    def evaluated(self) -> dict[str, float]:
        """What is logged of the last evaluation."""
        return {"heldout/score": self.place.history[-1]["score"]}

    def log(self, values: Mapping[str, float], step: int, evaluated: bool) -> None:
        """Figures of a step, on the first process."""
        if self.options.tensorboard:
            self.accelerator.log(dict(values), step=step)

    # The loop.

    def train(self) -> Trained:
        """Trains the student and leaves the best state in it.

        Raises:
            CheckFailedError: a loss or a gradient that is not finite; the last checkpoint stays.
        """
        self.continues = self.options.resume
        self.place = self.checkpoints.place() if self.continues else Place()
        self.kept = self.place.step  # the step of the last checkpoint
        self.batches = self.open_batches(self.place)
        self._clock = (time.monotonic() - self.place.wall, time.process_time() - self.place.cpu)
        if not self.continues:
            self._evaluate({})
        for index in range(self.place.phase, len(self.phases)):
            self._phase(index)
        if self.keeps_best:
            self.load(self.best)
        else:
            self.best, self.place.best_step = self.state(), self.place.step
        if self.options.tensorboard:
            self.accelerator.end_training()
        return Trained(self.place, self.best, self.accelerator.num_processes)

    def _phase(self, index: int) -> None:
        phase, place, accelerator = self.phases[index], self.place, self.accelerator
        module = self.module(phase)
        model, optimizer = accelerator.prepare(module, self.optimizer(phase))
        model.train()
        if self.continues:
            self.best, self.continues = self.checkpoints.restore(accelerator), False
        self.begin_phase(phase)
        begin = self._spent()
        share_before = place.share
        while place.share < 1 and (not self.total or place.phase_step < self.steps[index]):
            every = self.options.checkpoint_every
            if every and place.step > self.kept and place.step % every == 0:
                self.checkpoints.save(accelerator, place, self.best)
                self.kept = place.step
            factor = self.factor(phase)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            batch = self.batch(phase)
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

    def _step(self, model: Any, optimizer: Any, batch: Any) -> dict[str, float]:
        """One step on the global batch; the losses are those of all of it."""
        accelerator, parts = self.accelerator, self.options.accumulation
        sums: dict[str, Tensor] = {}
        for i in range(parts):
            number = accelerator.process_index * parts + i
            part, counts = batch.part(number, accelerator.num_processes * parts)
            self.before_part(number)
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
        norm = accelerator.clip_grad_norm_(trained, math.inf if self.clip is None else self.clip)
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
        clock = time.process_time if self.clock == "cpu" else time.monotonic
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
        rows, found = self.measured()
        place.history.append({"step": place.step, "score": found, "losses": dict(losses), "rows": rows})
        if found > place.score:
            place.score, place.best_step = found, place.step
            if self.keeps_best:
                self.best = self.state()

    def _tell(self, phase: Phase, losses: Mapping[str, float], evaluated: bool) -> None:
        place = self.place
        done = sum(p.share for p in self.phases[: place.phase]) + phase.share * min(place.share, 1.0)
        if self.accelerator.is_main_process:
            figures = {f"loss/{name}": loss for name, loss in losses.items()}
            self.log(figures | (self.evaluated() if evaluated else {}), place.step, evaluated)
        rate = place.tokens / max(place.wall, 1e-9)
        left = place.wall * (1 - done) / done if done > 0 else None
        self.watch(Tick(phase.name, place.step, done, losses, place.history[-1]["score"], rate, left, evaluated))
