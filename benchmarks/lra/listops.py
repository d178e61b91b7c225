"""ListOps as in Long Range Arena: nested MIN, MAX, MED and SM (sum modulo 10) of digits, and their value.

An expression is drawn as there: a node below the depth limit is an operation with probability 1/4 and has 2 to
`arguments` arguments; every other node is a digit. Expressions whose number of tokens is outside the limits (both
exclusive, brackets counted, parentheses not) are drawn again, and none occurs twice. A median of an even number of
values is their mean, rounded down. The files are named as in the release: `basic_train.tsv`, `basic_val.tsv`,
`basic_test.tsv`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .examples import Examples, Splits, bad_row, require

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
OPERATION = 0.25  # probability
WORDS = (*OPERATORS, END, *"0123456789")
IDS = {word: i for i, word in enumerate(WORDS)}
FILES = {"train": "basic_train.tsv", "valid": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = "Source\tTarget"


@dataclass(frozen=True)
class Limits:
    """What an expression may be. A digit at the root has depth 1, so that `depth` - 1 operations can be nested."""

    depth: int = 10
    arguments: int = 10
    above: int = 500
    below: int = 2000


PUBLISHED = Limits()
COUNTS = {"train": 96_000, "valid": 2_000, "test": 2_000}


class _TooLong(Exception):
    pass


def expressions(limits: Limits, seed: int) -> Iterator[tuple[tuple[str, ...], int]]:
    """Different expressions without end, as tokens and value."""
    source, seen = random.Random(seed), set()
    while True:
        tokens: list[str] = []
        try:
            value = _drawn(tokens, 1, limits, source)
        except _TooLong:
            continue
        found = tuple(tokens)
        if limits.above < len(found) and found not in seen:
            seen.add(found)
            yield found, value


def _drawn(tokens: list[str], depth: int, limits: Limits, source: random.Random) -> int:
    """Appends the tokens of a random node and returns its value."""
    if depth >= limits.depth or source.random() > OPERATION:
        value = source.randrange(10)
        tokens.append(str(value))
    else:
        place = len(tokens)
        tokens.append("")  # the operator is drawn after its arguments
        values = [_drawn(tokens, depth + 1, limits, source) for _ in range(source.randint(2, limits.arguments))]
        tokens[place] = source.choice(OPERATORS)
        tokens.append(END)
        value = applied(tokens[place], values)
    if len(tokens) >= limits.below:
        raise _TooLong
    return value


def applied(operator: str, values: list[int]) -> int:
    """The value of an operation."""
    if operator == "[MED":
        ordered = sorted(values)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2
    return {"[MIN": min, "[MAX": max, "[SM": lambda x: sum(x) % 10}[operator](values)


def generated(limits: Limits, counts: dict[str, int], seed: int = 0) -> Splits:
    """A data set of different expressions."""
    stream = expressions(limits, seed)
    parts = {}
    for name in ("train", "valid", "test"):
        drawn = [next(stream) for _ in range(counts[name])]
        parts[name] = Examples([encoded(tokens) for tokens, _ in drawn], [value for _, value in drawn])
    return Splits(parts["train"], parts["valid"], parts["test"], len(WORDS), 10)


def encoded(tokens: tuple[str, ...] | list[str]) -> np.ndarray:
    return np.asarray([IDS[token] for token in tokens], np.uint8)


def published_source(tokens: tuple[str, ...]) -> str:
    """The text of an expression in the release's files: a binary tree, with parentheses around each pair."""
    stack: list[str] = []
    for token in tokens:
        if token in OPERATORS:
            stack.append(token)
            continue
        done = token if token != END else f"( {stack.pop()} {END} )"
        if stack:
            done = f"( {stack.pop()} {done} )"
        stack.append(done)
    return stack[0]


def write(folder: Path, splits: Splits) -> None:
    """Writes a data set as the release has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        part: Examples = getattr(splits, name)
        rows = (
            f"{published_source(tuple(WORDS[i] for i in ids))}\t{label}"
            for ids, label in zip(part.ids, part.labels, strict=True)
        )
        (folder / file).write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")


def read(folder: Path) -> Splits:
    """The data set of a folder with the release's files.

    Raises:
        BadInputError: a file is missing, or a row is no expression with its value's digit.
    """
    require(folder, list(FILES.values()), "ListOps")
    parts = {name: _part(folder / file) for name, file in FILES.items()}
    return Splits(parts["train"], parts["valid"], parts["test"], len(WORDS), 10)


def _part(path: Path) -> Examples:
    ids, labels = [], []
    with path.open(encoding="utf-8") as rows:
        for number, row in enumerate(rows, 1):
            if number == 1 and row.rstrip() == HEADER:
                continue
            text, tab, label = row.rstrip("\r\n").partition("\t")
            tokens = [token for token in text.split() if token not in "()"]
            if not tab or not tokens or not label.isdigit() or int(label) > 9 or not IDS.keys() >= set(tokens):
                raise bad_row(path, number, "not an expression, a tab and a digit")
            ids.append(encoded(tokens))
            labels.append(int(label))
    return Examples(ids, labels)
