"""The sparse list of LSG attention for a graph: one entry for `sparsity_factor` tokens, as the repo's code makes it.

Axes: b batch, h heads, t tokens, l entries, f tokens of an entry, d head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...templates.lsg_configuration import sparse_chunk_size


class SparseList(NamedTuple):
    """Keys and values (b, h, l, d), visible bool (b, h or 1, l), and where the entries stand.

    Attributes:
        places: float32 (b, h, l), None where no bias asks for it.
    """

    keys: Tensor
    values: Tensor
    visible: Tensor
    places: Tensor | None


def sparse_list(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, config: Any, entries: Any, bias: Tensor | None
) -> SparseList:
    """The list of q, k and v (b, h, g + t, d) under a mask (b, g + t).

    Args:
        entries: its length: of all blocks, the last one filled up.
        bias: of the scores; where the entries stand matters to it alone.
    """
    kind, factor, block = config.sparsity_type, config.sparsity_factor, config.block_size
    first = config.num_global_tokens
    keys, values, visible = k[:, :, first:], v[:, :, first:], mask[:, first:]
    length = keys.shape[2]
    padding = entries * factor - length
    wanted = bias is not None and not (block >= bias.shape[1] // 2 - 1 and factor < block)
    places = torch.arange(entries * factor, dtype=torch.float32) if wanted else None
    visible = F.pad(visible, (0, padding))
    if factor == 1:
        keys, values = (F.pad(x, (0, 0, 0, padding)) for x in (keys, values))
        places = None if places is None else places.expand(keys.shape[0], keys.shape[1], -1)
        return SparseList(keys, values, visible[:, None], places)
    if kind in ("pooling", "bos_pooling"):
        keys, values = (F.pad(x, (0, 0, 0, padding)) for x in (keys, values))
        return pooled(q[:, :, first], keys, values, visible, config, places, entries)
    if kind == "norm":
        index = largest_norms(keys, visible, sparse_chunk_size(config), factor, padding)
    else:
        index = by_stride(keys.shape[1], block, factor, entries, kind)[None].expand(keys.shape[0], -1, -1)
    shown = visible[:, None].expand(-1, keys.shape[1], -1).gather(2, index)
    where = None if places is None else places[index]
    return SparseList(*taken(keys, values, index.clamp(max=length - 1)), shown, where)


def by_stride(heads: int, block: int, factor: int, entries: Any, kind: str) -> Tensor:
    """Index (h, l): every factor-th token from another phase in each head, or of every block a run, another in each."""
    head = torch.arange(heads)[:, None]
    if kind == "stride":
        return torch.arange(entries) * factor + head % factor
    run = block // factor
    place = torch.arange(entries)
    return place // run * block + (place % run + head * run) % block


def taken(keys: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the tokens at index (b, h, l), as one Gather of rows each."""
    batch, heads, length, _ = keys.shape
    lists = torch.arange(batch)[:, None, None] * heads + torch.arange(heads)[:, None]  # b h 1
    rows = (lists * length + index).flatten()
    # Copied first: whether a view can be flattened depends on its sizes, and a graph would take no other than such.
    copies = (x.clone(memory_format=torch.contiguous_format) for x in (keys, values))
    keys, values = (x.flatten(0, 2).index_select(0, rows).view(*index.shape, -1) for x in copies)
    return keys, values


def largest_norms(keys: Tensor, visible: Tensor, chunk: int, factor: int, padding: Any) -> Tensor:
    """Index (b, h, l) of the 1 / factor keys of largest norm of every chunk, the largest last; masked ones are 0."""
    norms = F.pad(torch.linalg.vector_norm(keys, dim=-1), (0, padding)) * visible[:, None]
    best = norms.unflatten(2, (-1, chunk)).topk(chunk // factor, dim=-1).indices.flip(-1)  # b h chunks kept
    return (best + torch.arange(best.shape[2])[:, None] * chunk).flatten(2)


def pooled(
    first_query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    config: Any,
    places: Tensor | None,
    entries: Any,
) -> SparseList:
    """Means over groups of `factor` tokens: of the visible ones, or weighted by the first token's scores."""
    shape = (entries, config.sparsity_factor)
    seen = visible.unflatten(1, shape)[:, None]  # b 1 l f
    shown = seen.any(-1)
    if config.sparsity_type == "pooling":
        weights = seen.to(keys.dtype) / seen.sum(-1, keepdim=True).clamp(min=1)
    else:
        scores = (keys @ (keys.shape[-1] ** -0.5 * first_query)[..., None]).squeeze(-1)  # b h t
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        weights = scores.unflatten(2, shape).softmax(-1)
        if config.bos_pooling_padding != "masked":
            shown = torch.ones_like(shown)
    keys, values = ((x.unflatten(2, shape) * weights[..., None]).sum(3) for x in (keys, values))
    where = None if places is None else (places.unflatten(0, shape) * weights).sum(3)
    return SparseList(keys, values, shown, where if where is None else where.expand(-1, keys.shape[1], -1))
