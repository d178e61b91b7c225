"""Reads TFRecord files of `tf.train.Example` without TensorFlow, with their checksums.

A record is its length (8 bytes), its checksum, the data, and their checksum: CRC-32C, masked. The packages
for this either need TensorFlow or do not compare checksums (tfrecord 1.14), so the forty lines that read an Example are
here, and the checksum is the package crc32c's. Gzip is recognised.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..convert.errors import BadInputError, UsageError

LENGTH_BYTES, CRC_BYTES = 8, 4
LARGEST = 1 << 30  # bytes of a record: a longer one is a damaged length
FEATURES = {"bytes": 1, "float": 2, "int64": 3}  # fields of Feature: BytesList, FloatList, Int64List
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types


def read_examples(path: Path) -> Iterator[dict[str, Any]]:
    """The features of each record by name: int64 and float32 arrays, and lists of bytes.

    Raises:
        BadInputError: the file cannot be read, a checksum differs, or a record is not a `tf.train.Example`.
    """
    for number, data in enumerate(read_records(path)):
        try:
            yield _example(data)
        except (IndexError, ValueError, struct.error) as error:
            raise BadInputError(
                f"the record is not a tf.train.Example ({error})",
                where=f"{path}, record {number}",
                hint="give TFRecords with examples",
            ) from None


def read_records(path: Path) -> Iterator[bytes]:
    """The data of each record, with both checksums compared."""
    try:
        from crc32c import crc32c
    except ImportError:
        raise UsageError(
            "the package crc32c is not installed", where="--data", hint="pip install 'effconv[prepare]'"
        ) from None

    def checked(data: bytes, stored: bytes) -> bool:
        crc = crc32c(data)
        masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        return len(stored) == CRC_BYTES and masked == struct.unpack("<I", stored)[0]

    number = 0
    try:
        with _opened(path) as file:
            while head := file.read(LENGTH_BYTES):
                sound = checked(head, file.read(CRC_BYTES))
                length = struct.unpack("<Q", head)[0] if sound else 0
                data = file.read(length) if sound and length <= LARGEST else b""
                if not sound or len(data) != length or not checked(data, file.read(CRC_BYTES)):
                    raise _damaged(path, number, "a checksum differs, or the file is cut short")
                yield data
                number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, number, str(error)) from None


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _damaged(path: Path, number: int, why: str) -> BadInputError:
    return BadInputError(
        f"cannot read the TFRecord file ({why})",
        where=f"{path}, record {number}",
        hint="copy or write the file again",
    )


def _example(data: bytes) -> dict[str, Any]:
    """Example { Features features = 1; }, Features { map<string, Feature> feature = 1; }."""
    found = {}
    for features in _all(data, 1):
        for entry in _all(features, 1):
            names, values = _all(entry, 1), _all(entry, 2)
            if not names:
                raise ValueError("a feature without a name")
            found[names[-1].decode("utf-8")] = _feature(values[-1] if values else b"")
    return found


def _feature(data: bytes) -> Any:
    """Feature { oneof { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }."""
    for kind, part in _fields(data):
        if kind == FEATURES["bytes"]:
            return _all(part, 1)
        if kind == FEATURES["float"]:  # packed or not: four bytes a number, one after the other
            return np.frombuffer(b"".join(_all(part, 1)), "<f4")
        if kind == FEATURES["int64"]:
            return np.array([number for chunk in _numbers(part) for number in chunk], np.int64)
    return np.empty(0, np.int64)


def _numbers(data: bytes) -> Iterator[list[int]]:
    """The numbers of an Int64List: packed (the usual form), or one field each."""
    for _, part in _fields(data):
        if isinstance(part, int):
            yield [_signed(part)]
        else:
            yield [_signed(number) for number in _varints(part)]


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        number, at = _varint(data, at)
        yield number


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _all(data: bytes, wanted: int) -> list[bytes]:
    return [part for field, part in _fields(data) if field == wanted and isinstance(part, bytes)]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a protobuf message: bytes, or an int of a varint."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == DELIMITED:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field beyond the end")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")
