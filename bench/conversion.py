"""A whole conversion against what it cannot avoid: `cp`, `sync` and `sha256sum` of the same weights.

Wall time of whole processes in turn, medians and spread; peak memory of the conversion. Verify is not counted: it runs
the models. `make bench` makes a random checkpoint of BERT's size; `effconv bench` measures a model's own source.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from .timing import Spread, ratio

# A process's peak memory counts what its parent held when it was started: hence a small process between.
WATCH = """
import os, subprocess, sys, time
begin = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
status, usage = os.wait4(process.pid, 0)[1:]
print(time.monotonic() - begin, usage.ru_maxrss)
sys.exit(bool(status))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a conversion took: wall seconds of every round, ours and that of the copy, and peak memory in bytes."""

    bytes: int
    seconds: list[float]
    copy_seconds: list[float]
    peak_bytes: int

    @property
    def ratio(self) -> Spread:
        return ratio(self.seconds, self.copy_seconds)

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "weights_bytes": self.bytes,
            "seconds": Spread.of(self.seconds)._asdict(),
            "cp_sync_sha256sum_seconds": Spread.of(self.copy_seconds)._asdict(),
            "ratio": self.ratio._asdict(),
            "peak_bytes": self.peak_bytes,
        }


def measure(source: Path, weights: Sequence[Path], command: Sequence[str], runs: int, folder: Path) -> Cost:
    """The cost of `effconv COMMAND[0] SOURCE COMMAND[1:]`, after a warm-up of both.

    Args:
        weights: the files that the comparison copies, one after the other. folder: where outputs go, and are removed.
    """
    name, *options = command
    ours = [sys.executable, "-m", "effconv.cli", name, str(source), "-o", str(folder / "out"), "--no-verify", *options]
    copies = [(shlex.quote(str(path)), shlex.quote(str(folder / f"copy-{i}"))) for i, path in enumerate(weights)]
    plain = " && ".join(f"cp {path} {copy} && sync {copy} && sha256sum {copy}" for path, copy in copies)
    seconds, copied, peaks = [], [], []
    for turn in range(runs + 1):
        taken, peak = _run(ours)
        begin = time.monotonic()
        subprocess.run(["sh", "-c", plain], check=True, capture_output=True)
        end = time.monotonic()
        shutil.rmtree(folder / "out")
        for i in range(len(weights)):
            (folder / f"copy-{i}").unlink()
        if turn:  # the first one warms up
            seconds.append(taken)
            copied.append(end - begin)
            peaks.append(peak)
    return Cost(sum(path.stat().st_size for path in weights), seconds, copied, max(peaks))


def _run(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident memory, in bytes, of a command that must succeed."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", WATCH, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, errors = process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # a conversion cleans up after itself
        process.wait()
        raise
    if process.returncode:
        reason = errors.strip().splitlines() or ["no reason given"]
        raise BadInputError(
            f"the conversion failed: {reason[0].removeprefix('error: ')}",
            where=shlex.join(command[3:]),
            hint="run that command alone to see the error",
        )
    seconds, peak = said.split()
    return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)
