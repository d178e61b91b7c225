"""Executes a plan: streams tensors from the source to the output files and reports progress.

Unchanged tensors are copied as byte ranges, adjacent ones together. The others are computed one at a time. Memory is
the base plus the largest computed tensor, whatever the size of the checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import BadInputError
from .io.checkpoint import Checkpoint
from .io.dtypes import Array, cast, from_bytes, from_float32
from .io.formats import SAFETENSORS, Form
from .io.source import Source
from .io.tensorfile import StreamedFile, file_sha256
from .ops import Calibrated, Copy
from .options import Progress
from .plan import Plan, Row


@dataclass(slots=True)
class Written:
    """Result of `execute`: sha256 by file name, and the tensors that hold NaN or Inf."""

    files: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    weight_map: dict[str, str] = field(default_factory=dict)


def execute(
    plan: Plan,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    shard_bytes: int,
    progress: Progress,
    values: Mapping[str, np.ndarray] | None = None,
    form: Form = SAFETENSORS,
) -> Written:
    """Writes the plan's tensors into `folder`, in shards of at most `shard_bytes`.

    Args:
        values: float32 values of the calibrated rows, by canonical name.

    Raises:
        BadInputError: a tied tensor differs from its twin, or a source file is truncated.
    """
    _check_tied(plan, checkpoint)
    shards = _shards([row for row in plan.rows if row.target], shard_bytes)
    result = Written()
    done = 0
    for number, rows in enumerate(shards, 1):
        name = form.shard(number, len(shards))
        file = form.file(folder / name, [(str(row.target), row.dtype, row.shape, row.nbytes) for row in rows])
        try:
            for count in _stream(rows, checkpoint, file, values or {}):
                done += count
                progress("weights", done, plan.bytes_out)
            result.files[name] = file.finish()
        except BaseException:
            file.abandon()
            raise
        result.not_finite += file.not_finite
        result.weight_map.update({str(row.target): name for row in rows})
    return result


class SourceHash:
    """Hashes the source's weight files during the conversion: the manifest identifies a local source by content."""

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self._source, self._names = source, names
        self._digests: dict[str, str] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, str]:
        self._thread.join()
        if self._failure:
            raise self._failure
        return self._digests

    def _run(self) -> None:
        try:
            for name in self._names:
                self._digests[name] = file_sha256(self._source.path(name))
        except BaseException as error:
            self._failure = error


def _stream(
    rows: Sequence[Row], checkpoint: Checkpoint, file: StreamedFile, values: Mapping[str, np.ndarray]
) -> Iterator[int]:
    for group in _neighbours(rows, checkpoint):
        if len(group) > 1 or _is_range(group[0], checkpoint):
            first = checkpoint.tensors[group[0].sources[0]]
            try:
                yield from file.append_range(
                    checkpoint.descriptor(first.file), first.start, sum(row.nbytes for row in group)
                )
            except EOFError:
                raise BadInputError(
                    f"{first.file} is shorter than its header says",
                    where=first.file,
                    hint="the file changed during the conversion: run the command again",
                ) from None
        else:
            yield from _computed(group[0], checkpoint, file, values)


def _computed(row: Row, checkpoint: Checkpoint, file: StreamedFile, values: Mapping[str, np.ndarray]) -> Iterator[int]:
    if isinstance(row.op, Copy):  # a cast, or a source without byte ranges: in pieces
        stored = checkpoint.tensors[row.sources[0]].dtype
        for chunk in checkpoint.chunks(row.sources[0]):
            data = cast(from_bytes(chunk, stored, (-1,)), row.dtype).data if stored != row.dtype else chunk
            file.append(memoryview(data).cast("B"))
            yield len(chunk) if stored == row.dtype else data.nbytes
        return
    if isinstance(row.op, Calibrated):
        array = from_float32(values[row.op.name], row.dtype)
    else:
        array = as_array(checkpoint, row)
    if array.shape != row.shape:
        raise AssertionError(f"{row.target}: the operation returned shape {array.shape}, the plan expects {row.shape}")
    file.append(memoryview(np.ascontiguousarray(array.data)).cast("B"))
    yield row.nbytes


def _neighbours(rows: Sequence[Row], checkpoint: Checkpoint) -> Iterator[list[Row]]:
    """Groups of rows whose tensors are adjacent in one source file."""
    group: list[Row] = []
    end = ("", -1)
    for row in rows:
        here = checkpoint.tensors[row.sources[0]] if _is_range(row, checkpoint) else None
        if here and group and (here.file, here.start) == end:
            group.append(row)
        else:
            if group:
                yield group
            group = [row]
        end = (here.file, here.start + here.nbytes) if here else ("", -1)
    if group:
        yield group


def _is_range(row: Row, checkpoint: Checkpoint) -> bool:
    if not isinstance(row.op, Copy):
        return False
    stored = checkpoint.tensors[row.sources[0]]
    return stored.start >= 0 and stored.dtype == row.dtype


def _shards(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    shards: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if shards[-1] and size + row.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += row.nbytes
    return shards


def _check_tied(plan: Plan, checkpoint: Checkpoint) -> None:
    """Raises BadInputError unless both copies of a tied tensor are equal: only then can one be dropped."""
    for row in plan.rows:
        if row.equals and not _same(checkpoint, row.sources[0], row.equals):
            raise BadInputError(
                f"{row.sources[0]} differs from {row.equals}, but config.json says they are tied",
                where=row.sources[0],
                hint="set tie_word_embeddings to false in config.json to keep both, or remove the unused tensor",
            )


def _same(checkpoint: Checkpoint, one: str, other: str) -> bool:
    if checkpoint.tensors[one].nbytes != checkpoint.tensors[other].nbytes:
        return False
    return all(a == b for a, b in zip(checkpoint.chunks(one), checkpoint.chunks(other), strict=True))


def as_array(checkpoint: Checkpoint, row: Row) -> Array:
    """The tensor of a row as an array, for conversions in memory."""
    return cast(row.op.apply(*(checkpoint.read(name) for name in row.sources)), row.dtype)
