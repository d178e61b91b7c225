"""Long Range Arena with any target, or a dense control: one command a task.

`python -m benchmarks.lra TASK [--target NAME ...] [--size small|published] [--data FOLDER] [--folder FOLDER]
[--steps N] [--batch N] [--rates R ...] [--layers N] [--rows N] [--seed N]`

TASK is listops, text, retrieval, image or pathfinder. ListOps is generated; the others read --data, the data set as it
was released. A model is made by `effconv new` and trained by the engine of `effconv finetune`. The rate is chosen on
validation examples, and the test examples are looked at once a model. FOLDER keeps data, repos and results, so that a
stopped run goes on; what is there is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from effconv.bench.machine import described, machine
from effconv.convert.errors import EffconvError

from .models import repo_of
from .presets import TARGETS, TASKS, VARIANTS, Size, splits_of
from .training import ERRORS, Outcome, measured


def main(given: Sequence[str] | None = None) -> int:
    """Prints a line for each model, and the table."""
    asked = _arguments(given)
    try:
        with tempfile.TemporaryDirectory(prefix="effconv-lra-") as temporary:
            run(asked, asked.folder or Path(temporary))
    except EffconvError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lra",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--target", nargs="+", choices=(*TARGETS, *VARIANTS), default=list(TARGETS))
    parser.add_argument("--size", choices=("small", "published"), default="small")
    data = "; ".join(f"{name}: {task.data}" for name, task in TASKS.items())
    parser.add_argument("--data", type=Path, help=f"folder of the data set ({data})")
    parser.add_argument("--folder", type=Path, help="keep data, repos and results here")
    for name, kind, says in (
        ("steps", int, "of the training"),
        ("batch", int, "examples a step"),
        ("layers", int, "of the model"),
        ("rows", int, "only so many training examples"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=says)
    parser.add_argument("--rates", nargs="+", type=float, help="of which the best on validation examples is kept")
    parser.add_argument("--no-test", action="store_true", help="leave the test examples alone, while sizes are chosen")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the order")
    asked = parser.parse_args(given)
    if asked.data is None and asked.task != "listops":
        parser.error(f"--data is needed: {TASKS[asked.task].data}")
    return asked


def run(asked: argparse.Namespace, folder: Path) -> None:
    size = size_of(asked)
    folder = folder / f"{asked.task}-{asked.size}"
    folder.mkdir(parents=True, exist_ok=True)
    task, splits = TASKS[asked.task], splits_of(asked.task, size, asked.data, folder, asked.seed)
    splits = dataclasses.replace(splits, train=splits.train.shortened(asked.rows))
    counts = ", ".join(f"{len(getattr(splits, part)):,} {part}" for part in ("train", "valid", "test"))
    print(f"{described(machine())}, {torch.get_num_threads()} threads; {counts}", flush=True)
    results = Results(folder / "results.json")
    found: dict[str, Outcome] = {}
    for target in asked.target:
        key = json.dumps([target, dataclasses.asdict(size), asked.rows, asked.seed, asked.no_test], sort_keys=True)
        if (outcome := results.get(key)) is None:
            with tempfile.TemporaryDirectory(prefix="effconv-lra-") as repos:
                path = repo_of(target, size, splits, Path(repos), asked.seed)
                outcome = measured(path, splits, size, task.pair, asked.seed, test=not asked.no_test)
            results.keep(key, outcome)
        found[target] = outcome
        part = "validation" if asked.no_test else "test"
        said = f"{outcome.accuracy:.3f} on {outcome.count} {part} examples, {outcome.seconds:.0f} s of CPU time"
        print(f"{target}: {said}", flush=True)
    print("\n" + "\n".join(table(found, part)))


def size_of(asked: argparse.Namespace) -> Size:
    """The preset with what was asked for in its place."""
    names = ("steps", "batch", "layers")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    if asked.rates:
        given["rates"] = tuple(asked.rates)
    return dataclasses.replace(TASKS[asked.task].sizes[asked.size], **given)


class Results:
    """Outcomes by what was asked for, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def get(self, key: str) -> Outcome | None:
        return Outcome(**self.found[key]) if key in self.found else None

    def keep(self, key: str, outcome: Outcome) -> None:
        self.found[key] = dataclasses.asdict(outcome)
        written = self.path.with_suffix(".unfinished")
        written.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)


def table(found: Mapping[str, Outcome], part: str = "test") -> list[str]:
    """The results in Markdown."""
    rows = [
        f"| | parameters | rate | validation | {part} | above the majority class | CPU minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, outcome in found.items():
        above = f"{outcome.accuracy - outcome.majority:+.3f}, {outcome.errors:.0f} standard errors"
        missed = "" if outcome.learned else f": not {ERRORS}"
        rows.append(
            f"| {target} | {outcome.parameters:,} | {outcome.rate:g} | {outcome.valid:.3f} | {outcome.accuracy:.3f} | "
            f"{above}{missed} | {outcome.seconds / 60:.1f} |"
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
