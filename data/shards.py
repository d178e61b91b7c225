"""Corpora that others prepared: BiGS's HDF5 shards and Cerebras's TFRecords, with static masks, as examples.

Both hold for each example `input_ids`, `input_mask`, `segment_ids` (not in Cerebras's masked LM records),
`masked_lm_positions` and `masked_lm_ids`, each padded with zeros. BiGS's shards hold them as datasets of these names
(https://github.com/IntelLabs/academic-budget-bert, dataset), or as one array (5, n) in this order. Cerebras's records
may have `masked_lm_weights` and `next_sentence_labels` too, and an `input_mask` with 1 at padding
(https://github.com/Cerebras/modelzoo, bert/input/scripts). The first token is never padding, so it tells which it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, UsageError
from .layouts import Example
from .masking import IGNORED
from .prepared import LABEL

HDF5, RECORDS = (".hdf5", ".h5"), (".tfrecord", ".tfrecords")
NAMES = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")
NSP = "next_sentence_labels"
ROWS_AT_ONCE = 1_000


def is_shard(name: str) -> bool:
    """Whether a name given as data is a shard of one of these forms."""
    return Path(name).suffix in (*HDF5, *RECORDS) or ".tfrecord" in Path(name).name


def shard_examples(name: str, special: Sequence[int]) -> Iterator[Example]:
    """The examples of a shard as dicts of arrays, without padding.

    Args:
        special: ids of the special tokens around texts.

    Raises:
        BadInputError: the file is damaged or is not such a shard. UsageError: a package is not installed.
    """
    structure = np.array(sorted(set(special)), np.int32)
    read = _hdf5 if Path(name).suffix in HDF5 else _records
    number = -1
    for number, fields in enumerate(read(Path(name))):
        yield _example(fields, structure, f"{name}, example {number}")
    if number < 0:
        raise BadInputError("the file has no examples", where=name, hint="give a shard with examples")


def _example(fields: Mapping[str, np.ndarray], structure: np.ndarray, where: str) -> Example:
    ids, mask = (np.asarray(fields[name]) for name in ("input_ids", "input_mask"))
    positions, targets = (np.asarray(fields[name], np.int64) for name in ("masked_lm_positions", "masked_lm_ids"))
    if not len(ids) or len(mask) != len(ids) or len(positions) != len(targets):
        raise BadInputError(
            f"the lengths differ: {len(ids)} ids, {len(mask)} of the mask, {len(positions)} positions and "
            f"{len(targets)} masked ids",
            where=where,
            hint="give a shard with input_ids, input_mask, masked_lm_positions and masked_lm_ids of each example",
        )
    length = int((mask == mask[0]).sum())
    real = positions > 0  # position 0 has the first special token, so zeros are padding
    positions, targets = positions[real], targets[real]
    if not (mask[:length] == mask[0]).all() or (len(positions) and int(positions.max()) >= length):
        raise BadInputError(
            "the mask has a hole, or a masked position is in the padding", where=where, hint="write the shard again"
        )
    labels = np.full(length, IGNORED, np.int32)
    labels[positions] = targets
    segments = np.asarray(fields["segment_ids"][:length]) if "segment_ids" in fields else np.zeros(length)
    original = np.where(labels == IGNORED, ids[:length], labels)
    example: Example = {
        "input_ids": ids[:length].astype(np.int32),
        "token_type_ids": segments.astype(np.int8),
        "special_tokens_mask": np.isin(original, structure).astype(np.int8),
        "labels": labels,
    }
    if NSP in fields:
        example[LABEL] = int(np.ravel(fields[NSP])[0])
    return example


def _hdf5(path: Path) -> Iterator[dict[str, np.ndarray]]:
    try:
        import h5py
    except ImportError:
        raise _missing("h5py") from None
    try:
        with h5py.File(path, "r") as file:
            tables = _tables(file, path)
            count = min(_count(table) for table in tables.values())
            for begin in range(0, count, ROWS_AT_ONCE):
                end = min(begin + ROWS_AT_ONCE, count)
                part = {name: table[begin:end] for name, table in tables.items()}
                for i in range(end - begin):
                    yield {name: rows[i] for name, rows in part.items()}
    except OSError as error:
        raise BadInputError(
            f"cannot read the HDF5 file ({error})", where=str(path), hint="give a shard of BiGS's corpus"
        ) from None


class _Row:
    """One of the five rows of an array (5, n), read in slices."""

    def __init__(self, array: Any, row: int) -> None:
        self._array, self._row = array, row

    def __len__(self) -> int:
        return int(self._array.shape[1])

    def __getitem__(self, part: slice) -> Any:
        return self._array[self._row, part]


def _count(table: Any) -> int:
    return len(table)


def _tables(file: Any, path: Path) -> dict[str, Any]:
    if all(name in file for name in NAMES):
        return {name: file[name] for name in (*NAMES, *([NSP] if NSP in file else []))}
    arrays = [file[name] for name in file if getattr(file[name], "shape", ())[:1] == (len(NAMES),)]
    if len(arrays) != 1:
        raise BadInputError(
            f"the HDF5 file has {', '.join(file) or 'nothing'}, neither {', '.join(NAMES)} nor one array (5, n)",
            where=str(path),
            hint="give a shard of BiGS's corpus",
        )
    return {name: _Row(arrays[0], row) for row, name in enumerate(NAMES)}


def _records(path: Path) -> Iterator[dict[str, np.ndarray]]:
    from .tfrecords import read_examples

    for number, fields in enumerate(read_examples(path)):
        missing = [name for name in NAMES if name not in fields and name != "segment_ids"]
        if missing:
            dynamic = " It seems to be one of words, for masks made while training." if "tokens" in fields else ""
            raise BadInputError(
                f"the record has no {', '.join(missing)}, only {', '.join(sorted(fields))}.{dynamic}",
                where=f"{path}, record {number}",
                hint="give records with static masks, or the texts themselves",
            )
        yield fields


def _missing(package: str) -> UsageError:
    return UsageError(f"the package {package} is not installed", where="--data", hint="pip install 'effconv[prepare]'")
