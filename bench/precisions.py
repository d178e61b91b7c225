"""The data types that run fast on a machine."""

from __future__ import annotations

from ..convert.errors import UnsupportedError
from ..eight_bits import require_int8
from ..templates.lsg_kernel_cpu import multiplies_bfloat16
from .options import INT8


def quick(device: str, train: bool) -> list[str]:
    """float32; bfloat16 where the device multiplies in it; 8-bit dense layers on CPUs, for inference."""
    found = ["float32"]
    if device != "cpu" or multiplies_bfloat16():
        found.append("bfloat16")
    if device == "cpu" and not train:
        try:
            require_int8()
        except UnsupportedError:
            return found
        found.append(INT8)
    return found
