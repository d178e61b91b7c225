# SPDX-License-Identifier: Apache-2.0
"""Uniform attention: every token gets the mean of the values of all visible tokens.

Axes: b batch, h heads, t tokens, d head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .efficient_encoder import EncoderMixin, taking_part

__all__ = ["UniformAttention", "UniformEncoderMixin"]


class UniformAttention(nn.Module):
    """The mean of the values; queries and keys are not used."""

    def __init__(self, config: Any, layer_index: int = 0) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q, k, v: (b, h, t, d); mask: (b, t) bool, True for a visible token, or None. Returns (b, h, t, d)."""
        v = taking_part(v, (q, k))  # wrappers expect a gradient of every parameter: zero for queries and keys
        if mask is None:
            return v.mean(2, keepdim=True).expand_as(v)
        visible = mask[:, None, :, None]
        total = v.masked_fill(~visible, 0).sum(2, keepdim=True)
        return (total / visible.sum(2, keepdim=True).clamp(min=1)).to(v.dtype).expand_as(v)


class UniformEncoderMixin(EncoderMixin):
    """An encoder with uniform attention."""

    def adapt(self) -> None:
        if getattr(self.config, "is_decoder", False):
            raise ValueError(
                "uniform attention cannot be causal: a token would see later tokens. Use it as an encoder "
                "(is_decoder=False)"
            )
        super().adapt()
