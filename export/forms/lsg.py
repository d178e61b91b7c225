"""LSG attention as one graph for every length: no Python branch on the number of tokens or texts.

The repo's code takes full attention up to two blocks and windows beyond, and pads to whole blocks where it must. A
graph cannot choose, so here every length goes through windows, with the sparse keys hidden up to two blocks: there the
local keys of a block are the whole text, so the result is that of full attention.

Nothing is padded but queries. Keys and values stand in one list: tokens, global ones first, then sparse entries. One
Gather makes the windows of all blocks; where a window reaches beyond the list, its index points at any entry, hidden.
What depends on the padding mask alone is made once and shared by all layers (`Windows`).

Axes: b batch, h heads, t tokens, g globals, n blocks, l entries of the sparse list, w keys of a window, d head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...templates.lsg_configuration import sparse_chunk_size, uses_sparse_keys
from .lsg_sparse import SparseList, sparse_list


class Windows(NamedTuple):
    """What the windows of all layers share.

    Attributes:
        places: where the keys of a window stand, global and local, then sparse ones: int64 (n, w), within the list.
        known: whether the global and local ones may be seen: bool (b, 1, n, block or 1, w').
        reached: which sparse places of a window the list has: bool (n, w - w').
        entries: of the sparse ones in the sparse list: int64 (n, w - w'), within it.
        to_all: what is added to the scores of the globals' rows: (b, 1, 1, g + t), or of the globals alone if causal.
        mask: bool (b, g + t).
        blocks: n.
    """

    places: Tensor
    known: Tensor
    reached: Tensor | None
    entries: Tensor | None
    to_all: Tensor
    mask: Tensor
    blocks: Any


class Shared:
    """The windows of one forward, made in its first layer."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.windows: Windows | None = None

    def of(self, mask: Tensor, config: Any, dtype: torch.dtype) -> Windows:
        if self.mask is not mask or self.windows is None:
            self.mask, self.windows = mask, windows_of(mask, config, dtype)
        return self.windows


class LSGForm(nn.Module):
    """Takes the place of `LSGAttention` and `BiasedLSGAttention` while a graph is made."""

    def __init__(self, mix: Any, shared: Shared) -> None:
        super().__init__()
        self.config: Any = mix.config
        self.shared = shared

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """q, k, v (b, h, g + t, d); mask bool (b, g + t); bias (h, 2 R + 2) or None. Returns (b, h, g + t, d)."""
        config = self.config
        windows = self.shared.of(mask, config, q.dtype)
        tokens = token_rows(q, k, v, windows, bias, config)
        first = config.num_global_tokens
        if not first:
            return tokens
        own = q[:, :, :first]
        if not is_causal(config):
            own = attend(own, k, v, windows.to_all)
        elif config.causal_globals != "published":
            own = attend(own, k[:, :, :first], v[:, :, :first], windows.to_all)
        return torch.cat([own, tokens], dim=2)


def is_causal(config: Any) -> bool:
    return bool(getattr(config, "is_decoder", False))


def blocks_of(length: Any, block: int) -> Any:
    """The number of blocks that hold so many tokens.

    Read from a tensor: to torch.export it is then a size of its own, and not a quotient that it simplifies in every
    operation of every layer (four times the time).
    """
    blocks = (torch.arange(length)[-1] // block + 1).item()
    torch._check(blocks >= 1)
    torch._check(blocks * block >= length)
    return blocks


def list_length(blocks: Any, config: Any) -> Any:
    """Entries of the sparse list of so many blocks: whole chunks, where chunks do not divide a block."""
    block, factor = config.block_size, config.sparsity_factor
    chunk = sparse_chunk_size(config) if config.sparsity_type == "norm" and factor > 1 else block
    return (
        blocks * block // factor if block % chunk == 0 else ((blocks * block + chunk - 1) // chunk) * (chunk // factor)
    )


def sparse_starts(config: Any) -> list[int]:
    """Where in the sparse list block 0's entries begin: left of its local keys and, unless causal, right of them."""
    step = config.block_size // config.sparsity_factor
    left, right = -step - config.sparse_block_size, 2 * step if step > 1 else 0
    return [left] if is_causal(config) else [left, right]


def windows_of(mask: Tensor, config: Any, dtype: torch.dtype) -> Windows:
    """The windows of a batch with this padding mask, bool (b, g + t)."""
    first, block, causal = config.num_global_tokens, config.block_size, is_causal(config)
    rows = mask.shape[1]
    length = rows - first
    blocks = blocks_of(length, block)
    width = (2 if causal else 3) * block
    ahead = torch.arange(blocks)[:, None]
    local = ahead * block + torch.arange(width) - block  # positions of tokens: n width
    index = local.clamp(min=0, max=length - 1) + first
    inside = (local >= 0) & (local < length)
    if first:
        index = F.pad(index, (first, 0)) + F.pad(torch.arange(first), (0, width))
        inside = F.pad(inside, (first, 0), value=True)
    known = (gathered(mask[:, None], index) & inside)[:, :, :, None]  # b 1 n 1 w'
    if causal:  # row r of a block is row block + r of its window, and sees no later one
        lower = torch.ones((block, width), dtype=torch.bool).tril(block)
        known = known & F.pad(lower, (first, 0), value=True)
    seen = mask[:, :first] if causal else mask
    to_all = hidden(seen[:, None, None], dtype)
    if not uses_sparse_keys(config):
        return Windows(index, known, None, None, to_all, mask, blocks)
    step, entries = block // config.sparsity_factor, list_length(blocks, config)
    places = torch.arange(config.sparse_block_size)
    chosen = torch.cat([ahead * step + places + start for start in sparse_starts(config)], dim=1)
    long = torch.arange(blocks)[-1] >= 2  # up to two blocks the local keys are all there are
    reached = (chosen >= 0) & (chosen < entries) & long
    chosen = chosen.clamp(min=0, max=entries - 1)
    return Windows(torch.cat([index, chosen + rows], dim=1), known, reached, chosen, to_all, mask, blocks)


def gathered(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (b, h, l, ...) at index (n, w): (b, h, n, w, ...), as one Gather."""
    return x.index_select(2, index.flatten()).unflatten(2, (-1, index.shape[1]))


def hidden(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where visible, else half of the lowest number, as the repo's code has it."""
    return torch.where(visible, torch.zeros((), dtype=dtype), torch.finfo(dtype).min / 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of rows (..., r, d) over keys (..., w, d); the bias broadcasts to (..., r, w)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores + bias).softmax(-1) @ v


def token_rows(q: Tensor, k: Tensor, v: Tensor, windows: Windows, bias: Tensor | None, config: Any) -> Tensor:
    """The tokens' rows (b, h, t, d), each block against its window."""
    first, block = config.num_global_tokens, config.block_size
    length, blocks = q.shape[2] - first, windows.blocks
    shown, places = windows.known, None
    if windows.reached is not None and windows.entries is not None:
        sparse = sparse_list(q, k, v, windows.mask, config, list_length(blocks, config), bias)
        k, v = torch.cat([k, sparse.keys], dim=2), torch.cat([v, sparse.values], dim=2)
        far = (gathered(sparse.visible, windows.entries) & windows.reached)[:, :, :, None]  # b (h or 1) n 1 w
        rows = block if is_causal(config) else 1
        known = windows.known.expand(-1, far.shape[1], -1, -1, -1)
        shown = torch.cat([known, far.expand(-1, -1, -1, rows, -1)], dim=-1)
        places = places_of(sparse, windows.entries)
    window_keys, window_values = gathered(k, windows.places), gathered(v, windows.places)  # b h n w d
    queries, fill = q[:, :, first:] * q.shape[-1] ** -0.5, blocks * block - length
    if bias is None and shown.shape[3] == 1:
        # What hides a key is one more channel of it, against a 1 of every query: an addition to all scores of a window
        # would take a fifth of the time.
        queries = F.pad(queries, (0, 1, 0, fill), value=1.0).unflatten(2, (blocks, block))
        added = hidden(shown, q.dtype).transpose(3, 4).expand(-1, window_keys.shape[1], -1, -1, -1)  # b h n w 1
        scores = queries @ torch.cat([window_keys, added], dim=-1).transpose(-1, -2)
    else:
        queries = F.pad(queries, (0, 0, 0, fill)).unflatten(2, (blocks, block))  # b h n block d
        scores = queries @ window_keys.transpose(-1, -2)
        if bias is None:
            scores = scores + hidden(shown, q.dtype)
        else:
            scores = scores + window_bias(bias, places, config, blocks).to(q.dtype)
            scores = torch.where(shown, scores, torch.finfo(q.dtype).min / 2)
    context = scores.softmax(-1) @ window_values
    return context.flatten(2, 3)[:, :, :length]


def places_of(sparse: SparseList, entries: Tensor) -> Tensor | None:
    """Where the sparse keys of every window stand, float32 (b, h, n, w), if anybody asks."""
    return None if sparse.places is None else gathered(sparse.places, entries)


def window_bias(bias: Tensor, places: Tensor | None, config: Any, blocks: Any) -> Tensor:
    """The bias (b or 1, h, n or 1, block, w) on the scores of every block's window."""
    block, first, reach = config.block_size, config.num_global_tokens, bias.shape[1] // 2 - 1
    rows = torch.arange(block)[:, None]
    distance = (torch.arange(-block, 2 * block) - rows).clamp(-reach, reach) + reach
    to_globals = bias[:, None, -1:].expand(-1, block, first)
    local = bias.index_select(1, distance.flatten()).unflatten(1, (block, -1))
    known = torch.cat([to_globals, local], dim=2)[None, :, None]  # 1 h 1 block w
    if not uses_sparse_keys(config):
        return known
    if places is None:  # the left keys are all as far away as it gets, and so are the right ones
        size = config.sparse_block_size
        sides = [bias[None, :, None, None, side : side + 1].expand(-1, -1, -1, block, size) for side in (0, 2 * reach)]
        return torch.cat([known, *sides], dim=4)
    of_rows = torch.arange(blocks)[:, None, None] * block + rows  # n block 1
    far = (places[:, :, :, None] - of_rows).round().long().clamp(-reach, reach) + reach  # b h n block w
    # One number for a head and a distance: those of head a begin at a (2 R + 2) in the flat table.
    flat = far + torch.arange(bias.shape[0])[:, None, None, None] * bias.shape[1]
    scores = bias.flatten().index_select(0, flat.flatten()).view(flat.shape)
    return torch.cat([known.expand(scores.shape[0], -1, blocks, -1, -1), scores], dim=4)
