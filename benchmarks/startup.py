"""How long `effconv --help` takes: wall time of whole processes, in turn with an empty one and with imports alone.

`import typer, rich` is there for reference: what a command line of these libraries cannot do without, or could.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.bars import Bar, Section
from effconv.bench.timing import Spread

HELP = "effconv --help"
FORMS = {
    "python -c pass": ["-c", "pass"],
    "import typer, rich": ["-c", "import typer, rich"],
    HELP: ["-m", "effconv.cli", "--help"],
    "effconv lsg --help": ["-m", "effconv.cli", "lsg", "--help"],
}
BAR = 0.3  # seconds


def sections(rounds: int) -> Iterator[Section]:
    """Wall milliseconds of each form in every round, all forms in turn; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(rounds + 1):
        for name, words in FORMS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if number:
                found[name].append(1000 * (time.perf_counter() - begin))
    seconds = Spread.of(found[HELP]).scaled(1e-3)
    bar = Bar("`effconv --help`", seconds, BAR, at_most=True, unit="s")
    yield Section("Start of the command line, whole processes, wall ms", found, [bar])
