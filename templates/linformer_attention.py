# SPDX-License-Identifier: Apache-2.0
"""Linformer attention (arXiv 2006.04768): softmax(Q (E K)ᵀ / √d) (F V), with E and F (proj_dim × n) over positions.

Axes: b batch, h heads, t tokens, d head width, r projected rows, n stored positions.

mask_mode "masked" (default): a sequence is its real tokens and nothing else. Up to proj_dim of them attention is
exact; above, E and F are resampled to their true number. Padding is neither read nor computed; padded rows of the
output are zero.
mask_mode "published": the fixed E[:, :t] with its biases, padded rows of q, k, v zeroed and no score masked, as in
the Cerebras model zoo. There an output changes with its padding.

projection_weighting "salience" (an extension, masked mode only): rows weigh their tokens by how much the average
query asks for them, so that a token every query looks for is not averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import EncoderMixin
from .linformer_projection import default_peak, peaked_segments

__all__ = ["LinformerAttention", "linformer", "project", "published_linformer", "resample", "salience_linformer"]

SHARING = ("heads", "kv", "layers", "none")
# Salience is exp of a centred, clamped score: the ratio of two weights stays below exp(8 · .7), so fp16 neither
# overflows nor loses a token.
_SALIENCE_CLAMP = 4.0
_SALIENCE_TEMPERATURE = 0.7
_TILE = 512  # positions looked at together when zeros of E are skipped


def resample(projection: Tensor, length: int) -> Tensor:
    """E (..., r, n) for a sequence of `length` tokens: (..., r, length), every row keeping its sum.

    The first and the last column belong to the first and the last token. The middle ones are read as a step function
    over the sequence and integrated over each token's share of it. Differentiable; the identity at length n.
    """
    n = projection.shape[-1]
    if length == n:
        return projection
    if not 3 <= length <= n:
        raise ValueError(
            f"cannot resample a projection of {n} positions to {length} tokens: give a length from 3 to {n}"
        )
    middle = projection[..., 1:-1]
    edges = torch.arange(length - 1, device=projection.device, dtype=torch.float64) * ((n - 2) / (length - 2))
    left = edges.floor().clamp(max=n - 2).long()
    right = (left + 1).clamp(max=n - 2)
    sums = F.pad(middle.cumsum(-1, dtype=torch.float32), (1, 0))
    at_left = sums[..., left]
    at_edges = at_left + (sums[..., right] - at_left) * (edges - left).to(sums.dtype)
    shares = at_edges.diff(dim=-1).to(projection.dtype)
    return torch.cat([projection[..., :1], shares, projection[..., -1:]], dim=-1)


def project(projection: Tensor, x: Tensor) -> Tensor:
    """E (r, t) or (h, r, t) times x (b, h, t, d): (b, h, r, d). One product for all heads where they share E."""
    if projection.dim() == 3:
        return projection @ x
    b, h, t, d = x.shape
    merged = x.transpose(1, 2).reshape(b, t, h * d)  # a view when x came from a linear layer
    if x.device.type == "cpu" and not (torch.is_grad_enabled() and projection.requires_grad):
        y = _project_skipping_zeros(projection, merged)
    else:
        y = projection @ merged
    return y.unflatten(-1, (h, d)).transpose(1, 2)


def linformer(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q (E k)ᵀ / √d) (F v) for sequences without padding; E, F: (r, t) or (h, r, t)."""
    return F.scaled_dot_product_attention(q, project(keys, k), project(values, v))


def salience_linformer(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Linformer whose rows weigh token j by w_j = exp(τ s_j), s_j = q̄ · k_j / √d centred, q̄ the head's mean query.

    Row i reads Σ_j E_ij w_j k_j / z_i with z_i = Σ_j |E_ij| w_j / Σ_j |E_ij|: where E is an average it stays one. A
    row then stands for many tokens by one key, so its score gets what exp(q̄ · k) summed over them has more than at
    that key: log Σ_j E_ij exp(s_j) - mean_w(s), plus the log of how many tokens it averages (1 / Σ_j E_ij²). All of
    it is linear in t, and zero for a row that holds a single token.
    """
    d = q.shape[-1]
    with torch.autocast(q.device.type, enabled=False):
        s = (k.float() @ q.float().mean(2).unsqueeze(-1)).squeeze(-1) / math.sqrt(d)  # b h t
        s = (s - s.mean(-1, keepdim=True)).clamp(-_SALIENCE_CLAMP, _SALIENCE_CLAMP)
        w = torch.exp(_SALIENCE_TEMPERATURE * s)
        weights, sizes = _row_averages(keys)
        z, mean_s, total = project(weights, torch.stack([w, w * s, s.exp()], -1)).unbind(-1)  # b h r each
        bias = total.log() - mean_s / z + sizes
        z_values = z if values is keys else project(_row_averages(values)[0], w.unsqueeze(-1)).squeeze(-1)
    w = w.unsqueeze(-1).to(k.dtype)
    kr = project(keys, k * w) / z.unsqueeze(-1).to(k.dtype)
    vr = project(values, v * w) / z_values.unsqueeze(-1).to(v.dtype)
    bias = bias.unsqueeze(2).expand(-1, -1, q.shape[2], -1).to(q.dtype)
    return F.scaled_dot_product_attention(q, kr, vr, attn_mask=bias)


def published_linformer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
) -> Tensor:
    """The model zoo's form: E[..., :t] as it is, biases (r) or (h, r) over rows, padded rows of q, k, v set to zero.

    mask: (b, t) bool, True for a real token.
    """
    t = q.shape[2]
    if t > keys.shape[-1]:
        raise ValueError(f"the input has {t} tokens, but the projection of this model takes {keys.shape[-1]}")
    if mask is not None:
        real = mask[:, None, :, None]
        q, k, v = (x.masked_fill(~real, 0.0) for x in (q, k, v))
    kr, vr = project(keys[..., :t], k), project(values[..., :t], v)
    if key_bias is not None:
        kr = kr + key_bias.to(kr.dtype).unsqueeze(-1)
    if value_bias is not None:
        vr = vr + value_bias.to(vr.dtype).unsqueeze(-1)
    return F.scaled_dot_product_attention(q, kr, vr)


class LinformerAttention(nn.Module):
    """What stands between q, k, v and the output projection of one self-attention.

    Reads from config: num_hidden_layers, num_attention_heads, proj_dim, projection_length, sharing, mask_mode,
    projection_bias, projection_weighting (the last three optional).

    Parameters, by sharing: heads: key_projection and value_projection (r, n); kv and layers: key_projection alone;
    none: both (h, r, n). With projection_bias also <name>_bias of (r) or (h, r), used in published mode only. With
    "layers" the first layer's module owns them and the encoder calls LinformerAttention.link once, after building its
    layers.
    """

    def __init__(self, config: Any, layer_index: int = 0) -> None:
        super().__init__()
        self.sharing: str = config.sharing
        self.proj_dim: int = config.proj_dim
        self.length: int = config.projection_length
        self.mask_mode: str = getattr(config, "mask_mode", "masked")
        self.weighting: str = getattr(config, "projection_weighting", "none")
        self.layer_index = layer_index
        if self.sharing not in SHARING:
            raise ValueError(f"sharing must be one of {', '.join(SHARING)}, got {self.sharing!r}")
        if self.mask_mode not in ("masked", "published"):
            raise ValueError(f"mask_mode must be masked or published, got {self.mask_mode!r}")
        if self.weighting not in ("none", "salience"):
            raise ValueError(f"projection_weighting must be none or salience, got {self.weighting!r}")
        # A tuple hides the owner from named_parameters and state_dict: the shared matrix is stored once, under its
        # owner.
        self._owner: tuple[LinformerAttention, ...] = ()
        heads = (config.num_attention_heads,) if self.sharing == "none" else ()
        names = ("key_projection",) if self.sharing in ("kv", "layers") else ("key_projection", "value_projection")
        owns = self.sharing != "layers" or layer_index == 0
        bias = bool(getattr(config, "projection_bias", False))
        for name in names if owns else ():
            self.register_parameter(name, nn.Parameter(torch.empty(*heads, self.proj_dim, self.length)))
            if bias:
                self.register_parameter(name + "_bias", nn.Parameter(torch.zeros(*heads, self.proj_dim)))
        self.reset_parameters()

    @staticmethod
    def link(attentions: Sequence[LinformerAttention]) -> None:
        """Let all layers of a "layers" model read the first one's matrix; harmless for others, and when repeated."""
        for attention in attentions:
            if attention.sharing == "layers" and attention is not attentions[0]:
                attention._owner = (attentions[0],)

    def reset_parameters(self) -> None:
        """The default init; a converted checkpoint overwrites it."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_bias") or parameter.is_meta:
                continue
            peak = default_peak(self.sharing, self.weighting)
            rows = torch.from_numpy(peaked_segments(self.proj_dim, self.length, self.layer_index, peak))
            with torch.no_grad():
                parameter.copy_(rows.expand_as(parameter))

    def projections(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """E, F and their biases, wherever they are stored."""
        owner = self._owner[0] if self._owner else self
        if "key_projection" not in owner._parameters:
            raise RuntimeError("sharing 'layers' needs LinformerAttention.link(attentions) after the layers are built")
        keys, key_bias = owner.key_projection, getattr(owner, "key_projection_bias", None)
        values = getattr(owner, "value_projection", keys)
        value_bias = getattr(owner, "value_projection_bias", key_bias)
        return keys, values, key_bias, value_bias

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v: (b, h, t, d); mask: (b, t) bool, True for a real token, or None. Returns (b, h, t, d)."""
        keys, values, key_bias, value_bias = self.projections()
        if self.mask_mode == "published":
            return published_linformer(q, k, v, _as(keys, k), _as(values, v), mask, key_bias, value_bias)
        if mask is None:
            return self._attend(q, k, v)
        groups = list(_groups(mask))
        if len(groups) == 1 and groups[0] == (slice(0, q.shape[0]), slice(0, q.shape[2])):
            return self._attend(q, k, v)
        y = torch.zeros_like(q)
        for rows, tokens in groups:
            y[rows, :, tokens] = self._attend(*(x[rows][:, :, tokens] for x in (q, k, v))).to(y.dtype)
        return y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        t = q.shape[2]
        if t <= self.proj_dim:
            return F.scaled_dot_product_attention(q, k, v)
        if t > self.length:
            raise ValueError(f"the input has {t} tokens, but the projection of this model takes {self.length}")
        stored_keys, stored_values, _, _ = self.projections()
        keys = _as(resample(stored_keys, t), k)
        values = keys if stored_values is stored_keys else _as(resample(stored_values, t), v)
        attend = salience_linformer if self.weighting == "salience" else linformer
        return attend(q, k, v, keys, values)


class LinformerEncoderMixin(EncoderMixin):
    """An encoder with Linformer attention (arXiv 2006.04768)."""

    def adapt(self) -> None:
        if getattr(self.config, "is_decoder", False):
            raise ValueError(
                "Linformer cannot be causal: a token would see later tokens. Use it as an encoder (is_decoder=False)"
            )
        super().adapt()
        LinformerAttention.link([module for module in self.modules() if isinstance(module, LinformerAttention)])

    def padding_counts(self) -> bool:
        return self.config.mask_mode == "published"


def _project_skipping_zeros(projection: Tensor, x: Tensor) -> Tensor:
    """E (r, t) @ x (b, t, c), reading for every tile of positions only the rows that use it.

    An untrained E is block-banded and needs proj_dim / tiles of the work; a dense one takes one product.
    """
    r, t = projection.shape
    tiles = list(range(0, t, _TILE))
    if len(tiles) < 2:
        return projection @ x
    padded = F.pad(projection.detach(), (0, -t % _TILE)) if t % _TILE else projection.detach()
    used = padded.view(r, len(tiles), _TILE).abs().amax(-1).ne(0).T.tolist()
    bands = [(row.index(True), r - row[::-1].index(True)) if True in row else (0, 0) for row in used]
    if sum(stop - start for start, stop in bands) * 2 > r * len(tiles):
        return projection @ x
    y = x.new_zeros(x.shape[0], r, x.shape[2])
    for tile, (start, stop) in zip(tiles, bands, strict=True):
        y[:, start:stop] += projection[start:stop, tile : tile + _TILE] @ x[:, tile : tile + _TILE]
    return y


def _row_averages(projection: Tensor) -> tuple[Tensor, Tensor]:
    """|E| with rows that sum to 1 (float32), and the log of how many tokens each row averages."""
    weights = projection.float().abs()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return weights, -weights.square().sum(-1).clamp(min=1e-12).log()


def _groups(mask: Tensor) -> list[tuple[slice | Tensor, slice | Tensor]]:
    """(batch rows, their real tokens) for rows that can be computed together; rows without any token are left out."""
    t, groups = mask.shape[1], {}
    spans = torch.stack([mask.sum(1), mask.int().argmax(1), t - mask.flip(1).int().argmax(1)], 1).tolist()
    for row, (count, start, stop) in enumerate(spans):
        if count:  # a row with holes is gathered, alone
            groups.setdefault((start, stop) if count == stop - start else (row,), []).append(row)
    found: list[tuple[slice | Tensor, slice | Tensor]] = []
    for span, rows in groups.items():
        tokens = slice(*span) if len(span) == 2 else mask[span[0]].nonzero().squeeze(1)
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        found.append((slice(rows[0], rows[-1] + 1) if contiguous else torch.tensor(rows, device=mask.device), tokens))
    return found


def _as(parameter: Tensor, x: Tensor) -> Tensor:
    """The stored matrix in the dtype of the activations (under autocast they differ)."""
    return parameter if parameter.dtype == x.dtype else parameter.to(x.dtype)
