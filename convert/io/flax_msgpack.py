"""Flax checkpoints (`flax_model.msgpack`): the structure by the msgpack library, the elements by byte range.

The format is a msgpack map of maps whose leaves are extension 1 (or 3, a scalar): an array of shape, dtype name and the
elements in C order. What is above 2^30 bytes is a map of pieces. A tensor's name is its path, joined by "/".

The library reads an array only as a whole, which takes as much memory as the largest one. So the two headers before the
elements (of an extension, and of the bytes in it) are read and written here, and reading steps over the elements.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..ops import Shape
from .checkpoint import Checkpoint, Ranges, Tensor, damaged, stored_twice
from .dtypes import BY_NAME, NAMES, SIZES, Array, from_bytes
from .source import Source
from .system import read_at
from .tensorfile import Slot, StreamedFile

NDARRAY, SCALAR = 1, 3  # extension types; flax's third is a complex number
CHUNKED = "__msgpack_chunked_array__"
PIECE_BYTES = 1 << 30  # above it, flax stores an array in pieces of at most so many bytes
BINARY, EXTENSION = b"\xc4\xc5\xc6", b"\xc7\xc8\xc9"  # before a size of one, two and four bytes
FIXED = b"\xd4\xd5\xd6\xd7\xd8"  # extensions of 1, 2, 4, 8 and 16 bytes
DEEPEST, MOST_ENTRIES, LONGEST_KEY, LONGEST_SHAPE, LARGEST_SIZE = 32, 400_000, 1_000, 8, 1 << 48
WINDOW = 2 * LONGEST_KEY  # bytes that hold any name or shape


class FlaxCheckpoint(Checkpoint):
    """Tensors of msgpack files; those stored in several pieces have no `start`, and are put together when read."""

    def __init__(self, tensors: Sequence[Tensor], pieces: Mapping[str, Ranges], source: Source) -> None:
        super().__init__(tensors, source)
        self._pieces = dict(pieces)

    def read(self, name: str) -> Array:
        if name not in self._pieces:
            return super().read(name)
        tensor = self.tensors[name]
        whole, done = np.empty(tensor.nbytes, dtype=np.uint8), 0
        for part in self.chunks(name):
            whole[done : done + len(part)] = np.frombuffer(part, dtype=np.uint8)
            done += len(part)
        return from_bytes(memoryview(whole), tensor.dtype, tensor.shape)

    def ranges(self, name: str) -> Ranges:
        return self._pieces.get(name) or super().ranges(name)


def open_flax(source: Source, names: Sequence[str]) -> FlaxCheckpoint:
    """Opens the msgpack files of a source.

    Raises:
        BadInputError: with what is wrong with a file, and where in it.
    """
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, Ranges] = {}
    for name in names:
        for tensor, ranges in read_structure(source.path(name), name):
            if tensor.name in tensors:
                raise stored_twice(tensor.name, tensors[tensor.name].file, name)
            tensors[tensor.name] = tensor
            if len(ranges) != 1:
                pieces[tensor.name] = ranges
    return FlaxCheckpoint(list(tensors.values()), pieces, source)


def read_structure(path: Path, name: str) -> list[tuple[Tensor, Ranges]]:
    """Every tensor of one file with the byte ranges of its elements, in the order of the file.

    Raises:
        BadInputError: for a file that is no such tree, or whose parts do not fit each other.
    """
    with path.open("rb") as file:
        stored = _Reader(file.fileno(), name).stored()
    return [
        (Tensor(key, x.dtype, x.shape, name, x.ranges[0][0] if len(x.ranges) == 1 else -1), x.ranges)
        for key, x in stored
    ]


class _Stored(NamedTuple):
    """An array of the file, or several of one type put together."""

    dtype: str
    shape: Shape
    ranges: Ranges


class _Reader:
    """Walks over one file. Nothing is allocated by a length that the file claims before the file is seen to hold it."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.size, self.name = descriptor, os.fstat(descriptor).st_size, name
        self.at, self.entries = 0, 0

    def stored(self) -> list[tuple[str, _Stored]]:
        tree = self._value(())
        if not isinstance(tree, dict):
            self._fail("the file is no map of tensors")
        if self.at != self.size:
            self._fail(f"{self.size - self.at:,} bytes follow the tree")
        return list(self._arrays(tree))

    def _arrays(self, tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, _Stored]]:
        for key, value in tree.items():
            name = path + key
            if isinstance(value, dict) and CHUNKED not in value:
                yield from self._arrays(value, f"{name}/")
            else:
                array = _joined(value) if isinstance(value, dict) else value
                if not isinstance(array, _Stored):
                    self._fail(f"{name[:200]} is no tensor, and no tensor in pieces that fit its shape")
                yield name, array

    def _value(self, path: tuple[str, ...]) -> Any:
        """A map as a dict, an array as `_Stored`, and what the library makes of anything else."""
        first = read_at(self.descriptor, 1, self.at)
        if first and (first in FIXED or first in EXTENSION):
            return self._array("/".join(path)[:200])
        if not b"\x80" <= first <= b"\x8f" and first not in (b"\xde", b"\xdf"):
            return self._read("unpack")
        if len(path) > DEEPEST:
            self._fail(f"maps are nested deeper than {DEEPEST}")
        found: dict[str, Any] = {}
        for _ in range(self._read("read_map_header")):
            key = self._read("unpack")
            if not isinstance(key, str) or not key or "/" in key or not key.isprintable():
                self._fail(f"no name for a tensor: {ascii(key)[:80]} under {'/'.join(path)[:200] or 'the root'}")
            if key in found:
                self._fail(f"{'/'.join((*path, key))[:200]} is there twice")
            self.entries += 1
            if self.entries > MOST_ENTRIES:
                self._fail(f"more than {MOST_ENTRIES:,} entries")
            found[key] = self._value((*path, key))
        return found

    def _array(self, where: str) -> _Stored:
        length = self._size(EXTENSION, FIXED)
        code, end = self._bytes(1)[0], self.at + length
        if code not in (NDARRAY, SCALAR):
            self._fail(f"{where} has the extension type {code}, which is no array")
        if self._read("read_array_header") != 3:
            self._fail(f"{where}: not shape, type and elements")
        shape, dtype, count = self._read("unpack"), self._read("unpack"), self._size(BINARY)
        if not _is_shape(shape) or not isinstance(dtype, str) or dtype not in BY_NAME:
            self._fail(f"{where}: unknown shape or type: {str(shape)[:80]}, {str(dtype)[:80]}")
        needed = math.prod(shape) * SIZES[BY_NAME[dtype]]
        if count != needed or self.at + count != end:
            self._fail(f"{where}: {count:,} bytes of elements, where {shape} of {dtype} needs {needed:,}")
        start, self.at = self.at, end
        return _Stored(BY_NAME[dtype], tuple(shape), ((start, count),))

    def _read(self, what: str) -> Any:
        """The next header or small value, as the library reads it."""
        from msgpack import Unpacker, UnpackException

        unpacker = Unpacker(max_buffer_size=WINDOW, max_str_len=LONGEST_KEY, max_map_len=MOST_ENTRIES)
        unpacker.feed(read_at(self.descriptor, WINDOW, self.at))
        try:
            value = getattr(unpacker, what)()
        except (ValueError, UnpackException) as error:
            self._fail(str(error) or "no msgpack")
        self.at += unpacker.tell()
        return value

    def _size(self, codes: bytes, fixed: bytes = b"") -> int:
        """The bytes that the next header announces, which the file holds."""
        first = self._bytes(1)
        if first in fixed:
            size = 1 << fixed.index(first)
        elif first in codes:
            size = int.from_bytes(self._bytes(1 << codes.index(first)), "big")
        else:
            self._fail("no array of bytes")
        if size > self.size - self.at:
            self._fail(f"{size:,} bytes announced, {self.size - self.at:,} are left")
        return size

    def _bytes(self, count: int) -> bytes:
        taken = read_at(self.descriptor, count, self.at)
        if len(taken) != count:
            self._fail("the file ends early")
        self.at += count
        return taken

    def _fail(self, fault: str) -> NoReturn:
        raise damaged(self.name, [f"at byte {self.at:,}: {fault}"])


def _joined(value: Mapping[str, Any]) -> _Stored | None:
    """The array of {CHUNKED: true, "shape": {"0": size}, "chunks": {"0": array}}; None where they do not fit."""
    shape, pieces = (_numbered(value.get(key)) for key in ("shape", "chunks"))
    if len(value) != 3 or value[CHUNKED] is not True or not _is_shape(shape) or not pieces:
        return None
    if not all(isinstance(piece, _Stored) and len(piece.shape) == 1 for piece in pieces):
        return None
    if len({piece.dtype for piece in pieces}) != 1 or sum(piece.shape[0] for piece in pieces) != math.prod(shape):
        return None
    return _Stored(pieces[0].dtype, tuple(shape), tuple(piece.ranges[0] for piece in pieces))


def _numbered(value: object) -> list[Any]:
    """The values of a map whose keys are "0", "1", ...; [None] for anything else."""
    ordered = isinstance(value, dict) and list(value) == [str(number) for number in range(len(value))]
    return list(value.values()) if isinstance(value, dict) and ordered else [None]


def _is_shape(value: object) -> bool:
    sizes = value if isinstance(value, list) and len(value) <= LONGEST_SHAPE else [None]
    return all(type(size) is int and 0 <= size < LARGEST_SIZE for size in sizes)


class FlaxFile(StreamedFile):
    """One msgpack file, the same bytes that `flax.serialization.to_bytes` makes of the same tree in the same order.

    Args:
        path: must not exist.
        tensors: (path joined by "/", dtype, shape, bytes), in the order of `tree_order`.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, str, Shape, int]]) -> None:
        slots, literals, size = structure(tensors)
        super().__init__(path, slots, literals, size)


def tree_order(names: Sequence[str]) -> list[str]:
    """The names as a tree holds them: a branch stands where its first leaf stood, and all of it there."""
    return [name for name, _ in _leaves(_tree({name: name for name in names}))]


def structure(tensors: Sequence[tuple[str, str, Shape, int]]) -> tuple[list[Slot], dict[int, bytes], int]:
    """Where a file of these tensors has elements, what stands between them (by position), and its size.

    Raises:
        ValueError: names of which one is the beginning of another, or that are not in `tree_order`.
    """
    by_name = {tensor[0]: tensor for tensor in tensors}
    if list(by_name) != [tensor[0] for tensor in tensors] or tree_order(list(by_name)) != list(by_name):
        raise ValueError("the tensors do not stand in the order of a tree")
    from msgpack import Packer

    packer = Packer()
    slots: list[Slot] = []
    literals: dict[int, bytes] = {}
    position, pending = 0, b""

    def leaf(tensor: tuple[str, str, Shape, int], shape: Shape, count: int) -> None:
        nonlocal position, pending
        pending += array_header(tensor[1], shape, count)
        literals[position] = pending
        position, pending = position + len(pending), b""
        slots.append(Slot(tensor[0], tensor[1], shape, position, position + count))
        position += count

    def walk(branch: Mapping[str, Any]) -> None:
        nonlocal pending
        pending += packer.pack_map_header(len(branch))
        for key, value in branch.items():
            pending += packer.pack(key)
            if isinstance(value, dict):
                walk(value)
                continue
            tensor = by_name[value]
            _, dtype, shape, nbytes = tensor
            if nbytes <= PIECE_BYTES:
                leaf(tensor, shape, nbytes)
                continue
            pending += (
                packer.pack_map_header(3)
                + packer.pack(CHUNKED)
                + b"\xc3"
                + packer.pack("shape")
                + packer.pack_map_header(len(shape))
            )
            pending += b"".join(packer.pack(str(axis)) + packer.pack(size) for axis, size in enumerate(shape))
            step = PIECE_BYTES // SIZES[dtype] * SIZES[dtype]
            starts = range(0, nbytes, step)
            pending += packer.pack("chunks") + packer.pack_map_header(len(starts))
            for index, start in enumerate(starts):
                count = min(step, nbytes - start)
                pending += packer.pack(str(index))
                leaf(tensor, (count // SIZES[dtype],), count)

    walk(_tree({name: name for name in by_name}))
    if pending:
        literals[position] = pending
        position += len(pending)
    return slots, literals, position


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for name, value in values.items():
        *branches, last = name.split("/")
        branch = root
        for key in branches:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{name} lies under a tensor")
        if last in branch:
            raise ValueError(f"{name} is there twice, or is a branch too")
        branch[last] = value
    return root


def _leaves(branch: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in branch.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def array_header(dtype: str, shape: Shape, count: int) -> bytes:
    """All of an array's extension but the elements, of which there are `count` bytes."""
    from msgpack import packb

    inner: bytes = b"\x93" + packb(shape) + packb(NAMES[dtype]) + _header(count, BINARY)
    return _header(len(inner) + count, EXTENSION, FIXED) + bytes([NDARRAY]) + inner


def _header(size: int, codes: bytes, fixed: bytes = b"") -> bytes:
    """The shortest header that holds the size."""
    if size in (1 << power for power in range(len(fixed))):
        return fixed[size.bit_length() - 1 :][:1]
    width = next(width for width in range(3) if size < 1 << (8 << width))
    return codes[width : width + 1] + size.to_bytes(1 << width, "big")
