"""Lambda, TransNormer and Linformer attention as one graph for every length and every padding.

Where the repo's code groups texts by true length, cuts padding away or walks tiles, these compute the same for all
texts of a batch at once.

Axes: b batch, h heads, t tokens, c landmarks or tokens of a block, r projected rows, n stored positions, d head size.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lsg import attend, blocks_of, hidden

SALIENCE_CLAMP, SALIENCE_TEMPERATURE = 4.0, 0.7  # of templates/linformer_attention.py


class LambdaForm(nn.Module):
    """Takes the place of `LambdaAttention`."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v (b, h, t, d), mask bool (b, t); the sums of the repo's `_batched`."""
        mix = self.mix
        v = v.masked_fill(~mask[:, None, :, None], 0)
        scores = mix.landmarks @ k.transpose(-1, -2)  # b h c t
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        y = (q @ mix.content_weight.transpose(1, 2) + mix.content_bias[:, None]) @ (scores.softmax(-1) @ v)
        if mix.local_weight is None:
            return y
        weights = q @ mix.local_weight.transpose(1, 2) + mix.local_bias[:, None]  # b h t j
        reach, length = mix.local_weight.shape[1] // 2, q.shape[2]
        padded = F.pad(v, (0, 0, reach, reach))
        for j in range(mix.local_weight.shape[1]):
            y = y + weights[..., j : j + 1] * padded[:, :, j : j + length]
        return y


class TransNormerForm(nn.Module):
    """Takes the place of `TransNormerAttention`, whose norm, positions and activation it calls."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.mix = mix
        self.activation = sys.modules[type(mix).__module__].LINEAR_ACTIVATIONS[mix.linear_activation]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v (b, h, t, d), mask bool (b, t)."""
        y = self.diagonal(q, k, v, mask) if self.mix.diag else self.linear(q, k, v, mask)
        return y if self.mix.norm is None else self.mix.norm(y)

    def diagonal(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        mix, block = self.mix, self.mix.block_size
        length = q.shape[2]
        blocks = blocks_of(length, block)
        fill = blocks * block - length
        q, k, v = (F.pad(x, (0, 0, 0, fill)).unflatten(2, (blocks, block)) for x in (q, k, v))  # b h n c d
        if mix.lrpe is not None:
            inside = torch.arange(block)
            q, k = mix.lrpe(q, inside), mix.lrpe(k, inside)
        shown = torch.ones_like(mask) if mix.published else mask
        allowed = F.pad(shown, (0, fill), value=mix.published).unflatten(1, (blocks, block))[:, None, :, None]
        if mix.causal:
            allowed = allowed & torch.ones((block, block), dtype=torch.bool).tril()
        if mix.softmax:
            y = attend(q, k, v, hidden(allowed, q.dtype))
        else:
            y = F.relu((q * q.shape[-1] ** -0.5) @ k.mT).masked_fill(~allowed, 0.0) @ v
        return y.flatten(2, 3)[:, :, :length]

    def linear(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        mix = self.mix
        q, k = self.activation(q), self.activation(k)
        if mix.lrpe is not None:
            places = torch.arange(q.shape[2])
            q, k = mix.lrpe(q, places), mix.lrpe(k, places)
        if not mix.published:
            k = k.masked_fill(~mask[:, None, :, None], 0.0)
        return causal_linear(q, k, v) if mix.causal else q @ (k.mT @ v)


def causal_linear(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> Tensor:
    """tril(q kᵀ) v: inside a block as written, for earlier blocks through the running sum of kᵀ v."""
    length = q.shape[2]
    blocks = blocks_of(length, block)
    fill = blocks * block - length
    q, k, v = (F.pad(x, (0, 0, 0, fill)).unflatten(2, (blocks, block)) for x in (q, k, v))
    states = k.mT @ v  # b h n d d
    inside = ((q @ k.mT) * torch.ones((block, block), dtype=q.dtype).tril()) @ v
    return (inside + q @ (states.cumsum(2) - states)).flatten(2, 3)[:, :, :length]


class LinformerForm(nn.Module):
    """Takes the place of `LinformerAttention`."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q, k, v (b, h, t, d), mask bool (b, t)."""
        keys, values, key_bias, value_bias = self.mix.projections()
        if self.mix.mask_mode == "published":
            return published(q, k, v, keys, values, key_bias, value_bias, mask)
        return masked(q, k, v, keys, values, mask, salience=self.mix.weighting == "salience")


def published(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    mask: Tensor,
) -> Tensor:
    """The fixed E[:, :t] with its biases; padded rows of q, k and v are zero, and no score is masked."""
    q, k, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (q, k, v))
    length = q.shape[2]
    k, v = keys[..., :length] @ k, values[..., :length] @ v
    if key_bias is not None:
        k = k + key_bias.unsqueeze(-1)
    if value_bias is not None:
        v = v + value_bias.unsqueeze(-1)
    return attend(q, k, v, torch.zeros((), dtype=q.dtype))


def masked(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, salience: bool) -> Tensor:
    """A sequence is its real tokens: exact attention for up to r of them, E and F resampled to their number above.

    Up to r tokens E is the identity, so that row i is token i and the other rows are hidden. One formula serves both.
    """
    rows = keys.shape[-2]
    count = mask.sum(1)  # b
    rank = (mask.long().cumsum(1) - 1).clamp(min=0)  # b t: the number of a real token among the real ones
    exact = count <= rows
    e = of_batch(keys, mask, rank, count, exact)  # b (h or 1) r t
    f = e if values is keys else of_batch(values, mask, rank, count, exact)
    used = (torch.arange(rows) < count[:, None]) | ~exact[:, None]  # b r
    bias = hidden(used[:, None, None], q.dtype)
    if not salience:
        return attend(q, e @ k, f @ v, bias)
    real = mask[:, None, :, None]  # b 1 t 1
    total = count.clamp(min=1)[:, None, None, None]
    mean_query = q.masked_fill(~real, 0.0).sum(2, keepdim=True) / total  # b h 1 d
    s = (k @ mean_query.mT) / math.sqrt(q.shape[-1])  # b h t 1
    s = (s - s.masked_fill(~real, 0.0).sum(2, keepdim=True) / total).clamp(-SALIENCE_CLAMP, SALIENCE_CLAMP)
    w = (SALIENCE_TEMPERATURE * s).exp().masked_fill(~real, 0.0)
    weights, sizes = row_averages(e)
    z, mean_s, sums = (weights @ torch.cat([w, w * s, s.exp().masked_fill(~real, 0.0)], -1)).unbind(-1)  # b h r each
    z = torch.where(used[:, None], z, 1.0)
    extra = torch.where(used[:, None], sums, 1.0).log() - mean_s / z + sizes
    z_values = z if values is keys else torch.where(used[:, None], (row_averages(f)[0] @ w).squeeze(-1), 1.0)
    k_rows, v_rows = (e @ (k * w)) / z.unsqueeze(-1), (f @ (v * w)) / z_values.unsqueeze(-1)
    return attend(q, k_rows, v_rows, bias + torch.where(used[:, None], extra, 0.0)[:, :, None])


def of_batch(stored: Tensor, mask: Tensor, rank: Tensor, count: Tensor, exact: Tensor) -> Tensor:
    """E (r, n) or (h, r, n) for the texts of a batch: (b, h or 1, r, t), zero at padding.

    The first and the last column belong to the first and the last real token. The middle ones are read as a step
    function over the text and integrated over each token's share of it, as the repo's `resample` does.
    """
    n = stored.shape[-1]
    middle = (count - 2).clamp(min=1)[:, None]  # b 1
    sums = F.pad(stored[..., 1:-1].cumsum(-1), (1, 0))  # (h) r n - 1

    def at_edge(edge: Tensor) -> Tensor:
        """The integral up to edge (b, t): (h) r b t. Edge i stands at i (n - 2) / (count - 2), in whole numbers."""
        place = edge.clamp(min=0) * (n - 2)
        left = (place // middle).clamp(max=n - 2)
        right = (left + 1).clamp(max=n - 2)
        share = (place % middle).to(stored.dtype) / middle
        at_left, at_right = (sums.index_select(-1, x.flatten()).unflatten(-1, edge.shape) for x in (left, right))
        return at_left + (at_right - at_left) * share

    columns = at_edge(rank) - at_edge(rank - 1)
    first, last = (rank == 0), (rank == count[:, None] - 1)
    columns = torch.where(first, stored[..., :1, None], columns)
    columns = torch.where(last & ~first, stored[..., -1:, None], columns)
    columns = columns.movedim(-2, 0)  # b (h) r t
    if columns.dim() == 3:
        columns = columns[:, None]
    identity = (torch.arange(stored.shape[-2])[:, None] == rank[:, None]).to(stored.dtype)[:, None]  # b 1 r t
    chosen = torch.where(exact[:, None, None, None], identity, columns)
    return chosen * mask[:, None, None].to(chosen.dtype)


def row_averages(projection: Tensor) -> tuple[Tensor, Tensor]:
    """|E| with rows that sum to 1, and the log of how many tokens each row averages."""
    weights = projection.abs()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return weights, -weights.square().sum(-1).clamp(min=1e-12).log()
