"""Shared by all reports: consoles, JSON, progress on stderr, and sizes as text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from ..adapt.loop import Tick
    from ..convert.repo.manifest import Measured


WORDS = {
    "source": "reading the source",
    "plan": "planning",
    "download": "downloading",
    "weights": "writing weights",
    "files": "writing config, code and tokenizer",
    "manifest": "writing card and manifest",
    "verify": "checking the repo",
    "publish": "moving the repo into place",
    "hashes": "checking file hashes",
    "models": "loading models",
    "text": "reading text",
    "tokenizer": "loading the tokenizer",
    "examples": "making examples",
    "texts": "reading texts",
    "whiten": "whitening",
    "measure": "measuring",
    "calibrate": "fitting on text",
}


class Progress:
    """Prints steps to stderr: a bar in bytes while weights are written; without a terminal, one line per step."""

    def __init__(self, *, bar: bool = True, quiet: bool = False) -> None:
        """`bar=False` is for steps that print their own bars. `quiet` prints nothing."""
        self._wanted, self._quiet = bar and not quiet, quiet
        self._bar: Any = None
        self._step = ""
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._wanted and sys.stderr.isatty():
            from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        if self._bar and step == "done":
            self._bar.stop()
            self._bar = None  # a push that follows has bars of its own, from the Hub's client
        if self._bar:
            if step != self._step:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(WORDS.get(step, step), total=total or None)
            self._bar.update(self._task, completed=done)
        elif step != self._step and step != "done" and not self._quiet:
            with contextlib.suppress(OSError):  # stderr is closed: no reason to stop
                words = WORDS.get(step, step)
                print(f"{words}: {total:,} bytes" if step == "weights" else words, file=sys.stderr, flush=True)
        self._step = step


class TrainingProgress:
    """Prints training progress to stderr: a bar or, without a terminal, a line per evaluation."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, tick: Tick) -> None:
        if self._quiet:
            return
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in tick.losses.items())
        said = f"step {tick.step}: {losses}; held-out score {tick.score:.4f}; {tick.rate:,.0f} tokens/s"
        if not sys.stderr.isatty():
            if tick.evaluated:
                with contextlib.suppress(OSError):
                    print(said, file=sys.stderr, flush=True)
            return
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, left="")
        left = "" if tick.left is None else f"{tick.left / 60:.0f} min left"
        self._bar.update(self._task, completed=tick.share, description=said, left=left)


def new_console() -> Console:
    """A console on stdout. Without a terminal it is wide, so that names are not broken."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def shape_text(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)


def bytes_text(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def size_text(count: int) -> str:
    return bytes_text(count) if count >= 1e5 else f"{count / 1e3:.1f} kB"


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2))  # ASCII: whatever stdout's encoding is


def print_checks(console: Console, measured: Sequence[Measured]) -> None:
    for result in measured:
        mark = {True: "[green]passed[/green]", False: "[red]failed[/red]", None: "[dim]skipped[/dim]"}[result.passed]
        figure = f" (difference {result.value:.1e}, tolerance {result.tolerance:g})" if result.value is not None else ""
        why = f" ({result.why})" if result.why else ""
        console.print(f"{mark}  {escape(result.says + figure + why)}", soft_wrap=True)
