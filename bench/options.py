"""Options of `effconv bench`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.options import option, parse_size, require_sound

RUN, BESIDE, TEXTS, HUB = "Workload", "Comparisons", "Your texts: advice and cost", "Hub"
DANGER = "Dangerous: only for sources you trust"
SHAPES = ("longformer", "bigbird", "modernbert")
ALL, INT8 = "all", "int8"
DTYPES = ("float32", "bfloat16", "float16", INT8, ALL)
PLOTS = (".png", ".svg")
SHORTEST = 8  # tokens
DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of `effconv bench`."""

    plot: tuple[Path, ...] = option((), "Plot to FILE.png or FILE.svg, can be repeated.")
    lengths: str | None = option(
        None, "Input lengths in tokens. [default: 512,1024,2048,4096, up to the longest that a model takes]", panel=RUN
    )
    batch: str = option("1", "Batch sizes, such as 1,8.", panel=RUN)
    dtype: str = option(
        "float32", "Data types, such as float32,bfloat16,int8 (dense layers), or all that run fast here.", panel=RUN
    )
    train: bool = option(False, "Measure a training step (forward, backward, AdamW) instead of a forward.", panel=RUN)
    mixed: bool = option(False, "Mix text lengths in a batch, with padding. tokens/s excludes padding.", panel=RUN)
    threads: str = option("all", "CPU threads, or all. With 1, CPU time is measured instead of wall time.", panel=RUN)
    device: str = option("cpu", "Device: cpu, cuda or cuda:1.", panel=RUN)
    rounds: int = option(3, "Measurement rounds. Models run in turn in each round.", panel=RUN)
    with_: str | None = option(
        None,
        "Other efficient models of the same size to compare: longformer,bigbird,modernbert.",
        flag="--with",
        panel=BESIDE,
    )
    source: bool = option(True, "Also measure the dense source, with extended positions.", panel=BESIDE)
    conversion: bool = option(
        True, "Also measure time and memory of the conversion, if the source is on this machine.", panel=BESIDE
    )
    against: str | None = option(
        None, "Folder of the source, to measure the conversion. [default: Hub cache, or next to the repo]", panel=BESIDE
    )
    data: tuple[str, ...] = option(
        (),
        "Your texts: text, .jsonl, .csv or .parquet files. With one model, prints advice instead of a comparison.",
        panel=TEXTS,
    )
    advice: bool = option(True, "With --data and one model: recommend LSG options. Off: compare.", panel=TEXTS)
    price_per_hour: float | None = option(
        None, "Price of this machine for an hour, such as 0.20, in any currency. Adds prices to costs.", panel=TEXTS
    )
    memory: str | None = option(None, "Memory available to the model, such as 16G. [default: free memory]", panel=TEXTS)
    lines: bool = option(False, "Treat each line of a text file as one text.", panel=TEXTS)
    text_column: str = option("text", "Column with the text in .jsonl, .csv and .parquet files.", panel=TEXTS)
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel=HUB)
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel=HUB)
    trust_remote_code: bool = option(
        False, "Allow Python code from the Hub to run, also of converted repos.", panel=DANGER
    )

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        for flag, text, least in (("--lengths", self.lengths, SHORTEST), ("--batch", self.batch, 1)):
            if text is not None and not _numbers(text, least):
                example = "512,4096" if least > 1 else "1,8"
                faults.append(f"{flag} must be numbers of at least {least}, such as {example}, got {text!r}")
        faults += _unknown("--dtype", self.dtype, DTYPES)
        faults += _unknown("--with", self.with_ or SHAPES[0], SHAPES)
        if self.threads != "all" and not _numbers(self.threads, 1, one=True):
            faults.append(f"--threads must be a positive integer or all, got {self.threads!r}")
        if not DEVICE.fullmatch(self.device):
            faults.append(f"--device must be cpu, cuda or cuda:N, got {self.device!r}")
        if self.rounds < 1:
            faults.append(f"--rounds must be at least 1, got {self.rounds}")
        if INT8 in _words(self.dtype) and (self.train or self.device != "cpu"):
            faults.append("--dtype int8 is for inference on the CPU: leave out --train and --device")
        if self.mixed and min(_numbers(self.batch, 1) or [2]) < 2:
            faults.append("--mixed needs batches of at least 2 texts, such as --batch 8")
        for path in self.plot:
            if Path(path).suffix.lower() not in PLOTS:
                faults.append(f"--plot must end in .png or .svg, got {path}")
        if not self.data:
            given = (
                ("--memory", self.memory is not None),
                ("--lines", self.lines),
                ("--text-column", self.text_column != "text"),
            )
            faults += [f"{flag} applies only with --data" for flag, there in given if there]
        if not self.advice and not self.data:
            faults.append("--no-advice applies only with --data")
        if not self.advice and self.memory is not None:
            faults.append("--memory applies only to advice, which --no-advice turns off")
        if self.data and self.mixed:
            faults.append("--mixed and --data exclude each other: the texts have lengths of their own")
        if self.price_per_hour is not None and not 0 < self.price_per_hour < math.inf:
            faults.append(f"--price-per-hour must be a positive number, got {self.price_per_hour}")
        if self.against is not None and (self.data or not self.conversion):
            faults.append("--against measures the conversion, which --data and --no-conversion turn off")
        if self.against is not None and not Path(self.against).expanduser().is_dir():
            faults.append(f"--against must be the folder of the source, got {self.against!r} (other models: --with)")
        if self.data and self.plot and self.advice:
            faults.append("--plot and advice exclude each other: add --no-advice, or leave out --plot")
        require_sound("bench", faults)
        self.memory_bytes()

    def token_lengths(self) -> list[int] | None:
        """The requested lengths, ascending, or None."""
        return None if self.lengths is None else sorted(set(_numbers(self.lengths, SHORTEST)))

    def batches(self) -> list[int]:
        return sorted(set(_numbers(self.batch, 1)))

    def dtypes(self) -> list[str]:
        """What is asked for, each once.

        Raises:
            UnsupportedError: 8 bits, where torch has no 8-bit layers for the processor.
        """
        words = _words(self.dtype)
        if ALL in words:
            from .precisions import quick

            words = [word for word in words if word != ALL] + quick(self.device, self.train)
        elif INT8 in words:
            from ..eight_bits import require_int8

            require_int8()
        return list(dict.fromkeys(words))

    def shapes(self) -> list[str]:
        return list(dict.fromkeys(_words(self.with_ or "")))

    def thread_count(self) -> int:
        """The number of threads."""
        from .machine import cores

        return cores() if self.threads == "all" else int(self.threads)

    def memory_bytes(self) -> int | None:
        """The requested memory in bytes, or None.

        Raises:
            UsageError: it is not a size.
        """
        return None if self.memory is None else parse_size(self.memory, "--memory", "16G or 500MB")


def bench_options(values: dict[str, Any]) -> BenchOptions:
    """Options from keyword arguments, whose values may be lists or text."""
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
    """The numbers, or [] if one of them is not a number."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words) or (one and len(words) > 1):
        return []
    return [int(word) for word in words]


def _unknown(flag: str, text: str, known: Sequence[str]) -> list[str]:
    words = _words(text)
    odd = [word for word in words if word not in known]
    if odd or not words:
        return [f"{flag} must be some of {', '.join(known)}, got {text!r}"]
    return []
