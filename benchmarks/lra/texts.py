"""Texts of Long Range Arena as bytes: film reviews (IMDB) and pairs of papers (ACL Anthology Network).

Reviews are the folder `aclImdb` as released (`train/pos/*.txt`, and so on), or `train.tsv` and `test.tsv` with a label,
a tab and a text in each row. The benchmark validates on the test reviews. Here a tenth of the training reviews takes
that place, so that nothing is chosen on the test reviews.

Pairs are the release's `new_aan_pairs.{train,eval,test}.tsv`: label, two ids, two texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from effconv.convert.errors import BadInputError

from .examples import Examples, Splits, bad_row, held_out, require

BYTES = 256
SIDES = {"neg": 0, "pos": 1}
PAIRS = {"train": "new_aan_pairs.train.tsv", "valid": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
LONGEST = 10_000  # bytes of a text that are read: no model of the benchmark takes more


def as_bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text[:LONGEST], np.uint8)


def reviews(folder: Path) -> Splits:
    """IMDB.

    Raises:
        BadInputError: the folder has neither form, or a row has no label.
    """
    inner = folder / "aclImdb" if (folder / "aclImdb").is_dir() else folder
    if (inner / "train.tsv").is_file():
        require(inner, ["train.tsv", "test.tsv"], "Text")
        train, test = (_labelled(inner / f"{name}.tsv") for name in ("train", "test"))
    else:
        require(inner, [f"{part}/{side}" for part in ("train", "test") for side in SIDES], "Text")
        train, test = (_folders(inner / name) for name in ("train", "test"))
    train, valid = held_out(train)
    return Splits(train, valid, test, BYTES, len(SIDES))


def _folders(folder: Path) -> Examples:
    files = [(path, label) for side, label in SIDES.items() for path in sorted((folder / side).glob("*.txt"))]
    if not files:
        raise BadInputError("no .txt files in neg and pos", where=str(folder), hint="give the unpacked data set")
    return Examples([as_bytes(path.read_bytes()) for path, _ in files], [label for _, label in files])


def _labelled(path: Path) -> Examples:
    rows = list(_rows(path, 2))
    return Examples([as_bytes(text) for _, (_, text) in rows], [_label(path, n, label) for n, (label, _) in rows])


def pairs(folder: Path) -> Splits:
    """AAN.

    Raises:
        BadInputError: a file is missing, or a row has no label or no two texts.
    """
    inner = folder / "tsv_data" if (folder / "tsv_data").is_dir() else folder
    require(inner, list(PAIRS.values()), "Retrieval")
    parts = {name: _pairs(inner / file) for name, file in PAIRS.items()}
    return Splits(parts["train"], parts["valid"], parts["test"], BYTES, 2)


def _pairs(path: Path) -> Examples:
    rows = list(_rows(path, 5))
    ids = [(as_bytes(one), as_bytes(other)) for _, (_, _, _, one, other) in rows]
    return Examples(ids, [_label(path, number, fields[0]) for number, fields in rows])


def _rows(path: Path, count: int) -> Iterator[tuple[int, list[bytes]]]:
    """Rows of a tsv file, without quotes, as bytes."""
    with path.open("rb") as file:
        for number, row in enumerate(file, 1):
            fields = row.rstrip(b"\r\n").split(b"\t", count - 1)
            if len(fields) != count:
                raise bad_row(path, number, f"{len(fields)} columns, expected {count}")
            yield number, fields


def _label(path: Path, number: int, text: bytes) -> int:
    """0 or 1; the release writes 0.0 and 1.0."""
    if text not in (b"0", b"1", b"0.0", b"1.0"):
        raise bad_row(path, number, f"the label must be 0 or 1, got {text[:20]!r}")
    return int(text[:1])
