"""A prepared corpus: a folder of parquet files with the examples of pretraining, and `effconv-data.json`.

Columns are those of `effconv.data.pretraining`: lists `input_ids`, `token_type_ids`, `special_tokens_mask`, where asked
for `word_starts` and `labels`, and the number `next_sentence_label`. Files are written and read in groups of rows, so
that memory does not grow with the corpus. Imports pyarrow on demand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, UsageError
from .layouts import Example
from .masking import IGNORED
from .pretraining import Part, shuffled

RECORD = "effconv-data.json"
FORMAT = 1  # of the record
GROUP_TOKENS, FILE_TOKENS = 1 << 18, 1 << 26  # of a group of rows, and of a file
ROWS_AT_ONCE = 256  # that are read together
COLUMNS = {
    "input_ids": np.int32,
    "token_type_ids": np.int8,
    "special_tokens_mask": np.int8,
    "word_starts": np.int8,
    "labels": np.int32,
}
LABEL = "next_sentence_label"


class Writer:
    """Writes the examples of a part as `PART-00000.parquet` and so on, and counts them.

    Attributes:
        counts: examples, tokens, and where there are some masked tokens and pairs by label.
    """

    def __init__(self, folder: Path, part: Part) -> None:
        self._folder, self._part = folder, part
        self._rows: list[Example] = []
        self._group = self._file_tokens = self._files = 0
        self._open: Any = None
        self.counts = {"examples": 0, "tokens": 0}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def add(self, example: Example) -> None:
        size = len(example["input_ids"])
        self._rows.append(example)
        self._group += size
        counts = self.counts
        counts["examples"] += 1
        counts["tokens"] += size
        if "labels" in example:
            counts["masked"] = counts.get("masked", 0) + int((example["labels"] != IGNORED).sum())
        if LABEL in example:
            name = f"{LABEL}_{example[LABEL]}"
            counts[name] = counts.get(name, 0) + 1
        if self._group >= GROUP_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        parquet = pyarrow_parquet()
        table = _table(self._rows)
        if self._open is None:
            path = self._folder / f"{self._part}-{self._files:05}.parquet"
            self._open = parquet.ParquetWriter(path, table.schema, compression="zstd")
            self._files += 1
        self._open.write_table(table)
        self._file_tokens += self._group
        self._rows, self._group = [], 0
        if self._file_tokens >= FILE_TOKENS:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._file_tokens = None, 0


def _table(rows: Sequence[Example]) -> Any:
    import pyarrow

    offsets = np.cumsum([0, *(len(row["input_ids"]) for row in rows)], dtype=np.int32)
    columns = {
        name: pyarrow.ListArray.from_arrays(offsets, np.concatenate([row[name] for row in rows]).astype(kind))
        for name, kind in COLUMNS.items()
        if name in rows[0]
    }
    if LABEL in rows[0]:
        columns[LABEL] = pyarrow.array([row[LABEL] for row in rows], pyarrow.int8())
    return pyarrow.table(columns)


def is_prepared(name: str) -> bool:
    """Whether a name given as data is a prepared corpus."""
    return (Path(name) / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """What `effconv-data.json` says of a prepared corpus.

    Raises:
        BadInputError: there is none, or it cannot be read.
    """
    path = folder / RECORD
    hint = "give a folder that `effconv prepare` wrote, or text files"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInputError("this folder is not a prepared corpus", where=str(folder), hint=hint) from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot read the record of the corpus ({error})", where=str(path), hint=hint) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BadInputError("the record of the corpus is of another version of effconv", where=str(path), hint=hint)
    return record


def require_fitting(folder: Path, digest: str, *, objective: str | None = None, length: int | None = None) -> None:
    """Raises BadInputError where a prepared corpus does not fit a model.

    Args:
        digest: `tokenizer_digest` of the model's tokenizer. objective: what is to be trained.
        length: of the longest text that the model takes.
    """
    record = read_record(folder)
    again = "prepare the texts again with the model's tokenizer: effconv prepare TEXT --tokenizer REPO"
    if record["tokenizer"]["sha256"] != digest:
        raise BadInputError("the corpus was prepared with another tokenizer", where=str(folder), hint=again)
    made = record["options"]["objective"]
    labelled = made == objective or (objective in (None, "mlm") and made != "clm")
    if not labelled:
        raise BadInputError(
            f"the corpus was prepared for {made}, not for {objective}",
            where=str(folder),
            hint=f"{again} --objective {objective}",
        )
    if length is not None and record["options"]["length"] > length:
        raise BadInputError(
            f"the corpus has examples of {record['options']['length']} tokens, and the model takes {length}",
            where=str(folder),
            hint=f"{again} --length {length}",
        )


def prepared_examples(
    folder: Path, *, part: Part = "train", shuffle: int = 0, seed: int = 0, epoch: int = 0
) -> Iterator[dict[str, Any]]:
    """The examples of a prepared corpus, as dicts of lists.

    Args:
        shuffle: examples in the buffer that shuffles them, after the order of the files. 0 keeps the order.
        seed, epoch: of the order.

    Raises:
        BadInputError: the folder is not a prepared corpus, or a file is damaged.
    """
    read_record(folder)
    random = Random(f"effconv {seed} {epoch} prepared")
    paths = sorted(folder.glob(f"{part}-*.parquet"))
    if shuffle:
        random.shuffle(paths)
    return shuffled((row for path in paths for row in _rows(path)), shuffle, random)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    parquet = pyarrow_parquet()
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInputError(
            f"a file of the corpus cannot be read ({error})", where=str(path), hint="prepare the texts again"
        ) from None


def pyarrow_parquet() -> Any:
    """The module of pyarrow for parquet files.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "the package pyarrow is not installed", where="effconv prepare", hint="pip install 'effconv[prepare]'"
        ) from None
    return pyarrow.parquet
