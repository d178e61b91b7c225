# SPDX-License-Identifier: Apache-2.0
"""What TransNormer adds to an encoder: a gate in every feed-forward, where the config asks for it."""

from __future__ import annotations

from torch import nn

from .efficient_encoder import EncoderMixin
from .transnormer_feed_forward import add_gate


class TransNormerEncoderMixin(EncoderMixin):
    """An encoder, or a causal decoder, with TransNormer attention (arXiv 2210.10340)."""

    def adapt_layer(self, layer: nn.Module, index: int) -> None:
        super().adapt_layer(layer, index)
        if self.config.feed_forward == "glu":
            config = self.config  # DistilBERT names the inner size its own way
            add_gate(layer, config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_dim)

    def padding_counts(self) -> bool:
        return self.config.mask_mode == "published"
