"""Windows of a text: runs of its token ids, of one length, with special tokens around each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def windows(
    tokens: Sequence[int] | Tensor, starts: Iterable[int], length: int, prefix: Sequence[int], suffix: Sequence[int]
) -> Tensor:
    """Texts (n, length) of a text's tokens from each start on, special tokens included."""
    stream, body = torch.as_tensor(tokens, dtype=torch.long), length - len(prefix) - len(suffix)
    return around(torch.stack([stream[start : start + body] for start in starts]), prefix, suffix)


def spread_windows(
    tokens: Sequence[int] | Tensor, length: int, count: int, prefix: Sequence[int], suffix: Sequence[int]
) -> Tensor | None:
    """Up to `count` windows (count, length) that do not overlap, evenly spread; None for a text too short."""
    body = length - len(prefix) - len(suffix)
    available = len(tokens) // body if body > 0 else 0
    if not available:
        return None
    chosen = sorted({round(i * (available - 1) / max(count - 1, 1)) for i in range(min(count, available))})
    return windows(tokens, [i * body for i in chosen], length, prefix, suffix)


def around(body: Tensor, prefix: Sequence[int], suffix: Sequence[int]) -> Tensor:
    """Ids (b, t) with the special tokens before and after."""
    first, last = (body.new_tensor(list(end)).expand(len(body), -1) for end in (prefix, suffix))
    return torch.cat([first, body, last], 1)
