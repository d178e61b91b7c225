# SPDX-License-Identifier: Apache-2.0
"""LSG attention over more than two blocks by FlexAttention, which torch compiles to a kernel for the GPU at hand.

The tokens, the sparse list and the globals are one list of keys. A token's block sees an interval of the tokens, one
or two of the sparse list, and all globals; said of the keys, each is seen by one or two intervals of blocks. That is
all that the mask looks up, so one compiled kernel serves every length and every option. Which tiles of rows and keys
have anything to compute follows from the intervals too, without a matrix of rows times keys.

Axes: b batch, h heads, t tokens, g globals, l entries of the sparse list, d head size, n keys (t + l + g).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .lsg_kernel_cpu import sparse_starts

OLDEST = (2, 6)  # torch with a FlexAttention for lengths that are no whole tiles
SMALLEST_HEAD = 16  # that torch compiles the kernel for
TILE = 128  # rows and keys of a tile
FAR = 1 << 30  # beyond every block


def flex_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: tuple[Tensor, Tensor, Tensor] | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The tokens' rows (b, h, t, d) of LSG attention beyond two blocks; see `lsg_attention` in lsg_attention.py.

    Args:
        q: queries (b, h, g + t, d), globals first; any dtype that FlexAttention takes.
        k: keys, likewise.
        v: values, likewise.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        sparse: the sparse list, keys and values (b, h, l, d) and visible (b, h or 1, l), or None.
        config: anything with the fields of `LSGConfigMixin`.
        causal: no token sees a later one.
        dropout: probability for attention weights: only 0, as FlexAttention has none.

    Returns:
        The context (b, h, t, d). A row that may see nothing is zero.

    Raises:
        ValueError: for what `obstacle` names.
    """
    why = obstacle(q, dropout)
    if why:
        raise ValueError(f"attention_form is 'flex', which cannot run: {why}. Set attention_form to 'auto'")
    first = config.num_global_tokens
    sparse_keys, sparse_values, sparse_visible = sparse or (k[:, :, :0], v[:, :, :0], None)
    keys, values = (
        torch.cat([x[:, :, first:], listed, x[:, :, :first]], dim=2)
        for x, listed in ((k, sparse_keys), (v, sparse_values))
    )
    length = q.shape[2] - first
    visible = visible_keys(mask, sparse_visible, len(q), first, length, q.device)
    intervals = seen_by(length, sparse_keys.shape[2], config, causal, q.device)
    seen = block_mask(length, config.block_size, intervals, visible, causal)
    return kernel_for(q)(q[:, :, first:], keys, values, block_mask=seen)  # a bias on scores would be its `score_mod`


def obstacle(q: Tensor, dropout: float) -> str:
    """Why this form cannot run for queries like q, or "" if it can."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if q.shape[-1] < SMALLEST_HEAD and q.device.type != "cpu":
        return f"heads have size {q.shape[-1]}, and FlexAttention takes {SMALLEST_HEAD} and more"
    if dropout > 0:
        return f"FlexAttention does not support attention dropout, which is {dropout}: set it to 0"
    return ""


def kernel_for(q: Tensor) -> Callable[..., Tensor]:
    """FlexAttention, compiled but on a CPU, where it is the form that torch tests it by: rows times keys in memory."""
    from torch.nn.attention.flex_attention import flex_attention as stock

    return stock if q.device.type == "cpu" or torch.compiler.is_compiling() else compiled()


@functools.cache
def compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as stock

    return torch.compile(stock, fullgraph=True)  # else one length too many would run uncompiled, unnoticed


def visible_keys(
    mask: Tensor | None, sparse_visible: Tensor | None, batch: int, first: int, length: int, device: torch.device
) -> Tensor:
    """Which keys may be seen: bool (b, h or 1, n)."""
    if mask is None:
        mask = torch.ones((batch, first + length), dtype=torch.bool, device=device)
    global_keys, tokens = mask[:, None].split([first, length], dim=2)  # b 1 t
    if sparse_visible is None:
        return torch.cat([tokens, global_keys], dim=2)
    heads = sparse_visible.shape[1]
    return torch.cat([tokens.expand(-1, heads, -1), sparse_visible, global_keys.expand(-1, heads, -1)], dim=2)


def seen_by(length: int, entries: int, config: Any, causal: bool, device: torch.device) -> Tensor:
    """The blocks that see each key, as two intervals [start, stop): (2, 2, n), interval by start and stop."""
    block, size = config.block_size, config.sparse_block_size
    own = torch.arange(length, device=device) // block
    entry = torch.arange(entries, device=device)
    always = torch.arange(2, device=device)[:, None] * FAR  # as an interval; the other way round, never
    never = always.flip(0)
    parts = [torch.stack([torch.stack([own if causal else own - 1, own + 2]), never.expand(-1, length)])]
    if entries:
        step = block // config.sparsity_factor
        # Block i sees entries [start + i * step, + size).
        sides = [
            torch.stack([(entry - start - size) // step + 1, (entry - start) // step + 1])
            for start in sparse_starts(size, step, causal)
        ]
        parts.append(torch.stack([*sides, never.expand(-1, entries)][:2]))
    parts.append(torch.stack([always, never]).expand(-1, -1, config.num_global_tokens))
    return torch.cat(parts, dim=2)


def block_mask(length: int, block: int, intervals: Tensor, visible: Tensor, causal: bool) -> Any:
    """The mask as FlexAttention takes it.

    Args:
        length: t.
        block: tokens in a block.
        intervals: the blocks that see each key, as of `seen_by`.
        visible: bool (b, h or 1, n).
        causal: whether no row sees a later token.
    """
    from torch.nn.attention.flex_attention import BlockMask

    keys, rows = visible.shape[2], torch.arange(length, device=visible.device)
    # The first row that sees each key; in causal attention tokens are seen from their own row on.
    earliest = torch.zeros(keys, dtype=torch.long, device=visible.device)
    if causal:
        earliest[:length] = rows
    (start, stop), (other_start, other_stop) = intervals
    one_for_all_heads = visible.shape[1] == 1

    def sees(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        own = row // block
        near = (own >= start[key]) & (own < stop[key])
        far = (own >= other_start[key]) & (own < other_stop[key])
        shown = visible[b, 0, key] if one_for_all_heads else visible[b, h, key]
        return shown & (near | far) & (row >= earliest[key])

    some, every = tiles(rows // block, intervals, visible.flatten(0, 1).all(0), earliest)
    return BlockMask.from_kv_blocks(
        *in_order(some & ~every),
        *in_order(every),
        BLOCK_SIZE=TILE,
        mask_mod=sees,
        seq_lengths=(length, keys),
    )


def tiles(own: Tensor, intervals: Tensor, visible: Tensor, earliest: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles of rows by tiles of keys: in which some row may see some key, and in which every row sees every key.

    The first are too many rather than too few, the second too few rather than too many; the mask decides the others.
    """
    row = torch.arange(len(own), device=own.device)
    lowest_block, highest_block = of_tiles(own, torch.amin)[:, None], of_tiles(own, torch.amax)[:, None]
    lowest_row, highest_row = of_tiles(row, torch.amin)[:, None], of_tiles(row, torch.amax)[:, None]
    shape = (len(lowest_row), -(-len(visible) // TILE))
    some, every = (torch.zeros(shape, dtype=torch.bool, device=own.device) for _ in range(2))
    for start, stop in intervals:
        some = some | ((highest_block >= of_tiles(start, torch.amin)) & (lowest_block < of_tiles(stop, torch.amax)))
        every = every | ((lowest_block >= of_tiles(start, torch.amax)) & (highest_block < of_tiles(stop, torch.amin)))
    some = some & (highest_row >= of_tiles(earliest, torch.amin))
    whole = of_tiles(visible.long(), torch.amin) == 1
    every = every & whole & (lowest_row >= of_tiles(earliest, torch.amax))
    if len(visible) % TILE:
        every[:, -1] = False  # the last keys of that tile are not there
    return some, every


def of_tiles(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """The lowest or highest of each tile of x; the last tile may have fewer."""
    rest = -len(x) % TILE
    return reduce(torch.cat([x, x[-1:].expand(rest)]).unflatten(0, (-1, TILE)), 1)


def in_order(seen: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of keys each tile of rows sees (1, 1, rows), and all numbers, theirs first (.., rows, keys)."""
    order = seen.int().argsort(dim=-1, descending=True, stable=True)
    return seen.sum(-1, dtype=torch.int32)[None, None], order.int().contiguous()[None, None]
