"""Counts the lengths of a user's texts in tokens of a model.

A text is a row of a .jsonl, .json, .csv or .parquet file. Any other file is one text, or one text per top heading if it
has those of WikiText (` = Title = `), or with --lines one text per non-empty line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, listing
from ..convert.text import check_tokens, read_utf8
from .documents import HEADING, table_rows, text_documents
from .files import require_forms, table_form

AT_ONCE = 256  # texts that are tokenized together
LOOKED_AT = 100_000  # tokens of which the share of unknown ones is taken


def require_files(names: Sequence[str]) -> None:
    """Raises BadInputError for missing and unreadable files, before any file is read."""
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise BadInputError(f"no such file:\n{listing(missing)}", where="--data", hint="give existing text files")
    require_forms(map(Path, names), "--data")


def read_texts(files: Sequence[str], *, column: str = "text", lines: bool = False) -> Iterator[str]:
    """The texts of all files that hold more than white space.

    Raises:
        BadInputError: a file cannot be read.
    """
    for name in files:
        path = Path(name)
        for text in table_rows(path, column) if table_form(path) else _plain(path, lines):
            if text.strip():
                yield text


def count_tokens(texts: Iterator[str], tokenizer: Any, rows: int, where: str) -> np.ndarray:
    """Tokens of each text (n,) int64, special tokens included.

    Args:
        rows: number of the model's word embeddings.

    Raises:
        BadInputError: no text, or a text that is mostly unknown to the tokenizer.
    """
    around = tokenizer.num_special_tokens_to_add()
    counts: list[int] = []
    looked: list[int] = []
    while part := [text for _, text in zip(range(AT_ONCE), texts, strict=False)]:
        for ids in tokenizer(part, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
            counts.append(len(ids) + around)
            looked += ids[: LOOKED_AT - len(looked)]
    if not counts:
        raise BadInputError("the data contains no text", where=where, hint="give existing text files")
    check_tokens(looked, tokenizer, rows, where)
    return np.asarray(counts, dtype=np.int64)


def _plain(path: Path, lines: bool) -> list[str]:
    text = read_utf8(path, "--data")
    if lines:
        return text.splitlines()
    return text_documents(text) if len(HEADING.findall(text)) > 1 else [text]
