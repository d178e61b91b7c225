# SPDX-License-Identifier: Apache-2.0
"""LSG attention over more than two blocks on a CPU: block by block, so that it fits the cache.

Most keys that a block sees, the next one sees too. They are kept in a scratch as in a ring: a key that comes into
sight takes the place of one that has gone out of it, so that a step copies one block of keys and not the whole window.
Softmax attention does not mind the order of keys. The backward walks the same rings: it computes the weights again, and
the gradient of a key stays in the scratch until the key goes out of sight. Memory is linear in the length.

Plain torch, as a custom operator with a fake kernel and a gradient, so that autograd, checkpointing and torch.compile
take it as one step. Axes: b batch, h heads, t tokens, g globals, l entries of the sparse list, w slots of a window, d
head size.

One file of over 400 lines: forward and backward of a kernel are read together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Operator names are global to the process, and one process may load several repos: each copy of this file registers
# its operators under its own module name, and never takes the place of another's. A folder may have any name (modèle),
# and torch takes only ASCII.
NAMESPACE = re.sub(r"\W", lambda odd: f"_{ord(odd[0]):x}_", __name__.replace(".", "_"), flags=re.ASCII)
CACHED_WEIGHTS = 200_000  # attention weights in float32 that stay in a core's cache, beside what is multiplied
Pair = tuple[Tensor | None, Tensor | None]  # the sparse list: keys and values (b, h, l, d), or None


@dataclass(frozen=True)
class Ring:
    """Slots for the keys of one kind: block i sees rows [first + i * step, + size) of their list.

    Row r of the list stands in slot (r - origin) mod size, so that of two rows in sight none shares a slot.
    """

    first: int
    size: int
    step: int
    length: int  # rows of the list; a window may reach beyond either end
    slot: int  # the first of the ring's slots in the scratch
    origin: int = 0

    def entering(self, block: int) -> Iterator[tuple[slice, slice]]:
        """(slots, rows) of what `block` sees and the block before did not."""
        start = self.first + block * self.step
        return self.pieces(start if block == 0 else max(start, start + self.size - self.step), start + self.size)

    def leaving(self, block: int, last: bool) -> Iterator[tuple[slice, slice]]:
        """(slots, rows) of what `block` sees and the next one does not."""
        start = self.first + block * self.step
        return self.pieces(start, start + (self.size if last else min(self.size, self.step)))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[slice, slice]]:
        row, stop = max(start, 0), min(stop, self.length)
        while row < stop:
            place = (row - self.origin) % self.size
            count = min(stop - row, self.size - place)
            yield slice(self.slot + place, self.slot + place + count), slice(row, row + count)
            row += count

    def rows(self, blocks: int) -> Tensor:
        """The row that each slot is meant for at each block (blocks, size), also where the list has no such row."""
        start = self.first + torch.arange(blocks)[:, None] * self.step
        return start + (torch.arange(self.size) - start + self.origin) % self.size

    def empty(self, block: int) -> int:
        """How many of the rows that `block` would see lie beyond the list's ends."""
        start = self.first + block * self.step
        return self.size - max(0, min(start + self.size, self.length) - max(start, 0))

    def enter(self, block: int, rows: Tensor, scratch: Tensor) -> None:
        """Copy what comes into sight from its list (heads, l, d) to the scratch (heads, w, d)."""
        for slots, entering in self.entering(block):
            scratch[:, slots] = rows[:, entering]

    def clear(self, block: int, scratch: Tensor) -> None:
        """Begin the sums of what comes into sight."""
        for slots, _ in self.entering(block):
            scratch[:, slots] = 0

    def leave(self, block: int, rows: Tensor, scratch: Tensor, last: bool, add: bool) -> None:
        """Write the sums of what goes out of sight to their list, or add them to what is there."""
        for slots, leaving in self.leaving(block, last):
            if add:
                rows[:, leaving] += scratch[:, slots]
            else:
                rows[:, leaving] = scratch[:, slots]


def cpu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: tuple[Tensor, Tensor, Tensor] | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """LSG attention beyond two blocks on a CPU; see `lsg_attention` in lsg_attention.py.

    Args:
        q: queries (b, h, g + t, d), globals first; any floating dtype.
        k: keys, likewise.
        v: values, likewise.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        sparse: the sparse list, keys and values (b, h, l, d) and visible (b, h or 1, l), or None.
        config: anything with the fields of `LSGConfigMixin`.
        causal: no token sees a later one, and globals see each other only.
        dropout: probability for attention weights, drawn from torch's default generator.

    Returns:
        The context (b, h, g + t, d).
    """
    return attention_op(
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
        causal,
        dropout,
        heads_at_once(q, config),
    )


@torch.compiler.assume_constant_result  # else a graph would have to be broken in every layer, to ask
def threads() -> int:
    return torch.get_num_threads()


def heads_at_once(q: Tensor, config: Any) -> int:
    """How many heads' weights are made at once: as many as the cache holds, two at least.

    All of them on several threads, which need more work, and in bfloat16, whose products are so short that a call costs
    more than the cache gains.
    """
    if threads() > 1 or compute_dtype(q.dtype) == torch.bfloat16:
        return q.shape[1]
    window = 3 * config.block_size + 2 * config.sparse_block_size + config.num_global_tokens
    return min(q.shape[1], max(2, CACHED_WEIGHTS // (config.block_size * window)))


def sparse_starts(size: int, step: int, causal: bool) -> list[int]:
    """Where in the sparse list block 0's keys begin: left of the local ones and, unless causal, right of them.

    With one entry a block the published code starts the right ones at the block itself; kept, since models were trained
    with it.
    """
    left, right = -step - size, 2 * step if step > 1 else 0
    return [left] if causal else [left, right]


def parts(length: int, size: int) -> Iterator[slice]:
    """Slices of 0 to length, of `size` but for the last."""
    for first in range(0, length, size):
        yield slice(first, min(first + size, length))


def bias_of(bias: Tensor | None, heads: slice) -> Tensor | None:
    """The part of a bias (h or 1, ...) that is for some of the heads."""
    return bias if bias is None or len(bias) == 1 else bias[heads]


def at(visible: Tensor, rows: Tensor) -> Tensor:
    """The mask (b, h or 1, l) at rows (blocks, size) of the list, False beyond its ends: (b, h or 1, blocks, size)."""
    inside = (rows >= 0) & (rows < visible.shape[-1])
    return visible[..., rows.clamp(0, visible.shape[-1] - 1)] & inside


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products are made in: float32 for 16-bit inputs, but bfloat16 where the processor multiplies in it."""
    if dtype == torch.bfloat16 and multiplies_bfloat16():
        return dtype
    return torch.promote_types(dtype, torch.float32)


@torch.compiler.assume_constant_result
def multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Layout:
    """Shapes, rings and masks of one call; the forward and the backward make the same one from the same arguments."""

    def __init__(
        self,
        q: Tensor,
        visible: Tensor | None,
        sparse_visible: Tensor | None,
        global_count: int,
        block: int,
        sparse_size: int,
        sparse_step: int,
        causal: bool,
    ) -> None:
        self.batch, self.heads, rows, self.size = q.shape
        self.global_count, self.block, self.causal = global_count, block, causal
        self.length = rows - global_count
        self.blocks = -(-self.length // block)
        self.dtype = compute_dtype(q.dtype)
        # The slots: sparse keys on the right, globals, local keys, sparse keys on the left. Those on the
        # left come in from their first slot on and those on the right go out up to their last one, so that what is
        # empty near the ends of the text lies at the ends of the scratch, and is left out: see `window`.
        entries = 0 if sparse_visible is None else sparse_visible.shape[2]
        left, *right = sparse_starts(sparse_size, sparse_step, causal)
        before = sparse_size if entries and right else 0
        self.globals = slice(before, before + global_count)
        self.local = Ring(-block, (2 if causal else 3) * block, block, self.length, self.globals.stop)
        self.slots = self.globals.stop + self.local.size
        self.sparse: list[Ring] = []
        if entries:
            self.sparse.append(Ring(left, sparse_size, sparse_step, entries, self.slots))
            self.sparse += [Ring(start, sparse_size, sparse_step, entries, 0, origin=entries) for start in right]
            self.slots += sparse_size
        self.key_visible = visible
        self.slot_visible = self.visible_slots(visible, sparse_visible)
        hidden = (~self.slot_visible).any(1)  # b, blocks, w: whether for some head
        for block in range(self.blocks):
            window = self.window(block)
            hidden[:, block, : window.start] = hidden[:, block, window.stop :] = False
        self.hides = hidden.any(-1).tolist()  # b, blocks

    def visible_slots(self, visible: Tensor | None, sparse_visible: Tensor | None) -> Tensor:
        """Which slots hold a key that may be seen: bool (b, h or 1, blocks, w)."""
        if visible is None:
            visible = torch.ones((self.batch, self.global_count + self.length), dtype=torch.bool)
        global_keys, tokens = visible[:, None].split([self.global_count, self.length], dim=2)  # b 1 t
        if sparse_visible is not None and bool((sparse_visible == sparse_visible[:, :1]).all()):
            sparse_visible = sparse_visible[:, :1]  # mostly: one mask serves all heads
        heads = sparse_visible.shape[1] if self.sparse else 1
        found = torch.empty((self.batch, heads, self.blocks, self.slots), dtype=torch.bool)
        found[..., self.globals] = global_keys[:, :, None]
        for ring, seen in [(self.local, tokens), *((ring, sparse_visible) for ring in self.sparse)]:
            found[..., ring.slot : ring.slot + ring.size] = at(seen, ring.rows(self.blocks))
        return found

    def window(self, block: int) -> slice:
        """The slots that a block sees, without those of sparse keys that are empty there."""
        if not self.sparse:
            return slice(0, self.slots)
        left, *right = (ring.empty(block) for ring in self.sparse)
        return slice(sum(right), self.slots - left)

    def rows(self, block: int) -> slice:
        """The rows of q that are the tokens of a block; the last block may have fewer."""
        first = self.global_count + block * self.block
        return slice(first, min(first + self.block, self.global_count + self.length))

    def global_rows(self) -> Iterator[slice]:
        """The rows of q that are globals, not more at a time than a block has."""
        return parts(self.global_count, self.block)

    def seen_by_globals(self) -> slice:
        """The rows of k that globals see: all, or if causal each other."""
        return slice(0, self.global_count if self.causal else self.global_count + self.length)

    def bias(self, item: int, block: int) -> Tensor | None:
        """Added to the scores of a block, (h or 1, rows or 1, w); None where all slots may be seen."""
        if not (self.causal or self.hides[item][block]):
            return None
        visible = self.slot_visible[item, :, block, None]
        if self.causal:
            first, rows = self.local.slot, self.rows(block)
            own = torch.arange(rows.start, rows.stop)[:, None] - self.global_count
            later = self.local.rows(self.blocks)[block] > own
            visible = visible.expand(-1, len(own), -1).clone()
            visible[..., first : first + self.local.size].masked_fill_(later, False)
        return self.as_bias(visible[..., self.window(block)])

    def global_bias(self, item: int) -> Tensor | None:
        """The same for the rows of globals, (1, 1, keys)."""
        if self.key_visible is None:
            return None
        return self.as_bias(self.key_visible[item, None, None, self.seen_by_globals()])

    def change_scores(self, change: Tensor, shares: Tensor, item: int, block: int | None, heads: slice) -> None:
        """Make of `change`, the gradient of the weights of some heads of a block (None: of globals), the scores'."""
        torch._softmax_backward_data(change, shares, -1, self.dtype, grad_input=change)

    def as_bias(self, visible: Tensor) -> Tensor:
        """Half of the lowest number and not -inf: a row that may see nothing gets finite weights, not NaN."""
        bias = torch.zeros(visible.shape, dtype=self.dtype)
        return bias.masked_fill_(~visible, torch.finfo(self.dtype).min / 2)

    def lists(self, x: Tensor, sparse: Tensor | None, item: int) -> list[tuple[Ring, Tensor]]:
        """Each ring with the list (heads, l, d) that it shows: of keys, of values or of a gradient of them."""
        tokens = [(self.local, x[item, :, self.global_count :])]
        return tokens if sparse is None else tokens + [(ring, sparse[item]) for ring in self.sparse]

    def scratches(self, count: int) -> Tensor:
        """Room for the keys, values and so on (count, heads, w, d) of one text."""
        return torch.empty((count, self.heads, self.slots, self.size), dtype=self.dtype)


class Weights:
    """Attention weights of one block after the other in one scratch, with dropout that repeats from the same seed."""

    def __init__(self, layout: Layout, heads: int, dropout: float = 0.0, seed: Tensor | None = None) -> None:
        keys = max(layout.slots, layout.seen_by_globals().stop if layout.global_count else 0)
        self.scratch = torch.empty(heads * min(layout.block, layout.length) * keys, dtype=layout.dtype)
        self.dropout = dropout
        self.generator = None if seed is None else torch.Generator().manual_seed(int(seed))

    def of(self, q: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """softmax(q keys^T / sqrt(d) + bias), (heads, rows, keys); the next call overwrites it."""
        scores = self.room(q, keys)
        start, beta = (scores, 0) if bias is None else (bias.expand(scores.shape), 1)
        torch.baddbmm(start, q, keys.transpose(1, 2), beta=beta, alpha=q.shape[2] ** -0.5, out=scores)
        return torch.softmax(scores, -1, out=scores)

    def room(self, q: Tensor, keys: Tensor) -> Tensor:
        """The scratch as (heads, rows, keys)."""
        shape = (len(q), q.shape[1], keys.shape[1])
        return self.scratch[: shape[0] * shape[1] * shape[2]].view(shape)

    def factors(self, weights: Tensor) -> Tensor | None:
        """What dropout multiplies the weights by: 0, or 1 / (1 - p); None without dropout."""
        if self.generator is None:
            return None
        kept = torch.empty_like(weights).bernoulli_(1 - self.dropout, generator=self.generator)
        return kept.div_(1 - self.dropout) if self.dropout < 1 else kept


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    sparse_keys: Tensor | None,
    sparse_values: Tensor | None,
    sparse_visible: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> Tensor:
    """The context (b, h, g + t, d) of globals and tokens.

    Args:
        q: queries (b, h, g + t, d), globals first; any floating dtype.
        k: keys, likewise.
        v: values, likewise.
        visible: bool (b, g + t), True for keys that may be seen; None where all may.
        sparse_keys: the sparse list (b, h, l, d); None for attention without one.
        sparse_values: likewise.
        sparse_visible: bool (b, h or 1, l), likewise.
        seed: int64 scalar to draw the dropout from; None for no dropout.
        options: those of `Layout`, and then `dropout`, the probability for attention weights, and `at_once`, the number
            of heads whose weights are made at once. Dropout repeats only for the same number.
    """
    *places, dropout, at_once = options
    layout = Layout(q, visible, sparse_visible, *places)
    return forward(layout, q, k, v, (sparse_keys, sparse_values), seed, dropout, at_once)


def forward(
    layout: Layout, q: Tensor, k: Tensor, v: Tensor, sparse: Pair, seed: Tensor | None, dropout: float, at_once: int
) -> Tensor:
    """The context (b, h, g + t, d); arguments as of `attention`."""
    context = rows_first(torch.empty, q)
    # Of fewer than 192 rows torch's fused attention (2.13) gets no faster by threads, nor by instructions for bfloat16,
    # while products and softmax do. In bfloat16 they round the scores, as attention in plain torch does.
    fused = dropout == 0 and torch.get_num_threads() == 1 and layout.dtype != torch.bfloat16
    weights = None if fused else Weights(layout, at_once, dropout, seed)
    scratch = layout.scratches(2)

    def write(item: int, rows: slice, bias: Tensor | None, keys: Tensor, values: Tensor) -> None:
        queries, written = q[item, :, rows].to(layout.dtype), context[item, :, rows]
        if weights is None:
            mask = None if bias is None else bias.expand(len(queries), queries.shape[1], -1)[None]
            written[:] = F.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask)[0]
            return
        for few in parts(len(queries), at_once):
            shares = weights.of(queries[few], keys[few], bias_of(bias, few))
            factors = weights.factors(shares)
            written[few] = (shares if factors is None else shares.mul_(factors)) @ values[few]

    for item in range(layout.batch):
        scratch.zero_()
        sources = layout.lists(k, sparse[0], item), layout.lists(v, sparse[1], item)
        for held, x in zip(scratch, (k, v), strict=True):
            held[:, layout.globals] = x[item, :, : layout.global_count]
        for number in range(layout.blocks):
            for held, lists in zip(scratch, sources, strict=True):
                for ring, rows in lists:
                    ring.enter(number, rows, held)
            write(item, layout.rows(number), layout.bias(item, number), *scratch[:, :, layout.window(number)])
        keys, values = (x[item, :, layout.seen_by_globals()].to(layout.dtype) for x in (k, v))
        for rows in layout.global_rows():
            write(item, rows, layout.global_bias(item), keys, values)
    return context


def attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    sparse_keys: Tensor | None,
    sparse_values: Tensor | None,
    sparse_visible: Tensor | None,
    seed: Tensor | None,
    *options: Any,
) -> list[Tensor]:
    """The gradients of q, k and v, and of the sparse keys and values where there are any; arguments as above."""
    *places, dropout, at_once = options
    layout = Layout(q, visible, sparse_visible, *places)
    return backward(layout, gradient, q, k, v, (sparse_keys, sparse_values), seed, dropout, at_once)


def backward(
    layout: Layout, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, sparse: Pair, seed: Any, dropout: float, at_once: int
) -> list[Tensor]:
    """The gradients of q, k and v, and of the sparse keys and values where there are any.

    With the weights P of a block, the factors M of dropout and G, the gradient of the context: dV = (M P)^T G,
    dP = M (G V^T), dS = P (dP - sum(P dP)), dQ = dS K / sqrt(d), dK = dS^T Q / sqrt(d).
    """
    dq, dk, dv = (rows_first(torch.empty, x) for x in (q, k, v))
    dsk, dsv = (None if x is None else rows_first(torch.zeros, x) for x in sparse)
    weights, changes = Weights(layout, at_once, dropout, seed), Weights(layout, at_once)
    scratch = layout.scratches(4)
    scale = layout.size**-0.5

    def write(item: int, block: int | None, rows: slice, bias: Tensor | None, *window: Tensor) -> None:
        queries, arriving = (x[item, :, rows].to(layout.dtype) for x in (q, grad))
        written = dq[item, :, rows]
        for few in parts(len(queries), at_once):
            keys, values, to_keys, to_values = (x[few] for x in window)
            shares = weights.of(queries[few], keys, bias_of(bias, few))
            factors = weights.factors(shares)
            dropped = shares if factors is None else shares * factors
            add_product(to_values, dropped.transpose(1, 2), arriving[few])
            change = torch.bmm(arriving[few], values.transpose(1, 2), out=changes.room(queries[few], keys))
            if factors is not None:
                change *= factors
            layout.change_scores(change, shares, item, block, few)
            written[few] = (change @ keys).mul_(scale)
            add_product(to_keys, change.transpose(1, 2), queries[few], scale)

    for item in range(layout.batch):
        scratch.zero_()
        sources = layout.lists(k, sparse[0], item), layout.lists(v, sparse[1], item)
        targets = layout.lists(dk, dsk, item), layout.lists(dv, dsv, item)
        for held, x in zip(scratch[:2], (k, v), strict=True):
            held[:, layout.globals] = x[item, :, : layout.global_count]
        for number in range(layout.blocks):
            for held, total, lists in zip(scratch[:2], scratch[2:], sources, strict=True):
                for ring, rows in lists:
                    ring.enter(number, rows, held)
                    ring.clear(number, total)
            write(item, number, layout.rows(number), layout.bias(item, number), *scratch[:, :, layout.window(number)])
            for total, lists in zip(scratch[2:], targets, strict=True):
                for ring, rows in lists:  # a local key goes once, a sparse one from each side
                    ring.leave(number, rows, total, last=number == layout.blocks - 1, add=ring is not layout.local)
        for total, x in zip(scratch[2:], (dk, dv), strict=True):
            x[item, :, : layout.global_count] = total[:, layout.globals]
        seen = layout.seen_by_globals()
        keys, values = (x[item, :, seen].to(layout.dtype) for x in (k, v))
        for rows in layout.global_rows():
            write(item, None, rows, layout.global_bias(item), keys, values, dk[item, :, seen], dv[item, :, seen])
    return [x for x in (dq, dk, dv, dsk, dsv) if x is not None]


def rows_first(make: Callable[..., Tensor], like: Tensor) -> Tensor:
    """A tensor (b, h, t, d) laid out as (b, t, h, d), which is how a model's projections make and take it."""
    batch, heads, rows, size = like.shape
    return make((batch, rows, heads, size), dtype=like.dtype, device=like.device).transpose(1, 2)


def add_product(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Add scale * a b to total, in the dtype of total."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b, alpha=scale)
    else:
        total += scale * (a @ b)


SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor? visible, "
    "Tensor? sparse_keys, Tensor? sparse_values, Tensor? sparse_visible, Tensor? seed, "
    "int global_count, int block, int sparse_size, int sparse_step, bool causal, float dropout, int at_once"
)
attention_op = torch.library.custom_op(
    f"{NAMESPACE}::attention", attention, mutates_args=(), schema=f"({SCHEMA}) -> Tensor"
)
backward_op = torch.library.custom_op(
    f"{NAMESPACE}::attention_backward",
    attention_backward,
    mutates_args=(),
    schema=f"(Tensor gradient, {SCHEMA}) -> Tensor[]",
)


@attention_op.register_fake
def fake_attention(q: Tensor, *_: Any) -> Tensor:
    return rows_first(torch.empty, q)


@backward_op.register_fake
def fake_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Any, sk: Tensor | None, sv: Tensor | None, *_: Any
) -> list[Tensor]:
    return [rows_first(torch.empty, x) for x in (q, k, v, sk, sv) if x is not None]


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv, *sparse = backward_op(gradient, *ctx.saved_tensors, *ctx.options)
    dsk, dsv = sparse or (None, None)
    return (dq, dk, dv, None, dsk, dsv, *(None for _ in range(9)))


attention_op.register_autograd(differentiate, setup_context=save_for_backward)
