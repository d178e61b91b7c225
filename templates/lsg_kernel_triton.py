# SPDX-License-Identifier: Apache-2.0
"""LSG attention over more than two blocks on an NVIDIA GPU, in Triton: scores and windows are never written to memory.

Forward (as in FlashAttention, arXiv 2205.14135): one program for a tile of rows of one block. It goes over the pieces
of keys that the block sees (globals, local, sparse on the left and on the right) where they lie, and keeps the softmax
of what it has met so far. Backward: the weights are computed again from the norms that the forward kept. One program
for a tile of rows sums dQ; one for a tile of keys sums dK and dV over the rows that see them. Globals see everything
and are seen by everything: that is split into chunks for several programs, whose sums are added afterwards. Nothing is
added atomically, so that the same input gives the same bits.

Without Triton the file can be imported all the same: `obstacle` then says so. Axes: b batch, h heads, t tokens, g
globals, l entries of the sparse list, d head size. Rows are those of q, keys those of k, v and the sparse list.

One file of over 400 lines: forward and backward of a kernel, and the tiles that they share, are read together.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .lsg_configuration import sparse_chunk_size, uses_sparse_keys
from .lsg_kernel_cpu import rows_first, sparse_starts

try:  # transformers asks for all that a file imports, but not for what it tries to import
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    triton = None

    def jit(function: Callable) -> Callable:
        return function


# Operator names are global to the process, and one process may load several repos: each copy of this file registers
# its operators under its own module name, and never takes the place of another's. A folder may have any name (modèle),
# and torch takes only ASCII.
NAMESPACE = re.sub(r"\W", lambda odd: f"_{ord(odd[0]):x}_", __name__.replace(".", "_"), flags=re.ASCII)
INTERPRETED = hasattr(triton, "knobs") and triton.knobs.runtime.interpret  # it then runs on a CPU, slowly: for tests
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (3, 6)  # Triton that compiles these kernels; 3.5 and before fail
MAX_SIZE = 128  # of a head: tiles of larger ones do not fit
LOG2_E = 1.4426950408889634  # softmax is computed in powers of 2
DROPOUT_STEPS = 1 << 24  # the probability of dropout is rounded to a multiple of 1 / this
CHUNK = 256  # keys or rows at least that one program goes over for globals
CHUNKS_AT_ONCE = triton and tl.constexpr(64)  # whose sums are added at once
MOST_CHOSEN_FROM = 128  # tokens: of so many at once the kernel chooses the largest keys, comparing each with each


def obstacle(q: Tensor) -> str:
    """Why the kernel does not take queries like q here, or "" if it does."""
    if triton is None:
        return "Triton is not installed"
    if q.dtype not in DTYPES:
        return f"the inputs are {q.dtype}, but it supports only float32, float16 and bfloat16"
    if q.shape[-1] > MAX_SIZE:
        return f"the head size is {q.shape[-1]}, but it supports at most {MAX_SIZE}"
    if INTERPRETED:
        return ""
    return "the inputs are not on an NVIDIA GPU" if q.device.type != "cuda" else obstacle_of_gpu(q.device.index)


@torch.compiler.assume_constant_result
def obstacle_of_gpu(device: int) -> str:
    """The same of a GPU, asked once; a graph of torch.compile takes the answer as it is."""
    return probed(device)


@functools.cache
def probed(device: int) -> str:
    """Why Triton does not compile the kernel for this GPU, or "" if it does."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if torch.version.cuda is None:
        return "the GPU is not an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the GPU has compute capability {'.'.join(map(str, capability))}, but it needs 8.0 or later"
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever it is; most often there is no C compiler
        return f"Triton does not work here: {error}"
    return ""


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: tuple[Tensor, Tensor, Tensor] | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """LSG attention beyond two blocks on a GPU; see `lsg_attention` in lsg_attention.py.

    Args:
        q: queries (b, h, g + t, d), globals first; float32, float16 or bfloat16, d up to 128.
        k: keys, likewise.
        v: values, likewise.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        sparse: the sparse list, keys and values (b, h, l, d) and visible (b, h or 1, l); None where there is none, or
            where the kernel chooses it, as `chooses` says.
        config: anything with the fields of `LSGConfigMixin`.
        causal: no token sees a later one, and globals see each other only.
        dropout: probability for attention weights, drawn from torch's default generator of the device.

    Returns:
        The context (b, h, g + t, d). A row that may see nothing is zero.

    Raises:
        ValueError: for what `obstacle` names.
    """
    why = obstacle(q)
    if why:
        raise ValueError(f"attention_form is 'triton', which cannot run: {why}. Set attention_form to 'auto'")
    chosen = sparse is None and chooses(config)
    context, *_ = run(
        q,
        k,
        v,
        mask,
        *(sparse or (None, None, None)),
        torch.randint(1 << 62, (), device=q.device) if dropout > 0 else None,
        config.num_global_tokens,
        config.block_size,
        config.sparse_block_size,
        config.block_size // config.sparsity_factor if sparse or chosen else 0,
        sparse_chunk_size(config) if chosen else 0,
        causal,
        dropout,
        float32_precision(),
    )
    return context


def run(q: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The operator; on plain tensors in eager mode its function, as the layers that torch puts around it take longer.

    Graphs, fake tensors and torch.func need the operator itself.
    """
    if type(q) is not Tensor or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return attention_op(q, *others)
    return Attention.apply(q, *others) if torch.is_grad_enabled() else attention(q, *others)


def chooses(config: Any) -> bool:
    """Whether the kernel itself chooses the sparse keys: those of largest norm, of chunks that it can take."""
    of_largest_norm = uses_sparse_keys(config) and config.sparsity_type == "norm" and config.sparsity_factor > 1
    return of_largest_norm and sparse_chunk_size(config) <= MOST_CHOSEN_FROM


@torch.compiler.assume_constant_result  # torch compiles again when its setting changes
def float32_precision() -> str:
    """How torch multiplies float32 on a GPU: "tf32" where that is allowed, else "ieee"."""
    matmul = torch.backends.cuda.matmul  # the older setting raises where the newer one, of torch 2.9, was used
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "ieee"


@dataclass(frozen=True)
class Plan:
    """What is known of a call when its kernels are compiled. A tile has `rows` rows of q and `keys` keys."""

    global_count: int
    block: int
    sparse_size: int
    sparse_step: int
    left: int  # where in the sparse list block 0's keys begin, left of the local ones
    right: int  # and right of them
    sides: int  # with sparse keys: 0, 1 for the left alone, or 2
    masked: bool  # whether keys of k may be hidden
    sparse_masked: bool  # whether sparse keys may be hidden
    chunk_size: int  # tokens of which the kernel chooses `kept` sparse keys; 0 where they are given
    kept: int
    causal: bool
    sparse_heads: int  # 1 where one mask of the sparse list serves all heads
    heads: int
    size: int
    padded: int  # the power of 2 from `size` on, and 16 at least: the width of tiles
    scale: float  # of scores
    power_scale: float  # of scores as powers of 2
    dropout_steps: int  # of DROPOUT_STEPS: the probability of dropout
    kept_factor: float
    precision: str  # of products of float32: "ieee" or "tf32"
    chunk: int  # keys or rows that one program goes over for globals
    global_tile: int  # globals in a tile
    rows: int = 0
    keys: int = 0

    def __hash__(self) -> int:  # of few fields, as Triton asks for it at every launch
        return hash((self.masked, self.sparse_masked, self.block, self.rows, self.keys))


Tiled = tuple[Plan, dict[str, int]]  # a plan with tiles, and how many warps and stages to launch its kernel with


def plans(q: Tensor, visible: Tensor | None, sparse_visible: Tensor | None, *options: Any) -> Callable[[str], Tiled]:
    """What a call's kernels are compiled for, by the name of a kernel in TILES; arguments as those of `attention`."""
    global_count, block, *_, chunk_size, _, _, _ = options
    # In the last block, beyond the last token, a chosen sparse key may not be there.
    partial = chunk_size > 0 and ((q.shape[2] - global_count) % block > 0 or block % chunk_size > 0)
    masked = visible is not None
    sparse_masked = (masked or partial) if chunk_size else sparse_visible is not None
    one_for_all_heads = not chunk_size and (sparse_visible is None or sparse_visible.shape[1] == 1)
    sparse_heads = 1 if one_for_all_heads else q.shape[1]
    plan = plan_of(q.shape[1], q.shape[3], masked, sparse_masked, sparse_heads, *options)
    return functools.partial(with_tiles, plan, q.dtype)


@functools.lru_cache(maxsize=256)
def plan_of(
    heads: int,
    size: int,
    masked: bool,
    sparse_masked: bool,
    sparse_heads: int,
    global_count: int,
    block: int,
    sparse_size: int,
    sparse_step: int,
    chunk_size: int,
    causal: bool,
    dropout: float,
    precision: str,
) -> Plan:
    """The plan of a call, without tiles."""
    starts = sparse_starts(sparse_size, sparse_step, causal) if sparse_step else []
    return Plan(
        global_count=global_count,
        block=block,
        sparse_size=sparse_size,
        sparse_step=sparse_step,
        left=starts[0] if starts else 0,
        right=starts[-1] if starts else 0,
        sides=len(starts),
        masked=masked,
        sparse_masked=sparse_masked,
        chunk_size=chunk_size,
        kept=chunk_size * sparse_step // block,
        causal=causal,
        sparse_heads=sparse_heads,
        heads=heads,
        size=size,
        padded=power_of_2(size),
        scale=size**-0.5,
        power_scale=size**-0.5 * LOG2_E,
        dropout_steps=round(dropout * DROPOUT_STEPS),
        kept_factor=1 / (1 - dropout) if dropout < 1 else 0.0,
        precision=precision,
        chunk=max(CHUNK, 16 * global_count),  # sums of chunks take an eighth of the memory of q at most
        global_tile=power_of_2(global_count, most=64),
    )


def power_of_2(number: int, least: int = 16, most: int = 1 << 30) -> int:
    """The power of 2 from `number` on, within bounds; products of tiles need 16 in each direction."""
    return min(max(1 << (number - 1).bit_length(), least), most)


# What kernels do with tiles. Rows from `stop` on are not there: they are loaded as zeros, hidden, and not stored.


@jit
def load_rows(pointer, first, stop, stride, count: tl.constexpr, plan: tl.constexpr):
    """Rows [first, first + count) of a list (l, d): (count, padded)."""
    row, column = (first + tl.arange(0, count))[:, None], tl.arange(0, plan.padded)[None, :]
    return tl.load(pointer + row.to(tl.int64) * stride + column, mask=(row < stop) & (column < plan.size), other=0.0)


@jit
def store_rows(pointer, tile, first, stop, stride, count: tl.constexpr, plan: tl.constexpr):
    """Write a tile to rows [first, first + count) of a list (l, d)."""
    row, column = (first + tl.arange(0, count))[:, None], tl.arange(0, plan.padded)[None, :]
    pointers = pointer + row.to(tl.int64) * stride + column
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=(row < stop) & (column < plan.size))


@jit
def add_rows(pointer, tile, row, rows, plan: tl.constexpr):
    """Add a tile to the rows of a result that are named, none of them twice; from `rows` on there are none."""
    column = tl.arange(0, plan.padded)[None, :]
    pointers = pointer + row[:, None].to(tl.int64) * (plan.heads * plan.size) + column
    there = (row[:, None] < rows) & (column < plan.size)
    tile = tl.load(pointers, mask=there, other=0.0).to(tl.float32) + tile
    tl.store(pointers, tile.to(pointer.dtype.element_ty), mask=there)


@jit
def zeros(count: tl.constexpr, plan: tl.constexpr):
    """Sums (count, padded) to begin with."""
    padded: tl.constexpr = plan.padded
    return tl.zeros([count, padded], dtype=tl.float32)


@jit
def visible_keys(visible, key, stop, masked: tl.constexpr):
    """Which keys are there and may be seen, bool like `key`."""
    there = key < stop
    if masked:
        there = there & (tl.load(visible + key, mask=there, other=0) != 0)
    return there


@jit
def dropout_factors(seed, item, row, key, plan: tl.constexpr):
    """What dropout multiplies weights by, 0 or 1 / (1 - p); row and key broadcast to the weights.

    Philox4x32 in the 7 rounds that suffice ("Parallel random numbers: as easy as 1, 2, 3", 2011, table 2). The counter
    says which weight it is, so that every kernel draws the same for it, in whatever tiles. Keys of the sparse list are
    counted after those of k.
    """
    nothing = row * 0 + key * 0
    bits, _, _, _ = tl.philox(tl.load(seed), nothing + key, nothing + row, nothing + item, nothing, 7)
    return tl.where((bits >> 8).to(tl.int32) >= plan.dropout_steps, plan.kept_factor, 0.0)


@jit
def score_changes(scores, changes, norm, delta, seen, seed, item, row, key, plan: tl.constexpr):
    """The weights after dropout, and the gradient of the scores, from products q k^T and G v^T (or their transposes).

    With the weights P, the factors M of dropout and the gradient G of the context O: dP = M (G v^T) and
    dS = P (dP - delta), where delta = sum(G O) is the sum of P dP over a row.
    """
    weights = tl.exp2(tl.where(seen, scores * plan.power_scale, float("-inf")) - norm)
    dropped = weights
    if plan.dropout_steps > 0:
        factors = dropout_factors(seed, item, row, key, plan)
        dropped = weights * factors
        changes = changes * factors
    return dropped, weights * (changes - delta)


@jit
def local_keys(block, first_row, rows, plan: tl.constexpr):
    """The local keys of a tile of a block, [first, stop)."""
    first = plan.global_count + tl.maximum(block - 1, 0) * plan.block
    stop = tl.minimum(plan.global_count + (block + 2) * plan.block, rows)
    if plan.causal:
        stop = tl.minimum(first_row + plan.rows, tl.minimum(stop, plan.global_count + (block + 1) * plan.block))
    return first, stop


@jit
def sparse_piece(side, block, entries, plan: tl.constexpr):
    """The sparse keys of a block on its left (side 0) or right (1), [first, stop)."""
    start = plan.left + side * (plan.right - plan.left) + block * plan.sparse_step
    return tl.maximum(start, 0), tl.minimum(start + plan.sparse_size, entries)


@jit
def tile_of_block(number, rows, size: tl.constexpr, plan: tl.constexpr):
    """The batch * heads + head of a program, and its tile of tokens of one block: (item, block, first, stop)."""
    tiles_a_block = tl.cdiv(plan.block, size)
    tiles = tl.cdiv(rows - plan.global_count, plan.block) * tiles_a_block
    block = number % tiles // tiles_a_block
    first = plan.global_count + block * plan.block + number % tiles_a_block * size
    return number // tiles, block, first, tl.minimum(plan.global_count + (block + 1) * plan.block, rows)


@jit
def chunk_for_globals(number, seen_rows, size: tl.constexpr, plan: tl.constexpr):
    """A program's batch * heads + head, chunk of rows or keys, tile of globals, and where its sums go.

    Returns:
        item, the chunk's first and stop, the tile's first, and the first of its rows in sums (b h, chunks, g, d).
    """
    tiles = tl.cdiv(plan.global_count, size)
    chunks = tl.cdiv(seen_rows, plan.chunk)
    first = number // tiles % chunks * plan.chunk
    place = (number // tiles).to(tl.int64) * plan.global_count
    return number // tiles // chunks, first, tl.minimum(first + plan.chunk, seen_rows), number % tiles * size, place


@jit
def at_item(pointer, item, batch_stride, head_stride, plan: tl.constexpr):
    """Where the list of a head begins."""
    return pointer + (item // plan.heads).to(tl.int64) * batch_stride + (item % plan.heads).to(tl.int64) * head_stride


@jit
def at_result(pointer, item, rows, plan: tl.constexpr):
    """The same in a result, which is laid out as (b, t, h, d)."""
    return at_item(pointer, item, rows * plan.heads * plan.size, plan.size, plan)


@jit
def at_list(pointer, item, entries, plan: tl.constexpr):
    """The same in the sparse list, (b, h, l, d)."""
    return pointer + item.to(tl.int64) * entries * plan.size


@jit
def at_masks(visible, sparse_visible, item, rows, entries, plan: tl.constexpr):
    """The same in the masks (b, g + t) and (b, h or 1, l)."""
    mask = item if plan.sparse_heads > 1 else item // plan.heads
    return visible + (item // plan.heads).to(tl.int64) * rows, sparse_visible + mask.to(tl.int64) * entries


# Forward.


@jit
def nothing_seen(plan: tl.constexpr):
    """The state of a softmax to begin with: sums of values, sums of weights, and the highest scores."""
    count: tl.constexpr = plan.rows
    # Below every score; -inf would make NaN of -inf - -inf.
    return zeros(count, plan), tl.zeros([count], dtype=tl.float32), tl.full([count], -1e30, dtype=tl.float32)


@jit
def add_keys(
    total, norm, highest, queries, row, last, keys, values, visible, first, stop, stride, seed, item, counted,
    count: tl.constexpr, masked: tl.constexpr, plan: tl.constexpr
):  # fmt: skip
    """Take keys [first, stop) of a list into the softmax of a tile of rows; if causal, up to the `last` of each row.

    Its state is the highest score of a row, the sum of 2^(score - highest), and that of the values with such weights.
    """
    for start in range(first, stop, count):
        key = start + tl.arange(0, count)
        seen = visible_keys(visible, key, stop, masked)[None, :]
        if plan.causal:
            seen = seen & (key[None, :] <= last[:, None])
        tile = load_rows(keys, start, stop, stride, count, plan)
        scores = tl.dot(queries, tl.trans(tile), input_precision=plan.precision) * plan.power_scale
        scores = tl.where(seen, scores, float("-inf"))
        reached = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - reached)
        weights = tl.exp2(scores - reached[:, None])
        norm = norm * shrink + tl.sum(weights, 1)
        if plan.dropout_steps > 0:
            weights = weights * dropout_factors(seed, item, row[:, None], key[None, :] + counted, plan)
        tile = load_rows(values, start, stop, stride, count, plan)
        total = total * shrink[:, None]
        total += tl.dot(weights.to(tile.dtype), tile, input_precision=plan.precision)
        highest = reached
    return total, norm, highest


@jit
def token_rows(
    q, k, v, visible, sparse_keys, sparse_values, sparse_visible, seed, context, norms,
    rows, entries, batch_stride, head_stride, stride, plan: tl.constexpr
):  # fmt: skip
    """The context of a tile of tokens, and their norms: log2 of the sum of 2^score, which gives a backward the weights.

    The norm of a row that sees nothing is infinite: its weights are zero.
    """
    item, block, first, stop = tile_of_block(tl.program_id(0), rows, plan.rows, plan)
    row = first + tl.arange(0, plan.rows)
    queries = load_rows(at_item(q, item, batch_stride, head_stride, plan), first, stop, stride, plan.rows, plan)
    k, v = at_item(k, item, batch_stride, head_stride, plan), at_item(v, item, batch_stride, head_stride, plan)
    sparse_keys, sparse_values = at_list(sparse_keys, item, entries, plan), at_list(sparse_values, item, entries, plan)
    visible, sparse_visible = at_masks(visible, sparse_visible, item, rows, entries, plan)
    total, norm, highest = nothing_seen(plan)
    if plan.global_count > 0:
        total, norm, highest = add_keys(
            total, norm, highest, queries, row, row, k, v, visible, 0, plan.global_count, stride, seed, item, 0,
            plan.global_tile, plan.masked, plan
        )  # fmt: skip
    first_key, stop_key = local_keys(block, first, rows, plan)
    total, norm, highest = add_keys(
        total, norm, highest, queries, row, row, k, v, visible, first_key, stop_key, stride, seed, item, 0,
        plan.keys, plan.masked, plan
    )  # fmt: skip
    for side in range(plan.sides):
        first_key, stop_key = sparse_piece(side, block, entries, plan)
        total, norm, highest = add_keys(
            total, norm, highest, queries, row, row * 0 + entries, sparse_keys, sparse_values, sparse_visible,
            first_key, stop_key, plan.size, seed, item, rows, plan.keys, plan.sparse_masked, plan
        )  # fmt: skip
    total = total / tl.where(norm > 0, norm, 1.0)[:, None]
    store_rows(at_result(context, item, rows, plan), total, first, stop, plan.heads * plan.size, plan.rows, plan)
    norm = tl.where(norm > 0, highest + tl.log2(norm), float("inf"))
    tl.store(norms + item.to(tl.int64) * rows + row, norm, mask=row < stop)


@jit
def global_rows(
    q, k, v, visible, seed, sums, sum_norms, rows, seen_rows, batch_stride, head_stride, stride, plan: tl.constexpr
):  # fmt: skip
    """The context of a tile of globals over one chunk of keys, and its norms: minus infinity where none is seen."""
    item, first_key, stop_key, first, place = chunk_for_globals(tl.program_id(0), seen_rows, plan.rows, plan)
    row, stop = first + tl.arange(0, plan.rows), plan.global_count
    queries = load_rows(at_item(q, item, batch_stride, head_stride, plan), first, stop, stride, plan.rows, plan)
    k, v = at_item(k, item, batch_stride, head_stride, plan), at_item(v, item, batch_stride, head_stride, plan)
    visible, _ = at_masks(visible, visible, item, rows, 0, plan)
    total, norm, highest = nothing_seen(plan)
    total, norm, highest = add_keys(
        total, norm, highest, queries, row, row + rows, k, v, visible, first_key, stop_key, stride, seed, item, 0,
        plan.keys, plan.masked, plan
    )  # fmt: skip
    total = total / tl.where(norm > 0, norm, 1.0)[:, None]
    store_rows(sums + place * plan.size, total, first, stop, plan.size, plan.rows, plan)
    norm = tl.where(norm > 0, highest + tl.log2(norm), float("-inf"))
    tl.store(sum_norms + place + row, norm, mask=row < stop)


@jit
def merged_globals(sums, sum_norms, context, norms, rows, chunks, plan: tl.constexpr):
    """The context and the norm of one global, from those over each chunk of keys."""
    item, row = tl.program_id(0) // plan.global_count, tl.program_id(0) % plan.global_count
    column, one = tl.arange(0, plan.padded), tl.arange(0, 1)
    total, norm = tl.zeros_like(column).to(tl.float32), tl.zeros_like(one).to(tl.float32)
    highest = norm - 1e30
    for start in range(0, chunks, CHUNKS_AT_ONCE):
        place, there = chunk_places(start, item, row, chunks, plan)
        found = tl.load(sum_norms + place, mask=there, other=float("-inf"))
        reached = tl.maximum(highest, tl.max(found, 0))
        shrink, shares = tl.exp2(highest - reached), tl.exp2(found - reached)
        total = total * shrink + tl.sum(shares[:, None] * load_chunks(sums, place, there, column, plan), 0)
        norm = norm * shrink + tl.sum(shares, 0)
        highest = reached
    total = total / tl.where(norm > 0, norm, 1.0)
    store_global(context, total, item, row, column, rows, plan)
    norm = tl.where(norm > 0, highest + tl.log2(norm), float("inf"))
    tl.store(norms + item.to(tl.int64) * rows + row + one, norm)


@jit
def chunk_places(start, item, row, chunks, plan: tl.constexpr):
    """Where some chunks from `start` on have what they give for a global, and which of them there are."""
    chunk = start + tl.arange(0, CHUNKS_AT_ONCE)
    return (item * chunks + chunk).to(tl.int64) * plan.global_count + row, chunk < chunks


@jit
def load_chunks(sums, place, there, column, plan: tl.constexpr):
    """Sums (chunks, padded) at these places."""
    pointers = sums + place[:, None] * plan.size + column[None, :]
    return tl.load(pointers, mask=there[:, None] & (column[None, :] < plan.size), other=0.0)


@jit
def store_global(result, values, item, row, column, rows, plan: tl.constexpr):
    """Write the row of a global of a result."""
    pointers = at_result(result, item, rows, plan) + row * (plan.heads * plan.size) + column
    tl.store(pointers, values.to(result.dtype.element_ty), mask=column < plan.size)


@jit
def largest_norms(
    k, v, visible, sparse_keys, sparse_values, sparse_visible, chosen,
    rows, entries, batch_stride, head_stride, stride, size: tl.constexpr, plan: tl.constexpr
):  # fmt: skip
    """Of a chunk of tokens the `kept` keys of largest norm, the largest last; hidden keys count as zero.

    The sparse list, which of its entries may be seen, and the row of k that each is; `rows` where it is none.
    """
    chunks = entries // plan.kept
    item, number = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    place = tl.arange(0, size)
    first = plan.global_count + number * plan.chunk_size
    stop, row = tl.minimum(first + plan.chunk_size, rows), first + place
    visible, sparse_visible = at_masks(visible, sparse_visible, item, rows, entries, plan)
    seen = visible_keys(visible, row, stop, plan.masked)
    keys = load_rows(at_item(k, item, batch_stride, head_stride, plan), first, stop, stride, size, plan)
    values = load_rows(at_item(v, item, batch_stride, head_stride, plan), first, stop, stride, size, plan)
    norm = tl.sum(keys.to(tl.float32) * keys.to(tl.float32), 1)
    norm = tl.where(seen, tl.where(norm == norm, norm, float("inf")), 0.0)  # of NaN, so that all have a place
    norm = tl.where(place < plan.chunk_size, norm, -1.0)
    other, earlier = norm[None, :], place[None, :] < place[:, None]
    before = (other > norm[:, None]) | ((other == norm[:, None]) & earlier)
    rank = tl.sum(before.to(tl.int32), 1)
    entry = number * plan.kept + plan.kept - 1 - rank
    kept = rank < plan.kept
    column = tl.arange(0, plan.padded)[None, :]
    pointers, there = entry[:, None] * plan.size + column, kept[:, None] & (column < plan.size)
    tl.store(at_list(sparse_keys, item, entries, plan) + pointers, keys, mask=there)
    tl.store(at_list(sparse_values, item, entries, plan) + pointers, values, mask=there)
    tl.store(chosen + item.to(tl.int64) * entries + entry, tl.minimum(row, rows), mask=kept)
    if plan.sparse_masked:
        tl.store(sparse_visible + entry, seen.to(tl.int8), mask=kept)


# Backward.


@jit
def chunks_together(sums, other_sums, result, other, rows, chunks, plan: tl.constexpr):
    """The row of one global of a gradient, or of the other of two, from what each chunk gives."""
    item, row = tl.program_id(0) // plan.global_count, tl.program_id(0) % plan.global_count
    if tl.program_id(1) == 1:
        sums, result = other_sums, other
    column = tl.arange(0, plan.padded)
    total = tl.zeros_like(column).to(tl.float32)
    for start in range(0, chunks, CHUNKS_AT_ONCE):
        place, there = chunk_places(start, item, row, chunks, plan)
        total += tl.sum(load_chunks(sums, place, there, column, plan), 0)
    store_global(result, total, item, row, column, rows, plan)


@jit
def row_changes(
    dq, queries, arriving, norm, delta, row, last, keys, values, visible, first, stop, stride, seed, item, counted,
    count: tl.constexpr, masked: tl.constexpr, plan: tl.constexpr
):  # fmt: skip
    """Add to the gradient of a tile of queries what comes through keys [first, stop) of a list."""
    for start in range(first, stop, count):
        key = start + tl.arange(0, count)
        seen = visible_keys(visible, key, stop, masked)[None, :]
        if plan.causal:
            seen = seen & (key[None, :] <= last[:, None])
        tile = load_rows(keys, start, stop, stride, count, plan)
        scores = tl.dot(queries, tl.trans(tile), input_precision=plan.precision)
        others = load_rows(values, start, stop, stride, count, plan)
        changes = tl.dot(arriving, tl.trans(others), input_precision=plan.precision)
        _, changes = score_changes(
            scores, changes, norm[:, None], delta[:, None], seen, seed, item, row[:, None], key[None, :] + counted, plan
        )
        dq += tl.dot(changes.to(tile.dtype), tile, input_precision=plan.precision)
    return dq


@jit
def key_changes(
    dk, dv, keys, values, key, seen, q, gradient, norms, deltas, first, stop, stride, seed, item, counted, begin,
    sparse: tl.constexpr, count: tl.constexpr, plan: tl.constexpr
):  # fmt: skip
    """Add to the gradients of a tile of keys and values what comes from rows [first, stop), `count` at a time.

    Of sparse keys a row sees the piece of its block; `begin` is where in the list that of block 0 begins.
    """
    for start in range(first, stop, count):
        row = start + tl.arange(0, count)
        there = row < stop
        sees = seen[:, None] & there[None, :]
        if sparse:
            place = key[:, None] - (begin + (row - plan.global_count) // plan.block * plan.sparse_step)[None, :]
            sees = sees & (place >= 0) & (place < plan.sparse_size)
        elif plan.causal:
            sees = sees & (key[:, None] <= tl.maximum(row, plan.global_count - 1)[None, :])  # globals see each other
        queries = load_rows(q, start, stop, stride, count, plan)
        arriving = load_rows(gradient, start, stop, plan.heads * plan.size, count, plan)
        norm = tl.load(norms + row, mask=there, other=float("inf"))
        delta = tl.load(deltas + row, mask=there, other=0.0)
        scores = tl.dot(keys, tl.trans(queries), input_precision=plan.precision)
        changes = tl.dot(values, tl.trans(arriving), input_precision=plan.precision)
        dropped, changes = score_changes(
            scores, changes, norm[None, :], delta[None, :], sees, seed, item, row[None, :], key[:, None] + counted, plan
        )
        dv += tl.dot(dropped.to(arriving.dtype), arriving, input_precision=plan.precision)
        dk += tl.dot(changes.to(queries.dtype), queries, input_precision=plan.precision)
    return dk, dv


@jit
def token_rows_backward(
    q, k, v, visible, sparse_keys, sparse_values, sparse_visible, seed, context, norms, gradient, deltas, dq,
    rows, entries, batch_stride, head_stride, stride, plan: tl.constexpr
):  # fmt: skip
    """The gradient of a tile of tokens' queries, and delta, the sum over d of gradient * context."""
    item, block, first, stop = tile_of_block(tl.program_id(0), rows, plan.rows, plan)
    row = first + tl.arange(0, plan.rows)
    queries = load_rows(at_item(q, item, batch_stride, head_stride, plan), first, stop, stride, plan.rows, plan)
    arriving, norm, delta = row_state(context, norms, gradient, deltas, item, first, stop, rows, plan)
    k, v = at_item(k, item, batch_stride, head_stride, plan), at_item(v, item, batch_stride, head_stride, plan)
    sparse_keys, sparse_values = at_list(sparse_keys, item, entries, plan), at_list(sparse_values, item, entries, plan)
    visible, sparse_visible = at_masks(visible, sparse_visible, item, rows, entries, plan)
    total = zeros(plan.rows, plan)
    if plan.global_count > 0:
        total = row_changes(
            total, queries, arriving, norm, delta, row, row, k, v, visible, 0, plan.global_count, stride, seed, item, 0,
            plan.global_tile, plan.masked, plan
        )  # fmt: skip
    first_key, stop_key = local_keys(block, first, rows, plan)
    total = row_changes(
        total, queries, arriving, norm, delta, row, row, k, v, visible, first_key, stop_key, stride, seed, item, 0,
        plan.keys, plan.masked, plan
    )  # fmt: skip
    for side in range(plan.sides):
        first_key, stop_key = sparse_piece(side, block, entries, plan)
        total = row_changes(
            total, queries, arriving, norm, delta, row, row * 0 + entries, sparse_keys, sparse_values, sparse_visible,
            first_key, stop_key, plan.size, seed, item, rows, plan.keys, plan.sparse_masked, plan
        )  # fmt: skip
    total = total * plan.scale
    store_rows(at_result(dq, item, rows, plan), total, first, stop, plan.heads * plan.size, plan.rows, plan)


@jit
def global_rows_backward(
    q, k, v, visible, seed, context, norms, gradient, deltas, sums, rows, seen_rows,
    batch_stride, head_stride, stride, plan: tl.constexpr
):  # fmt: skip
    """The gradient of a tile of globals' queries through one chunk of keys, and delta (the same from every chunk)."""
    item, first_key, stop_key, first, place = chunk_for_globals(tl.program_id(0), seen_rows, plan.rows, plan)
    row, stop = first + tl.arange(0, plan.rows), plan.global_count
    queries = load_rows(at_item(q, item, batch_stride, head_stride, plan), first, stop, stride, plan.rows, plan)
    arriving, norm, delta = row_state(context, norms, gradient, deltas, item, first, stop, rows, plan)
    k, v = at_item(k, item, batch_stride, head_stride, plan), at_item(v, item, batch_stride, head_stride, plan)
    visible, _ = at_masks(visible, visible, item, rows, 0, plan)
    total = zeros(plan.rows, plan)
    total = row_changes(
        total, queries, arriving, norm, delta, row, row + rows, k, v, visible, first_key, stop_key, stride, seed, item,
        0, plan.keys, plan.masked, plan
    )  # fmt: skip
    store_rows(sums + place * plan.size, total * plan.scale, first, stop, plan.size, plan.rows, plan)


@jit
def row_state(context, norms, gradient, deltas, item, first, stop, rows, plan: tl.constexpr):
    """What a backward knows of a tile of rows: gradient of the context, norms, and delta, which is kept for keys."""
    row, stride = first + tl.arange(0, plan.rows), plan.heads * plan.size
    arriving = load_rows(at_result(gradient, item, rows, plan), first, stop, stride, plan.rows, plan)
    found = load_rows(at_result(context, item, rows, plan), first, stop, stride, plan.rows, plan)
    delta = tl.sum(arriving.to(tl.float32) * found.to(tl.float32), 1)
    place = item.to(tl.int64) * rows + row
    tl.store(deltas + place, delta, mask=row < stop)
    return arriving, tl.load(norms + place, mask=row < stop, other=float("inf")), delta


@jit
def local_keys_backward(
    q, k, v, visible, seed, norms, gradient, deltas, dk, dv, rows, batch_stride, head_stride, stride,
    plan: tl.constexpr
):  # fmt: skip
    """The gradients of a tile of tokens' keys and values, as local keys of the blocks beside and as keys of globals."""
    item, block, first, stop = tile_of_block(tl.program_id(0), rows, plan.keys, plan)
    key = first + tl.arange(0, plan.keys)
    keys = load_rows(at_item(k, item, batch_stride, head_stride, plan), first, stop, stride, plan.keys, plan)
    values = load_rows(at_item(v, item, batch_stride, head_stride, plan), first, stop, stride, plan.keys, plan)
    visible, _ = at_masks(visible, visible, item, rows, 0, plan)
    seen = visible_keys(visible, key, stop, plan.masked)
    q, gradient = at_item(q, item, batch_stride, head_stride, plan), at_result(gradient, item, rows, plan)
    norms, deltas = norms + item.to(tl.int64) * rows, deltas + item.to(tl.int64) * rows
    first_row = plan.global_count + tl.maximum(block - 1, 0) * plan.block
    if plan.causal:
        first_row = first
    stop_row = tl.minimum(plan.global_count + (block + 2) * plan.block, rows)
    to_keys = zeros(plan.keys, plan)
    to_values = zeros(plan.keys, plan)
    to_keys, to_values = key_changes(
        to_keys, to_values, keys, values, key, seen, q, gradient, norms, deltas, first_row, stop_row, stride,
        seed, item, 0, 0, False, plan.rows, plan
    )  # fmt: skip
    if plan.global_count > 0 and not plan.causal:
        to_keys, to_values = key_changes(
            to_keys, to_values, keys, values, key, seen, q, gradient, norms, deltas, 0, plan.global_count, stride,
            seed, item, 0, 0, False, plan.global_tile, plan
        )  # fmt: skip
    width = plan.heads * plan.size
    store_rows(at_result(dk, item, rows, plan), to_keys * plan.scale, first, stop, width, plan.keys, plan)
    store_rows(at_result(dv, item, rows, plan), to_values, first, stop, width, plan.keys, plan)


@jit
def global_keys_backward(
    q, k, v, visible, seed, norms, gradient, deltas, key_sums, value_sums, rows, batch_stride, head_stride, stride,
    plan: tl.constexpr
):  # fmt: skip
    """The gradients of a tile of globals' keys and values from one chunk of rows; all rows see them."""
    item, first_row, stop_row, first, place = chunk_for_globals(tl.program_id(0), rows, plan.keys, plan)
    key, stop = first + tl.arange(0, plan.keys), plan.global_count
    keys = load_rows(at_item(k, item, batch_stride, head_stride, plan), first, stop, stride, plan.keys, plan)
    values = load_rows(at_item(v, item, batch_stride, head_stride, plan), first, stop, stride, plan.keys, plan)
    visible, _ = at_masks(visible, visible, item, rows, 0, plan)
    seen = visible_keys(visible, key, stop, plan.masked)
    q, gradient = at_item(q, item, batch_stride, head_stride, plan), at_result(gradient, item, rows, plan)
    norms, deltas = norms + item.to(tl.int64) * rows, deltas + item.to(tl.int64) * rows
    to_keys = zeros(plan.keys, plan)
    to_values = zeros(plan.keys, plan)
    to_keys, to_values = key_changes(
        to_keys, to_values, keys, values, key, seen, q, gradient, norms, deltas, first_row, stop_row, stride,
        seed, item, 0, 0, False, plan.rows, plan
    )  # fmt: skip
    store_rows(key_sums + place * plan.size, to_keys * plan.scale, first, stop, plan.size, plan.keys, plan)
    store_rows(value_sums + place * plan.size, to_values, first, stop, plan.size, plan.keys, plan)


@jit
def sparse_keys_backward(
    q, sparse_keys, sparse_values, sparse_visible, seed, norms, gradient, deltas, dk, dv, chosen,
    rows, entries, batch_stride, head_stride, stride, plan: tl.constexpr
):  # fmt: skip
    """The gradients of a tile of the sparse list, from the blocks that see it on their left and on their right.

    Where the kernel chose the list, they are added to those of the tokens that it holds, each of which it holds once.
    """
    tiles = tl.cdiv(entries, plan.keys)
    item, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * plan.keys
    stop = tl.minimum(first + plan.keys, entries)
    key = first + tl.arange(0, plan.keys)
    keys = load_rows(at_list(sparse_keys, item, entries, plan), first, stop, plan.size, plan.keys, plan)
    values = load_rows(at_list(sparse_values, item, entries, plan), first, stop, plan.size, plan.keys, plan)
    _, sparse_visible = at_masks(sparse_visible, sparse_visible, item, rows, entries, plan)
    seen = visible_keys(sparse_visible, key, stop, plan.sparse_masked)
    q, gradient = at_item(q, item, batch_stride, head_stride, plan), at_result(gradient, item, rows, plan)
    norms, deltas = norms + item.to(tl.int64) * rows, deltas + item.to(tl.int64) * rows
    to_keys = zeros(plan.keys, plan)
    to_values = zeros(plan.keys, plan)
    for side in range(plan.sides):
        # Block i sees entries [begin + i * step, + size): the first block that sees one of the tile, and past the last.
        begin = plan.left + side * (plan.right - plan.left)
        first_block = tl.maximum(first - begin - plan.sparse_size + plan.sparse_step, 0) // plan.sparse_step
        stop_block = tl.maximum(stop - 1 - begin + plan.sparse_step, 0) // plan.sparse_step
        to_keys, to_values = key_changes(
            to_keys, to_values, keys, values, key, seen, q, gradient, norms, deltas,
            plan.global_count + first_block * plan.block,
            tl.minimum(plan.global_count + stop_block * plan.block, rows), stride, seed, item, rows, begin, True,
            plan.rows, plan
        )  # fmt: skip
    if plan.chunk_size > 0:
        row = tl.load(chosen + item.to(tl.int64) * entries + key, mask=key < stop, other=rows)
        add_rows(at_result(dk, item, rows, plan), to_keys * plan.scale, row, rows, plan)
        add_rows(at_result(dv, item, rows, plan), to_values, row, rows, plan)
    else:
        store_rows(at_list(dk, item, entries, plan), to_keys * plan.scale, first, stop, plan.size, plan.keys, plan)
        store_rows(at_list(dv, item, entries, plan), to_values, first, stop, plan.size, plan.keys, plan)


# The operators.


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    sparse_keys: Tensor | None,
    sparse_values: Tensor | None,
    sparse_visible: Tensor | None,
    seed: Tensor | None,
    global_count: int,
    block: int,
    sparse_size: int,
    sparse_step: int,
    chunk_size: int,
    causal: bool,
    dropout: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The context (b, h, g + t, d) of globals and tokens, and the norms (b, h, g + t) of their scores in float32.

    Then the sparse list that was chosen, if it was: keys, values, visible, and the rows of k that they are.

    Args:
        q: queries (b, h, g + t, d), globals first; float32, float16 or bfloat16.
        k: keys, likewise.
        v: values, likewise.
        visible: bool (b, g + t), True for keys that may be seen; None where all may.
        sparse_keys: the sparse list (b, h, l, d); None for attention without one, and where it is chosen here.
        sparse_values: likewise.
        sparse_visible: bool (b, h or 1, l); None where all may be seen.
        seed: int64 scalar to draw the dropout from; None for no dropout.
        global_count: g.
        block: tokens in a block.
        sparse_size: sparse keys on each side of the local ones.
        sparse_step: entries of the sparse list for one block.
        chunk_size: tokens of which the keys of largest norm are chosen for the sparse list; 0 where it is given.
        causal: no token sees a later one, and globals see each other only.
        dropout: probability for attention weights.
        precision: of products of float32, "ieee" or "tf32".
    """
    options = (global_count, block, sparse_size, sparse_step, chunk_size, causal, dropout, precision)
    tiles_of = plans(q, visible, sparse_visible, *options)
    (q, k, v), strides = same_layout(q, k, v)
    batch, heads, rows, size = q.shape
    context = rows_first(torch.empty, q)
    norms = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
    chosen = empty_list(q, global_count, block, sparse_step, chunk_size)
    with torch.cuda.device_of(q):
        if chunk_size:
            tiled, how = tiles_of("choice")
            sparse_keys, sparse_values, sparse_visible, _ = chosen
            largest_norms[(batch * heads * (sparse_keys.shape[2] // tiled.kept),)](
                k, v, q if visible is None else visible.contiguous(), *chosen, rows, sparse_keys.shape[2], *strides,
                power_of_2(chunk_size), tiled, **how,
            )  # fmt: skip
        mask, seed, *sparse = present(q, visible, seed, sparse_keys, sparse_values, sparse_visible)
        tiled, how = tiles_of("rows")
        token_rows[(batch * heads * tiles_of_blocks(tiled, rows, tiled.rows),)](
            q, k, v, mask, *sparse, seed, context, norms, rows, sparse[0].shape[2], *strides, tiled, **how
        )
        if global_count:
            seen = global_count if causal else rows
            tiled, how = tiles_of("globals")
            chunks, tiles = -(-seen // tiled.chunk), -(-global_count // tiled.rows)
            sums = torch.empty((batch, heads, chunks, global_count, size), dtype=torch.float32, device=q.device)
            powers = torch.empty((batch, heads, chunks, global_count), dtype=torch.float32, device=q.device)
            global_rows[(batch * heads * chunks * tiles,)](
                q, k, v, mask, seed, sums, powers, rows, seen, *strides, tiled, **how
            )
            merged_globals[(batch * heads * global_count,)](
                sums, powers, context, norms, rows, chunks, tiled, num_warps=4
            )
    return context, norms, *chosen


def empty_list(q: Tensor, global_count: int, block: int, sparse_step: int, chunk_size: int) -> list[Tensor]:
    """A sparse list to be chosen: keys, values, visible, rows of k; without entries where it is given."""
    batch, heads, rows, size = q.shape
    entries = 0
    if chunk_size:
        padded = (rows - global_count + block - 1) // block * block
        entries = (padded + chunk_size - 1) // chunk_size * (chunk_size * sparse_step // block)
    keys, values = (torch.empty((batch, heads, entries, size), dtype=q.dtype, device=q.device) for _ in range(2))
    places = torch.empty((batch, heads, entries), dtype=torch.int32, device=q.device)
    return [keys, values, torch.empty(places.shape, dtype=torch.bool, device=q.device), places]


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
    context: Tensor,
    norms: Tensor,
    chosen: Tensor,
    global_count: int,
    block: int,
    sparse_size: int,
    sparse_step: int,
    chunk_size: int,
    causal: bool,
    dropout: float,
    precision: str,
) -> list[Tensor]:
    """The gradients of q, k and v, and of the sparse keys and values where they are given; arguments as above.

    A sparse list that was chosen comes with `chosen`, the rows of k that it holds.
    """
    options = (global_count, block, sparse_size, sparse_step, chunk_size, causal, dropout, precision)
    tiles_of = plans(q, visible, sparse_visible, *options)
    (q, k, v), strides = same_layout(q, k, v)
    batch, heads, rows, size = q.shape
    if not gradient.transpose(1, 2).is_contiguous():
        gradient = rows_first(torch.empty, q).copy_(gradient)
    dq, dk, dv = (rows_first(torch.empty, q) for _ in range(3))
    deltas = torch.empty_like(norms)
    mask, drawn, *sparse = present(q, visible, seed, sparse_keys, sparse_values, sparse_visible)
    entries = sparse[0].shape[2]
    found = [dq, dk, dv]
    with torch.cuda.device_of(q):
        tiled, how = tiles_of("rows_backward")
        # The rows go first: keys read the deltas that rows write.
        token_rows_backward[(batch * heads * tiles_of_blocks(tiled, rows, tiled.rows),)](
            q, k, v, mask, *sparse, drawn, context, norms, gradient, deltas, dq, rows, entries, *strides, tiled, **how
        )
        if global_count:
            seen = global_count if causal else rows
            tiled, how = tiles_of("globals_backward")
            chunks, tiles = -(-seen // tiled.chunk), -(-global_count // tiled.rows)
            sums = torch.empty((batch, heads, chunks, global_count, size), dtype=torch.float32, device=q.device)
            global_rows_backward[(batch * heads * chunks * tiles,)](
                q, k, v, mask, drawn, context, norms, gradient, deltas, sums, rows, seen, *strides, tiled, **how
            )
            chunks_together[(batch * heads * global_count, 1)](sums, sums, dq, dq, rows, chunks, tiled, num_warps=4)
        tiled, how = tiles_of("keys_backward")
        local_keys_backward[(batch * heads * tiles_of_blocks(tiled, rows, tiled.keys),)](
            q, k, v, mask, drawn, norms, gradient, deltas, dk, dv, rows, *strides, tiled, **how
        )
        if sparse_step:
            tiled, how = tiles_of("sparse_backward")
            results = (dk, dv)
            if not chunk_size:
                results = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in sparse[:2])
                found += results
            # After the local keys, whose gradients it adds to where the list was chosen.
            sparse_keys_backward[(batch * heads * -(-entries // tiled.keys),)](
                q, *sparse, drawn, norms, gradient, deltas, *results, chosen, rows, entries, *strides, tiled, **how
            )
        if global_count:
            tiled, how = tiles_of("global_keys_backward")
            chunks, tiles = -(-rows // tiled.chunk), -(-global_count // tiled.keys)
            sums = torch.empty((2, batch, heads, chunks, global_count, size), dtype=torch.float32, device=q.device)
            global_keys_backward[(batch * heads * chunks * tiles,)](
                q, k, v, mask, drawn, norms, gradient, deltas, *sums, rows, *strides, tiled, **how
            )
            chunks_together[(batch * heads * global_count, 2)](*sums, dk, dv, rows, chunks, tiled, num_warps=4)
    return found


# Rows and keys of a tile, warps and stages, for 16-bit inputs and heads of up to 64: the fastest on an H200 of those
# that fit the shared memory of compute capability 8.6, too.
TILES = {
    "choice": (128, 64, 4, 2),
    "rows": (128, 32, 4, 3),
    "rows_backward": (64, 64, 4, 3),
    "keys_backward": (32, 64, 4, 3),
    "sparse_backward": (64, 64, 4, 2),
    "globals": (0, 64, 4, 2),  # 0: as many as there are globals, see `Plan.global_tile`
    "globals_backward": (0, 64, 4, 2),
    "global_keys_backward": (64, 0, 4, 2),
}


@functools.lru_cache(maxsize=2048)
def with_tiles(plan: Plan, dtype: torch.dtype, kernel: str) -> Tiled:
    """The plan with the tiles of a kernel, and how many warps and stages to launch it with."""
    rows, keys, warps, stages = TILES[kernel]
    if dtype == torch.float32:
        rows, keys, warps, stages = min(rows, 32), min(keys, 32), 4, 2
        plan = replace(plan, global_tile=min(plan.global_tile, 32))
    elif plan.padded > 64:
        rows, warps, stages = min(rows, 32 if "backward" in kernel else 128), 8, 2
    rows, keys = (power_of_2(plan.block, most=most) if most else plan.global_tile for most in (rows, keys))
    return replace(plan, rows=rows, keys=keys), {"num_warps": warps, "num_stages": stages}


def tiles_of_blocks(plan: Plan, rows: int, size: int) -> int:
    """Tiles of so many tokens; the first of a block begins with it."""
    return -(-(rows - plan.global_count) // plan.block) * -(-plan.block // size)


def same_layout(*inputs: Tensor) -> tuple[list[Tensor], tuple[int, int, int]]:
    """Tensors (b, h, t, d) with the same strides, d dense, as they are or copied; and the strides of b, h and t."""
    if any(x.stride() != inputs[0].stride() for x in inputs) or inputs[0].stride(3) != 1:
        inputs = tuple(rows_first(torch.empty, x).copy_(x) for x in inputs)
    return list(inputs), inputs[0].stride()[:3]


def present(
    q: Tensor,
    visible: Tensor | None,
    seed: Tensor | None,
    sparse_keys: Tensor | None,
    sparse_values: Tensor | None,
    sparse_visible: Tensor | None,
) -> list[Tensor]:
    """Dense tensors; q stands in for what is not read."""
    given = (visible, seed, sparse_keys, sparse_values, sparse_visible)
    return [q if x is None else x.contiguous() for x in given]


SCHEMA = (
    "Tensor q, Tensor k, Tensor v, Tensor? visible, "
    "Tensor? sparse_keys, Tensor? sparse_values, Tensor? sparse_visible, Tensor? seed, "
)
OPTIONS = (
    "int global_count, int block, int sparse_size, int sparse_step, int chunk_size, bool causal, float dropout, "
    "str precision"
)
attention_op = torch.library.custom_op(
    f"{NAMESPACE}::attention",
    attention,
    mutates_args=(),
    schema=f"({SCHEMA}{OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
backward_op = torch.library.custom_op(
    f"{NAMESPACE}::attention_backward",
    attention_backward,
    mutates_args=(),
    schema=f"(Tensor gradient, {SCHEMA}Tensor context, Tensor norms, Tensor chosen, {OPTIONS}) -> Tensor[]",
)


@attention_op.register_fake
def fake_attention(q: Tensor, *given: Any) -> tuple[Tensor, ...]:
    global_count, block, _, sparse_step, chunk_size, *_ = given[7:]
    listed = empty_list(q, global_count, block, sparse_step, chunk_size)
    return rows_first(torch.empty, q), q.new_empty(q.shape[:3], dtype=torch.float32), *listed


@backward_op.register_fake
def fake_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, visible: Any, sk: Tensor | None, sv: Tensor | None, *given: Any
) -> list[Tensor]:
    chosen = given[9] > 0
    sparse = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (sk, sv) if x is not None]
    return [rows_first(torch.empty, x) for x in (q, k, v)] + ([] if chosen else sparse)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else torch fills zeros for each of those
    ctx.options = inputs[8:]


def differentiate(
    ctx: Any, gradient: Tensor | None, *_: Any, backward: Callable[..., list[Tensor]] | None = None
) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 16
    q, k, v, visible, *sparse, seed, context, norms, keys, values, shown, places = ctx.saved_tensors
    if places.numel():
        sparse = [keys, values, shown]
    dq, dk, dv, *rest = (backward or backward_op)(
        gradient, q, k, v, visible, *sparse, seed, context, norms, places, *ctx.options
    )
    dsk, dsv = rest or (None, None)
    return (dq, dk, dv, None, dsk, dsv, *(None for _ in range(10)))


attention_op.register_autograd(differentiate, setup_context=save_for_backward)


class Attention(torch.autograd.Function):
    """The operator and its gradient by their functions; see `run`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = attention(*inputs)
        save_for_backward(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return differentiate(ctx, *gradients, backward=attention_backward)
