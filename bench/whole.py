"""Whole models side by side: one process a model, all asked in turn, so that every round meets the same machine.

A case that a model cannot run (too long, too little memory) is a row with the reason. The caller passes the list for
the rows, so an interrupt keeps what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

from ..convert.errors import UsageError
from ..convert.verify import run as verify
from .models import Subject
from .timing import Spread, clock_name

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to run.

    Attributes:
        length: tokens of a row, padding included. batch: rows. mixed: whether they differ in length.
        train: a training step in place of a forward.
        set: fields of the model's config that are set first. named: what progress calls it beside its model.
    """

    length: int
    batch: int = 1
    dtype: str = "float32"
    train: bool = False
    mixed: bool = False
    set: Mapping[str, Any] = field(default_factory=dict)
    named: str = ""

    @property
    def real(self) -> list[int]:
        """Real tokens of each row: all of them, or with the squares, as texts are: few long ones, many short ones."""
        if not self.mixed:
            return [self.length] * self.batch
        return [max(2, round(self.length * ((i + 1) / self.batch) ** 2)) for i in range(self.batch)]


@dataclass(frozen=True, slots=True)
class Row:
    """What a model did in a case.

    Attributes:
        seconds: of every round, by `clock` ("cpu" or "wall").
        peak: bytes that the process held at most (on a GPU: bytes of the device). working: beyond the loaded model.
        failed: why there are no seconds; "" where there are.
    """

    model: str
    what: str
    case: Case
    threads: int
    clock: str
    seconds: tuple[float, ...] = ()
    peak: int | None = None
    working: int | None = None
    failed: str = ""

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.seconds) if self.seconds else None

    @property
    def says(self) -> str:
        """Its seconds, with the spread where there were several rounds; why there are none."""
        if self.spread is None:
            return self.failed
        middle, low, high = self.spread
        return f"{middle:.3f}" + (f" ({low:.3f} to {high:.3f})" if len(self.seconds) > 1 else "")

    @property
    def tokens_per_second(self) -> float | None:
        """Of real tokens."""
        return sum(self.case.real) / self.spread.median if self.spread else None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "model": self.model,
            "what": self.what,
            "length": self.case.length,
            "batch": self.case.batch,
            "real_tokens": sum(self.case.real),
            "dtype": self.case.dtype,
            "run": "training step" if self.case.train else "forward",
            "threads": self.threads,
            "clock": self.clock,
            "seconds": None if self.spread is None else {**self.spread._asdict(), "rounds": list(self.seconds)},
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak,
            "working_bytes": self.working,
            "failed": self.failed or None,
        }


class Worker:
    """A process that holds one model; see `worker` for what it is asked."""

    def __init__(self, subject: Subject, dtype: str, device: str) -> None:
        self.subject = subject
        self._modules = tempfile.TemporaryDirectory(prefix="effconv-")
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [*verify.PYTHON, "-m", "effconv.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8",
            cwd=self._modules.name,
            # One thread until a case asks for more: a process with a pool of threads cannot be forked.
            env=verify.strangers_environment(self._modules.name) | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip
        self._send({"subject": subject.described(), "dtype": dtype, "device": device})
        self._loaded: dict[str, Any] | None = None

    @property
    def loaded(self) -> dict[str, Any]:
        """What it says of the model, once it is there."""
        if self._loaded is None:
            self._loaded = self._reply()
        return self._loaded

    def ask(self, message: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; one with "failed" where the process is gone."""
        self._send(message)
        return self._reply()

    def close(self) -> None:
        """Ends the process and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        self._modules.cleanup()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says that it is gone
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        why = (
            OUT_OF_MEMORY
            if status == -signal.SIGKILL
            else f"its process ended with status {status}: {' '.join(said[-1:])}"
        )
        return {"failed": why, "gone": True}


class Workers:
    """A worker a subject, started together."""

    def __init__(self, subjects: Iterable[Subject], dtype: str, device: str) -> None:
        self._all: list[Worker] = []
        self._subjects, self._dtype, self._device = list(subjects), dtype, device

    def __enter__(self) -> list[Worker]:
        try:
            for subject in self._subjects:
                self._all.append(Worker(subject, self._dtype, self._device))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self._all

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._all:
            worker.close()


def measure(
    subjects: Sequence[Subject],
    cases: Sequence[Case],
    rows: list[Row],
    *,
    rounds: int,
    threads: int,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda step: None,
    loaded: Callable[[Subject, Mapping[str, Any]], None] = lambda subject, answer: None,
    measured: Callable[[Case], None] = lambda case: None,
) -> None:
    """Runs every subject in every case, in turn, and puts the rows into `rows` as each case is done.

    Args:
        cases: those of one dtype stand together, for a model is loaded once a dtype.
        loaded: is told what each worker says of its model, {"resident": bytes or None, ...} or {"failed": why}, before
            any case is run. measured: is told of each case whose rows are there. What one of them raises ends it all.

    Raises:
        UsageError: the device is not there.
    """
    for dtype in dict.fromkeys(case.dtype for case in cases):
        progress("load " + ", ".join(subject.name for subject in subjects))
        with Workers(subjects, dtype, device) as workers:
            for worker in workers:
                if worker.loaded.get("usage"):
                    raise UsageError(
                        str(worker.loaded["failed"]),
                        where=f"--device {device}",
                        hint="leave out --device to measure on the CPU",
                    )
                loaded(worker.subject, worker.loaded)
            for case in (case for case in cases if case.dtype == dtype):
                _measure(workers, case, rows, rounds, threads, device, progress)
                measured(case)


def _measure(
    workers: Sequence[Worker],
    case: Case,
    rows: list[Row],
    rounds: int,
    threads: int,
    device: str,
    progress: Callable[[str], None],
) -> None:
    said = f"{case.named}, " if case.named else ""
    said += f"{case.length:,} tokens" + (f" × {case.batch}" if case.batch > 1 else "") + f", {case.dtype}"
    job = {
        "length": case.length, "rows": case.batch, "real": case.real, "train": case.train, "threads": threads,
        "set": dict(case.set),
    }  # fmt: skip
    opened: dict[int, dict[str, Any]] = {}
    seconds: dict[int, list[float]] = {}
    try:
        for i, worker in enumerate(workers):
            progress(f"{said}: {worker.subject.name}")
            opened[i] = _refusal(worker, case, rows) or worker.ask(job)
            if "failed" not in opened[i]:
                seconds[i] = []
        for number in range(rounds):
            progress(f"{said}: round {number + 1} of {rounds}")
            for i in seconds:
                if "failed" not in opened[i]:
                    answer = workers[i].ask("go")
                    if "failed" in answer:
                        opened[i] = answer
                    else:
                        seconds[i].append(answer["seconds"])
        for i in seconds:
            if "failed" not in opened[i]:
                workers[i].ask("end")
    finally:
        kind = clock_name(threads if device == "cpu" else 0)
        for i, answer in opened.items():
            taken, failed = tuple(seconds.get(i, ())), str(answer.get("failed", ""))
            if taken or failed:
                subject = workers[i].subject
                memory = (answer.get("peak"), answer.get("working"))
                rows.append(
                    Row(subject.name, subject.what, case, threads, kind, () if failed else taken, *memory, failed)
                )


def _refusal(worker: Worker, case: Case, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Why a case is not even tried."""
    subject = worker.subject
    if "failed" in worker.loaded:
        return {"failed": f"cannot load: {worker.loaded['failed']}"}
    if subject.reach is not None and case.length > subject.reach:
        return {"failed": f"takes at most {subject.reach:,} tokens"}
    for row in rows:  # a longer text of the same batch would run out of memory too
        same = (row.model, row.case.batch, row.case.dtype, row.case.train, row.case.set)
        if row.failed.startswith(OUT_OF_MEMORY) and same == (
            subject.name, case.batch, case.dtype, case.train, case.set
        ):  # fmt: skip
            shorter = row.failed if "at" in row.failed else f"{OUT_OF_MEMORY} already at {row.case.length:,} tokens"
            return {"failed": shorter} if row.case.length < case.length else None
    return None
