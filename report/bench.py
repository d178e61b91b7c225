"""Prints the results of `effconv bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .console import bytes_text, new_console, print_json
from .costs import print_costs

if TYPE_CHECKING:
    from ..bench.advice import Advice
    from ..bench.choices import Advised, Lengths
    from ..bench.run import BenchReport
    from ..bench.whole import Row as Timed


def show_bench(report: BenchReport, *, as_json: bool) -> None:
    if as_json:
        return print_json(report.described())
    from ..bench.machine import described
    from ..bench.timing import rounds_in_words

    console, settings = new_console(), report.settings
    console.print(escape(described(report.machine)), soft_wrap=True, highlight=False)
    if report.texts is not None:
        print_lengths(console, report.texts)
    spread = " (minimum to maximum)" if settings["rounds"] > 1 else ""
    console.print(f"{settings['run']}, {_clock(settings)}, {rounds_in_words(settings['rounds'])}{spread}")
    _timings(console, report.rows)
    console.print()
    for found in report.fastest:
        says = f"{_case(found.case, report.rows)}: {found.says}"
        console.print(escape(says), highlight=False, soft_wrap=True)
    for crossing in report.crossovers:
        several = len({(c.case.batch, c.case.dtype) for c in report.crossovers}) > 1
        kind = f" (batch {crossing.case.batch}, {crossing.case.dtype})" if several else ""
        console.print(escape(crossing.says + kind), highlight=False, soft_wrap=True)
    if report.undecided:
        console.print("One round has no spread. Give --rounds 3 or more.", highlight=False)
    for name, cost in report.conversion.items():
        _conversion_cost(console, name, cost)
    print_costs(console, report.costs, settings, report.machine["cores"])
    return None


def _clock(settings: Mapping[str, Any]) -> str:
    if settings["device"] != "cpu":
        return f"wall time on {settings['device']}"
    return "CPU time of one thread" if settings["threads"] == 1 else f"wall time, {settings['threads']} threads"


def _timings(console: Console, rows: Sequence[Timed]) -> None:
    table = Table()
    several = len({(row.case.batch, row.case.dtype) for row in rows}) > 1
    for column in ("tokens", *(("batch", "type") if several else ()), "model", "description"):
        table.add_column(column, justify="left" if column in ("model", "description", "type") else "right")
    for column in ("seconds", "tokens/s", "peak memory"):
        table.add_column(column, justify="right")
    length = None
    for row in rows:
        if length not in (None, row.case.length):
            table.add_section()
        length = row.case.length
        cells = [f"{length:,}", *((str(row.case.batch), row.case.dtype) if several else ())]
        cells += [escape(row.model), escape(row.what)]
        if row.spread is None:
            table.add_row(*cells, f"[yellow]{escape(row.says)}[/yellow]", "–", "–")
            continue
        table.add_row(
            *cells, row.says, f"{row.tokens_per_second:,.0f}", "–" if row.peak is None else bytes_text(row.peak)
        )
    console.print(table)


def _case(case: Any, rows: Sequence[Timed]) -> str:
    """A case in words: what of it varies."""
    words = [f"{case.length:,} tokens"]
    if len({row.case.batch for row in rows}) > 1:
        words.append(f"batch {case.batch}")
    if len({row.case.dtype for row in rows}) > 1:
        words.append(case.dtype)
    return ", ".join(words)


def _conversion_cost(console: Console, name: str, cost: Mapping[str, Any]) -> None:
    if "why" in cost:
        return console.print(f"conversion of {escape(name)} not measured: {escape(cost['why'])}", soft_wrap=True)
    ratio, seconds = cost["ratio"], cost["seconds"]
    console.print(
        f"conversion of {escape(name)} ({bytes_text(cost['weights_bytes'])}): {seconds['median']:.2f} s, "
        f"{ratio['median']:.2f} × cp + sync + sha256sum ({ratio['low']:.2f} to {ratio['high']:.2f}), "
        f"peak memory {bytes_text(cost['peak_bytes'])}",
        soft_wrap=True,
        highlight=False,
    )
    return None


def show_advice(advice: Advice, *, as_json: bool) -> None:
    if as_json:
        return print_json(advice.described())
    console, lengths = new_console(), advice.lengths
    print_lengths(console, lengths)
    cut = Table("truncated to", title="tokens lost by truncation", title_justify="left")
    for column in ("tokens lost", "longer texts"):
        cut.add_column(column, justify="right")
    advised = advice.advised
    length = advised.length if advised else advice.limit
    for size in sorted({advice.limit, length // 2, length, 2 * length}):
        named = {length: " (advised)", advice.limit: " (source)"}.get(size, "")
        cut.add_row(f"{size:,}{named}", f"{1 - lengths.covered(size):.1%}", f"{lengths.longer(size):.1%}")
    console.print(cut)
    if advised is not None:
        _candidates(console, advised, advice)
    for reason in advice.reasons:
        console.print(escape(reason), highlight=False, soft_wrap=True)
    if advised is not None:
        console.print(f"[bold]{escape(advised.command)}[/bold]", highlight=False, soft_wrap=True)
        texts = "one text" if advised.batch == 1 else f"{advised.batch} texts"
        console.print(f"Then run it with batches of {texts}.", highlight=False)
        print_costs(console, advice.costs, advice.settings, advice.machine["cores"])
    return None


def print_lengths(console: Console, lengths: Lengths) -> None:
    """How many texts there are, and how long."""
    from ..bench.choices import PERCENTILES

    quantiles = ", ".join(f"{share}% up to {lengths.percentile(share):,.0f}" for share in PERCENTILES)
    console.print(
        f"{len(lengths.counts):,} {'text' if len(lengths.counts) == 1 else 'texts'}, {lengths.tokens:,} tokens: "
        f"{quantiles}, the longest {lengths.counts.max():,}",
        highlight=False,
        soft_wrap=True,
    )


def _candidates(console: Console, advised: Advised, advice: Advice) -> None:
    from ..bench.choices import batch_for
    from ..bench.machine import described
    from ..bench.timing import rounds_in_words

    console.print(escape(described(advice.machine)), soft_wrap=True, highlight=False)
    settings, length = advice.settings, advised.length
    measured = " and ".join(f"{size:,}" for size in advised.chosen.lengths)
    how = f"{_clock(settings)}, {rounds_in_words(settings['rounds'])}"
    table = Table(
        title=f"one text, {settings['dtype']}, {settings['run']}, {how}; measured at {measured} tokens",
        title_justify="left",
    )
    for column in ("attention", f"reach at {length:,}", f"seconds at {length:,}", "memory", "batch", ""):
        table.add_column(column, justify="left" if column in ("attention", "") else "right")
    for probe in advised.probes:
        ours = probe.candidate == advised.chosen.candidate
        shown = advised.chosen if ours else probe
        table.add_row(
            escape(probe.candidate.says(length)),
            f"{probe.candidate.reach(length):,}",
            f"{shown.time(length):.3f}",
            bytes_text(round(shown.memory(length))),
            str(batch_for(shown, length, advised.memory) or "–"),
            "[green]advised[/green]" if ours else "",
        )
    console.print(table)
