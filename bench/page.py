"""A report as one HTML file: charts as inline SVG, every figure in a table; nothing is fetched, light and dark."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from .machine import described
from .picture import COLOURS, Chart, Line, charts
from .timing import rounds_in_words

if TYPE_CHECKING:
    from .run import BenchReport
    from .whole import Row

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
DARK = ("#56B4E9", "#FF8C42", "#2FCB9B", "#E79BC4", "#D9B93B", "#A6D8F5", "#F2B84B", "#A8A8A8")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #666; --line: #ddd; --ground: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a0a0a0; --line: #3a3a3a; --ground: #161616; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.soft { color: var(--soft); margin: .2rem 0 1.5rem; }
.charts { display: flex; flex-wrap: wrap; gap: 2rem; } figure { margin: 0; flex: 1 1 26rem; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .axis { fill: var(--soft); }
svg path { fill: none; stroke-width: 2; } svg circle { stroke: var(--ground); stroke-width: 1; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 1.5rem; list-style: none; }
.key b { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .4rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } td.name, th.name { text-align: left; } td.failed { color: var(--soft); }
td.best { font-weight: 600; }
"""


def page(report: BenchReport) -> str:
    """The whole file."""
    names = list(dict.fromkeys(row.model for row in report.rows))
    settings = report.settings
    clock = "CPU time of one thread" if settings["threads"] == 1 else f"wall time, {settings['threads']} threads"
    how = f"{settings['run']}, {clock if settings['device'] == 'cpu' else settings['device']}, "
    how += rounds_in_words(settings["rounds"])
    says = [crossing.says for crossing in report.crossovers]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>effconv bench</title>',
        f"<style>{STYLE}{_colours(len(names))}</style></head><body>",
        "<h1>effconv bench</h1>",
        f'<p class="soft">{escape(described(report.machine))}<br>{escape(how)}</p>',
        *(f"<p>{escape(sentence)}.</p>" for sentence in says),
        '<ul class="key">',
        *(f'<li><b class="fill{i}"></b>{escape(name)}</li>' for i, name in enumerate(names)),
        "</ul>",
        '<div class="charts">',
        *(_figure(chart) for chart in charts(report.rows)),
        "</div>",
        _table(report),
        *(_conversion(name, cost) for name, cost in report.conversion.items()),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _colours(count: int) -> str:
    def rules(colours: tuple[str, ...]) -> str:
        return "".join(
            f".line{i}{{stroke:{colour}}} svg .fill{i}{{fill:{colour}}} b.fill{i}{{background:{colour}}} "
            for i, colour in ((i, colours[i % len(colours)]) for i in range(count))
        )

    return f"{rules(COLOURS)}\n@media (prefers-color-scheme: dark) {{ {rules(DARK)} }}\n"


def _figure(chart: Chart) -> str:
    points = [point for line in chart.lines for point in line.points]
    lengths = sorted({length for length, _ in points})
    marks = chart.ticks()

    def x(length: float) -> float:
        low, high = math.log(lengths[0]), math.log(lengths[-1])
        share = (math.log(length) - low) / (high - low) if high > low else 0.5
        return round(LEFT + 12 + share * (WIDTH - LEFT - RIGHT - 24), 1)

    def y(value: float) -> float:
        low, high, at = (value if chart.linear else math.log(value) for value in (marks[0], marks[-1], value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f"<figure><h2>{escape(chart.title)}</h2>",
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)} by length">',
    ]
    for mark in marks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark)}" y2="{y(mark)}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 8}" y="{y(mark) + 4}" text-anchor="end">{mark:,g}</text>')
    for length in lengths:
        at = f'x="{x(length)}" y="{HEIGHT - BOTTOM + 16}"'
        parts.append(f'<text class="axis" {at} text-anchor="middle">{length:,}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.unit)}</text>"
    )
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">tokens</text>')
    for line in chart.lines:
        parts += _drawn(line, [(x(length), y(value)) for length, value in line.points], chart.unit)
    return "\n".join([*parts, "</svg></figure>"])


def _drawn(line: Line, places: list[tuple[float, float]], unit: str) -> list[str]:
    path = " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(places))
    dots = [
        f'<circle class="fill{line.index}" cx="{x}" cy="{y}" r="4">'
        f"<title>{escape(line.name)}, {length:,} tokens: {value:.3g} {unit}</title></circle>"
        for (x, y), (length, value) in zip(places, line.points, strict=True)
    ]
    return [f'<path class="line{line.index}" d="{path}"/>', *dots]


def _table(report: BenchReport) -> str:
    best = [(found.case, found.model) for found in report.fastest if found.clear is not None]
    head = ["tokens", "batch", "type", "model", "what it is", "seconds", "tokens/s", "peak memory"]
    named = [' class="name"' if name in ("model", "what it is") else "" for name in head]
    cells = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(named, head, strict=True))
    rows = [f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>']
    rows += [_row(row, (row.case, row.model) in best) for row in report.rows]
    return "\n".join([*rows, "</tbody></table></div>"])


def _row(row: Row, wins: bool) -> str:
    case = row.case
    begin = f"<td>{case.length:,}</td><td>{case.batch}</td><td>{case.dtype}</td>"
    begin += f'<td class="name">{escape(row.model)}</td><td class="name">{escape(row.what)}</td>'
    if row.spread is None:
        return f'<tr>{begin}<td class="failed" colspan="3">{escape(row.says)}</td></tr>'
    peak = "–" if row.peak is None else f"{row.peak / 1e9:.2f} GB"
    kind = ' class="best"' if wins else ""
    return f"<tr>{begin}<td{kind}>{row.says}</td><td>{row.tokens_per_second:,.0f}</td><td>{peak}</td></tr>"


def _conversion(name: str, cost: object) -> str:
    assert isinstance(cost, dict)
    if "why" in cost:
        return f"<p>Conversion of {escape(name)}: not measured: {escape(cost['why'])}.</p>"
    ratio, peak = cost["ratio"], cost["peak_bytes"] / 1e6
    return (
        f"<p>Conversion of {escape(name)}: {cost['seconds']['median']:.2f} s, {ratio['median']:.2f} × cp + sync + "
        f"sha256sum ({ratio['low']:.2f} to {ratio['high']:.2f}), peak memory {peak:.0f} MB.</p>"
    )
