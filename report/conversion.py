"""What commands print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..convert.wording import counted

if TYPE_CHECKING:
    from ..convert.families.grammar import Family
    from ..convert.repo.manifest import Measured
    from ..convert.plan import Plan, Row
    from ..convert.run import Result
    from ..convert.target import Target
    from ..hub.push import Pushed
    from ..hub.refresh import Refreshed
    from ..inspection import Inspection

if TYPE_CHECKING:  # they bring torch along
    from ..adapt.results import Adapted
    from ..adapt.trainer import Tick
    from ..bench.advice import Advice, Advised
    from ..bench.run import BenchReport
    from ..bench.whole import Row as Timed

NUMBER = re.compile(r"\.\d+\.")


class Progress:
    """Steps on stderr: a bar in bytes while weights are written, one line a step where there is no terminal."""

    def __init__(self, *, bar: bool = True) -> None:
        """`bar` False leaves the terminal to somebody else's bars."""
        self._wanted = bar
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
                self._task = self._bar.add_task(step, total=total or None)
            self._bar.update(self._task, completed=done)
        elif step != self._step and step != "done":
            with contextlib.suppress(OSError):  # nobody reads stderr any more: no reason to stop
                print(f"{step}: {total:,} bytes" if step == "weights" else step, file=sys.stderr, flush=True)
        self._step = step


class TrainingProgress:
    """A training run on stderr: a bar with losses, score, tokens a second and time left, or a line an evaluation."""

    def __init__(self) -> None:
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


def show_adapted(adapted: Adapted, *, as_json: bool) -> None:
    if as_json:
        return _json(adapted.described())
    console, record = _console(), adapted.record
    console.print(f"[bold]{escape(str(adapted.output))}[/bold]", soft_wrap=True)
    table = Table(title="held-out text, before and after", title_justify="left")
    names = [name for name in record["after"][0] if name not in ("tokens", "texts")]
    for column in (
        "tokens",
        "texts",
        *(f"{name.replace('_', ' ')}, {when}" for name in names for when in ("before", "after")),
    ):
        table.add_column(column, justify="right")
    for before, after in zip(record["before"], record["after"], strict=True):
        cells = [f"{row[name]:.4f}" for name in names for row in (before, after)]
        table.add_row(str(after["tokens"]), str(after["texts"]), *cells)
    console.print(table)
    for finding in adapted.findings:
        console.print(f"[yellow]found:[/yellow] {escape(finding)}", soft_wrap=True)
    if adapted.measured is None:
        console.print("[yellow]not verified[/yellow] (--no-verify)")
    else:
        _checks(console, adapted.measured)
    spent = record["spent"]
    console.print(
        f"{counted(record['steps'], 'step')}, {record['tokens']:,} tokens, {spent['wall_seconds']:,.0f} s "
        f"({spent['cpu_seconds']:,.0f} s of CPU time); the state of step {record['best_step']:,} was kept"
    )
    return None


def show_retrieval(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        return _json(found)
    task = found["task"]
    title = "{documents} documents of {tokens} tokens, {queries} queries of {query_tokens} tokens".format(**task)
    table = Table("documents embedded by", "R@1", "MRR", "over chunk average", title=title, title_justify="left")
    for row in found["rows"]:
        over = f"{row['over_chunk_average']:+.3f} ± {row['over_chunk_average_error']:.3f}"
        known = row["documents"] != "chunk average"
        table.add_row(escape(row["documents"]), f"{row['r@1']:.3f}", f"{row['mrr']:.3f}", over if known else "–")
    _console().print(table)
    _console().print("±: the standard error of the difference in R@1", highlight=False)
    return None


def show_bench(report: BenchReport, *, as_json: bool) -> None:
    if as_json:
        return _json(report.described())
    from ..bench.machine import described
    from ..bench.timing import rounds_in_words

    console, settings = _console(), report.settings
    console.print(escape(described(report.machine)), soft_wrap=True, highlight=False)
    spread = " (least to most)" if settings["rounds"] > 1 else ""
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
        console.print("one round has no spread: give --rounds 3 or more", highlight=False)
    for name, cost in report.conversion.items():
        _conversion_cost(console, name, cost)
    return None


def _clock(settings: Mapping[str, Any]) -> str:
    if settings["device"] != "cpu":
        return f"wall time on {settings['device']}"
    return "CPU time of one thread" if settings["threads"] == 1 else f"wall time, {settings['threads']} threads"


def _timings(console: Console, rows: Sequence[Timed]) -> None:
    table = Table()
    several = len({(row.case.batch, row.case.dtype) for row in rows}) > 1
    for column in ("tokens", *(("batch", "type") if several else ()), "model", "what it is"):
        table.add_column(column, justify="left" if column in ("model", "what it is", "type") else "right")
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
        table.add_row(*cells, row.says, f"{row.tokens_per_second:,.0f}", "–" if row.peak is None else _bytes(row.peak))
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
        return console.print(f"conversion of {escape(name)}: not measured: {escape(cost['why'])}", soft_wrap=True)
    ratio, seconds = cost["ratio"], cost["seconds"]
    console.print(
        f"conversion of {escape(name)} ({_bytes(cost['weights_bytes'])}): {seconds['median']:.2f} s, "
        f"{ratio['median']:.2f} × cp + sync + sha256sum ({ratio['low']:.2f} to {ratio['high']:.2f}), "
        f"peak memory {_bytes(cost['peak_bytes'])}",
        soft_wrap=True,
        highlight=False,
    )
    return None


def show_advice(advice: Advice, *, as_json: bool) -> None:
    if as_json:
        return _json(advice.described())
    from ..bench.choices import PERCENTILES

    console, lengths = _console(), advice.lengths
    quantiles = ", ".join(f"{share} % up to {lengths.percentile(share):,.0f}" for share in PERCENTILES)
    console.print(
        f"{len(lengths.counts):,} {'text' if len(lengths.counts) == 1 else 'texts'}, {lengths.tokens:,} tokens: "
        f"{quantiles}, the longest {lengths.counts.max():,}",
        highlight=False,
        soft_wrap=True,
    )
    cut = Table("cut at", title="what is lost", title_justify="left")
    for column in ("tokens beyond", "texts that are longer"):
        cut.add_column(column, justify="right")
    advised = advice.advised
    length = advised.length if advised else advice.limit
    for size in sorted({advice.limit, length // 2, length, 2 * length}):
        named = {length: " (advised)", advice.limit: " (the source)"}.get(size, "")
        cut.add_row(f"{size:,}{named}", f"{1 - lengths.covered(size):.1%}", f"{lengths.longer(size):.1%}")
    console.print(cut)
    if advised is not None:
        _candidates(console, advised, advice)
    for reason in advice.reasons:
        console.print(escape(reason), highlight=False, soft_wrap=True)
    if advised is not None:
        console.print(f"[bold]{escape(advised.command)}[/bold]", highlight=False, soft_wrap=True)
        texts = "one text" if advised.batch == 1 else f"{advised.batch} texts"
        console.print(f"then run it on {texts} at once", highlight=False)
    return None


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
    for column in ("attention", f"reaches at {length:,}", f"seconds at {length:,}", "memory", "batch", ""):
        table.add_column(column, justify="left" if column in ("attention", "") else "right")
    for probe in advised.probes:
        ours = probe.candidate == advised.chosen.candidate
        shown = advised.chosen if ours else probe
        table.add_row(
            escape(probe.candidate.says(length)),
            f"{probe.candidate.reach(length):,}",
            f"{shown.time(length):.3f}",
            _bytes(round(shown.memory(length))),
            str(batch_for(shown, length, advised.memory) or "–"),
            "[green]advised[/green]" if ours else "",
        )
    console.print(table)


def show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        return _json(plan.described())
    table = Table(title=f"{plan.architecture}: what happens to every tensor", title_justify="left", box=None)
    table.add_column("action")
    table.add_column("tensor", no_wrap=True)
    for column in ("shape", "type", "from, and why"):
        table.add_column(column, overflow="fold")
    for row, count in _alike(plan.rows):
        name = row.target or row.sources[0]
        shown = NUMBER.sub(f".0-{count - 1}.", name, count=1) if count > 1 else name
        origin = [] if row.sources in ((name,), ()) or count > 1 else [", ".join(row.sources)]
        table.add_row(
            row.action,
            escape(shown),
            _shape(row.shape),
            row.dtype,
            escape("; ".join([*origin, row.why] if row.why else origin)),
        )
    console = _console()
    console.print(table)
    counts = ", ".join(f"{count} {action}" for action, count in plan.counts().items())
    console.print(
        f"{counts}; {_bytes(plan.bytes_out)} out, about {_bytes(plan.peak_memory)} of memory, plan {plan.sha256[:12]}"
    )
    return None


def show_result(result: Result, *, as_json: bool) -> None:
    if as_json:
        return _json(result.described())
    console = _console()
    console.print(f"[bold]{escape(str(result.output))}[/bold]", soft_wrap=True)
    counts = ", ".join(f"{count} {action}" for action, count in result.plan.counts().items())
    console.print(f"{result.plan.architecture}: {_bytes(result.plan.bytes_out)} of weights ({counts})")
    for finding in result.findings:
        console.print(f"[yellow]found:[/yellow] {escape(finding)}")
    if result.measured is None:
        console.print("[yellow]not verified[/yellow] (--no-verify)")
    else:
        _checks(console, result.measured)
    rows = result.manifest["measurements"].get("fidelity", [])
    _fidelity(console, rows, "close to the source, untrained, on the built-in text")
    console.print(
        f"converted in {result.seconds['convert']:.1f} s"
        + (f", verified in {result.seconds['verify']:.1f} s" if "verify" in result.seconds else "")
    )
    return None if result.pushed is None else show_push(result.pushed, as_json=False)


def show_checks(measured: Sequence[Measured], *, as_json: bool) -> None:
    if as_json:
        return _json([asdict(result) for result in measured])
    console = _console()
    console.print("all files are what the manifest says")
    _checks(console, measured)
    return None


def show_fidelity(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return _json(list(rows))
    _fidelity(_console(), rows, "close to the source")
    return None


def show_push(pushed: Pushed, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        return _json(pushed.described())
    if quiet:
        return print(pushed.url)
    console, changes = _console(), pushed.changes
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = [("added", file) for file in changes.added] + [("changed", file) for file in changes.changed]
    for what, file in rows:
        table.add_row(what, escape(file.name), _size(file.size))
    for name in changes.removed:
        table.add_row("removed", escape(name), "")
    if pushed.dry_run:
        for file in changes.left:
            table.add_row("left alone", escape(file.name), _size(file.size))
    elif changes.left:
        table.add_row("left alone", f"{len(changes.left)} files", _size(sum(file.size for file in changes.left)))
    console.print(table)
    for note in pushed.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    if pushed.dry_run:
        console.print("dry run: nothing was sent" if changes else "dry run: nothing to do")
    elif not changes:
        console.print("nothing to do: the Hub has all of it")
    console.print(pushed.url, soft_wrap=True, highlight=False)
    if pushed.commit:
        console.print(
            f'at commit {pushed.commit} (load it with revision="{pushed.commit}")', soft_wrap=True, highlight=False
        )
    return None


def show_refreshed(refreshed: Refreshed, *, as_json: bool, quiet: bool = False) -> None:
    if as_json:
        return _json(refreshed.described())
    console = _console()
    if not quiet:
        for name in refreshed.changed:
            console.print(f"rewritten  {escape(name)}", highlight=False)
        for name in refreshed.removed:
            console.print(f"removed    {escape(name)}", highlight=False)
        if refreshed.measured is not None:
            _checks(console, refreshed.measured)
        for note in refreshed.notes:
            console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
        if not refreshed.changed:
            console.print("nothing to do: it is as today's effconv writes it")
    if refreshed.output:
        console.print(escape(str(refreshed.output)), soft_wrap=True, highlight=False)
    if refreshed.pushed:
        show_push(refreshed.pushed, as_json=False, quiet=quiet)
    return None


def show_inspection(found: Inspection, targets: Mapping[str, Target], *, as_json: bool) -> None:
    if as_json:
        return _json(found.described())
    console = _console()
    table = Table(show_header=False, box=None)
    types = ", ".join(f"{name} ({count:,})" for name, count in found.dtypes.items())
    rows = {
        "source": found.name + (f" at {found.commit}" if found.commit else ""),
        "family": found.family,
        "architecture": (found.architecture or "not named")
        + (" (sentence-transformers)" if found.sentence_transformers else ""),
        "head": found.head or "–",
        "parameters": f"{found.parameters:,} in {found.tensors} tensors, {_bytes(found.bytes)}",
        "dtype": types,
        "tokens": f"{found.max_length:,}" if found.max_length else "–",
        "can become": ", ".join(targets[name].asked_for for name in found.becomes) or f"nothing: {found.why_not}",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    return None


def show_targets(targets: Iterable[Target], *, as_json: bool) -> None:
    rows = [
        {
            "name": target.name,
            "command": f"effconv {target.asked_for}",
            "says": target.says,
            "families": list(target.families),
        }
        for target in targets
    ]
    if as_json:
        return _json(rows)
    table = Table("target", "command", "what it is", "families")
    for row in rows:
        table.add_row(str(row["name"]), str(row["command"]), escape(str(row["says"])), ", ".join(row["families"]))
    _console().print(table)
    return None


def show_families(families: Iterable[Family], targets: Iterable[Target], *, as_json: bool) -> None:
    targets = list(targets)
    rows = [
        {
            "name": family.name,
            "heads": [head.suffix for head in family.heads],
            "becomes": [target.name for target in targets if family.name in target.families],
        }
        for family in families
    ]
    if as_json:
        return _json(rows)
    commands = {target.name: target.asked_for for target in targets}
    table = Table("family", "heads", "can become")
    for row in rows:
        becomes = ", ".join(commands[name] for name in row["becomes"])
        table.add_row(str(row["name"]), ", ".join(row["heads"]), becomes)
    _console().print(table)
    return None


def _checks(console: Console, measured: Sequence[Measured]) -> None:
    for result in measured:
        mark = {True: "[green]holds[/green]", False: "[red]fails[/red]", None: "[dim]–[/dim]"}[result.passed]
        figure = f" (differs by {result.value:.1e}, at most {result.tolerance:g})" if result.value is not None else ""
        why = f" ({result.why})" if result.why else ""
        console.print(f"{mark}  {escape(result.says + figure + why)}", soft_wrap=True)


def _fidelity(console: Console, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    names = [name for name in rows[0] if name not in ("tokens", "texts", "layer_error")]
    for column in ("tokens", "texts", *names, "error after each layer"):
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        layers = " ".join(f"{error:.2f}" for error in row["layer_error"][1:])
        table.add_row(str(row["tokens"]), str(row["texts"]), *(f"{row[name]:.4f}" for name in names), layers)
    console.print(table)


def _alike(rows: Iterable[Row]) -> list[tuple[Row, int]]:
    """Rows that differ in the layer only, as one row and their count, in the order of the first of each."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        name = row.target or row.sources[0]
        key = (row.action, NUMBER.sub(".#.", name, count=1), _shape(row.shape), row.dtype, row.why)
        found.setdefault(key, []).append(row)
    return [(group[0], len(group)) for group in found.values()]


def _console() -> Console:
    """stdout; where it is no terminal, wide enough that names stay in one piece."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _size(count: int) -> str:
    return _bytes(count) if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _json(value: object) -> None:
    print(json.dumps(value, indent=2))  # ASCII: whatever stdout's encoding is
