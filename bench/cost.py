"""What documents cost: seconds of a document by its length, and a million of them in hours and money.

Pure functions on measured rows and lengths of texts; docs/how-to/bench.md states the rules in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .choices import Lengths
from .models import Subject
from .whole import Case, Row

MILLION = 1_000_000
WHOLE, TRUNCATED, PIECES = "whole", "truncated", "in pieces"
SQUARE = 2.0  # no attention costs more than the square of the length
SHORTEST = 32  # tokens: below, starting a layer takes as long as what it computes

Times = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of one document by its tokens.

    Between two measured lengths the logarithm of the time is taken as linear in that of the length: times are near
    powers of the length. Below the shortest, and above the longest, the power of the nearest two goes on, from 0 to 1
    below and from 1 to 2 above. With one length, time grows with the tokens.

    Attributes:
        lengths: measured, ascending. seconds: of one document at each.
    """

    lengths: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Seconds of each document, by its tokens (n,)."""
        x, y = np.log(self.lengths), np.log(self.seconds)
        asked = np.log(tokens)
        powers = np.diff(y) / np.diff(x) if len(x) > 1 else np.ones(1)
        below, above = np.clip(powers[0], 0, 1), np.clip(powers[-1], 1, SQUARE)
        found = np.interp(asked, x, y)
        found = np.where(asked < x[0], y[0] + below * (asked - x[0]), found)
        return np.exp(np.where(asked > x[-1], y[-1] + above * (asked - x[-1]), found))


@dataclass(frozen=True, slots=True)
class Cost:
    """What documents cost with one model in one precision.

    Attributes:
        case: what was run. Its length is that of every document without texts, and else the longest measured.
        reading: how documents beyond the model's length are read: "truncated", or "in pieces" that are run one by one;
            "whole" if there are none.
        limit: tokens that the model takes at once, None where nothing says so.
        beyond: number of texts that are longer. outside: number of runs of lengths outside the measured ones.
        texts: number of texts; 0 without texts.
        seconds: of one document, the mean. price: of an hour of the machine, in the user's currency.
    """

    model: str
    case: Case
    seconds: float
    reading: str = WHOLE
    limit: int | None = None
    beyond: int = 0
    outside: int = 0
    texts: int = 0
    price: float | None = None

    @property
    def documents_per_second(self) -> float:
        return 1 / self.seconds

    @property
    def hours(self) -> float:
        """Of the machine, for a million documents."""
        return MILLION * self.seconds / 3600

    @property
    def money(self) -> float | None:
        """For a million documents, in the currency of the price."""
        return None if self.price is None else self.hours * self.price

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        found = {key: value for key, value in asdict(self).items() if key not in ("case", "seconds", "price")}
        return found | {
            "dtype": self.case.dtype,
            "batch": self.case.batch,
            "run": "training step" if self.case.train else "forward",
            "length": None if self.texts else self.case.length,
            "seconds_per_document": self.seconds,
            "documents_per_second": self.documents_per_second,
            "million_hours": self.hours,
            "price_per_hour": self.price,
            "million_price": self.money,
        }


def measured_costs(rows: Sequence[Row], price: float | None) -> list[Cost]:
    """Of documents of the measured lengths: one entry a row that has times."""
    return [
        Cost(row.model, row.case, row.spread.median / row.case.batch, price=price)
        for row in rows
        if row.spread is not None
    ]


def costs_of_texts(
    rows: Sequence[Row], subjects: Sequence[Subject], lengths: Lengths, special: int, price: float | None
) -> list[Cost]:
    """Of documents as long as the user's texts: one entry a model, dtype, batch size and way of reading.

    Args:
        special: tokens that the tokenizer adds to a text.
    """
    found = []
    for subject in subjects:
        own = [row for row in rows if row.model == subject.name and row.spread is not None]
        for batch, dtype in dict.fromkeys((row.case.batch, row.case.dtype) for row in own):
            same = sorted(
                (row for row in own if (row.case.batch, row.case.dtype) == (batch, dtype)),
                key=lambda row: row.case.length,
            )
            seconds = tuple(row.spread.median / batch for row in same if row.spread)
            curve = Curve(tuple(row.case.length for row in same), seconds)
            for cost in read(subject.name, same[-1].case, curve, lengths, subject.takes, special, price):
                found.append(cost)
    return found


def read(
    model: str,
    case: Case,
    times: Times,
    lengths: Lengths,
    limit: int | None,
    special: int,
    price: float | None,
    measured: tuple[int, int] | None = None,
) -> Iterator[Cost]:
    """The costs of a model: whole texts, or truncated and in pieces if some are longer than the model takes.

    Args:
        times: seconds of documents by their tokens. measured: shortest and longest length behind `times`; those of a
            `Curve` by default.
    """
    if measured is None:
        assert isinstance(times, Curve)
        measured = times.lengths[0], times.lengths[-1]
    counts = lengths.counts
    beyond = 0 if limit is None else int((counts > limit).sum())
    ways = {WHOLE: (counts, np.ones_like(counts))}
    if limit is not None and beyond:
        ways = {TRUNCATED: (np.minimum(counts, limit), np.ones_like(counts)), PIECES: pieces(counts, limit, special)}
    for reading, (tokens, repeats) in ways.items():
        seconds = float((times(tokens) * repeats).sum() / len(counts))
        outside = int(repeats[(tokens < measured[0]) | (tokens > measured[1])].sum())
        yield Cost(model, case, seconds, reading, limit, beyond, outside, len(counts), price)


def pieces(counts: np.ndarray, limit: int, special: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of runs, and how often each is run, where texts are cut into pieces of at most `limit` tokens.

    Every piece has special tokens of its own. The last piece of a text is as long as what is left.
    """
    room = max(1, limit - special)
    text = np.maximum(counts - special, 1)
    full, rest = text // room, text % room
    tokens = np.concatenate([np.full(1, limit), rest[rest > 0] + special])
    repeats = np.concatenate([full.sum()[None], np.ones(int((rest > 0).sum()), dtype=np.int64)])
    return tokens, repeats


def lengths_for(lengths: Lengths, limits: Sequence[int | None]) -> list[int]:
    """The lengths to measure for texts: doubled, from the 10th percentile to the longest text or what a model takes.

    Where texts are read in pieces, it begins at a quarter of a piece or below. What each model takes is measured too.

    Args:
        limits: tokens that each model takes; None where nothing says so.
    """
    longest, known = int(lengths.counts.max()), [limit for limit in limits if limit is not None]
    most = max(known) if len(known) == len(limits) else longest
    reach = min(longest, most)
    cut = [limit for limit in known if limit < longest]
    low = min([lengths.percentile(10), reach, *(limit / 4 for limit in cut)])
    found = [1 << int(np.log2(max(SHORTEST, low)))]
    while found[-1] < reach:
        found.append(2 * found[-1])
    if len(known) == len(limits):
        found[-1] = min(found[-1], most)
    return sorted({*found, *cut})
