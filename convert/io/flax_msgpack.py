"""Flax checkpoints (`flax_model.msgpack`): read by byte range and written as a stream, without msgpack, jax or flax.

The format is a msgpack map of maps whose leaves are extension 1 (or 3, a scalar): an array of shape, dtype name and the
elements in C order. What is above 2^30 bytes is a map of pieces. Reading walks over the structure and steps over the
elements, so that it costs no more memory than the names do. A tensor's name is its path, joined by "/".
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import BadInputError
from ..ops import Shape
from .checkpoint import CHUNK, Checkpoint, Tensor, damaged, stored_twice
from .dtypes import SIZES, Array, from_bytes
from .source import Source
from .system import read_at, read_into
from .tensorfile import Slot, StreamedFile

NDARRAY, COMPLEX, SCALAR = 1, 2, 3  # extension types
CHUNKED = "__msgpack_chunked_array__"
PIECE_BYTES = 1 << 30  # above it, flax stores an array in pieces of at most so many bytes
DEEPEST, MOST_TENSORS, LONGEST_KEY, LONGEST_SHAPE = 32, 200_000, 1_000, 8
LARGEST_SIZE = 1 << 48
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
Ranges = tuple[tuple[int, int], ...]  # (first byte, bytes) of each piece


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

    def chunks(self, name: str, buffer: bytearray | None = None) -> Iterator[memoryview]:
        tensor = self.tensors[name]
        ranges = self._pieces.get(name, ((tensor.start, tensor.nbytes),))
        view = memoryview(buffer if buffer is not None else bytearray(min(CHUNK, max(tensor.nbytes, 1))))
        for start, count in ranges:
            done = 0
            while done < count:
                got = read_into(self.descriptor(tensor.file), view[: min(len(view), count - done)], start + done)
                if got == 0:
                    raise BadInputError(f"{tensor.file} ends inside {name}", where=tensor.file, hint="fetch it again")
                yield view[:got]
                done += got


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
        return _Reader(file.fileno(), os.fstat(file.fileno()).st_size, name).tree()


class _Reader:
    """Walks over one file. Nothing is allocated by a length that the file claims before the file is seen to hold it."""

    def __init__(self, descriptor: int, size: int, name: str) -> None:
        self.descriptor, self.size, self.name = descriptor, size, name
        self.at = 0
        self._window, self._window_start = b"", 0
        self.found: list[tuple[Tensor, Ranges]] = []

    def tree(self) -> list[tuple[Tensor, Ranges]]:
        entries = self._map_size(self._byte(), "the file")
        if entries is None:
            self._fail("the file is no map of tensors")
        self._walk((), entries)
        if self.at != self.size:
            self._fail(f"{self.size - self.at:,} bytes follow the tree")
        return self.found

    def _walk(self, path: tuple[str, ...], entries: int) -> None:
        if len(path) > DEEPEST:
            self._fail(f"maps are nested deeper than {DEEPEST}")
        seen: set[str] = set()
        for number in range(entries):
            key = self._key(path)
            if key in seen:
                self._fail(f"{'/'.join((*path, key))[:200]} is there twice")
            seen.add(key)
            if key == CHUNKED:
                if number or not path or entries != 3:
                    self._fail(f"{'/'.join(path)[:200]}: an array in pieces that also holds something else")
                self._pieces(path)
                return
            first = self._byte()
            inner = self._map_size(first, key)
            if inner is not None:
                self._walk((*path, key), inner)
            else:
                self._add((*path, key), *self._array(first, (*path, key)))

    def _pieces(self, path: tuple[str, ...]) -> None:
        """The rest of {CHUNKED: true, "shape": {"0": ...}, "chunks": {"0": ...}}, whose first key has been read."""
        where = "/".join(path)[:200]
        if self._byte() != 0xC3 or self._key(path) != "shape":
            self._fail(f"{where}: an array in pieces without its shape")
        shape = tuple(self._integer(self._byte()) for _ in self._numbered(path, LONGEST_SHAPE))
        if self._key(path) != "chunks":
            self._fail(f"{where}: an array in pieces without its pieces")
        dtype, ranges, elements = "", [], 0
        for _ in self._numbered(path, MOST_TENSORS):
            found, size, here = self._array(self._byte(), path)
            if (dtype and found != dtype) or len(size) != 1:
                self._fail(f"{where}: its pieces are not of one kind")
            dtype, elements = found, elements + size[0]
            ranges += list(here)
        if not dtype or elements != math.prod(shape):
            self._fail(f"{where}: {elements:,} elements in pieces, where its shape {shape} says {math.prod(shape):,}")
        self._add(path, dtype, shape, tuple(ranges))

    def _numbered(self, path: tuple[str, ...], most: int) -> Iterator[int]:
        """The entries of a map whose keys are "0", "1", ...; the caller reads each value."""
        where = "/".join(path)[:200]
        count = self._map_size(self._byte(), where)
        if count is None or count > most:
            self._fail(f"{where}: its parts are no map of at most {most:,} entries")
        for number in range(count):
            if self._key(path) != str(number):
                self._fail(f"{where}: part {number} is not where it should be")
            yield number

    def _array(self, first: int, path: tuple[str, ...]) -> tuple[str, Shape, Ranges]:
        """Type, shape and place of an extension that holds an array; `first` is its first byte."""
        where = "/".join(path)[:200]
        length = self._extension_size(first)
        if length is None:
            self._fail(f"{where} is no tensor")
        code = struct.unpack("b", self._take(1))[0]
        if code == COMPLEX:
            self._fail(f"{where} is a complex number")
        if code not in (NDARRAY, SCALAR):
            self._fail(f"{where} has the unknown extension type {code}")
        end = self.at + self._fits(length, where)
        if self._byte() != 0x93:
            self._fail(f"{where}: not shape, type and elements")
        shape = self._shape(where)
        dtype = DTYPES.get(self._string(self._byte(), 32))
        if dtype is None:
            self._fail(f"{where} has an unknown type")
        count = self._binary_size(self._byte(), where)
        if self.at + count != end:
            self._fail(f"{where}: {count:,} bytes of elements do not end where the tensor does")
        if count != math.prod(shape) * SIZES[dtype]:
            self._fail(
                f"{where}: {count:,} bytes stored, where {shape} of {dtype} needs {math.prod(shape) * SIZES[dtype]:,}"
            )
        start, self.at = self.at, end
        return dtype, shape, ((start, count),)

    def _shape(self, where: str) -> Shape:
        first = self._byte()
        if 0x90 <= first <= 0x9F:
            axes = first & 0x0F
        elif first == 0xDC:
            (axes,) = struct.unpack(">H", self._take(2))
        else:
            self._fail(f"{where}: its shape is no list")
        if axes > LONGEST_SHAPE:
            self._fail(f"{where} has {axes} axes")
        return tuple(self._integer(self._byte()) for _ in range(axes))

    def _add(self, path: tuple[str, ...], dtype: str, shape: Shape, ranges: Ranges) -> None:
        if len(self.found) >= MOST_TENSORS:
            self._fail(f"more than {MOST_TENSORS:,} tensors")
        start = ranges[0][0] if len(ranges) == 1 else -1
        self.found.append((Tensor("/".join(path), dtype, shape, self.name, start), ranges))

    def _key(self, path: tuple[str, ...]) -> str:
        key = self._string(self._byte(), LONGEST_KEY)
        if not key or "/" in key or not key.isprintable():
            self._fail(f"no name for a tensor: {ascii(key)[:80]} under {'/'.join(path)[:200] or 'the root'}")
        return key

    def _map_size(self, first: int, where: str) -> int | None:
        """Entries of a map, None for what is no map; each entry takes two bytes at least."""
        if 0x80 <= first <= 0x8F:
            size = first & 0x0F
        elif first in (0xDE, 0xDF):
            (size,) = struct.unpack(">H" if first == 0xDE else ">I", self._take(2 if first == 0xDE else 4))
        else:
            return None
        self._fits(2 * size, where)
        return int(size)

    def _extension_size(self, first: int) -> int | None:
        if 0xD4 <= first <= 0xD8:
            return 1 << (first - 0xD4)
        if first in (0xC7, 0xC8, 0xC9):
            return self._unsigned(1 << (first - 0xC7))
        return None

    def _binary_size(self, first: int, where: str) -> int:
        if first not in (0xC4, 0xC5, 0xC6):
            self._fail(f"{where}: its elements are no bytes")
        return self._fits(self._unsigned(1 << (first - 0xC4)), where)

    def _string(self, first: int, most: int) -> str:
        if 0xA0 <= first <= 0xBF:
            length = first & 0x1F
        elif first in (0xD9, 0xDA, 0xDB):
            length = self._unsigned(1 << (first - 0xD9))
        else:
            self._fail("a name that is no text")
        if length > most:
            self._fail(f"a name of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            self._fail("a name that is no text")

    def _integer(self, first: int) -> int:
        """An axis's size: any of the ways to write a number that is not negative."""
        value = first
        if 0xCC <= first <= 0xCF:
            value = self._unsigned(1 << (first - 0xCC))
        elif 0xD0 <= first <= 0xD3:
            width = 1 << (first - 0xD0)
            value = int.from_bytes(self._take(width), "big", signed=True)
        elif first > 0x7F:
            self._fail("a size that is no number")
        if not 0 <= value < LARGEST_SIZE:
            self._fail(f"the size {value:,} of an axis")
        return value

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _byte(self) -> int:
        return self._take(1)[0]

    def _fits(self, count: int, where: str) -> int:
        if count > self.size - self.at:
            self._fail(f"{where}: {count:,} bytes announced, {self.size - self.at:,} are left")
        return count

    def _take(self, count: int) -> bytes:
        """The next few bytes, through a small window: the elements between are never read."""
        self._fits(count, "the file")
        begin = self.at - self._window_start
        if begin < 0 or begin + count > len(self._window):
            self._window = read_at(self.descriptor, max(count, 512), self.at)
            self._window_start, begin = self.at, 0
        self.at += count
        taken = self._window[begin : begin + count]
        if len(taken) != count:
            self._fail("the file changed while it was read")
        return taken

    def _fail(self, fault: str) -> NoReturn:
        raise damaged(self.name, [f"at byte {self.at:,}: {fault}"])


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
    slots: list[Slot] = []
    literals: dict[int, bytes] = {}
    position, pending = 0, b""

    def leaf(tensor: tuple[str, str, Shape, int], shape: Shape, count: int) -> None:
        nonlocal position, pending
        pending += _array_header(tensor[1], shape, count)
        literals[position] = pending
        position, pending = position + len(pending), b""
        slots.append(Slot(tensor[0], tensor[1], shape, position, position + count))
        position += count

    def walk(branch: Mapping[str, Any]) -> None:
        nonlocal pending
        pending += _map_header(len(branch))
        for key, value in branch.items():
            pending += _text(key)
            if isinstance(value, dict):
                walk(value)
                continue
            tensor = by_name[value]
            _, dtype, shape, nbytes = tensor
            if nbytes <= PIECE_BYTES:
                leaf(tensor, shape, nbytes)
                continue
            pending += _map_header(3) + _text(CHUNKED) + b"\xc3" + _text("shape") + _map_header(len(shape))
            pending += b"".join(_text(str(axis)) + _number(size) for axis, size in enumerate(shape))
            step = PIECE_BYTES // SIZES[dtype] * SIZES[dtype]
            starts = range(0, nbytes, step)
            pending += _text("chunks") + _map_header(len(starts))
            for index, start in enumerate(starts):
                count = min(step, nbytes - start)
                pending += _text(str(index))
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


def _array_header(dtype: str, shape: Shape, count: int) -> bytes:
    """All of an array's extension but the elements."""
    axes = bytes([0x90 | len(shape)]) + b"".join(_number(size) for size in shape)
    inner = b"\x93" + axes + _text(NAMES[dtype]) + _sized(count, (0xC4, 0xC5, 0xC6))
    length = len(inner) + count
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
    head = bytes([fixed[length]]) if length in fixed else _sized(length, (0xC7, 0xC8, 0xC9))
    return head + bytes([NDARRAY]) + inner


def _map_header(entries: int) -> bytes:
    if entries < 16:
        return bytes([0x80 | entries])
    return b"\xde" + struct.pack(">H", entries) if entries < 1 << 16 else b"\xdf" + struct.pack(">I", entries)


def _text(text: str) -> bytes:
    data = text.encode()
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else _sized(len(data), (0xD9, 0xDA, 0xDB))) + data


def _number(value: int) -> bytes:
    return bytes([value]) if value < 128 else _sized(value, (0xCC, 0xCD, 0xCE, 0xCF))


def _sized(value: int, codes: Sequence[int]) -> bytes:
    """The shortest of the codes that holds the value, in 1, 2, 4 or 8 bytes."""
    for code, form in zip(codes, (">B", ">H", ">I", ">Q"), strict=False):
        if value < 1 << (8 * struct.calcsize(form)):
            return bytes([code]) + struct.pack(form, value)
    raise ValueError(f"{value:,} is too large for msgpack")
