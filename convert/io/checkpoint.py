"""A checkpoint with parsed headers: its tensors by stored name, read one at a time, in chunks or memory-mapped."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import BadInputError, listing
from .dtypes import SIZES, Array, from_bytes
from .source import Source
from .system import read_into

CHUNK = 1 << 20  # bytes; a cast holds a chunk in several forms at once
Ranges = tuple[tuple[int, int], ...]  # (first byte, bytes) of each run of a tensor's bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor: name, type, shape, and where its bytes are (`start` is absolute in the file, -1 in a .bin)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int = -1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


class Checkpoint:
    """All tensors of a source by stored name. `close()` releases the files.

    Raises:
        BadInputError: from `read` and `chunks`, if a file is truncated.
    """

    def __init__(self, tensors: Iterable[Tensor], source: Source) -> None:
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.source = source
        self._files: dict[str, int] = {}

    def files(self) -> list[str]:
        """Names of the weight files, in order."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def read(self, name: str) -> Array:
        """The whole tensor as raw elements, memory-mapped: only the parts that an operation uses are read."""
        tensor = self.tensors[name]
        descriptor = self.descriptor(tensor.file)
        if tensor.nbytes == 0:
            return from_bytes(b"", tensor.dtype, tensor.shape)
        if os.fstat(descriptor).st_size < tensor.start + tensor.nbytes:
            raise BadInputError(
                f"{tensor.file} is truncated: it ends inside tensor {name}",
                where=tensor.file,
                hint="download the file again",
            )
        begin = tensor.start - tensor.start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(descriptor, tensor.start + tensor.nbytes - begin, access=mmap.ACCESS_READ, offset=begin)
        return from_bytes(memoryview(mapped)[tensor.start - begin :], tensor.dtype, tensor.shape)

    def chunks(self, name: str, buffer: bytearray | None = None) -> Iterator[memoryview]:
        """The tensor's bytes in order, in chunks. A chunk is valid until the next one is requested."""
        tensor = self.tensors[name]
        view = memoryview(buffer if buffer is not None else bytearray(min(CHUNK, max(tensor.nbytes, 1))))
        for start, count in self.ranges(name):
            done = 0
            while done < count:
                part = view[: min(len(view), count - done)]
                got = read_into(self.descriptor(tensor.file), part, start + done)
                if got == 0:
                    raise BadInputError(
                        f"{tensor.file} is truncated: it ends inside tensor {name}",
                        where=tensor.file,
                        hint="download the file again",
                    )
                yield part[:got]
                done += got

    def ranges(self, name: str) -> Ranges:
        """Where the tensor's bytes are in its file, in order."""
        return ((self.tensors[name].start, self.tensors[name].nbytes),)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def descriptor(self, name: str) -> int:
        """The open weight file of that name."""
        if name not in self._files:
            self._files[name] = os.open(self.source.path(name), os.O_RDONLY)
        return self._files[name]


def damaged(name: str, faults: list[str]) -> BadInputError:
    """The error for a damaged weight file."""
    return BadInputError(
        f"{name} is truncated or damaged:\n{listing(faults)}", where=name, hint="download or save the file again"
    )


def stored_twice(tensor: str, one: str, other: str) -> BadInputError:
    """The error for two shards that contain the same tensor."""
    return BadInputError(
        f"tensor {tensor} is stored twice, in {one} and in {other}", where=other, hint="download the shards again"
    )
