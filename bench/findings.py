"""Findings from measured rows: the fastest model at each length, and the length from which a converted one is faster.

Pure functions on rows; the same for a user's run and for tests on made-up timings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .whole import Case, Row

ENOUGH = 2  # rounds: one alone has no spread
TOO_FEW = "not enough rounds to tell"


@dataclass(frozen=True, slots=True)
class Fastest:
    """The fastest model of a case.

    Attributes:
        model: None where every one failed. times: how many times faster than `than`, the next; None if it is alone.
        clear: whether even its slowest round is faster than the quickest of the next; None where one round cannot tell.
    """

    case: Case
    model: str | None
    than: str | None = None
    times: float | None = None
    clear: bool | None = False

    @property
    def says(self) -> str:
        """One sentence, without the case."""
        if self.model is None:
            return "no model could run it"
        if self.than is None:
            return f"only {self.model} could run it"
        if self.clear is None:
            return f"{TOO_FEW} which is fastest"
        near = "" if self.clear else ", within the spread"
        return f"{self.model} is fastest, {self.times:.2f} × the speed of {self.than}{near}"

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        found = _named(self.case) | {"length": self.case.length}
        found |= {"model": self.model, "than": self.than, "times": self.times, "clear": self.clear}
        return found | {"says": self.says}


@dataclass(frozen=True, slots=True)
class Crossover:
    """The length from which a converted model is faster than a dense one.

    Attributes:
        case: what was run; its length means nothing here. measured: the lengths at which both were.
        length: from which on the converted one is faster, up to the longest measured; interpolated between two measured
            lengths. None where it is slower at the longest.
        from_start: it wins from the shortest measured length on: where exactly below that, was not measured.
        wins: the measured lengths at which it is faster. beyond: those that only the dense one could do.
        enough: whether there were rounds enough to tell; without them, length, from_start and wins say nothing.
    """

    model: str
    against: str
    case: Case
    measured: tuple[int, ...]
    length: int | None
    from_start: bool
    wins: tuple[int, ...]
    beyond: tuple[int, ...] = ()
    enough: bool = True

    @property
    def says(self) -> str:
        """One sentence."""
        cannot = (
            f"; it could not run {', '.join(f'{length:,}' for length in self.beyond)} tokens" if self.beyond else ""
        )
        return self._verdict + cannot

    @property
    def _verdict(self) -> str:
        name, other = self.model, self.against
        if not self.measured:
            return f"{name} and {other} have no measured length in common"
        if not self.enough:
            return f"{TOO_FEW} whether {name} is faster than {other}"
        if self.from_start:
            return f"{name} is faster than {other} at every measured length, from {self.measured[0]:,} tokens"
        if self.length is not None:
            return f"{name} becomes faster than {other} at about {self.length:,} tokens"
        sentence = f"{name} is not faster than {other} at any measured length (up to {self.measured[-1]:,} tokens)"
        if self.wins:
            lengths = ", ".join(f"{length:,}" for length in self.wins)
            sentence = f"{name} is faster than {other} at {lengths} tokens, but not at {self.measured[-1]:,}"
        return sentence

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        found = {key: value for key, value in asdict(self).items() if key != "case"}
        return found | _named(self.case) | {"says": self.says}


def fastest(rows: Sequence[Row]) -> list[Fastest]:
    """One entry a case in which models were compared, in the order of the rows."""
    found = []
    for case, group in _by_case(rows):
        if len(group) < 2:
            continue
        ranked = sorted((row for row in group if row.spread), key=lambda row: row.spread.median if row.spread else 0)
        if not ranked:
            found.append(Fastest(case, None))
        elif len(ranked) == 1:
            found.append(Fastest(case, ranked[0].model))
        else:
            first, second = ranked[0].spread, ranked[1].spread
            assert first is not None
            assert second is not None
            enough = all(len(row.seconds) >= ENOUGH for row in ranked)
            clear = first.high < second.low if enough else None
            times = second.median / first.median
            found.append(Fastest(case, ranked[0].model, ranked[1].model, times, clear))
    return found


def crossovers(rows: Sequence[Row], converted: Iterable[str], dense: Iterable[str]) -> list[Crossover]:
    """One entry a kind of run (batch, dtype, forward or training step), converted model and dense model."""
    dense = list(dense)
    found = []
    for model in converted:
        for against in dense:
            kinds = dict.fromkeys(_kind(row.case) for row in rows if row.model == model)
            for kind in kinds:
                case = next(row.case for row in rows if row.model == model and _kind(row.case) == kind)
                ours, theirs = (_measured(rows, name, kind) for name in (model, against))
                beyond = tuple(sorted(theirs.keys() - ours.keys()))
                common = tuple(sorted(ours.keys() & theirs.keys()))
                lengths = tuple(n for n in common if min(len(ours[n].seconds), len(theirs[n].seconds)) >= ENOUGH)
                if common and not lengths:
                    found.append(Crossover(model, against, case, common, None, False, (), beyond, enough=False))
                    continue
                ratios = [median(theirs[n].seconds) / median(ours[n].seconds) for n in lengths]
                length = crossing(lengths, ratios)
                wins = tuple(n for n, r in zip(lengths, ratios, strict=True) if r > 1)
                start = bool(lengths) and len(wins) == len(lengths)
                found.append(Crossover(model, against, case, lengths, length, start, wins, beyond))
    return found


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> int | None:
    """The length from which on the ratio stays above 1, to the last one measured; None where the last is not.

    Between the last length that loses and the next, the logarithm of the ratio is taken as linear in that of the
    length: times are near powers of the length.

    Args:
        lengths: ascending, in tokens. ratios: how many times faster the model is at each.
    """
    if not ratios or ratios[-1] <= 1:
        return None
    losing = [i for i, value in enumerate(ratios) if value <= 1]
    if not losing:
        return lengths[0]
    i = losing[-1]
    low, high = math.log(ratios[i]), math.log(ratios[i + 1])
    begin, end = math.log(lengths[i]), math.log(lengths[i + 1])
    return round(math.exp(begin + (end - begin) * -low / (high - low)))


def _measured(rows: Iterable[Row], model: str, kind: tuple[Any, ...]) -> dict[int, Row]:
    return {row.case.length: row for row in rows if row.model == model and _kind(row.case) == kind and row.seconds}


def _by_case(rows: Sequence[Row]) -> Iterator[tuple[Case, list[Row]]]:
    cases: list[Case] = []
    for row in rows:
        if row.case not in cases:  # which hold a mapping: no set of them
            cases.append(row.case)
    return ((case, [row for row in rows if row.case == case]) for case in cases)


def _kind(case: Case) -> tuple[Any, ...]:
    return case.batch, case.dtype, case.train, case.mixed


def _named(case: Case) -> dict[str, Any]:
    return {"batch": case.batch, "dtype": case.dtype, "run": "training step" if case.train else "forward"}
