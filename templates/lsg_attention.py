# SPDX-License-Identifier: Apache-2.0
"""LSG attention (arXiv 2210.15497): a token sees its block and the two beside it, sparse keys beyond, and the globals.

Pure functions on q, k, v of shape (b, h, g + t, d), the g global tokens first, and a bool mask (b, g + t), True for
what may be seen. Axes: b batch, h heads, t tokens, d head size, n blocks, l entries of the sparse list, w keys of a
window.

Inputs of up to two blocks get full attention. Beyond that memory is linear in the length, and one of several forms of
the same formula is run: see `form_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import attention_dropout
from .lsg_configuration import ATTENTION_FORMS, sparse_chunk_size, uses_sparse_keys
from .lsg_kernel_cpu import cpu_attention, sparse_starts
from .lsg_kernel_flex import flex_rows
from .lsg_kernel_triton import INTERPRETED, chooses, obstacle, triton_attention

Sparse = tuple[
    Tensor, Tensor, Tensor
]  # the sparse list: keys and values (b, h, l, d), and visible, bool (b, h or 1, l)


class LSGMix(nn.Module):
    """LSG attention as the mixing module of one layer; it has no parameters and reads its options from the config."""

    def __init__(self, config: Any, layer_index: int) -> None:
        super().__init__()
        self.config, self.layer_index = config, layer_index

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return lsg_attention(
            q,
            k,
            v,
            mask,
            self.config,
            causal=bool(getattr(self.config, "is_decoder", False)),
            dropout=attention_dropout(self.config) if self.training else 0.0,
            layer_index=self.layer_index,
        )


def lsg_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    config: Any,
    *,
    causal: bool = False,
    dropout: float = 0.0,
    layer_index: int = 0,
    sparse_list: Callable[..., Sparse] | None = None,
) -> Tensor:
    """Attention of global tokens and tokens over local, sparse and global keys, scaled by 1 / sqrt(d).

    Args:
        q: queries (b, h, g + t, d), global tokens first; any floating dtype.
        k: keys, likewise.
        v: values, likewise.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        config: anything with the fields of `LSGConfigMixin`.
        causal: a token sees no later one: its own block as a triangle, the block before, sparse keys on the left.
        dropout: probability for attention weights.
        layer_index: so that "lsh" draws other projections in each layer.
        sparse_list: what makes the sparse list in place of `sparse_tokens`, with its arguments and results.

    Returns:
        The context (b, h, g + t, d).

    Raises:
        ValueError: for a length that is no multiple of the block size where `config.adaptive` is false, and for an
            `attention_form` that cannot run.
    """
    length = q.shape[2] - config.num_global_tokens
    if length > 2 * config.block_size and length % config.block_size and not config.adaptive:
        raise ValueError(
            f"{length} tokens are no multiple of block_size {config.block_size}: pad the input to one, or set "
            "adaptive=True to have it padded here"
        )
    if length <= 2 * config.block_size:
        context = full_attention(q, k, v, mask, config.num_global_tokens, causal, dropout)
    else:
        sparse = None
        chosen_later = sparse_list is None and form_of(config, q) == "triton" and chooses(config)
        if uses_sparse_keys(config) and not chosen_later:
            sparse = select_sparse(q, k, v, mask, config, layer_index, sparse_list or sparse_tokens)
        context = window_attention(q, k, v, mask, sparse, config, causal, dropout)
    if causal and config.causal_globals == "published":
        first = config.num_global_tokens
        context = torch.cat([q[:, :, :first], context[:, :, first:]], dim=2)
    return context


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


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """Attention beyond two blocks, in the form that `form_of` names; all forms take and return the same."""
    forms = {"plain": plain_attention, "cpu": cpu_attention, "flex": flex_attention, "triton": triton_attention}
    return forms[form_of(config, q)](q, k, v, mask, sparse, config, causal, dropout)


def form_of(config: Any, q: Tensor) -> str:
    """The form of attention beyond two blocks: "plain", "cpu", "flex" or "triton".

    Raises:
        ValueError: if `config.attention_form` names none.
    """
    asked = config.attention_form
    if asked not in ATTENTION_FORMS:
        raise ValueError(f"attention_form is {asked!r}: set it to one of {', '.join(ATTENTION_FORMS)}")
    # A graph that leaves this process must not hold an operator of its own.
    if asked == "plain" or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "plain"
    if q.device.type == "cpu" and not (asked == "triton" and INTERPRETED):
        return "cpu"
    if asked == "auto":  # measured in docs/gpu.md; where the kernel cannot run, plain torch can
        return "plain" if obstacle(q) else "triton"
    return asked


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


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    config: Any,
    causal: bool,
    dropout: float,
) -> Tensor:
    """The form in FlexAttention; the globals' rows, which are few and see everything, as in plain torch."""
    tokens = flex_rows(q, k, v, mask, sparse, config, causal, dropout)
    return torch.cat([global_attention(q, k, v, mask, config.num_global_tokens, causal, dropout), tokens], dim=2)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    config: Any,
    causal: bool,
    dropout: float,
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


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Softmax attention; `visible` broadcasts to (b, h, rows, keys).

    A row that may see nothing gets finite numbers (near the mean of all values), not NaN: hence half of the lowest
    number in place of -inf, which no score can push over the edge of a 16-bit format.
    """
    bias = None
    if visible is not None:
        bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~visible, torch.finfo(q.dtype).min / 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


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


def select_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    config: Any,
    layer_index: int,
    sparse_list: Callable[..., Sparse],
) -> Sparse:
    """The sparse list of q, k, v and mask as `lsg_attention` takes them, made by `sparse_list` from whole blocks."""
    first, block = config.num_global_tokens, config.block_size
    if mask is None:
        mask = torch.ones((len(q), q.shape[2]), dtype=torch.bool, device=q.device)
    keys, values, visible = (whole_blocks(x, block) for x in (k[:, :, first:], v[:, :, first:], mask[:, first:, None]))
    return sparse_list(q[:, :, first], keys, values, visible[..., 0], config, layer_index)


def sparse_tokens(
    first_query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, config: Any, layer_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sparse list: one entry for `sparsity_factor` tokens.

    Args:
        first_query: the first token's query (b, h, d).
        keys: the tokens' keys (b, h, t, d), t a multiple of the block size.
        values: likewise.
        visible: bool (b, t).
        config: anything with the fields of `LSGConfigMixin`.
        layer_index: for the seed of "lsh".

    Returns:
        Keys and values (b, h, l, d), and visible (b, h or 1, l).
    """
    kind, factor, block = config.sparsity_type, config.sparsity_factor, config.block_size
    if factor == 1:
        return keys, values, visible[:, None]
    if kind == "norm":
        return largest_norms(keys, values, visible, sparse_chunk_size(config), factor)
    if kind == "pooling":
        return group_means(keys, values, visible, factor)
    if kind == "stride":
        return strided(keys, values, visible, factor)
    if kind == "block_stride":
        return block_strided(keys, values, visible, factor, block)
    # A hash into as many buckets as there are groups has nothing to choose: published code and ours pool instead.
    if kind == "bos_pooling" or factor == config.sparse_block_size:
        return first_query_pooling(
            first_query, keys, values, visible, factor, hide_padding=config.bos_pooling_padding == "masked"
        )
    return hashed_means(
        keys,
        values,
        visible,
        chunk=sparse_chunk_size(config),
        factor=factor,
        pre_rounds=config.lsh_num_pre_rounds,
        seed=config.lsh_seed + layer_index,
    )


def take(keys: Tensor, values: Tensor, visible: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and visibility of the tokens at index (b, h, l)."""
    batch = torch.arange(index.shape[0], device=index.device)[:, None, None]
    head = torch.arange(index.shape[1], device=index.device)[:, None]
    if len(index) > 1:
        return keys[batch, head, index], values[batch, head, index], visible[batch, index]
    # Rows of one text's (t, h, d), as a model's projections lay it out: twice as fast, and no copy.
    rows = (index * index.shape[1] + head).flatten()
    keys, values = (
        x.transpose(1, 2).flatten(0, 2).index_select(0, rows).view(*index.shape, -1) for x in (keys, values)
    )
    return keys, values, visible[batch, index]


def largest_norms(
    keys: Tensor, values: Tensor, visible: Tensor, chunk: int, factor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every chunk the 1 / factor keys of largest norm, the largest last; masked keys count as zero."""
    keys, values, visible = whole_chunks(keys, values, visible, chunk)
    with torch.no_grad():
        # In the order in which a model's projection leaves them in memory: three times as fast as head by head.
        norms = torch.linalg.vector_norm(keys.transpose(1, 2), dim=-1, dtype=wide(keys.dtype)).transpose(1, 2)
        norms = norms * visible[:, None]
        best = norms.unflatten(2, (-1, chunk)).topk(chunk // factor, dim=-1).indices.flip(-1)  # b h chunks kept
        offset = torch.arange(0, keys.shape[2], chunk, device=keys.device)[:, None]
        index = (best + offset).flatten(2)
    return take(keys, values, visible, index)


def group_means(keys: Tensor, values: Tensor, visible: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the visible tokens of every group of `factor`."""
    seen = visible.unflatten(1, (-1, factor))[:, None]  # b 1 l f
    share = seen.to(keys.dtype) / seen.sum(-1, keepdim=True).clamp(min=1)
    return weighted_groups(keys, share), weighted_groups(values, share), seen.any(-1)


def weighted_groups(x: Tensor, weights: Tensor) -> Tensor:
    """Sums of x (b, h, t, d) over groups of tokens, with weights (b, h or 1, l, f): (b, h, l, d)."""
    return (weights[..., None, :] @ x.unflatten(2, weights.shape[2:])).squeeze(-2)


def strided(keys: Tensor, values: Tensor, visible: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every factor-th token; head a starts at token a mod factor."""
    phase = torch.arange(keys.shape[1], device=keys.device) % factor
    index = torch.arange(0, keys.shape[2], factor, device=keys.device) + phase[:, None]  # h l
    return take(keys, values, visible, index.expand(len(keys), -1, -1))


def block_strided(
    keys: Tensor, values: Tensor, visible: Tensor, factor: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every block a run of 1 / factor of its tokens, in head a the a-th run, cyclic."""
    run = block // factor
    heads = torch.arange(keys.shape[1], device=keys.device)[:, None]
    offsets = (torch.arange(run, device=keys.device) + heads * run) % block  # h run
    starts = torch.arange(0, keys.shape[2], block, device=keys.device)
    index = (starts[:, None] + offsets[:, None]).flatten(1)  # h l
    return take(keys, values, visible, index.expand(len(keys), -1, -1))


def first_query_pooling(
    first_query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, factor: int, hide_padding: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over groups of `factor` tokens, weighted by the softmax of the first token's scores in the group."""
    scale = keys.shape[-1] ** -0.5
    scores = (keys @ (scale * first_query)[..., None]).squeeze(-1).to(wide(keys.dtype))  # b h t
    # The lowest number and not -inf: a group of padding then gets equal weights, which is what "published" asks for.
    scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    weights = scores.unflatten(2, (-1, factor)).softmax(-1)
    keys, values = (weighted_groups(x, weights.to(x.dtype)) for x in (keys, values))
    seen = visible.unflatten(1, (-1, factor)).any(-1)[:, None]
    return keys, values, seen if hide_padding else torch.ones_like(seen)


def hashed_means(
    keys: Tensor, values: Tensor, visible: Tensor, chunk: int, factor: int, pre_rounds: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the tokens of a chunk that hash alike, chunk / factor buckets a chunk; empty buckets are masked.

    Every round hashes the direction of what the last one left; sums and counts are carried along (in float32, where the
    input has half of it) and divided once, at the end, so that a mean is over tokens and not over means.
    """
    keys, values, visible = whole_chunks(keys, values, visible, chunk)
    heads, size, dtype = keys.shape[1], keys.shape[-1], keys.dtype
    # One tensor for the three sums, of keys, values and tokens: b h t (d + d + 1). Masked tokens add nothing.
    count = visible[:, None, :, None].expand(-1, heads, -1, -1)
    sums = torch.cat([keys, values, torch.ones_like(keys[..., :1])], dim=-1).to(wide(dtype)).masked_fill(~count, 0.0)
    sums = sums.unflatten(2, (-1, chunk))  # b h chunks c (d + d + 1)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    # Not in a 16-bit format under autocast either: near ties would hash at random.
    with torch.autocast(keys.device.type, enabled=False):
        for buckets in [chunk] * pre_rounds + [chunk // factor]:
            # On the CPU and in float32: the same projections on every device, in every dtype.
            projection = torch.randn(
                (heads, size, buckets // 2), generator=generator, dtype=torch.float32, device="cpu"
            ).to(sums)
            index = hash_buckets(sums[..., :size].detach(), projection[:, None])
            # A product and not scatter_add, which on a GPU adds in another order every time, so that nothing repeats.
            member = index[..., None, :] == torch.arange(buckets, device=index.device)[:, None]  # b h chunks buckets c
            sums = member.to(sums.dtype) @ sums
    key_sums, value_sums, count = sums.flatten(2, 3).split([size, size, 1], dim=-1)
    count_or_one = count.clamp(min=1)
    return (key_sums / count_or_one).to(dtype), (value_sums / count_or_one).to(dtype), count[..., 0] > 0


def hash_buckets(x: Tensor, projection: Tensor) -> Tensor:
    """The argmax of [uR, -uR], u the direction of x; bucket 0 where the projection has no column."""
    if projection.shape[-1] == 0:
        return torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
    scores = F.normalize(x, dim=-1) @ projection
    return torch.cat([scores, -scores], dim=-1).argmax(-1)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum and compare in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def whole_chunks(keys: Tensor, values: Tensor, visible: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masked padding to a multiple of the chunk, for chunks that do not divide the block."""
    padding = -keys.shape[2] % chunk
    if not padding:
        return keys, values, visible
    return F.pad(keys, (0, 0, 0, padding)), F.pad(values, (0, 0, 0, padding)), F.pad(visible, (0, padding))
