# SPDX-License-Identifier: Apache-2.0
"""The CPU form of LSG attention, see lsg_kernel_cpu.py, with a bias on scores: see lsg_score_bias.py for its columns.

The keys of a window change their slots from block to block, but after three blocks the local ones are where they were.
So there are three tiles of bias, and where the sparse keys are too far away to tell apart, a tile serves all blocks of
its kind. Axes: b batch, h heads, t tokens, g globals, l entries of the sparse list, w slots of a window, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .lsg_kernel_cpu import (
    NAMESPACE,
    SCHEMA,
    Layout,
    Ring,
    backward,
    fake_attention,
    fake_attention_backward,
    forward,
    heads_at_once,
)

PHASES = 3  # blocks after which a local key stands where it stood: it is seen from its own block and from two others


class BiasedLayout(Layout):
    """A layout that adds the bias (h, 2 R + 2) to scores, and collects its gradient.

    Args:
        q, visible, sparse_visible, places: those of `Layout`.
        bias: of distances and of globals. positions: where the entries of the sparse list stand (b, h, l), or None.
    """

    def __init__(
        self,
        q: Tensor,
        visible: Tensor | None,
        sparse_visible: Tensor | None,
        bias: Tensor,
        positions: Tensor | None,
        *places: Any,
    ) -> None:
        super().__init__(q, visible, sparse_visible, *places)
        self.added, self.positions = bias.to(self.dtype), positions
        self.reach = bias.shape[1] // 2 - 1
        self.tiles: dict[int, Tensor] = {}
        self.changes: dict[int, Tensor] = {}
        self.wide = torch.promote_types(self.dtype, torch.float32)  # of sums over many rows
        self.change = torch.zeros_like(bias, dtype=self.wide)

    def bias(self, item: int, block: int) -> Tensor:
        """As of `Layout`, with what the scores get for their rows and keys: (h, rows, w)."""
        rows, window = self.rows(block), self.window(block)
        count, phase = rows.stop - rows.start, block % PHASES
        if phase not in self.tiles:
            self.tiles[phase] = self.tile(phase)
        added = self.tiles[phase][:, :count, window]
        if self.positions is not None:
            added = added.clone()
            table = self.added[:, None].expand(-1, count, -1)
            for part, columns in self.seen(item, block, count):
                added[:, :, part] = table.gather(2, columns.expand(self.heads, -1, -1))
        visible = super().bias(item, block)
        return added if visible is None else added + visible

    def tile(self, phase: int) -> Tensor:
        """The bias (h, block, w) of the slots at the blocks of a phase; sparse keys as far away as it gets."""
        tile = torch.empty((self.heads, self.block, self.slots), dtype=self.dtype)
        tile[:, :, self.globals] = self.added[:, None, -1:]
        for ring, side in self.far():
            tile[:, :, ring.slot : ring.slot + ring.size] = self.added[:, None, side : side + 1]
        for slot, columns in self.near(phase):
            tile[:, :, slot : slot + self.block] = self.added[:, columns]
        return tile

    def far(self) -> list[tuple[Ring, int]]:
        """The rings of sparse keys, each with the column of a key beyond the reach on its side."""
        return list(zip(self.sparse, (0, 2 * self.reach)[: len(self.sparse)], strict=True))

    def near(self, phase: int) -> Iterator[tuple[int, Tensor]]:
        """The local keys of a phase: the first slot of each of the three blocks, and the columns (block, block).

        Every row is the row before moved by one, so that all are windows of one line of distances.
        """
        line = torch.arange(1 - 2 * self.block, 2 * self.block).clamp(-self.reach, self.reach) + self.reach
        columns = line.unfold(0, PHASES * self.block, 1).flip(0)
        for third in range(PHASES):  # the keys of block - 1, of the block itself and of the next one
            slot = self.local.slot + (phase - 1 + third) % PHASES * self.block
            yield slot, columns[:, third * self.block : (third + 1) * self.block]

    def seen(self, item: int, block: int, count: int) -> Iterator[tuple[slice, Tensor]]:
        """The sparse keys that `count` rows of a block see: part of the window, and columns (h or 1, count, size)."""
        window = self.window(block)
        for ring in self.sparse:
            start, stop = max(ring.slot, window.start), min(ring.slot + ring.size, window.stop)
            if start < stop:
                columns = self.distance(item, block, ring)[:, :count, start - ring.slot : stop - ring.slot]
                yield slice(start - window.start, stop - window.start), columns

    def distance(self, item: int, block: int, ring: Ring) -> Tensor:
        """Columns of the bias for the slots of a ring of sparse keys, (h or 1, block, size)."""
        assert self.positions is not None
        entries = ring.rows(self.blocks)[block].clamp(0, self.positions.shape[2] - 1)
        rows = block * self.block + torch.arange(self.block)[:, None]
        distance = (self.positions[item, :, None, entries] - rows).round().long()
        return distance.clamp_(-self.reach, self.reach).add_(self.reach)

    def change_scores(self, change: Tensor, shares: Tensor, item: int, block: int | None, heads: slice) -> None:
        super().change_scores(change, shares, item, block, heads)
        if block is None:
            return
        window, phase = self.window(block), block % PHASES
        if phase not in self.changes:
            self.changes[phase] = torch.zeros((self.heads, self.block, self.slots), dtype=self.wide)
        total = self.changes[phase][heads, : change.shape[1], window]
        total += change
        if self.positions is None:
            return
        for part, columns in self.seen(item, block, change.shape[1]):  # by their own distances instead
            total[:, :, part] -= change[:, :, part]
            of_heads = (columns[heads] if len(columns) > 1 else columns).expand(len(change), -1, -1)
            self.change[heads].scatter_add_(1, of_heads.flatten(1), change[:, :, part].to(self.wide).flatten(1))

    def gradient(self) -> Tensor:
        """The gradient of the bias, once all blocks are done."""
        for phase, change in self.changes.items():
            self.change[:, -1] += change[:, :, self.globals].sum((1, 2))
            for ring, side in self.far():
                self.change[:, side] += change[:, :, ring.slot : ring.slot + ring.size].sum((1, 2))
            for slot, columns in self.near(phase):
                self.change.index_add_(1, columns.flatten(), change[:, :, slot : slot + self.block].flatten(1))
        return self.change


def cpu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: tuple[Tensor, Tensor, Tensor] | None,
    positions: Tensor | None,
    bias: Tensor,
    config: Any,
    dropout: float,
) -> Tensor:
    """LSG attention with a bias beyond two blocks on a CPU; see `biased_attention` in lsg_score_bias.py.

    Args:
        q, k, v: (b, h, g + t, d), globals first; any floating dtype.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        sparse: the sparse list, keys and values (b, h, l, d) and visible (b, h or 1, l), or None.
        positions: where its entries stand, float32 (b, h, l); None where all are too far away to tell apart.
        bias: (h, 2 R + 2).
        config: anything with the fields of `LSGConfigMixin`.
        dropout: probability for attention weights, drawn from torch's default generator.

    Returns:
        The context (b, h, g + t, d).
    """
    return attention_op(
        bias,
        positions,
        q,
        k,
        v,
        mask,
        *(sparse or (None, None, None)),
        torch.randint(1 << 62, ()) if dropout > 0 else None,
        config.num_global_tokens,
        config.block_size,
        config.sparse_block_size,
        config.block_size // config.sparsity_factor if sparse else 0,
        False,
        dropout,
        heads_at_once(q, config),
    )


def biased(bias: Tensor, positions: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    """The context (b, h, g + t, d); `others` are those of `attention` in lsg_kernel_cpu.py."""
    visible, sk, sv, sparse_visible, seed, *places, dropout, at_once = others
    layout = BiasedLayout(q, visible, sparse_visible, bias, positions, *places)
    return forward(layout, q, k, v, (sk, sv), seed, dropout, at_once)


def biased_backward(
    grad: Tensor, bias: Tensor, positions: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *others: Any
) -> list[Tensor]:
    """The gradients of bias, q, k and v, and of the sparse keys and values where there are any."""
    visible, sk, sv, sparse_visible, seed, *places, dropout, at_once = others
    layout = BiasedLayout(q, visible, sparse_visible, bias, positions, *places)
    found = backward(layout, grad, q, k, v, (sk, sv), seed, dropout, at_once)
    return [layout.gradient().to(bias.dtype), *found]


attention_op = torch.library.custom_op(
    f"{NAMESPACE}::biased", biased, mutates_args=(), schema=f"(Tensor bias, Tensor? positions, {SCHEMA}) -> Tensor"
)
backward_op = torch.library.custom_op(
    f"{NAMESPACE}::biased_backward",
    biased_backward,
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor bias, Tensor? positions, {SCHEMA}) -> Tensor[]",
)


@attention_op.register_fake
def fake_biased(bias: Tensor, positions: Tensor | None, q: Tensor, *_: Any) -> Tensor:
    return fake_attention(q)


@backward_op.register_fake
def fake_biased_backward(grad: Tensor, bias: Tensor, positions: Tensor | None, *others: Any) -> list[Tensor]:
    return [torch.empty_like(bias), *fake_attention_backward(grad, *others)]


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    dbias, dq, dk, dv, *sparse = backward_op(gradient, *ctx.saved_tensors, *ctx.options)
    dsk, dsv = sparse or (None, None)
    return (dbias, None, dq, dk, dv, None, dsk, dsv, *(None for _ in range(9)))


attention_op.register_autograd(differentiate, setup_context=save_for_backward)
