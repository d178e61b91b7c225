# SPDX-License-Identifier: Apache-2.0
"""LSG attention for families that add a bias to scores, for the distance from row to key (arXiv 1910.10683).

All layers share the bias. It is handed through them as one tensor (h, 2 R + 2): column R + D is for a key that stands D
tokens behind its row, with R the distance from which on nothing changes; the last column is for a global key.

* A local key and a selected sparse key ("norm", "stride", "block_stride") stand where their token stands.
* A sparse key that was pooled from several tokens stands at the mean of their positions, with the weights of the pool.
* A global token stands nowhere. What a row gets for it is a parameter of its own, one for each head. Rows of globals
  get no bias: it would be the same for all keys.

Axes: b batch, h heads, t tokens, g globals, l entries of the sparse list, d head size, w keys of a window.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from .efficient_encoder import EfficientSelfAttention, Unpadded, attention_dropout, taking_part
from .lsg_attention import LSGAttention, LSGEncoderMixin, checked_length, form_of, select_sparse, sparse_tokens
from .lsg_configuration import uses_sparse_keys
from .lsg_kernel_cpu import sparse_starts
from .lsg_kernel_cpu_bias import cpu_attention
from .lsg_kernel_plain import Sparse, block_attention, global_attention, windows

logger = logging.get_logger(__name__)


class BiasedSelfAttention(EfficientSelfAttention):
    """A self-attention that gets the bias (h, 2 R + 2) from its layer, as the stock one gets one of rows and keys."""

    scaled: ClassVar[bool] = True  # whether the family divides scores by sqrt(d), as every form here does

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | Unpadded | None = None,
        *further: Tensor | None,
        position_bias: Tensor | None = None,
        mask: Tensor | Unpadded | None = None,
        **_: Any,
    ) -> tuple[Tensor, None, None]:
        """Layers hand over the bias by name, or behind all else that has a place."""
        visible = mask if attention_mask is None else attention_mask
        attend = partial(self.mix, bias=further[-1] if position_bias is None else position_bias)
        projected = (getattr(self, name)(hidden_states).unflatten(-1, (self.heads, -1)) for name in self.projections)
        q, k, v = projected  # b t h d
        if not self.scaled:
            q = q * q.shape[-1] ** 0.5
        if isinstance(visible, Unpadded):
            context = visible.attend(attend, q, k, v)
        else:
            context = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible).transpose(1, 2)
        return self.tail(taking_part(context.flatten(2), self.mix.parameters()), hidden_states), None, None


class BiasedLSGAttention(LSGAttention):
    """The attention of one layer."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        dropout = attention_dropout(self.config) if self.training else 0.0
        return biased_attention(q, k, v, mask, bias, self.config, dropout, self.layer_index)


class BiasedLSGEncoderMixin(LSGEncoderMixin):
    """An encoder with LSG attention and a bias; the family says what the bias by distance is."""

    def adapt(self) -> None:
        super().adapt()
        self.globals_module().global_bias = nn.Embedding(1, self.config.num_attention_heads)

    def bias_by_distance(self) -> Tensor:
        """The bias (h, 2 R + 1) of the distances -R to R."""
        raise NotImplementedError

    def attention_bias(self) -> Tensor:
        """The bias (h, 2 R + 2) that the layers take."""
        return torch.cat([self.bias_by_distance(), self.globals_module().global_bias.weight.T], dim=1)

    def run(self, layer: nn.Module, x: Tensor, mask: Tensor | Unpadded | None, *_: Any, **__: Any) -> Tensor:
        return super().run(layer, x, mask, self.attention_bias())


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor,
    config: Any,
    dropout: float = 0.0,
    layer_index: int = 0,
) -> Tensor:
    """As `lsg_attention`, with a bias on the scores of tokens.

    Args:
        q: queries (b, h, g + t, d), global tokens first; any floating dtype.
        k: keys, likewise.
        v: values, likewise.
        mask: bool (b, g + t), True for keys that may be seen, or None.
        bias: (h, 2 R + 2); see above.
        config: anything with the fields of `LSGConfigMixin`.
        dropout: probability for attention weights.
        layer_index: so that "lsh" draws other projections in each layer.

    Returns:
        The context (b, h, g + t, d).
    """
    if checked_length(q, config) <= 2 * config.block_size:
        whole = full_bias(bias, config.num_global_tokens, q.shape[2])
        return attend(q, k, v, None if mask is None else mask[:, None, None], dropout, bias=whole)
    sparse = positions = None
    if uses_sparse_keys(config):
        sparse = select_sparse(q, k, v, mask, config, layer_index, sparse_tokens)
        positions = sparse_positions(q, k, mask, bias, config, layer_index)
    form = {"cpu": cpu_attention}.get(form_of(config, q), plain_attention)
    if config.attention_form in ("flex", "triton") and form is plain_attention:
        logger.warning_once(
            f"attention_form={config.attention_form!r} cannot add this model's bias: it runs as 'plain'"
        )
    return form(q, k, v, mask, sparse, positions, bias, config, dropout)


def reach_of(bias: Tensor) -> int:
    """The distance R from which on a bias (h, 2 R + 2) does not change."""
    return bias.shape[1] // 2 - 1


def by_distance(bias: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """The bias (h, r, w) of keys at the positions (w) for rows at the positions (r)."""
    reach = reach_of(bias)
    distance = (keys - rows[:, None]).clamp(-reach, reach) + reach
    return bias.index_select(1, distance.flatten()).unflatten(1, distance.shape)


def full_bias(bias: Tensor, global_count: int, rows: int) -> Tensor:
    """The bias (h, g + t, g + t) of all rows and keys."""
    places = torch.arange(rows - global_count, device=bias.device)
    to_globals = bias[:, None, -1:].expand(-1, len(places), global_count)
    return F.pad(torch.cat([to_globals, by_distance(bias, places, places)], dim=2), (0, 0, global_count, 0))


def sparse_positions(
    q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor, config: Any, layer_index: int
) -> Tensor | None:
    """Where the entries of the sparse list stand, float32 (b, h, l); None where all are too far away to tell apart.

    The list is made a second time, with positions in the place of values, so that each kind of list says by itself what
    its entries stand for.
    """
    if config.block_size >= reach_of(bias) and config.sparsity_factor < config.block_size:
        return None
    with torch.no_grad():
        first = config.num_global_tokens
        places = torch.arange(-first, q.shape[2] - first, dtype=torch.float32, device=q.device)
        places = places[:, None].expand(q.shape)
        return select_sparse(q.float(), k.float(), places, mask, config, layer_index, sparse_tokens)[1][..., 0]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sparse: Sparse | None,
    positions: Tensor | None,
    bias: Tensor,
    config: Any,
    dropout: float,
) -> Tensor:
    """The form in plain torch, on every device and in every graph."""
    window = window_bias(bias, positions, config, sparse is not None, q.shape[2] - config.num_global_tokens)
    tokens = block_attention(q, k, v, mask, sparse, config, False, dropout, partial(attend, bias=window))
    return torch.cat([global_attention(q, k, v, mask, config.num_global_tokens, False, dropout), tokens], dim=2)


def window_bias(bias: Tensor, positions: Tensor | None, config: Any, sparse: bool, length: int) -> Tensor:
    """The bias (1 or b * blocks, h, block, w) of every block's window: global, local and sparse keys."""
    block, size, reach = config.block_size, config.sparse_block_size, reach_of(bias)
    blocks = -(-length // block)
    rows = torch.arange(block, device=bias.device)
    parts = [
        bias[:, None, -1:].expand(-1, block, config.num_global_tokens),
        by_distance(bias, rows, torch.arange(-block, 2 * block, device=bias.device)),
    ]
    if not sparse:
        return torch.cat(parts, dim=2)[None]
    if positions is None:  # the left keys are all as far away as it gets, and so are the right ones
        parts += [bias[:, None, side : side + 1].expand(-1, block, size) for side in (0, 2 * reach)]
        return torch.cat(parts, dim=2)[None]
    step = block // config.sparsity_factor
    rows = rows[:, None] + block * torch.arange(blocks, device=bias.device)[:, None, None, None]  # n 1 block 1
    whole = [part[None].expand(len(positions) * blocks, -1, -1, -1) for part in parts]
    for start in sparse_starts(size, step, causal=False):
        keys = windows(positions[..., None], start, size, step, blocks).transpose(-1, -2)  # b n h 1 size
        distance = (keys - rows).round().long().clamp(-reach, reach) + reach
        table = bias[:, None].expand(*distance.shape[:-1], -1)
        whole.append(table.gather(-1, distance).flatten(0, 1))
    return torch.cat(whole, dim=3)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float, *, bias: Tensor) -> Tensor:
    """Softmax attention with a bias; it and `visible` broadcast to (b, h, rows, keys)."""
    bias = bias.to(q.dtype)
    if visible is not None:  # half of the lowest number, so that a row that may see nothing gets no NaN
        bias = torch.where(visible, bias, torch.finfo(q.dtype).min / 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
