# SPDX-License-Identifier: Apache-2.0
"""LSG attention (arXiv 2210.15497): a token sees its block and the two beside it, sparse keys beyond, and the globals.

An encoder gets `LSGAttention`, the attention of each layer, and `LSGEncoderMixin`, the global tokens in front of its
input (both in this file, over 400 lines, where one who reads the model looks for them). The rest are pure functions on
q, k, v of shape (b, h, g + t, d), the g global tokens first, and a bool mask (b, g + t), True for what may be seen.
Axes: b batch, h heads, t tokens, d head size, l entries of the sparse list.

Inputs of up to two blocks get full attention. Beyond that memory is linear in the length, and one of several forms of
the same formula is run: see `form_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import EncoderMixin, attention_dropout, taking_part
from .lsg_configuration import ATTENTION_FORMS, MAX_GLOBAL_TOKENS, sparse_chunk_size, uses_sparse_keys
from .lsg_kernel_cpu import cpu_attention
from .lsg_kernel_flex import flex_rows
from .lsg_kernel_plain import Sparse, full_attention, global_attention, plain_attention
from .lsg_kernel_triton import INTERPRETED, chooses, obstacle, triton_attention


class LSGAttention(nn.Module):
    """The attention of one layer; it has no parameters and reads its options from the config."""

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


class LSGEncoderMixin(EncoderMixin):
    """An encoder with LSG attention, and with learned global tokens in front of the input, removed at the end.

    The globals are embeddings without position or segment; they pass the stock LayerNorm and dropout of the embeddings.
    A LayerNorm works row by row, so normalising them apart equals putting them in front before it.
    """

    def adapt(self) -> None:
        self.config.validate_lsg()
        super().adapt()
        width = self.get_input_embeddings().embedding_dim
        # All rows are kept whatever num_global_tokens says, so that it can be changed when the model is loaded.
        self.globals_module().global_embeddings = nn.Embedding(MAX_GLOBAL_TOKENS, width)

    def globals_module(self) -> nn.Module:
        """The module that holds the table of global embeddings."""
        return self.embeddings

    def embed_globals(self, batch: int, device: torch.device) -> Tensor:
        """The global tokens' embeddings (b, g, e), normalised as those of the other tokens are."""
        table = self.globals_module().global_embeddings
        rows = table(torch.arange(self.config.num_global_tokens, device=device))
        return self.normalize(rows.expand(batch, -1, -1))  # expanded first: every example draws its own dropout

    def begin(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        batch, length, _ = x.shape
        padding = self.visible_padding(length)
        if mask is None and (config.mask_first_token or padding):
            mask = torch.ones((batch, length), dtype=torch.bool, device=x.device)
        if config.mask_first_token:
            mask = mask.clone()
            mask[:, 0] = False
        if config.num_global_tokens:
            x = torch.cat([self.embed_globals(batch, x.device).to(x.dtype), x], dim=1)
        else:
            x = taking_part(x, self.globals_module().global_embeddings.parameters())
        if mask is not None:
            mask = F.pad(F.pad(mask, (config.num_global_tokens, 0), value=True), (0, padding))
        if self.projects_padding:
            return self.project(F.pad(x, (0, 0, 0, padding))), mask
        return self.add_padding(self.project(x), padding), mask

    def add_padding(self, x: Tensor, rows: int) -> Tensor:
        """Rows of padding behind the projected embeddings, as the published model has them."""
        return F.pad(x, (0, 0, 0, rows)) if rows else x

    def visible_padding(self, length: int) -> int:
        """Rows of padding that the layers themselves must see.

        The attention pads to whole blocks by itself, and what it pads with is masked. Only the published form of
        "bos_pooling" lets padding be seen, and there it must be what the published model has: rows that start at zero
        after the LayerNorm of the embeddings (or after the projection, unless `projects_padding`) and change from layer
        to layer.
        """
        config = self.config
        seen = (
            config.bos_pooling_padding == "published"
            and config.sparsity_type == "bos_pooling"
            and uses_sparse_keys(config)
            and config.adaptive
            and length > 2 * config.block_size
        )
        return -length % config.block_size if seen else 0

    def padding_counts(self) -> bool:
        """Whether padding changes what a real token gets; the attention's own padding to whole blocks never does.

        A text of up to two blocks has full attention by itself, and blocks in a longer batch. Both see the same, but
        where the sparse list shows a block some keys a second time: with one entry a block (`sparse_starts`), and where
        chunks reach across the end of the second block.
        """
        config = self.config
        if not config.adaptive:
            return True  # then lengths are whole blocks
        if not uses_sparse_keys(config):
            return False
        chosen_in_chunks = config.sparsity_type in ("norm", "lsh") and config.sparsity_factor > 1
        return (
            config.sparsity_factor == config.block_size
            or (chosen_in_chunks and config.block_size % sparse_chunk_size(config) != 0)
            or (config.bos_pooling_padding == "published" and config.sparsity_type in ("bos_pooling", "lsh"))
        )

    def end(self, x: Tensor, length: int) -> Tensor:
        first = self.config.num_global_tokens
        tokens = x[:, first : first + length]
        if first and self.config.pool_with_global:
            tokens = torch.cat([x[:, :1], tokens[:, 1:]], dim=1)
        return tokens


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
    if checked_length(q, config) <= 2 * config.block_size:
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


def checked_length(q: Tensor, config: Any) -> int:
    """The number of tokens t of q (b, h, g + t, d); raises ValueError where it must be a multiple of the block size."""
    length = q.shape[2] - config.num_global_tokens
    if length > 2 * config.block_size and length % config.block_size and not config.adaptive:
        raise ValueError(
            f"the input length must be a multiple of block_size {config.block_size}, got {length}: pad the input, or "
            "set adaptive=True"
        )
    return length


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
        raise ValueError(f"attention_form must be one of {', '.join(ATTENTION_FORMS)}, got {asked!r}")
    # A graph that leaves this process must not hold an operator of its own.
    if asked == "plain" or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "plain"
    if q.device.type == "cpu" and not (asked == "triton" and INTERPRETED):
        return "cpu"
    if asked == "auto":  # measured in docs/reference/gpu.md; where the kernel cannot run, plain torch can
        return "plain" if obstacle(q) else "triton"
    return asked


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
    keys, values, visible = whole_chunks(k[:, :, first:], v[:, :, first:], mask[:, first:], block)
    return sparse_list(q[:, :, first], keys, values, visible, config, layer_index)


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
    groups, shares = x.unflatten(2, weights.shape[2:]).unbind(3), weights[..., None].unbind(3)
    total = groups[0] * shares[0]
    for row, share in zip(groups[1:], shares[1:], strict=True):  # a quarter of a product's time on a CPU
        total = torch.addcmul(total, row, share)
    return total


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
    """Masked padding to a multiple of the chunk: of a block, or of chunks that do not divide the block."""
    padding = -keys.shape[2] % chunk
    if not padding:
        return keys, values, visible
    return F.pad(keys, (0, 0, 0, padding)), F.pad(values, (0, 0, 0, padding)), F.pad(visible, (0, padding))
