"""What every measurement of `make bench` hands over, and the one way in which it is shown.

A section is a set of forms timed together, with the bars that their ratios are held against. A bar is never met by
changing the comparison: it says which forms, and the figure stands whether it is met or missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effconv.bench.timing import Spread, ratio


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and what it should be.

    Attributes:
        what: which ratio, of what. measured: its spread over rounds; None where it could not be measured.
        limit: the bar. at_most: whether the figure shall stay below it. aim: a bar beyond it, if there is one.
        why: why it was not measured.
    """

    what: str
    measured: Spread | None
    limit: float
    at_most: bool = False
    aim: float | None = None
    unit: str = "×"
    why: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bar; None where nothing was measured."""
        return None if self.measured is None else self._reaches(self.limit)

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return f"not measured: {self.why}"
        if self.aim is not None and self._reaches(self.aim):
            return "met, and the aim too"
        return "met" if self.met else "missed"

    @property
    def wanted(self) -> str:
        words = f"{'at most' if self.at_most else 'at least'} {self.limit:g} {self.unit}"
        return words if self.aim is None else f"{words}, aim {self.aim:g}"

    @property
    def figure(self) -> str:
        if self.measured is None:
            return "–"
        one = len({f"{value:.2f}" for value in self.measured}) == 1
        middle, low, high = (f"{value:.2f}" if value < 20 else f"{value:.0f}" for value in self.measured)
        return f"{middle} {self.unit}" if one else f"{middle} {self.unit} ({low} to {high})"

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "what": self.what,
            "measured": None if self.measured is None else self.measured._asdict(),
            "bar": self.limit,
            "at_most": self.at_most,
            "aim": self.aim,
            "unit": self.unit,
            "verdict": self.verdict,
        }

    def _reaches(self, limit: float) -> bool:
        assert self.measured is not None
        return self.measured.median <= limit if self.at_most else self.measured.median >= limit


@dataclass(frozen=True, slots=True)
class Section:
    """Forms that were timed together.

    Attributes:
        title: what and how, with the clock. times: values of every round by form, in `unit`.
        bars: what is held against a bar, in the order of the table.
        notes: what else was found, a sentence each.
    """

    title: str
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()
    unit: str = "ms"

    def lines(self) -> list[str]:
        """As text, a line a form and a line a note."""
        width = max(map(len, self.times), default=0)
        found = [self.title]
        for name, values in self.times.items():
            middle, low, high = Spread.of(values)
            found.append(f"  {name:{width}s} {middle:11,.1f} {self.unit} ({low:,.1f} to {high:,.1f})")
        return [*found, *(f"  {note}" for note in self.notes)]

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "title": self.title,
            "unit": self.unit,
            "times": {name: list(values) for name, values in self.times.items()},
            "bars": [bar.described() for bar in self.bars],
            "notes": list(self.notes),
        }


def faster(
    what: str, times: Mapping[str, Sequence[float]], slow: str, fast: str, limit: float, **more: Any
) -> Iterable[Bar]:
    """The bar that `fast` is so many times as fast as `slow`; none where one of them was not timed."""
    if slow in times and fast in times:
        yield Bar(what, ratio(times[slow], times[fast]), limit, **more)


def markdown(sections: Sequence[tuple[str, Section]]) -> str:
    """The table of bars: one row a bar, with how it was run."""
    rows = ["| what | run | measured | bar | |", "|---|---|---|---|---|"]
    rows += [
        f"| {bar.what} | {run} | {bar.figure} | {bar.wanted} | {bar.verdict} |"
        for run, section in sections
        for bar in section.bars
    ]
    return "\n".join(rows)
