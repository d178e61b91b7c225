"""Pairs of texts for next sentence prediction (NSP) and sentence order prediction (SOP), as LambdaBERT makes them.

The procedure, for each document (https://github.com/gsarti/lambda-bert, after BERT's and ALBERT's):

1. The target length is all the room of an example or, with probability `short_share`, a random one from `shortest` up.
2. Sentences are gathered until they reach the target length, or the document ends. At least two are gathered.
3. They are cut at a random sentence into A and B.
4. SOP: with probability 0.5, A and B are swapped (label 1).
   NSP: with probability 0.5, B becomes text of another document, from a random sentence on, up to the target length
   (label 1). The sentences that it replaces are put back: the next pair begins with them.
5. While the pair is too long, the longer side (B, where both are as long) loses a token at a random end.

Two differences from the published script, which subtracts the special tokens twice and leaves out the last document. A
sentence that stands alone (long, or the document's last) makes no pair here: there, SOP pairs it with itself, and NSP
with another document, so that label 1 has more than half of the pairs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from .documents import Tokens

HALF = 0.5  # of pairs are swapped, or have a random second text
TRIES = 10  # draws of a document that is another one, before the next one is taken
POOLED_TOKENS = 4_000_000  # of the documents that random texts are drawn from, at most


@dataclass(frozen=True, slots=True)
class Document:
    """A document in little memory.

    Attributes:
        number: its place in the corpus. tokens: (n, 2). ends: (sentences,) where each sentence ends.
    """

    number: int
    tokens: Tokens
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, first: int, last: int) -> Tokens:
        """The tokens of sentences `first` to `last`, exclusive."""
        return self.tokens[self.ends[first - 1] if first else 0 : self.ends[last - 1] if last else 0]


def documents_of(stream: Iterable[Tokens | None]) -> Iterator[Document]:
    """The documents of a stream of sentences with None after each document. Sentences without tokens are left out."""
    number, parts = 0, []
    for tokens in stream:
        if tokens is not None:
            if len(tokens):
                parts.append(tokens)
        elif parts:
            yield Document(number, np.concatenate(parts), np.cumsum([len(part) for part in parts]))
            number, parts = number + 1, []


def sop_pairs(
    document: Document, size: int, short_share: float, shortest: int, random: Random
) -> Iterator[tuple[Tokens, Tokens, int]]:
    """A, B and the label (1: swapped) of each pair of a document.

    Args:
        size: tokens of both, at most.
        random: draws, for a document: whether it is short, and its target; for a pair: the cut, the swap, and an end
            for each token that is trimmed.
    """
    target = _target(size, short_share, shortest, random)
    first = 0
    while (last := _gathered(document, first, target)) - first > 1:
        cut = random.randint(first + 1, last - 1)
        a, b = document.text(first, cut), document.text(cut, last)
        swapped = random.random() < HALF
        yield (*_trimmed(*((b, a) if swapped else (a, b)), size, random), int(swapped))
        first = last


def nsp_pairs(
    document: Document, others: Sequence[Document], size: int, short_share: float, shortest: int, random: Random
) -> Iterator[tuple[Tokens, Tokens, int]]:
    """A, B and the label (1: B is of another document) of each pair of a document.

    Args:
        others: documents to draw from. The document itself may be among them, and is not taken.
        size: tokens of both, at most.
        random: draws, for a document: whether it is short, and its target; for a pair: the cut, whether B is random, if
            so the other document (again while it is the same, ten times at most) and its first sentence, and an end for
            each token that is trimmed.
    """
    target = _target(size, short_share, shortest, random)
    first = 0
    while (last := _gathered(document, first, target)) - first > 1:
        cut = random.randint(first + 1, last - 1)
        a = document.text(first, cut)
        another = random.random() < HALF
        if another:
            b = _random_text(document, others, target - len(a), random)
            first = cut
        else:
            b = document.text(cut, last)
            first = last
        yield (*_trimmed(a, b, size, random), int(another))


def with_pool(documents: Iterable[Document], most: int) -> Iterator[tuple[Document, Sequence[Document]]]:
    """Each document with those that random texts are drawn from: all of them, where they are `most` or fewer.

    Of more, the first `most` documents for themselves, and the last `most` up to it for each further one, so that
    memory is bounded. Documents of more than `POOLED_TOKENS` tokens in all are fewer.
    """
    pool: deque[Document] = deque()
    held, waiting = 0, True
    for document in documents:
        size = len(document.tokens)
        if waiting and len(pool) > 1 and (len(pool) == most or held + size > POOLED_TOKENS):
            yield from ((one, pool) for one in tuple(pool))
            waiting = False
        pool.append(document)
        held += size
        while not waiting and len(pool) > 2 and (len(pool) > most or held > POOLED_TOKENS):
            held -= len(pool.popleft().tokens)
        if not waiting:
            yield document, pool
    if waiting:
        yield from ((one, pool) for one in tuple(pool))


def _target(size: int, short_share: float, shortest: int, random: Random) -> int:
    return random.randint(min(shortest, size), size) if random.random() < short_share else size


def _gathered(document: Document, first: int, target: int) -> int:
    """The end (exclusive) of the sentences that reach the target from `first` on, two at least where there are two."""
    if first >= len(document):
        return first
    begin = document.ends[first - 1] if first else 0
    last = int(np.searchsorted(document.ends, begin + target)) + 1
    return min(max(last, first + 2), len(document))


def _random_text(document: Document, others: Sequence[Document], length: int, random: Random) -> Tokens:
    """Whole sentences of another document, from a random one on, until they are `length` tokens."""
    for _ in range(TRIES):
        index = random.randint(0, len(others) - 1)
        if others[index].number != document.number:
            break
    else:
        index = (index + 1) % len(others)
    other = others[index]
    start = random.randint(0, len(other) - 1)
    begin = other.ends[start - 1] if start else 0
    last = int(np.searchsorted(other.ends, begin + max(length, 1))) + 1
    return other.text(start, min(last, len(other)))


def _trimmed(a: Tokens, b: Tokens, size: int, random: Random) -> tuple[Tokens, Tokens]:
    """The pair in `size` tokens: the longer side loses a token at a random end, until it fits."""
    bounds = [[0, len(a)], [0, len(b)]]
    for _ in range(len(a) + len(b) - size):
        longer = bounds[0] if bounds[0][1] - bounds[0][0] > bounds[1][1] - bounds[1][0] else bounds[1]
        if random.random() < HALF:
            longer[0] += 1
        else:
            longer[1] -= 1
    return a[slice(*bounds[0])], b[slice(*bounds[1])]
