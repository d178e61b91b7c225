# SPDX-License-Identifier: Apache-2.0
"""Lambda attention of a converted encoder: one λ a head, landmark keys, a local term; linear in the length.

Contract: `LambdaAttention(config, layer_index)(q, k, v, mask)` takes (b, h, t, d) and returns (b, h, t, d); padding and
batch mates change no real token; the tiled and the differentiable form agree to rounding.

A lambda layer (arXiv 2102.08602, eq. 1-3) applies to each query a linear map made from its context. Here, a head:

    λ[c]  = Σ_m softmax_m(w_c·k_m) v_m          content, c landmarks; w = 0 is the mean of v
    y[n]  = Σ_c (A_c·q_n + a_c) λ[c]  +  Σ_j (M_j·q_n + m_j) v[n + j − ⌊r/2⌋]

λ[c] is what exact attention gives to the query √d·w_c, so landmarks among the queries make y an interpolation.

Axes: b batch, h head, t position, d head width, c landmark, j offset in the local context (r of them).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Positions a block of the banded product. A block multiplies BLOCK + r - 1 rows where r are needed, but many small
# products cost more than few; 8, 16 and 32 were within 15 % at r = 15.
BLOCK = 8
# Positions that the tiled form handles at once: v, band and output of 12 heads of width 64 are 2 MB.
TILE = 256
# Below this length the batched form wins: the tiled one makes its calls a text at a time.
TILED_FROM = 64


class LambdaAttention(nn.Module):
    """The Lambda target's attention: q, k, v (b, h, t, d) and a bool mask (b, t) or None → (b, h, t, d).

    `config` needs hidden_size, num_attention_heads, key_depth and local_context_size (odd, or 0 for none);
    intra_depth (1 if absent) multiplies the landmarks: each intra channel has a query coefficient of its own, of which
    the published sum over intra channels is the special case of equal ones.
    """

    def __init__(self, config: Any, layer_index: int = 0) -> None:
        super().__init__()
        if getattr(config, "is_decoder", False):
            raise ValueError(
                "Lambda attention cannot be causal: a token would see later tokens. Use it as an encoder "
                "(is_decoder=False)"
            )
        h = config.num_attention_heads
        d = config.hidden_size // h
        c = config.key_depth * (getattr(config, "intra_depth", None) or 1) + 1
        r = getattr(config, "local_context_size", 0) or 0
        if r and r % 2 == 0:
            raise ValueError(f"local_context_size must be odd, got {r}")
        self.layer_index = layer_index
        self.collected: list[Tensor] | None = None  # where λ goes in a call that returns it
        self.collects_gradient = True
        self.landmarks = nn.Parameter(torch.empty(h, c, d))
        self.content_weight = nn.Parameter(torch.empty(h, c, d))
        self.content_bias = nn.Parameter(torch.empty(h, c))
        self.local_weight = nn.Parameter(torch.empty(h, r, d)) if r else None
        self.local_bias = nn.Parameter(torch.empty(h, r)) if r else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform attention: the mean of v whatever the query. Landmarks are drawn, so that training can part them."""
        nn.init.normal_(self.landmarks, 0.0, self.landmarks.shape[-1] ** -0.5)
        nn.init.zeros_(self.landmarks[:, -1])
        nn.init.zeros_(self.content_weight)
        nn.init.zeros_(self.content_bias)
        nn.init.ones_(self.content_bias[:, -1])
        if self.local_weight is not None and self.local_bias is not None:
            nn.init.zeros_(self.local_weight)
            nn.init.zeros_(self.local_bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.collected is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.collects_gradient):
                self.collected.append(self.lambdas(k, v, mask))
        return lambda_attention(
            q, k, v, mask, self.landmarks, self.content_weight, self.content_bias, self.local_weight, self.local_bias
        )

    def lambdas(self, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """λ (b, h, c, d) of keys and values (b, h, t, d), in their type."""
        dtype = _compute_dtype(k)
        with torch.autocast(k.device.type, enabled=False):
            return content_lambdas(k.to(dtype), v.to(dtype), mask, self.landmarks.to(dtype))

    def extra_repr(self) -> str:
        h, c, d = self.landmarks.shape
        r = 0 if self.local_weight is None else self.local_weight.shape[1]
        return f"heads={h}, landmarks={c}, head_width={d}, local_context={r}"


def lambda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    landmarks: Tensor,
    content_weight: Tensor,
    content_bias: Tensor,
    local_weight: Tensor | None = None,
    local_bias: Tensor | None = None,
) -> Tensor:
    """Content and local term of the module's docstring, in q's dtype.

    q, k, v (b, h, t, d); mask (b, t) bool, True where a token is real; landmarks and content_weight (h, c, d);
    content_bias (h, c); local_weight (h, r, d); local_bias (h, r).
    """
    # Autocast would cast the parameters one product at a time, and not at all in the tiled form: once, here.
    dtype = _compute_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    parameters = [landmarks, content_weight, content_bias, local_weight, local_bias]
    w, a, a0, m, m0 = (None if p is None else p.to(dtype) for p in parameters)
    needs_graph = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, *parameters))
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type != "cpu" or needs_graph or q.shape[2] < TILED_FROM or torch.compiler.is_compiling():
            return _batched(q, k, v, mask, w, a, a0, m, m0)
        return _tiled(q, k, v, mask, w, a, a0, m, m0)


def content_lambdas(k: Tensor, v: Tensor, mask: Tensor | None, landmarks: Tensor) -> Tensor:
    """λ (b, h, c, d) = softmax over real positions of w_c·k, times v. The softmax is in float32 at least."""
    s = _at_least_float32(landmarks @ k.transpose(-1, -2))  # b h c t: positions last, where softmax is fastest
    if mask is not None:
        s = s.masked_fill(~mask[:, None, None], torch.finfo(s.dtype).min)
    return s.softmax(-1).to(v.dtype) @ v


def apply_windows(weights: Tensor, v: Tensor) -> Tensor:
    """y[t] = Σ_j,u weights[t, :, (j u)] v[t + j − ⌊r/2⌋, u], v zero outside: weights (…, t, m, r·u), v (…, t, u, d).

    As a product of banded blocks: BLOCK positions share one window of BLOCK + r − 1, so that the work is a batched
    matrix product and no (t, r, d) copy of v is made. Returns (…, t, m, d). Differentiable.
    """
    t, rows, _ = weights.shape[-3:]
    u = v.shape[-2]
    r = weights.shape[-1] // u
    if r == 1:
        return weights @ v
    n = -(-t // BLOCK)
    tail, width = n * BLOCK - t, BLOCK + r - 1
    # The band: a row of r·u weights moves right by u at every position. Written with a row length of one position
    # more than the window, and read with the window's own length, each row starts one position later by itself.
    band = F.pad(weights, (0, BLOCK * u, 0, 0, 0, tail)).unflatten(-3, (n, BLOCK))  # … n B m (K+1)u
    band = band.transpose(-2, -3).flatten(-2)[..., : BLOCK * width * u].unflatten(-1, (BLOCK, width * u))
    windows = F.pad(v, (0, 0, 0, 0, r // 2, r // 2 + tail)).unfold(-3, width, BLOCK)  # … n u d K
    windows = windows.movedim(-1, -3).flatten(-3, -2)  # … n (K u) d
    y = band.flatten(-3, -2) @ windows  # … n (m B) d
    return y.unflatten(-2, (rows, BLOCK)).transpose(-2, -3).flatten(-4, -3)[..., :t, :, :]


def _compute_dtype(q: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(q.device.type):
        return torch.get_autocast_dtype(q.device.type)
    return q.dtype


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _batched(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    w: Tensor,
    a: Tensor,
    a0: Tensor,
    m: Tensor | None,
    m0: Tensor | None,
) -> Tensor:
    """All heads at once, differentiable: for training, short inputs and accelerators."""
    if mask is not None:
        v = v.masked_fill(~mask[:, None, :, None], 0)  # beyond the text the local term sees zeros, as at its edge
    y = (q @ a.transpose(1, 2) + a0[:, None]) @ content_lambdas(k, v, mask, w)
    if m is None or m0 is None:
        return y
    weights = q @ m.transpose(1, 2) + m0[:, None]  # b h t j
    return y + apply_windows(weights[..., None, :], v[..., None, :]).squeeze(-2)


def _tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    w: Tensor,
    a: Tensor,
    a0: Tensor,
    m: Tensor | None,
    m0: Tensor | None,
) -> Tensor:
    """TILE positions of all heads at a time, in scratch memory that stays in the cache; no gradient.

    A model's q, k, v and output lie as (b, t, h, d), so that a tile of all heads is one stretch of memory.
    """
    y = v.new_empty(v.transpose(1, 2).shape).transpose(1, 2)
    # Small products of half-precision blocks are slower than float32 ones on CPUs (44 against 18 ms at 4,096), and less
    # exact: work in float32 and round once.
    w = _at_least_float32(w)
    weight, bias = _side_by_side(a, a0, m, m0)
    c = w.shape[1]
    tile = None if m is None else _LocalTile(v, m.shape[1])
    for i in range(v.shape[0]):
        lambdas = _tiled_lambdas(k[i], v[i], None if mask is None else mask[i], w)
        for part in _tiles(v.shape[2]):
            coefficients = torch.baddbmm(bias, _at_least_float32(q[i, :, part]), weight)
            if tile is None:
                y[i, :, part] = coefficients @ lambdas
            else:
                tile.load(v[i], None if mask is None else mask[i], part.start)
                y[i, :, part] = tile.product(coefficients[..., c:]).baddbmm_(coefficients[..., :c], lambdas)
    return y


def position_term(q: Tensor, v: Tensor, mask: Tensor | None, local_weight: Tensor, local_bias: Tensor) -> Tensor:
    """The local term alone, tiled, without gradient: what the benchmark times. Shapes as in `lambda_attention`."""
    y = v.new_empty(v.transpose(1, 2).shape).transpose(1, 2)
    weight, bias = _side_by_side(local_weight, local_bias, None, None)
    tile = _LocalTile(v, local_weight.shape[1])
    for i in range(v.shape[0]):
        for part in _tiles(v.shape[2]):
            tile.load(v[i], None if mask is None else mask[i], part.start)
            y[i, :, part] = tile.product(torch.baddbmm(bias, _at_least_float32(q[i, :, part]), weight))
    return y


def _tiles(t: int) -> list[slice]:
    return [slice(start, min(start + TILE, t)) for start in range(0, t, TILE)]


def _side_by_side(a: Tensor, a0: Tensor, m: Tensor | None, m0: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both query sides as one product: weight (h, d, c + r) and bias (h, 1, c + r)."""
    weight = a if m is None else torch.cat([a, m], 1)
    bias = a0 if m0 is None else torch.cat([a0, m0], 1)
    return _at_least_float32(weight).transpose(1, 2).contiguous(), _at_least_float32(bias)[:, None]


def _tiled_lambdas(k: Tensor, v: Tensor, mask: Tensor | None, w: Tensor) -> Tensor:
    """`content_lambdas` of one text, k and v (h, t, d)."""
    h, t, d = v.shape
    s = w.new_empty(h, w.shape[1], t)
    for part in _tiles(t):
        s[..., part] = w @ _at_least_float32(k[:, part]).transpose(1, 2)
    if mask is not None:
        s.masked_fill_(~mask, torch.finfo(s.dtype).min)
    p = s.softmax(-1)
    lambdas = w.new_zeros(h, w.shape[1], d)
    for part in _tiles(t):
        lambdas.baddbmm_(p[..., part], _at_least_float32(v[:, part]))
    return lambdas


class _LocalTile:
    """Scratch for the local term of all heads on up to TILE positions: v with its halo, and the band of weights.

    As in `apply_windows`, with rows of width + 1 written and rows of width read. A head has blocks to spare, as many as
    its halo takes: the windows of all heads then lie at one stride, and are one batch of one product.
    """

    def __init__(self, v: Tensor, r: int) -> None:
        h, t, d = v.shape[1:]
        dtype = torch.promote_types(v.dtype, torch.float32)
        width = BLOCK + r - 1
        n = -(-min(t, TILE) // BLOCK) + -(-(r - 1) // BLOCK)
        self.edge, self.blocks = r // 2, h * n
        # The last head's spare windows reach past its rows: one window more of memory.
        memory = v.new_zeros((h * n * BLOCK + width) * d, dtype=dtype)
        self.values = memory.as_strided((h, n * BLOCK, d), (n * BLOCK * d, d, 1))
        self.windows = memory.as_strided((h * n, width, d), (BLOCK * d, d, 1))
        memory = v.new_zeros(h * n * BLOCK * (width + 1), dtype=dtype)
        self.weights = memory.as_strided((h, n * BLOCK, r), (n * BLOCK * (width + 1), width + 1, 1))
        self.band = memory.as_strided((h * n, BLOCK, width), (BLOCK * (width + 1), width, 1))
        self.out = v.new_empty(h * n, BLOCK, d, dtype=dtype)

    def load(self, v: Tensor, mask: Tensor | None, start: int) -> None:
        """Rows start − edge … of v (h, t, d), zero outside the text and where the mask hides."""
        origin = start - self.edge
        first, last = max(0, origin), min(v.shape[1], origin + self.values.shape[1])
        before, after = first - origin, last - origin
        self.values[:, :before].zero_()
        self.values[:, after:].zero_()
        inner = self.values[:, before:after]
        inner.copy_(v[:, first:last])
        if mask is not None:
            inner.masked_fill_(~mask[first:last, None], 0)

    def product(self, weights: Tensor) -> Tensor:
        """Σ_j weights[n, j] v[n + j − edge] of the loaded rows: weights (h, t, r) → (h, t, d), until the next call."""
        h, t, _ = weights.shape
        self.weights[:, :t] = weights
        torch.bmm(self.band, self.windows, out=self.out)
        return self.out.view(h, -1, self.out.shape[-1])[:, :t]
