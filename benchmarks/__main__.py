"""`python -m benchmarks`, which is `make bench`: every bar of the project in one table, with the figures behind it.

    python -m benchmarks [--only SECTION ...] [--threads 1 ...] [--rounds N] [--published FILE] [--quick]
                            [--json FILE] [--markdown FILE]

Ratios come from one run, the forms in turn; one thread in CPU time, all of them in wall time. Whatever is printed while
it runs goes to stdout; the table of bars comes last. Ctrl-C shows the table of what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bars import Section, markdown
from effconv.bench.machine import cores, described, machine
from effconv.convert.errors import EffconvError
from effconv.convert.repo.card_blocks import with_block

SECTIONS = ("startup", "conversion", "layers", "lsg", "bias", "bigs", "mixed", "models", "int8", "export")


def main(arguments: list[str] | None = None) -> int:
    """Prints the machine, each section as it is made, and the table of bars; returns the exit code."""
    asked = _arguments(arguments)
    found: list[tuple[str, Section]] = []
    stopped = False
    print(described(machine()), flush=True)
    try:
        for run, sections in _runs(asked):
            for section in sections():
                found.append((run, section))
                print("\n".join(["", *section.lines()]), flush=True)
    except KeyboardInterrupt:
        stopped = True
    except EffconvError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    table = markdown(found)
    if asked.quick:
        table += "\n\nA quick run: some lengths are shorter than those that the bars are for."
    print(f"\n{table}")
    if asked.markdown:
        write_table(asked.markdown, f"{described(machine())}.\n\n{table}")
    if asked.json:
        described_sections = [{"run": run, **section.described()} for run, section in found]
        report: dict[str, Any] = {"machine": machine(), "sections": described_sections, "interrupted": stopped}
        asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 130 if stopped else 0


def write_table(path: Path, content: str) -> None:
    """Puts the table into the block `effconv:bars` of a Markdown file, or at the end of one that has none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(with_block(text, "bars", content), encoding="utf-8")


def _runs(asked: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Section]]]]:
    """What was asked for, in order: how it is run, and what makes its sections."""
    quick = asked.quick
    rounds, few = (asked.rounds or (3 if quick else 7)), (asked.rounds or (1 if quick else 3))
    if "startup" in asked.only:
        from benchmarks import startup

        yield "whole process", partial(startup.sections, asked.rounds or (5 if quick else 20))
    if "conversion" in asked.only:
        from benchmarks import conversion

        yield (
            "whole process",
            partial(conversion.sections, asked.rounds or 5, ("base",) if quick else ("base", "large")),
        )
    for threads in dict.fromkeys(cores() if number == "all" else int(number) for number in asked.threads):
        run = f"{threads} thread{'s' if threads > 1 else ''}"
        if "layers" in asked.only:
            from benchmarks import layers

            yield run, partial(layers.sections, threads, rounds, 1024 if quick else 4096)
        if "lsg" in asked.only:
            from benchmarks import lsg

            lengths = (1024, 4096) if quick else (1024, 4096, 16384)
            yield run, partial(lsg.sections, threads, few if quick else rounds, lengths, asked.published)
        if "bias" in asked.only:
            from benchmarks import bias

            yield run, partial(bias.sections, threads, few if quick else rounds)
        if "bigs" in asked.only:
            from benchmarks import bigs

            yield run, partial(bigs.sections, threads, rounds, 1024 if quick else 4096)
        if "mixed" in asked.only:
            from benchmarks import mixed

            documents = mixed.LENGTHS if not quick else tuple(length // 4 for length in mixed.LENGTHS)
            yield run, partial(mixed.sections, threads, few, documents)
        if "models" in asked.only:
            from benchmarks import shapes

            yield run, partial(shapes.sections, threads, few, 1024 if quick else 4096)
        if "int8" in asked.only:
            from benchmarks import int8

            yield run, partial(int8.sections, threads, few, (512, 1024) if quick else int8.LENGTHS)
        if "export" in asked.only:
            from benchmarks import export

            yield run, partial(export.sections, threads, few, (512, 1024) if quick else export.LENGTHS)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=f"{SECTIONS}")
    parser.add_argument("--threads", nargs="+", type=_threads, default=["1", "all"], help="numbers, or all")
    parser.add_argument("--rounds", type=int, help="of everything; by default 7 of layers and 3 of models")
    parser.add_argument("--quick", action="store_true", help="shorter lengths and fewer rounds")
    parser.add_argument("--published", type=Path, metavar="FILE", help="lsg_self_attention.py of the published package")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="put the table of bars there, in its block effconv:bars if it has one",
    )
    asked = parser.parse_args(arguments)
    if asked.rounds is not None and asked.rounds < 1:
        parser.error("--rounds is at least 1")
    if asked.published and not asked.published.is_file():
        parser.error(f"--published {asked.published}: no such file")
    return asked


def _threads(text: str) -> str:
    if text != "all" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads")
    return text


if __name__ == "__main__":
    sys.exit(main())
