"""A report as a picture, PNG or SVG, by matplotlib."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.errors import OutputError, UsageError
from ..convert.io.staging import check_writable
from .whole import Row

if TYPE_CHECKING:
    from .run import BenchReport

# Colours that people with any kind of colour vision tell apart (Okabe and Ito), the darker ones of them first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#E69F00", "#6B6B6B")
MARKS = "osD^vPX*"


@dataclass(frozen=True, slots=True)
class Line:
    """One model's values over length.

    Attributes:
        index: of the model, which keeps its colour in every chart. points: (tokens, value), ascending.
    """

    name: str
    index: int
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines of one kind of run over a logarithmic axis of lengths; values on one too, or from 0 on where `linear`."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    linear: bool = False


def charts(rows: Sequence[Row]) -> list[Chart]:
    """Seconds, and where it is known the memory beyond the loaded model, of every batch and dtype.

    What a process holds before it runs anything (Python, torch, the weights) is in the table: in a chart, it would hide
    in what models differ.
    """
    names = list(dict.fromkeys(row.model for row in rows))
    kinds = list(dict.fromkeys((row.case.batch, row.case.dtype) for row in rows))
    found = []
    for batch, dtype in kinds:
        own = [row for row in rows if (row.case.batch, row.case.dtype) == (batch, dtype) and row.spread]
        if not own:
            continue
        kind = f"batch {batch}, {dtype}"
        clock = "CPU seconds of one thread" if own[0].clock == "cpu" else "seconds"
        what = "training step" if own[0].case.train else "forward"
        found.append(
            Chart(f"{what}, {kind}", clock, _lines(names, own, [row.spread.median for row in own if row.spread]))
        )
        known = [(row, row.working) for row in own if row.working is not None]
        if known:
            unit, size = ("GB", 1e9) if max(working for _, working in known) >= 1e9 else ("MB", 1e6)
            lines = _lines(names, [row for row, _ in known], [working / size for _, working in known])
            found.append(Chart(f"memory of a {what}, {kind}", f"peak {unit} beyond the loaded model", lines, True))
    return found


def require_drawable(paths: Iterable[Path]) -> None:
    """Raises before anything is measured: matplotlib is missing, or there is no such folder."""
    for path in paths:
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError(
                "the package matplotlib is not installed", where=f"--plot {path}", hint="pip install 'effconv[adapt]'"
            )
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise OutputError("no such folder", where=f"--plot {path}", hint="give a file in an existing folder")
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise OutputError("no permission to write this file", where=f"--plot {path}", hint="give another file name")
        check_writable(path, "--plot")


def draw(path: Path, report: BenchReport) -> None:
    """Writes the picture.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib

    try:
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be searched, not outlines
            _figure(report).savefig(path, format=path.suffix.lower().removeprefix("."))
    except OSError as error:
        raise OutputError(f"cannot write the plot ({error})", where=str(path), hint="give another file name") from None


def _lines(names: Sequence[str], rows: Sequence[Row], values: Sequence[float]) -> tuple[Line, ...]:
    found = []
    for index, name in enumerate(names):
        points = sorted((row.case.length, value) for row, value in zip(rows, values, strict=True) if row.model == name)
        if points:
            found.append(Line(name, index, tuple(points)))
    return tuple(found)


def _figure(report: BenchReport) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    drawn = charts(report.rows) or [Chart("nothing was measured", "", ())]
    figure = Figure(figsize=(5.5 * min(2, len(drawn)), 4 * -(-len(drawn) // 2)), layout="constrained", dpi=150)
    figure.suptitle(report.machine["processor"], fontsize=9, color="#555")
    places = figure.subplots(-(-len(drawn) // 2), min(2, len(drawn)), squeeze=False).flatten()
    for place in places[len(drawn) :]:
        place.set_visible(False)
    for chart, place in zip(drawn, places, strict=False):
        for line in chart.lines:
            style = {"color": COLOURS[line.index % len(COLOURS)], "marker": MARKS[line.index % len(MARKS)]}
            place.plot(*zip(*line.points, strict=True), label=line.name, linewidth=1.5, markersize=4, **style)
        place.set(title=chart.title, xlabel="tokens", ylabel=chart.unit)
        place.grid(alpha=0.25, linewidth=0.5)
        place.spines[["top", "right"]].set_visible(False)
        if chart.lines:
            lengths = sorted({length for line in chart.lines for length, _ in line.points})
            place.set(xscale="log", yscale="linear" if chart.linear else "log")
            place.set_xticks(lengths, [f"{length:,}" for length in lengths])
            place.yaxis.set_major_locator(MaxNLocator(5) if chart.linear else LogLocator(subs=(1, 2, 5)))
            place.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            for axis in (place.xaxis, place.yaxis):
                axis.set_minor_locator(NullLocator())
            if chart.linear:
                place.set_ylim(bottom=0)
            place.tick_params(labelsize=7)
            place.legend(fontsize=7, frameon=False)
    return figure
