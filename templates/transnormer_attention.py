# SPDX-License-Identifier: Apache-2.0
"""TransNormer attention (arXiv 2210.10340): DiagAttention in some layers, NormAttention in the others.

Axes: b batch, h heads, t tokens, d head width, c tokens of a block, n blocks, w = h · d model width.

NormAttention (linear): y = φ(q) (φ(k)ᵀ v), then a norm over the full width instead of the softmax denominator.
DiagAttention (diag): attention inside blocks of c tokens, relu then norm (T1) or softmax without norm (T2).

mask_mode "masked" (default): padding and the filled-up end of the last block are no keys. "published": the authors'
code, which counts both. Causal or bidirectional. Scores, sums and norms of fp16 inputs are made in fp32: a sum over
all keys without a denominator has no place in fp16's range.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import EncoderMixin

__all__ = [
    "HeadsNorm",
    "RotaryReflection",
    "TransNormerAttention",
    "diag_attention",
    "linear_attention",
]

LINEAR_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "1+elu": lambda x: F.elu(x).add_(1.0),
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
NORMS = ("simplermsnorm", "rmsnorm", "gatedrmsnorm", "layernorm")
_EPS = 1e-8
_CAUSAL_BLOCK = 64


class HeadsNorm(nn.Module):
    """A norm over the full width of (b, h, t, d), that is over h and d of one token, without merging the heads.

    simplermsnorm: x̂ = x / (‖x‖ / √w + 1e-8). rmsnorm: scale · x̂. gatedrmsnorm: scale · x̂ · σ(gate · x). layernorm:
    weight and bias, eps 1e-5. Parameters have shape (w), as in the authors' checkpoints.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        if kind not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {kind!r}")
        self.kind = kind
        if kind in ("rmsnorm", "gatedrmsnorm"):
            self.scale = nn.Parameter(torch.ones(width))
        if kind == "gatedrmsnorm":
            self.gate = nn.Parameter(torch.ones(width))
        if kind == "layernorm":
            self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, h, t, d); returns the same shape and dtype."""
        h, d = x.shape[1], x.shape[3]
        if self.kind == "layernorm":
            variance, mean = torch.var_mean(x.float(), dim=(1, 3), correction=0, keepdim=True)
            y = (x.float() - mean) * torch.rsqrt(variance + 1e-5)
            return (y * _by_head(self.weight, h) + _by_head(self.bias, h)).to(x.dtype)
        rms = torch.linalg.vector_norm(x, dim=(1, 3), keepdim=True, dtype=torch.float32) / math.sqrt(h * d)
        y = x / (rms + _EPS).to(x.dtype)
        if self.kind != "simplermsnorm":
            y = y * _by_head(self.scale, h).to(x.dtype)
        if self.kind == "gatedrmsnorm":
            y = y * torch.sigmoid(_by_head(self.gate, h).to(x.dtype) * x)
        return y


class RotaryReflection(nn.Module):
    """LRPE type 1, 3 (appendix of the paper): a reflection x - 2 (x · v) v, then interleaved rotary of angles t · θ.

    identity=True starts as the identity (θ = 0, v = 0). Otherwise θ_i = 10000^(-2i/d) and v is a random unit vector.
    v is never trained; θ is unless trainable=False (the LRA models' fixed rotary, which has no reflection:
    reflect=False).
    """

    v: Tensor

    def __init__(self, d: int, *, identity: bool = False, trainable: bool = True, reflect: bool = True) -> None:
        super().__init__()
        if d % 2:
            raise ValueError(f"rotary positions need an even head size, got {d}")
        theta = torch.zeros(d // 2) if identity else 10000.0 ** (-2.0 * torch.arange(d // 2) / d)
        self.reflect = reflect
        if trainable:
            self.theta = nn.Parameter(theta.view(1, 1, -1))
        else:
            self.register_buffer("theta", theta.view(1, 1, -1))
        if reflect:
            self.register_buffer("v", torch.zeros(d) if identity else F.normalize(torch.randn(d), dim=0))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: (..., t, d), positions: (t); returns x, reflected and rotated."""
        if self.reflect:
            v = self.v.to(x.dtype)
            x = x - 2.0 * (x @ v).unsqueeze(-1) * v
        angles = positions.float().unsqueeze(-1) * self.theta.float().view(-1)  # t d/2
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Q (kᵀ v), or tril(q kᵀ) v if causal, for features q, k (b, h, t, d) and v (b, h, t, d). Linear in t.

    The product of the keys comes first. A CPU multiplies the strided views of a projection's output as they are,
    which beats copying them; looping over the batch keeps them views.
    """
    if causal:
        return _causal_linear(q, k, v)
    if q.device.type == "cpu" and q.shape[0] > 1:
        return torch.stack([q[i] @ (k[i].mT @ v[i]) for i in range(q.shape[0])])
    return q @ (k.mT @ v)


def diag_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    block_size: int = 64,
    softmax: bool = True,
    causal: bool = False,
    published: bool = False,
    positions: RotaryReflection | None = None,
) -> Tensor:
    """Attention inside blocks of block_size tokens: softmax(q kᵀ / √d) v, or relu(q kᵀ / √d) v.

    Args:
        q: (b, h, t, d), and so k and v.
        k: keys.
        v: values.
        mask: (b, t) bool, True for a real token; ignored if published.
        block_size: tokens of a block.
        softmax: or relu.
        causal: whether later tokens of the block are hidden.
        published: the zeros that fill the last block stay keys (they dilute its softmax).
        positions: applied to q and k with positions inside the block.
    """
    b, h, t, d = q.shape
    c = block_size
    fill = -t % c
    n = (t + fill) // c
    # Blocks become batch entries: a view of what a linear layer leaves, and twice as fast as blocks beside the heads.
    q, k, v = (_blocks(x, fill, c) for x in (q, k, v))  # (b n) h c d
    if positions is not None:
        inside = torch.arange(c, device=q.device)
        q, k = positions(q, inside), positions(k, inside)
    allowed = None
    if not published and (fill or mask is not None):
        real = torch.ones(b, t, dtype=torch.bool, device=q.device) if mask is None else mask
        allowed = F.pad(real, (0, fill)).view(b * n, 1, 1, c)
    if causal:
        lower = torch.ones(c, c, dtype=torch.bool, device=q.device).tril()
        allowed = lower if allowed is None else allowed & lower
    y = (_block_softmax if softmax else _block_relu)(q, k, v, allowed)
    return y.transpose(1, 2).reshape(b, n * c, h, d)[:, :t].transpose(1, 2)


class TransNormerAttention(nn.Module):
    """What stands between q, k, v and the output projection of layer `layer_index`; `diag` overrides its kind.

    Reads from config: hidden_size, num_attention_heads, diag_layers (indices), variant ("t1" or "t2"), and if present
    block_size (64), attention_norm ("simplermsnorm"), linear_activation (by variant: "elu", "1+elu"), mask_mode
    ("masked"), is_decoder (False: bidirectional), position_encoding ("none", "lrpe" which starts as the identity, or
    "rotary").

    State: norm.* where the norm has parameters, lrpe.theta and lrpe.v with positions.
    """

    def __init__(self, config: Any, layer_index: int = 0, *, diag: bool | None = None) -> None:
        super().__init__()
        variant = config.variant
        if variant not in ("t1", "t2"):
            raise ValueError(f"variant must be t1 or t2, got {variant!r}")
        self.diag = layer_index in config.diag_layers if diag is None else diag
        self.softmax = variant == "t2"
        self.block_size: int = getattr(config, "block_size", 64)
        self.published = getattr(config, "mask_mode", "masked") == "published"
        self.causal = bool(getattr(config, "is_decoder", False))
        self.linear_activation = getattr(config, "linear_activation", None) or ("1+elu" if self.softmax else "elu")
        if self.linear_activation not in LINEAR_ACTIVATIONS:
            known = ", ".join(LINEAR_ACTIVATIONS)
            raise ValueError(f"linear_activation must be one of {known}, got {self.linear_activation!r}")
        normed = not (self.diag and self.softmax)  # softmax has normalised already
        kind = getattr(config, "attention_norm", "simplermsnorm")
        self.norm = HeadsNorm(kind, config.hidden_size) if normed else None
        encoding = getattr(config, "position_encoding", "none")
        d = config.hidden_size // config.num_attention_heads
        self.lrpe = None
        if encoding == "lrpe":
            self.lrpe = RotaryReflection(d, identity=True)
        elif encoding == "rotary":
            self.lrpe = RotaryReflection(d, trainable=False, reflect=False)
        elif encoding != "none":
            raise ValueError(f"position_encoding must be none, lrpe or rotary, got {encoding!r}")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v: (b, h, t, d); mask: (b, t) bool, True for a real token, or None. Returns (b, h, t, d)."""
        if q.dtype == torch.float16 and self.norm is not None:
            with torch.autocast(q.device.type, enabled=False):
                return self._attend(q.float(), k.float(), v.float(), mask).to(q.dtype)
        return self._attend(q, k, v, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.diag:
            options = {"block_size": self.block_size, "softmax": self.softmax, "causal": self.causal}
            y = diag_attention(q, k, v, mask, published=self.published, positions=self.lrpe, **options)
        else:
            activation = LINEAR_ACTIVATIONS[self.linear_activation]
            q, k = activation(q), activation(k)
            if self.lrpe is not None:
                positions = torch.arange(q.shape[2], device=q.device)
                q, k = self.lrpe(q, positions), self.lrpe(k, positions)
            if mask is not None and not self.published:
                k = k.masked_fill(~mask[:, None, :, None], 0.0)  # enough: a key of zeros adds nothing
            y = linear_attention(q, k, v, causal=self.causal)
        return y if self.norm is None else self.norm(y)


def _causal_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """tril(q kᵀ) v in blocks: inside the block as written, for earlier blocks through the running sum of kᵀ v."""
    b, h, t, d = q.shape
    fill = -t % _CAUSAL_BLOCK
    q, k, v = (F.pad(x, (0, 0, 0, fill)).reshape(b, h, -1, _CAUSAL_BLOCK, d) for x in (q, k, v))
    inside = (q @ k.mT).tril() @ v
    states = k.mT @ v  # b h n d d
    before = states.cumsum(2) - states
    return (inside + q @ before).reshape(b, h, t + fill, d)[:, :, :t]


def _blocks(x: Tensor, fill: int, c: int) -> Tensor:
    """(b, h, t, d) to (b · n, h, c, d), zeros at the end of the last block."""
    x = x.transpose(1, 2)
    if fill:
        x = F.pad(x, (0, 0, 0, 0, 0, fill))
    return x.reshape(-1, c, *x.shape[2:]).transpose(1, 2)


def _block_softmax(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    bias = None
    if allowed is not None:
        # Not -inf: a block of padding alone would give NaN. Its rows are averages that nobody reads.
        bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~allowed, torch.finfo(q.dtype).min / 2)
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _block_relu(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    scores = F.relu(q * q.shape[-1] ** -0.5 @ k.mT)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, 0.0)
    return scores @ v


def _by_head(parameter: Tensor, h: int) -> Tensor:
    return parameter.view(h, 1, -1)


class TransNormerEncoderMixin(EncoderMixin):
    """An encoder, or a causal decoder, with TransNormer attention, and a gate in every feed-forward where asked."""

    def adapted_layer(self, layer: nn.Module, index: int) -> nn.Module:
        config = self.config
        local = copy.deepcopy(layer.attention) if config.layer_order == "both" else None
        layer = super().adapted_layer(layer, index)
        if local is not None:
            layer.attention = LocalFirst(layer.attention, self.local_block(local, index))
        if config.feed_forward != "glu":
            return layer
        # DistilBERT names the inner size its own way.
        return gated(layer, config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_dim)

    def local_block(self, block: nn.Module, index: int) -> nn.Module:
        """A stock attention block with DiagAttention, whatever `diag_layers` says of the layer."""
        for module in block.modules():
            module._is_hf_initialized = False  # a copy, which shall not begin with the weights of the original
        holder = nn.Module()
        holder.attention = block
        self.replace_attention(holder, index)
        block.self.mix = TransNormerAttention(self.config, index, diag=True)
        return block

    def padding_counts(self) -> bool:
        return self.config.mask_mode == "published"


class LocalFirst(nn.Module):
    """A stock attention block with another one before it, each with its residual and its norm.

    Args:
        stock: the block that this one takes the place of, with all that it holds.
        local: the block that runs first.
    """

    def __init__(self, stock: nn.Module, local: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(stock.__dict__)
        self._stock = type(stock)
        self.local = local

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        first = self.local(hidden_states, *args, **kwargs)[0]
        return self._stock.forward(self, first, *args, **kwargs)


def gated(layer: nn.Module, width: int, inner: int) -> nn.Module:
    """A stock layer whose feed-forward has a gate: l3(act(l1 x) ⊙ l2 x) (section 4.3 of the paper).

    A stock feed-forward down(act(up x)) is one whose gate l2 is constantly 1 (weight 0, bias 1), so a converted layer
    starts as the dense one, exactly. Families keep up and down under their own names; the gate is the one new layer.
    """
    if hasattr(layer, "intermediate"):  # BERT and its kin
        layer.intermediate = GatedIntermediate(layer.intermediate, width, inner)
    elif hasattr(layer.ffn, "lin1"):  # DistilBERT
        layer.ffn = GatedFFN(layer.ffn, width, inner)
    else:  # ALBERT, whose feed-forward is a method of the layer
        return GatedLayer(layer, width, inner)
    return layer


class Gated(nn.Module):
    """Takes the place of the stock module that does a feed-forward: all that this one holds, and a gate."""

    def __init__(self, stock: nn.Module, width: int, inner: int) -> None:
        super().__init__()
        self.__dict__.update(stock.__dict__)
        self.gate = nn.Linear(width, inner)
        with torch.no_grad():
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)


class GatedIntermediate(Gated):
    """act(up x) ⊙ gate(x); the stock output module follows as it is.

    Where the stock module begins with a norm (RoBERTa-PreLayerNorm), x is normalised for both.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = self.LayerNorm(hidden_states) if hasattr(self, "LayerNorm") else hidden_states
        return self.intermediate_act_fn(self.dense(x)) * self.gate(x)


class GatedFFN(Gated):
    """dropout(down(act(up x) ⊙ gate(x)))."""

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(x)) * self.gate(x)))


class GatedLayer(Gated):
    """A whole layer of ALBERT: attention, then norm(x + down(act(up x) ⊙ gate(x)))."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, *_: Any) -> Tensor:
        x, _ = self.attention(hidden_states, attention_mask)
        return self.full_layer_layer_norm(x + self.ff_chunk(x))

    def ff_chunk(self, x: Tensor) -> Tensor:
        return self.ffn_output(self.activation(self.ffn(x)) * self.gate(x))
