"""Late chunking: one vector for each chunk of a text, from token states that were computed in the context of the text.

After Günther et al., arXiv 2409.04701: the model reads the whole text, and pooling is applied to the states of each
chunk. A text that is longer than the model is read in windows that overlap (their "long late chunking"): a state is
taken from the first window that has its token, so that all but the first tokens have at least the overlap before them.

This file says which ids are run and which of the states belong to which chunk. It imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

PIECE = 30  # tokens of a piece, unless asked for others
Bounds = tuple[int, int]  # of a chunk in its text: the first token, and the one behind the last


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the model.

    Attributes:
        ids: what is run, special tokens included.
        takes: states that are kept, each as chunk, first position and the one behind the last. Those of a chunk that
            are in several passes are put together in the order of the passes.
    """

    ids: list[int]
    takes: list[tuple[int, int, int]]


def cut(length: int, size: int) -> list[Bounds]:
    """The fewest chunks of at most `size` tokens, all nearly equally long. A text without tokens is one chunk."""
    count = max(1, -(-length // size))
    least, longer = divmod(length, count)  # the first `longer` chunks have a token more, as in torch.tensor_split
    edges = [i * least + min(i, longer) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def cut_twice(length: int, size: int, piece: int) -> list[list[Bounds]]:
    """For each chunk of `cut(length, size)` its pieces of at most `piece` tokens, as bounds in the text."""
    return [
        [(begin + first, begin + behind) for first, behind in cut(end - begin, piece)]
        for begin, end in cut(length, size)
    ]


def passes(
    body: Sequence[int],
    chunks: Sequence[Bounds],
    prefix: Sequence[int],
    suffix: Sequence[int],
    longest: int,
    *,
    own_ends: bool = False,
    overlap: int | None = None,
    skipped: int = 0,
) -> list[Pass]:
    """The runs that give the states of all chunks of a text.

    The special tokens belong to the first and to the last chunk: a text of one chunk is pooled as it is without chunks.

    Args:
        body: token ids of the text. chunks: `cut` of it.
        prefix, suffix: special tokens around a text.
        longest: tokens that the model takes, special ones included.
        own_ends: each chunk has the special tokens around it, in one row with the others. For models whose embedding
            is the state of one of these tokens ("cls", "lasttoken").
        overlap: tokens that two windows share, for texts longer than the model. By default half a window.
        skipped: leading tokens of the prefix that are not pooled.

    Raises:
        ValueError: a chunk does not fit into the model.
    """
    room = longest - len(prefix) - len(suffix)
    if room < 1 or (own_ends and any(end - begin > room for begin, end in chunks)):
        raise ValueError(f"a chunk does not fit into {longest} tokens")
    if own_ends:
        return _with_own_ends(body, chunks, prefix, suffix, longest, skipped)
    shared = min(room // 2 if overlap is None else overlap, room - 1)
    found: list[Pass] = []
    begin = kept = 0
    while True:
        end = min(begin + room, len(body))
        ids = [*prefix, *body[begin:end], *suffix]
        shift, last = len(prefix) - begin, end == len(body)
        takes = []
        for i, (first, behind) in enumerate(chunks):
            lead = skipped if i == 0 and begin == 0 else max(first, kept) + shift
            tail = len(ids) if i == len(chunks) - 1 and last else min(behind, end) + shift
            if tail > lead:
                takes.append((i, lead, tail))
        found.append(Pass(ids, takes))
        if last:
            return found
        begin, kept = end - shared, end


def _with_own_ends(
    body: Sequence[int],
    chunks: Sequence[Bounds],
    prefix: Sequence[int],
    suffix: Sequence[int],
    longest: int,
    skipped: int,
) -> list[Pass]:
    """As many chunks in a pass as the model takes, each with the special tokens around it."""
    found: list[Pass] = []
    for i, (first, behind) in enumerate(chunks):
        ids = [*prefix, *body[first:behind], *suffix]
        if not found or len(found[-1].ids) + len(ids) > longest:
            found.append(Pass([], []))
        begin = len(found[-1].ids)
        found[-1].takes.append((i, begin + skipped, begin + len(ids)))
        found[-1].ids.extend(ids)
    return found
