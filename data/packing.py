"""Token streams cut into examples of a bounded length: within documents or across them, with overlap and short ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

import numpy as np

from .documents import Tokens


def packed(
    stream: Iterable[Tokens | None],
    size: int,
    *,
    across: bool,
    separator: int | None,
    overlap: int,
    short_share: float,
    shortest: int,
    random: Random,
) -> Iterator[Tokens]:
    """The texts of examples. Every token of every document is in one, in the order of the documents.

    Args:
        stream: sentences (n, 2), and None after each document.
        size: tokens of an example, at most.
        across: examples go on in the next document; without it, a document's last example is as long as what is left.
        separator: id of the token between documents, with `across`; None for none.
        overlap: tokens that an example repeats from the one before, at most all but one of its tokens.
        short_share: of examples whose length is drawn from `shortest` to `size`.
        random: draws, for each example and only where `short_share` is not 0: whether it is short, then its length.
    """
    window = _Window(size, overlap, short_share, min(shortest, size), random)
    between = np.array([[separator, -1]], np.int32) if across and separator is not None else None
    ended = False
    for tokens in stream:
        if tokens is not None:
            if ended and between is not None:
                yield from window.add(between)
            ended = False
            yield from window.add(tokens)
        elif across:
            ended = True
        else:
            yield from window.rest()
    yield from window.rest()


class _Window:
    """The tokens that are not yet in an example, and those of the last example that the next one repeats."""

    def __init__(self, size: int, overlap: int, short_share: float, shortest: int, random: Random) -> None:
        self._size, self._overlap = size, overlap
        self._short_share, self._shortest, self._random = short_share, shortest, random
        self._clear()

    def _clear(self) -> None:
        self._parts: list[Tokens] = []
        self._held = self._repeated = 0
        self._target = 0

    def add(self, tokens: Tokens) -> Iterator[Tokens]:
        """The examples that these tokens complete."""
        self._target = self._target or self._drawn()
        self._parts.append(tokens)
        self._held += len(tokens)
        if self._held < self._target:
            return
        joined = np.concatenate(self._parts)
        at = 0
        while len(joined) - at >= self._target:
            yield joined[at : at + self._target]
            self._repeated = min(self._overlap, self._target - 1)
            at += self._target - self._repeated
            self._target = max(self._drawn(), self._repeated + 1)  # else it would repeat and add nothing
        self._parts, self._held = [joined[at:]], len(joined) - at

    def rest(self) -> Iterator[Tokens]:
        """What is left as an example, where it has a token that no example has yet."""
        if self._held > self._repeated:
            yield np.concatenate(self._parts)
        self._clear()

    def _drawn(self) -> int:
        if self._short_share and self._random.random() < self._short_share:
            return self._random.randint(self._shortest, self._size)
        return self._size
