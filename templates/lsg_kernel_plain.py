# SPDX-License-Identifier: Apache-2.0
"""LSG attention in plain torch, on every device and in every graph; the form that the others are compared with.

Over more than two blocks it copies every block's window of keys, and calls one scaled_dot_product_attention for all.
Axes: b batch, h heads, t tokens, d head size, n blocks, l entries of the sparse list, w keys of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lsg_kernel_cpu import sparse_starts

Sparse = tuple[
    Tensor, Tensor, Tensor
]  # the sparse list: keys and values (b, h, l, d), and visible, bool (b, h or 1, l)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention; `visible` broadcasts to (b, h, rows, keys). Every score of this form is made here.

    A row that may see nothing gets finite numbers (near the mean of all values), not NaN: hence half of the lowest
    number in place of -inf, which no score can push over the edge of a 16-bit format.
    """
    bias = None
    if visible is not None:
        bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~visible, torch.finfo(q.dtype).min / 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The form in plain torch: a copy of every block's window, and one scaled_dot_product_attention for all of them."""
    tokens = block_attention(q, k, v, mask, sparse, config, causal, dropout)
    return torch.cat([global_attention(q, k, v, mask, config.num_global_tokens, causal, dropout), tokens], dim=2)


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, global_count: int, causal: bool, dropout: float
) -> Tensor:
    """Every row sees every key; if causal, tokens see no later token and global tokens see each other only."""
    visible = None if mask is None else mask[:, None, None, :]
    if causal:
        rows = q.shape[2]
        earlier = torch.ones((rows, rows), dtype=torch.bool, device=q.device).tril()
        earlier[:, :global_count] = True
        visible = earlier if visible is None else visible & earlier
    return attend(q, k, v, visible, dropout)


def global_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, global_count: int, causal: bool, dropout: float
) -> Tensor:
    """The global tokens' rows (b, h, g, d): they see everything, or if causal each other."""
    seen = global_count if causal else k.shape[2]
    visible = None if mask is None else mask[:, None, None, :seen]
    return attend(q[:, :, :global_count], k[:, :, :seen], v[:, :, :seen], visible, dropout)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    config: Any,
    causal: bool,
    dropout: float,
    attend: Callable[..., Tensor] = attend,
) -> Tensor:
    """The tokens' rows (b, h, t, d), block by block, each block against one window of keys."""
    batch, heads, rows, _ = q.shape
    first, block = config.num_global_tokens, config.block_size
    length = rows - first
    if mask is None:
        mask = torch.ones((batch, rows), dtype=torch.bool, device=q.device)
    queries, keys, values = (whole_blocks(x[:, :, first:], block) for x in (q, k, v))
    blocks = keys.shape[2] // block

    # The window of a block: global keys, then local and sparse ones, each as (keys, values, visible).
    parts = [
        (
            k[:, None, :, :first].expand(-1, blocks, -1, -1, -1),
            v[:, None, :, :first].expand(-1, blocks, -1, -1, -1),
            mask[:, None, None, None, :first],
        ),
        local_part(keys, values, whole_blocks(mask[:, first:, None], block)[..., 0], block, blocks, causal),
    ]
    if sparse is not None:
        parts += sparse_parts(*sparse, config, blocks, causal)
    window_keys = torch.cat([part[0] for part in parts], dim=3).flatten(0, 1)  # (b n) h w d
    window_values = torch.cat([part[1] for part in parts], dim=3).flatten(0, 1)
    shared = torch.broadcast_shapes(*(part[2].shape[:-1] for part in parts))  # b n, heads or 1, rows of a block or 1
    window_visible = torch.cat([part[2].expand(*shared, -1) for part in parts], dim=-1).flatten(0, 1)

    block_queries = queries.unflatten(2, (blocks, block)).transpose(1, 2).flatten(0, 1)  # (b n) h block d
    context = attend(block_queries, window_keys, window_values, window_visible, dropout)
    context = context.unflatten(0, (batch, blocks)).transpose(1, 2)  # b h n block d
    return context.reshape(batch, heads, blocks * block, -1)[:, :, :length]


def whole_blocks(x: Tensor, block: int) -> Tensor:
    """Pads x (..., t, d) with zeros (False) to a multiple of the block."""
    padding = -x.shape[-2] % block
    return F.pad(x, (0, 0, 0, padding)) if padding else x


def windows(x: Tensor, start: int, size: int, step: int, count: int) -> Tensor:
    """Overlapping slices of x (b, h, l, d): window i is rows [start + i * step, + size), zeros where x has none.

    Returns:
        A view of the padded x of shape (b, count, h, size, d).
    """
    end = start + (count - 1) * step + size
    padded = F.pad(x, (0, 0, -start, end - x.shape[2]))  # a negative amount crops
    return padded.unfold(2, size, step).permute(0, 2, 1, 4, 3)


def visible_windows(visible: Tensor, start: int, size: int, step: int, count: int) -> Tensor:
    """The same slices of a mask (b, h or 1, l), False outside, as (b, count, h or 1, 1, size)."""
    return windows(visible[..., None], start, size, step, count).transpose(-1, -2)


def local_part(
    keys: Tensor, values: Tensor, visible: Tensor, block: int, blocks: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (b, n, h, w, d) of a block and its neighbours, and visible (b, n, 1, block or 1, w)."""
    size = (2 if causal else 3) * block
    where = (-block, size, block, blocks)
    seen = visible_windows(visible[:, None], *where)
    if causal:  # row r of a block is row block + r of its window, and sees no later one
        seen = seen & torch.ones((block, size), dtype=torch.bool, device=seen.device).tril(block)
    return windows(keys, *where), windows(values, *where), seen


def sparse_parts(keys: Tensor, values: Tensor, visible: Tensor, config: Any, blocks: int, causal: bool) -> list[Sparse]:
    """The pieces of the sparse list left and right of the local keys; only left if causal."""
    size, entries = config.sparse_block_size, config.block_size // config.sparsity_factor  # entries: of one block
    return [
        (
            windows(keys, start, size, entries, blocks),
            windows(values, start, size, entries, blocks),
            visible_windows(visible, start, size, entries, blocks),
        )
        for start in sparse_starts(size, entries, causal)
    ]
