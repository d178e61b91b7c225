"""How long `effconv --help` takes: wall time of whole processes, in turn with an empty one and with imports alone.

`python -m effconv.bench.startup` prints the median of twenty with the spread. `import typer, rich` is there for
reference: what a command line of these libraries cannot do without, or could.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 20
FORMS = {
    "python -c pass": ["-c", "pass"],
    "import typer, rich": ["-c", "import typer, rich"],
    "effconv --help": ["-m", "effconv.cli", "--help"],
    "effconv lsg --help": ["-m", "effconv.cli", "lsg", "--help"],
}


def measure(runs: int = RUNS) -> dict[str, list[float]]:
    """Wall milliseconds of each form in every round, all forms in turn; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in FORMS}
    for number in range(runs + 1):
        for name, words in FORMS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if number:
                found[name].append(1000 * (time.perf_counter() - begin))
    return found


def main() -> None:
    """Prints one line a form."""
    for name, times in measure().items():
        print(f"{name}: {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})")


if __name__ == "__main__":
    main()
