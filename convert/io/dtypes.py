"""Tensor element types: safetensors' names, sizes, and exact conversion to and from float32.

numpy has no bfloat16, so a tensor travels as raw little-endian elements with its type's name beside it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
NAMES = {  # as numpy, torch and JAX call them
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
BY_NAME = {name: dtype for dtype, name in NAMES.items()}
RAW = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Array(NamedTuple):
    """Raw elements and their type. `data` has numpy's type where there is one, else the same-sized unsigned integer."""

    data: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def blocks(self, rows: int) -> Iterator[Array]:
        """The array in runs of rows. Of a mapped file only one run is kept in memory."""
        owner: Any = self.data
        while isinstance(owner, np.ndarray):
            owner = owner.base
        mapped = getattr(owner, "obj", None)
        for start in range(0, len(self.data), rows):
            yield Array(self.data[start : start + rows], self.dtype)
            if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def float32(self) -> np.ndarray:
        """The values as float32 (exact for F32, F16 and BF16)."""
        if self.dtype == "BF16":
            return (self.data.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold, the finite check reports
            return self.data.astype("<f4", copy=False)


def from_bytes(buffer: bytes | bytearray | memoryview, dtype: str, shape: tuple[int, ...]) -> Array:
    return Array(np.frombuffer(buffer, dtype=RAW.get(dtype, f"<u{SIZES[dtype]}")).reshape(shape), dtype)


def from_float32(values: np.ndarray, dtype: str) -> Array:
    """Rounds float32 values to `dtype`, to nearest, ties to even."""
    if dtype == "BF16":
        values = np.ascontiguousarray(values, dtype="<f4")
        bits = values.view("<u4")
        rounded = bits >> 16  # in place from here: a table of positions may be large
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        # Adding to a NaN's payload could carry into infinity: keep it a (quiet) NaN.
        nan = np.isnan(values)
        rounded[nan] = (bits[nan] >> 16) | 0x40
        return Array(rounded.astype("<u2"), dtype)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # float16 overflow becomes infinity, which the finite check reports
        return Array(np.ascontiguousarray(values).astype(RAW[dtype]), dtype)


def cast(array: Array, dtype: str) -> Array:
    if array.dtype == dtype:
        return array
    return from_float32(array.float32(), dtype)


def all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; integer types always are finite.

    The sum of squares is finite only if every element is, and is one fast pass; where it is not (large values
    overflow it), the elements decide.
    """
    if array.dtype not in FLOATS:
        return True
    flat = array.data.reshape(-1)
    if array.dtype in ("F32", "F64"):
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())
    exponent = 0x7F80 if array.dtype == "BF16" else 0x7C00
    bits = flat.view("<u2") & exponent
    return not bool((bits == exponent).any())
