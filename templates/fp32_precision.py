# SPDX-License-Identifier: Apache-2.0
"""How exactly a CPU multiplies float32 matrices, set for the time of one call.

torch hands float32 products to oneDNN, instead of to its default library, once they may be less exact. That can be
faster even where the processor then multiplies in float32 all the same; on one that has bfloat16 products (AMX,
avx512_bf16) it may multiply in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_calls: list[str] = []  # that run now, in whatever thread: what each of them asked for
_before = "none"  # the setting that was found by the first of them


@contextmanager
def fp32_precision(precision: str | None) -> Iterator[None]:
    """Run the block with `torch.backends.mkldnn.matmul.fp32_precision` set, and put back what it was, come what may.

    torch keeps the setting for the whole process. Calls that overlap, in one thread or in several, share it: the first
    one saves what was there, and the last one to leave puts it back. In a graph that torch.compile or torch.export
    makes, the block does nothing: such a graph runs with the setting of whoever runs it.

    Args:
        precision: "ieee", "tf32" or "bf16"; None to leave the setting alone.

    Raises:
        ValueError: where this torch has no such setting (it came with 2.9).
    """
    if precision is None or torch.compiler.is_compiling():
        yield
        return
    _enter(precision)
    try:
        yield
    finally:
        _leave(precision)


def _enter(precision: str) -> None:
    global _before
    mkldnn = torch.backends.mkldnn
    if not hasattr(getattr(mkldnn, "matmul", None), "fp32_precision"):
        raise ValueError(
            f"mkldnn_fp32_precision is {precision!r}, and torch {torch.__version__} has no "
            "torch.backends.mkldnn.matmul.fp32_precision: use torch 2.9 or later, or set it to None"
        )
    with _lock:
        if not _calls:
            found = mkldnn.matmul.fp32_precision
            # One that only follows a wider setting reads as that one; "none" lets it follow again.
            _before = "none" if found == mkldnn.fp32_precision else found
        mkldnn.matmul.fp32_precision = precision
        _calls.append(precision)


def _leave(precision: str) -> None:
    with _lock:
        _calls.remove(precision)
        torch.backends.mkldnn.matmul.fp32_precision = _calls[-1] if _calls else _before
