"""NSP and SOP pairs by a plain, slow form of the described procedure, on lists of lists of token ids.

Written from the description in docs/how-to/prepare.md, without the code of effconv. It takes the same draws in the same
order.
"""

from __future__ import annotations

from random import Random


def draws_of(seed: int, copy: int, document: int) -> Random:
    return Random(f"effconv {seed} {copy} {document}")


def trimmed(a: list[int], b: list[int], room: int, draws: Random) -> tuple[list[int], list[int]]:
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if draws.random() < 0.5:
            del longer[0]
        else:
            longer.pop()
    return a, b


def target_of(room: int, short: float, shortest: int, draws: Random) -> int:
    if draws.random() < short:
        return draws.randint(min(shortest, room), room)
    return room


def joined(sentences: list[list[int]]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def sop(document: list[list[int]], room: int, short: float, shortest: int, draws: Random):
    target = target_of(room, short, shortest, draws)
    pairs, gathered = [], []
    for number, sentence in enumerate(document):
        gathered.append(sentence)
        complete = len(joined(gathered)) >= target or number == len(document) - 1
        if not complete or len(gathered) < 2:
            continue
        cut = draws.randint(1, len(gathered) - 1)
        first, second, label = joined(gathered[:cut]), joined(gathered[cut:]), 0
        if draws.random() < 0.5:
            first, second, label = second, first, 1
        pairs.append((*trimmed(first, second, room, draws), label))
        gathered = []
    return pairs


def nsp(documents: list[list[list[int]]], own: int, room: int, short: float, shortest: int, draws: Random):
    target = target_of(room, short, shortest, draws)
    pairs, gathered, waiting = [], [], list(documents[own])
    while waiting:
        gathered.append(waiting.pop(0))
        complete = len(joined(gathered)) >= target or not waiting
        if not complete or len(gathered) < 2:
            continue
        cut = draws.randint(1, len(gathered) - 1)
        first, rest = joined(gathered[:cut]), gathered[cut:]
        if draws.random() < 0.5:
            other = own
            for _ in range(10):
                other = draws.randint(0, len(documents) - 1)
                if other != own:
                    break
            else:
                other = (other + 1) % len(documents)
            start = draws.randint(0, len(documents[other]) - 1)
            second: list[int] = []
            for sentence in documents[other][start:]:
                second += sentence
                if len(second) >= target - len(first):
                    break
            waiting = rest + waiting  # what B replaced is put back
            label = 1
        else:
            second, label = joined(rest), 0
        pairs.append((*trimmed(first, second, room, draws), label))
        gathered = []
    return pairs
