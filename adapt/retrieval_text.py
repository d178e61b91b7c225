"""The text that windows are cut from: one stream of tokens, and the article or file that each token is from.

Windows of one article are not independent, so errors are over units: articles where a text has WikiText headings,
otherwise files where there are several, otherwise windows. Of a table, each row is a unit, and so is each article or
whole file that is given beside it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError
from ..convert.text import check_tokens, read_utf8
from ..data.documents import HEADING
from ..data.files import table_form
from ..data.texts import read_texts


@dataclass(frozen=True, slots=True)
class UnitText:
    """A text as tokens.

    Attributes:
        tokens: ids without special tokens. unit: "article", "file", "text" or "document". unit_of: of each token (n,),
            None where a document is a unit. record: names, sha256, number of tokens, share of unknown ones.
    """

    tokens: list[int]
    unit: str
    unit_of: np.ndarray | None
    record: dict[str, Any]


def read_units(files: Sequence[Path], tokenizer: Any, rows: int, column: str = "text") -> UnitText:
    """Reads and tokenizes files.

    Args:
        rows: number of the source's word embeddings. column: of tables (.jsonl, .json, .csv, .parquet).

    Raises:
        BadInputError: a text cannot be read or is mostly unknown to the tokenizer.
    """
    if any(map(table_form, files)):
        unit, parts = "text", [text + "\n" for text in read_texts([str(path) for path in files], column=column)]
        if not parts:
            raise BadInputError("the data contains no text", where="--data", hint="give files with text in them")
    else:
        unit, parts = text_units([read_utf8(path, "--data") for path in files])
    found = tokenizer(parts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    tokens = list(itertools.chain.from_iterable(found))
    name = ", ".join(path.name for path in files)
    unknown, _ = check_tokens(tokens, tokenizer, rows, name)
    record = {
        "text": name,
        "sha256": hashlib.sha256("".join(parts).encode()).hexdigest(),
        "tokens": len(tokens),
        "unknown_share": round(unknown, 4),
    }
    unit_of = None if unit == "document" else np.repeat(np.arange(len(found)), [len(ids) for ids in found])
    return UnitText(tokens, unit, unit_of, record)


def text_units(texts: Sequence[str]) -> tuple[str, list[str]]:
    """What a unit is, and the texts joined by line breaks and cut into units (into one part, if a document is one)."""
    joined = [text + "\n" for text in texts[:-1]] + [texts[-1]]
    starts = [[match.start() for match in HEADING.finditer(text)] for text in joined]
    if sum(map(len, starts)) < 2:
        return ("file", joined) if len(joined) > 1 else ("document", joined)
    parts = []
    for text, found in zip(joined, starts, strict=True):
        edges = [0, *found[1:], len(text)]  # what stands before the first heading belongs to its article
        parts += [text[a:b] for a, b in itertools.pairwise(edges)]
    return "article", parts
