"""Files of vectors: parquet with one row a vector, or NAME.npy with the rows' ids in NAME.ids.jsonl.

A file appears when it is complete.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Write = Callable[[Sequence[dict[str, Any]], np.ndarray], None]  # rows and their vectors (rows, w) float32
PARTIAL, IDS = ".partial", ".ids.jsonl"


def made_of(output: Path) -> list[Path]:
    """The files that are written for an output."""
    return [output] if output.suffix == ".parquet" else [output.with_suffix(IDS), output]


@contextlib.contextmanager
def vectors_file(output: Path) -> Iterator[Write]:
    """Opens a file for vectors; its suffix says which."""
    output.parent.mkdir(parents=True, exist_ok=True)
    made = made_of(output)
    partial = [path.with_name(f".{path.name}{PARTIAL}") for path in made]
    try:
        with (_parquet if output.suffix == ".parquet" else _numpy)(*partial) as write:
            yield write
        for path, place in zip(partial, made, strict=True):
            path.replace(place)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    counts = pyarrow.int64()
    kinds = {"id": pyarrow.string(), "chunk": counts, "start": counts, "end": counts, "tokens": counts}
    schema = pyarrow.schema([*kinds.items(), ("embedding", pyarrow.list_(pyarrow.float32()))])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:

        def write(rows: Sequence[dict[str, Any]], vectors: np.ndarray) -> None:
            columns = {name: [row[name] for row in rows] for name in kinds}
            writer.write_table(pyarrow.table({**columns, "embedding": list(vectors)}, schema=schema))

        yield write


@contextlib.contextmanager
def _numpy(ids: Path, path: Path) -> Iterator[Write]:
    found: list[np.ndarray] = []
    with ids.open("w", encoding="utf-8") as file:

        def write(rows: Sequence[dict[str, Any]], vectors: np.ndarray) -> None:
            found.append(vectors)
            file.writelines(json.dumps(row) + "\n" for row in rows)

        yield write
    with path.open("wb") as file_of_vectors:
        np.save(file_of_vectors, np.concatenate(found))
