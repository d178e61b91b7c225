"""The rules of the advice: from lengths of texts and measured probes to length, block, sparsity and batch.

Pure functions; docs/how-to/bench.md states the rules in words.

    length   the shortest candidate that holds `COVERED` of all tokens of the texts
    block,   of the candidates that fit the memory with one text: those that take at most `WORTH` times as long as the
    sparsity fastest of them at that length, and of these the one whose tokens reach the most tokens
    batch    the largest power of two, up to `MOST`, of texts of that length that fits the memory with `HEADROOM` left
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..lsgify.options import label

COVERED = 0.99
WORTH = 2.0
MOST = 64
HEADROOM = 0.1
ALIKE = 4.0
LENGTHS = tuple(512 << i for i in range(8))  # to 65,536
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are.

    Attributes:
        counts: tokens of each text, ascending.
    """

    counts: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def percentile(self, share: float) -> float:
        """Tokens that so many percent of the texts do not exceed, interpolated between two texts."""
        return float(np.percentile(self.counts, share))

    def covered(self, length: int) -> float:
        """Share of all tokens that texts cut at `length` keep."""
        return float(np.minimum(self.counts, length).sum() / self.counts.sum())

    def longer(self, length: int) -> float:
        """Share of the texts that are longer."""
        return float((self.counts > length).mean())

    def described(self, lengths: Sequence[int]) -> dict[str, Any]:
        """As JSON values, with what is cut off at each of some lengths."""
        return {
            "texts": len(self.counts),
            "tokens": self.tokens,
            "percentiles": {str(share): self.percentile(share) for share in PERCENTILES},
            "longest": int(self.counts.max()),
            "cut": {
                str(length): {"tokens": 1 - self.covered(length), "texts": self.longer(length)} for length in lengths
            },
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """Attention to try, as options of `effconv lsg`."""

    block_size: int
    sparse_block_size: int
    sparsity_factor: int
    sparsity_type: str = "norm"

    def reach(self, length: int) -> int:
        """Tokens that a token's attention covers, by keys of their own or by keys that stand for several."""
        if length <= 2 * self.block_size:
            return length
        return min(length, 3 * self.block_size + 2 * self.sparse_block_size * self.sparsity_factor)

    def full(self, length: int) -> bool:
        """Whether texts of that length get full attention: they have at most two blocks."""
        return length <= 2 * self.block_size

    def says(self, length: int) -> str:
        """What it is for texts of that length."""
        return "full attention" if self.full(length) else label(asdict(self))

    def flags(self) -> list[str]:
        return [word for name, value in asdict(self).items() for word in (f"--{name.replace('_', '-')}", str(value))]


USUAL = (
    Candidate(64, 64, 4),
    Candidate(128, 0, 0, "none"),
    Candidate(128, 128, 2),
    Candidate(128, 128, 4),
    Candidate(256, 0, 0, "none"),
    Candidate(256, 256, 4),
)


def candidates(length: int) -> list[Candidate]:
    """What is tried for texts of that length: blocks with and without sparse keys, and full attention."""
    full = Candidate(-(-length // 2), 0, 0, "none")
    return [*(candidate for candidate in USUAL if not candidate.full(length)), full]


def needed_length(lengths: Lengths, allowed: Sequence[int] = LENGTHS) -> int:
    """The shortest of the allowed lengths that covers enough; the longest, where none does."""
    return next((n for n in sorted(allowed) if lengths.covered(n) >= COVERED), max(allowed))


@dataclass(frozen=True, slots=True)
class Probe:
    """What a candidate took, measured at two lengths (tokens) with one text.

    Attributes:
        seconds: medians at each. working: bytes beyond the loaded model, at each. held: bytes of the loaded model.
        spread: seconds of the quickest and the slowest round at the longer one.
    """

    candidate: Candidate
    lengths: tuple[int, int]
    seconds: tuple[float, float]
    working: tuple[int, int]
    held: int
    spread: tuple[float, float]

    def time(self, length: int) -> float:
        """Seconds of one text: as many a token as in the longer of the two, or for full attention a t + b t²."""
        (n, m), (s, t) = self.lengths, self.seconds
        if length in self.lengths:
            return self.seconds[self.lengths.index(length)]
        if self.candidate.full(length):
            square = max(0.0, (t / m - s / n) / (m - n))
            return (t / m - square * m) * length + square * length**2
        return t / m * length  # a line through both would carry the noise of the shorter one far

    def memory(self, tokens: int) -> float:
        """Bytes for so many tokens at once: a straight line through the two."""
        return self.held + self.working[1] + self.slope * (tokens - self.lengths[1])

    @property
    def slope(self) -> float:
        """Bytes a token."""
        (n, m), (a, b) = self.lengths, self.working
        return max((b - a) / (m - n), 0.5 * b / m)


def choose(probes: Sequence[Probe], length: int, memory: int) -> Probe | None:
    """The probe whose candidate is advised; None where none fits."""
    fitting = [probe for probe in probes if batch_for(probe, length, memory)]
    if not fitting:
        return None
    least = min(probe.time(length) for probe in fitting)
    worth = [probe for probe in fitting if probe.time(length) <= WORTH * least]
    return max(worth, key=lambda probe: (probe.candidate.reach(length), -probe.time(length)))


def batch_for(probe: Probe, length: int, memory: int) -> int:
    """Texts of that length at once; 0 where not even one fits."""
    room = (1 - HEADROOM) * memory
    batch = MOST
    while batch and probe.memory(batch * length) > room:
        batch //= 2
    return batch


def hopeless(probe: Probe, length: int, memory: int) -> bool:
    """Whether no candidate can fit, judged by the first: not even at a quarter of what it takes a token.

    Candidates' working memory at one length was measured within 1.3 × of each other, and a straight line may be half as
    steep as through the origin (`Probe.slope`): `ALIKE` allows for both, and more.
    """
    return probe.held + probe.working[1] / probe.lengths[1] * length / ALIKE > (1 - HEADROOM) * memory


def corrected(probe: Probe, tokens: int, working: int) -> Probe:
    """The probe with the steeper of its line and the one through its second point and a third that was measured."""
    through = (working - probe.working[1]) / (tokens - probe.lengths[1])
    if through <= probe.slope:
        return probe
    (n, m), (_, b) = probe.lengths, probe.working
    return replace(probe, working=(round(b - through * (m - n)), b))


def described(probe: Probe, length: int, memory: int) -> Mapping[str, Any]:
    """As JSON values: what was measured, and what follows for texts of that length."""
    return {
        **asdict(probe.candidate),
        "full_attention": probe.candidate.full(length),
        "reach": probe.candidate.reach(length),
        "measured_lengths": list(probe.lengths),
        "measured_seconds": list(probe.seconds),
        "measured_working_bytes": list(probe.working),
        "model_bytes": probe.held,
        "seconds": probe.time(length),
        "bytes": round(probe.memory(length)),
        "batch": batch_for(probe, length, memory),
    }


@dataclass(frozen=True)
class Advised:
    """A conversion, and the measurements that speak for it.

    Attributes:
        length: tokens that the converted model takes. memory: bytes there are.
        chosen: the probe of the advised candidate. probes: all of them. batch: texts at once.
        check: predicted and measured bytes and seconds of the chosen candidate at a length beyond its probes.
        command: what makes the advised model.
    """

    length: int
    memory: int
    probes: list[Probe]
    chosen: Probe
    batch: int
    check: dict[str, Any]
    command: str
