"""Options of `effconv bench`: their flags, their help, and what they may be. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.options import option, parse_size, require_sound

RUN, BESIDE, ADVICE, HUB = "What is run", "What stands beside", "Advice", "Hub"
DANGER = "Dangerous: only for sources you trust"
SHAPES = ("longformer", "bigbird", "modernbert")
DTYPES = ("float32", "bfloat16", "float16")
PLOTS = (".png", ".svg")
SHORTEST = 8  # tokens
DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What `effconv bench` takes beside the models."""

    plot: tuple[Path, ...] = option((), "Draw charts into FILE.png or FILE.svg; may be given several times.")
    lengths: str | None = option(
        None, "Tokens of a text, such as 512,4096. [default: doubled from 512 up to 4096]", panel=RUN
    )
    batch: str = option("1", "Texts at once, such as 1,8.", panel=RUN)
    dtype: str = option("float32", "Types, such as float32,bfloat16.", panel=RUN)
    train: bool = option(False, "Measure a training step (forward, backward, AdamW) instead of a forward.", panel=RUN)
    mixed: bool = option(False, "Texts of mixed lengths in a batch, padded; tokens/s counts real ones.", panel=RUN)
    threads: str = option("all", "Threads of the CPU, or all. One thread is measured in CPU time.", panel=RUN)
    device: str = option("cpu", "cpu or cuda.", panel=RUN)
    rounds: int = option(3, "Rounds; the models take turns in each.", panel=RUN)
    with_: str | None = option(
        None, "Peers of the source's size: longformer,bigbird,modernbert.", flag="--with", panel=BESIDE
    )
    source: bool = option(True, "The dense source, its positions stretched, for comparison.", panel=BESIDE)
    conversion: bool = option(True, "What the conversion itself costs, where the source is at hand.", panel=BESIDE)
    against: str | None = option(
        None, "The source's folder, for the cost of the conversion. [default: looked for]", panel=BESIDE
    )
    data: tuple[str, ...] = option(
        (), "Your texts: files, or .jsonl, .csv and .parquet with a row a text. Asks for advice.", panel=ADVICE
    )
    memory: str | None = option(None, "What there is for the model, such as 16G. [default: what is free]", panel=ADVICE)
    lines: bool = option(False, "Each line of a text file is a text.", panel=ADVICE)
    text_column: str = option("text", "Column of the texts in files that have columns.", panel=ADVICE)
    token: str | None = option(None, "Hub token. [default: HF_TOKEN, else the stored login]", panel=HUB)
    offline: bool = option(False, "Open no socket; read the Hub's cache.", panel=HUB)
    trust_remote_code: bool = option(False, "Let code from the Hub run, repos of effconv's too.", panel=DANGER)

    def __post_init__(self) -> None:
        """Raises UsageError with all values that mean nothing."""
        faults = []
        for flag, text, least in (("--lengths", self.lengths, SHORTEST), ("--batch", self.batch, 1)):
            if text is not None and not _numbers(text, least):
                faults.append(
                    f"{flag} is {text!r}: numbers from {least} on, such as {'512,4096' if least > 1 else '1,8'}"
                )
        faults += _unknown("--dtype", self.dtype, DTYPES)
        faults += _unknown("--with", self.with_ or SHAPES[0], SHAPES)
        if self.threads != "all" and not _numbers(self.threads, 1, one=True):
            faults.append(f"--threads is {self.threads!r}: a number, or all")
        if not DEVICE.fullmatch(self.device):
            faults.append(f"--device is {self.device!r}: cpu, cuda or cuda:1")
        if self.rounds < 1:
            faults.append(f"--rounds is {self.rounds}: at least 1")
        if self.mixed and min(_numbers(self.batch, 1) or [2]) < 2:
            faults.append("--mixed needs more than one text: give --batch 8")
        for path in self.plot:
            if Path(path).suffix.lower() not in PLOTS:
                faults.append(f"--plot {path} ends in {Path(path).suffix or 'nothing'}: .png or .svg")
        if not self.data:
            given = (
                ("--memory", self.memory is not None),
                ("--lines", self.lines),
                ("--text-column", self.text_column != "text"),
            )
            faults += [f"{flag} is for advice: name your texts with --data" for flag, there in given if there]
        if self.against is not None and (self.data or not self.conversion):
            faults.append("--against is for the cost of the conversion: leave out --data and --no-conversion")
        if self.against is not None and not Path(self.against).expanduser().is_dir():
            faults.append(
                f"--against is {self.against!r}: the source's folder, which is not there (peers are for --with)"
            )
        if self.data and self.plot:
            faults.append("--plot draws a comparison, and --data asks for advice: give one of them")
        require_sound("bench", faults)
        self.memory_bytes()

    def token_lengths(self) -> list[int] | None:
        """The lengths asked for, ascending, or None."""
        return None if self.lengths is None else sorted(set(_numbers(self.lengths, SHORTEST)))

    def batches(self) -> list[int]:
        return sorted(set(_numbers(self.batch, 1)))

    def dtypes(self) -> list[str]:
        return list(dict.fromkeys(_words(self.dtype)))

    def shapes(self) -> list[str]:
        return list(dict.fromkeys(_words(self.with_ or "")))

    def thread_count(self) -> int:
        """The number of threads."""
        from .machine import cores

        return cores() if self.threads == "all" else int(self.threads)

    def memory_bytes(self) -> int | None:
        """The memory asked for, in bytes, or None.

        Raises:
            UsageError: it is no size.
        """
        return None if self.memory is None else parse_size(self.memory, "--memory", "16G or 500MB")


def bench_options(values: dict[str, Any]) -> BenchOptions:
    """Options by the names of the flags, as Python callers and the command line give them: lists or text."""
    for name in ("lengths", "batch", "dtype", "with_", "threads"):
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            parts = value if isinstance(value, Sequence) else [value]
            values[name] = ",".join(map(str, parts))
    for name, kind in (("plot", Path), ("data", str)):
        value = values.get(name) or ()
        values[name] = tuple(kind(part) for part in ([value] if isinstance(value, (str, Path)) else value))
    return BenchOptions(**values)


def _words(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def _numbers(text: str, least: int, *, one: bool = False) -> list[int]:
    """The numbers, [] where one of them is none."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words) or (one and len(words) > 1):
        return []
    return [int(word) for word in words]


def _unknown(flag: str, text: str, known: Sequence[str]) -> list[str]:
    words = _words(text)
    odd = [word for word in words if word not in known]
    if odd or not words:
        return [f"{flag} is {text!r}: some of {', '.join(known)}"]
    return []
