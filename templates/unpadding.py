# SPDX-License-Identifier: Apache-2.0
"""A padded batch without its padding, so that the layers work in proportion to what there is to read.

Each item is cut after its last visible token, and what is left stands one item after the other in one row (1, n, e).
Projections, norms and feed-forwards go token by token and never notice: to them it is one text of n tokens. Only
attention must know where an item ends. It takes items of about the same length together, as a group, and a group is a
view (items, h, length, d) of the row, so that nothing is copied for it.

Axes: b batch, t tokens (with what the target adds to them), n tokens that are kept, e embedding, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WORTHWHILE = 0.9  # of the b * t tokens: where more would be kept, the batch stays as it is
# Padding tokens that a group may hold before another group is worth its calls: what they cost on a CPU is a few tokens'
# share of a layer; on a GPU, where starting a kernel costs more than running it on little, they cost many.
GROUP_PADDING = {"cpu": 16}
GROUP_PADDING_ELSEWHERE = 1024


class Group(NamedTuple):
    """Items of the batch that attention takes together: the next `items` * `length` tokens of the row."""

    items: int
    length: int
    mask: Tensor | None  # bool (items, length), True for what may be seen; None where all may


class Unpadded(NamedTuple):
    """Which tokens of a batch are kept, and where each item ends; the layers hand it on as they do a mask.

    A tuple of tensors, numbers and tuples, which whatever moves a layer's inputs to another device or dtype can follow.
    """

    groups: tuple[Group, ...]
    index: Tensor  # int64 (n,): the kept ones among the b * t tokens, in the order of the row
    batch: int
    tokens: int

    def unpad(self, x: Tensor) -> Tensor:
        """What is kept of x (b, t, e), as a row (1, n, e)."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def pad(self, row: Tensor) -> Tensor:
        """The batch (b, t, e) of a row (1, n, e), zeros where nothing was kept."""
        batch = row.new_zeros((self.batch * self.tokens, row.shape[-1]))
        return batch.index_copy_(0, self.index, row[0]).unflatten(0, (self.batch, self.tokens))

    def attend(self, mix: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`mix` on each group of q, k and v (1, n, h, d); the context (1, n, h, d)."""
        contexts, first = [], 0
        for items, length, mask in self.groups:
            rows = slice(first, first + items * length)
            group = (x[0, rows].unflatten(0, (items, length)).transpose(1, 2) for x in (q, k, v))  # items h length d
            contexts.append(mix(*group, mask).transpose(1, 2).flatten(0, 1))
            first = rows.stop
        return torch.cat(contexts)[None]


def unpadded(mask: Tensor) -> Unpadded | None:
    """What to keep of a batch with this mask, bool (b, t); None where leaving out the rest would save too little.

    An item keeps at least its first token, which poolers read. Reads the mask's values: on a GPU, the one time in a
    forward that the processor waits for it.
    """
    batch, tokens = mask.shape
    seen = mask.cpu()
    lengths = (seen * torch.arange(1, tokens + 1)).amax(1).clamp(min=1).tolist()
    groups = similar(lengths, GROUP_PADDING.get(mask.device.type, GROUP_PADDING_ELSEWHERE))
    longest = [lengths[items[0]] for items in groups]
    if sum(len(items) * length for items, length in zip(groups, longest, strict=True)) >= WORTHWHILE * batch * tokens:
        return None

    kept = [
        (torch.tensor(items)[:, None] * tokens + torch.arange(length)).flatten()
        for items, length in zip(groups, longest, strict=True)
    ]
    index = torch.cat(kept).to(mask.device)
    visible = mask.flatten()[index].split([len(part) for part in kept])
    return Unpadded(
        groups=tuple(
            Group(len(items), length, None if seen[items, :length].all() else part.view(len(items), length))
            for items, length, part in zip(groups, longest, visible, strict=True)
        ),
        index=index,
        batch=batch,
        tokens=tokens,
    )


def similar(lengths: list[int], padding: int) -> list[list[int]]:
    """Indices of lengths, longest first, in groups that need at most so much padding to be as long as their first."""
    groups: list[list[int]] = []
    added = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if groups:
            added += lengths[groups[-1][0]] - lengths[index]
        if not groups or added > padding:
            groups.append([])
            added = 0
        groups[-1].append(index)
    return groups


def values_are_at_hand(mask: Tensor) -> bool:
    """Whether a forward may depend on the mask's values: not while a graph is made that shall serve other masks too."""
    making_a_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (making_a_graph or mask.is_meta or (mask.is_cuda and torch.cuda.is_current_stream_capturing()))
