# SPDX-License-Identifier: Apache-2.0
"""Block-local and LSG self-attention as layers of their own, for models that are not converted but patched by hand.

A layer takes what every attention has at hand, q, k and v of shape (b, h, t, d), and returns the context in the same
shape. It has no parameters, so a patched model keeps its checkpoints. The first token is the global one: it is part of
the input, where a converted model puts learned tokens in front. The math is that of lsg_attention.py.

Axes: b batch, h heads, t tokens, d head size.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .lsg_attention import full_attention, lsg_attention, sparse_tokens
from .lsg_configuration import lsg_faults


class LSGSelfAttention(nn.Module):
    """Local, sparse and global self-attention (arXiv 2210.15497), scaled by 1 / sqrt(d).

    A token sees its block of `block_size` tokens and the two beside it (only the one before, if causal), sparse keys
    beyond them, and the first token. Inputs of up to two blocks get full attention. Time and memory are linear in t.

    Args:
        block_size: tokens in a block. Inputs of other lengths are padded inside.
        sparsity_type: how sparse keys are chosen or made: "norm" (those of largest norm), "pooling" (means),
            "bos_pooling" (means weighted by the first token's query), "lsh" (means of similar keys), "stride" (every
            n-th, another phase in each head), "block_stride" (a part of every block, another in each head); "none" or
            None for no sparse keys.
        sparsity_factor: one sparse key stands for this many tokens; it divides the block.
        sparse_block_size: sparse keys on each side of the local ones; as many as `block_size` where it is None.
        compute_global_attention: the first token sees all tokens and is seen by all (in causal attention it sees only
            itself). If false, it is a token like the others.
        is_causal: a token sees no later one.
        dropout: probability for attention weights, in training.
        lsh_num_pre_rounds: rounds of hashing before the one that makes the sparse keys of "lsh".
        lsh_seed: seed of the random projections of "lsh"; give each layer of a model another.
        padding_groups: "masked" hides groups of "pooling" and "bos_pooling" that are all padding; "published" leaves
            them visible, as the published layers do.
        attention_form: how attention beyond two blocks is computed on a GPU: "auto", "plain", "flex", "triton"; see
            `LSGConfigMixin`.

    Raises:
        ValueError: for options that have no meaning, all of them named in one message.
    """

    def __init__(
        self,
        block_size: int = 128,
        sparsity_type: str | None = "none",
        sparsity_factor: int = 8,
        sparse_block_size: int | None = None,
        compute_global_attention: bool = True,
        is_causal: bool = False,
        dropout: float = 0.0,
        lsh_num_pre_rounds: int = 1,
        lsh_seed: int = 0,
        padding_groups: str = "masked",
        attention_form: str = "auto",
    ) -> None:
        super().__init__()
        self.compute_global_attention = compute_global_attention
        self.is_causal = is_causal
        self.dropout = dropout
        self.padding_groups = padding_groups
        self.options = SimpleNamespace(  # those of an LSG config
            adaptive=True,
            block_size=block_size,
            sparse_block_size=block_size if sparse_block_size is None else sparse_block_size,
            sparsity_factor=sparsity_factor,
            sparsity_type="none" if sparsity_type is None else sparsity_type,
            num_global_tokens=1 if compute_global_attention else 0,
            mask_first_token=False,
            pool_with_global=False,
            lsh_num_pre_rounds=lsh_num_pre_rounds,
            lsh_seed=lsh_seed,
            causal_globals="globals",
            bos_pooling_padding="masked",
            attention_form=attention_form,
        )
        faults = lsg_faults(self.options)
        for name in ("compute_global_attention", "is_causal"):
            if type(getattr(self, name)) is not bool:
                faults.append(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            faults.append(f"dropout must be at least 0 and below 1, got {dropout!r}")
        if padding_groups not in ("masked", "published"):
            faults.append(f"padding_groups must be masked or published, got {padding_groups!r}")
        if faults:
            raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Attention of all tokens.

        Args:
            query: (b, h, t, d), any floating dtype, any t from 1.
            key: likewise, or with fewer heads that divide h (grouped-query attention).
            value: like the key.
            attention_mask: which keys are padding, never written to. (b, t), or (b, 1, 1, t) as transformers extends
                it; bool or integer: nonzero for real tokens; floating, with four dimensions only: 0 for real tokens and
                negative for padding.

        Returns:
            The context (b, h, t, d), in the dtype of the query. Rows of padding hold finite numbers of no meaning.

        Raises:
            ValueError: for shapes and masks that do not fit.
        """
        check_shapes(query, key, value)
        batch, heads, length, _ = query.shape
        key, value = (
            x.repeat_interleave(heads // x.shape[1], dim=1) if x.shape[1] < heads else x for x in (key, value)
        )
        mask = visible_keys(attention_mask, batch, length)
        dropout = self.dropout if self.training else 0.0
        if length <= 2 * self.options.block_size:
            return full_attention(query, key, value, mask, 0, self.is_causal, dropout)
        how: dict[str, Any] = {"causal": self.is_causal, "dropout": dropout, "sparse_list": self.sparse_list}
        if not self.compute_global_attention:
            return lsg_attention(query, key, value, mask, self.options, **how)
        # The first token comes once more, in front, as the global one. Among the tokens it keeps its place, so that the
        # blocks start where they did, and is hidden there, so that no row sees it twice.
        if mask is None:
            mask = torch.ones((batch, length), dtype=torch.bool, device=query.device)
        first = mask[:, :1]
        mask = torch.cat([first, torch.zeros_like(first), mask[:, 1:]], dim=1)
        query, key, value = (torch.cat([x[:, :, :1], x], dim=2) for x in (query, key, value))
        how["sparse_list"] = partial(self.sparse_list, first_visible=first)
        context = lsg_attention(query, key, value, mask, self.options, **how)
        return torch.cat([context[:, :, :1], context[:, :, 2:]], dim=2)

    def sparse_list(
        self,
        first_query: Tensor,
        keys: Tensor,
        values: Tensor,
        visible: Tensor,
        config: Any,
        layer_index: int,
        first_visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`sparse_tokens` with what the published layers do otherwise than the published models.

        "bos_pooling" pools the first token with its group, although it is the global one; the other types leave it out.
        """
        kind = config.sparsity_type
        if kind == "bos_pooling" and first_visible is not None:
            visible = torch.cat([first_visible, visible[:, 1:]], dim=1)
        keys, values, visible = sparse_tokens(first_query, keys, values, visible, config, layer_index)
        pools = kind in ("pooling", "bos_pooling") and config.sparsity_factor > 1
        if pools and self.padding_groups == "published":
            visible = torch.ones_like(visible)
        return keys, values, visible

    def extra_repr(self) -> str:
        options = self.options
        sparse = "none" if options.sparsity_type == "none" else f"{options.sparsity_type} / {options.sparsity_factor}"
        return (
            f"block_size={options.block_size}, sparse={sparse}, global={self.compute_global_attention}, "
            f"causal={self.is_causal}"
        )


class BlockLocalSelfAttention(LSGSelfAttention):
    """`LSGSelfAttention` without sparse keys: a token sees its block, the two beside it, and the first token.

    Args:
        block_size: tokens in a block. Inputs of up to two blocks get full attention.
        compute_global_attention: the first token sees all tokens and is seen by all. If false, it is one like others.
        is_causal: a token sees no later one.
        dropout: probability for attention weights, in training.
        attention_form: as of `LSGSelfAttention`.

    Raises:
        ValueError: for options that have no meaning.
    """

    def __init__(
        self,
        block_size: int = 128,
        compute_global_attention: bool = True,
        is_causal: bool = False,
        dropout: float = 0.0,
        attention_form: str = "auto",
    ) -> None:
        super().__init__(
            block_size=block_size,
            compute_global_attention=compute_global_attention,
            is_causal=is_causal,
            dropout=dropout,
            attention_form=attention_form,
        )


def check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError for queries, keys and values that are not those of one self-attention."""
    shapes = f"query is {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            f"{shapes}: give (batch, heads, tokens, head size) for each, as "
            "x.unflatten(-1, (heads, -1)).transpose(1, 2) gives from a projection (batch, tokens, heads * head size)"
        )
    batch, heads, length, size = query.shape
    if key.shape != value.shape or (batch, length, size) != (key.shape[0], *key.shape[2:]):
        raise ValueError(
            f"{shapes}: all must be of one shape, and only key and value may have fewer heads; this is self-attention "
            "over whole sequences, without cross-attention and without a cache of keys (pass use_cache=False)"
        )
    if length == 0 or key.shape[1] == 0 or heads % key.shape[1]:
        raise ValueError(f"{shapes}: give at least one token, and a number of heads that those of key and value divide")


def visible_keys(mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """A padding mask as bool (b, t), True for real tokens; the caller's tensor is never written to.

    Raises:
        ValueError: for masks of other shapes or kinds.
    """
    if mask is None:
        return None
    wanted = f"give a padding mask of shape {(batch, length)} or {(batch, 1, 1, length)}"
    if mask.dim() == 4 and mask.shape[1:3] == (1, 1):
        flat = mask[:, 0, 0]
    elif mask.dim() == 2:
        flat = mask
        if mask.is_floating_point():
            raise ValueError(
                f"a two-dimensional attention_mask must be bool or integer (nonzero for real tokens), got "
                f"{mask.dtype}. An additive mask has the shape {(batch, 1, 1, length)}"
            )
    else:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}: {wanted}; masks with a row for each query are not supported, as "
            "no tokens * tokens matrix is formed (for causal attention set is_causal=True)"
        )
    if flat.shape[1] != length or flat.shape[0] not in (1, batch):
        raise ValueError(f"attention_mask is {tuple(mask.shape)}: {wanted}, which is what query, key and value are")
    return (flat == 0 if mask.is_floating_point() else flat.bool()).expand(batch, length)
