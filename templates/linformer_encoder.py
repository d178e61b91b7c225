# SPDX-License-Identifier: Apache-2.0
"""What Linformer adds to an encoder: one projection for all layers where they share it, and the refusal of decoders."""

from __future__ import annotations

from .efficient_encoder import EncoderMixin
from .linformer_attention import LinformerMix


class LinformerEncoderMixin(EncoderMixin):
    """An encoder with Linformer attention (arXiv 2006.04768)."""

    def adapt(self) -> None:
        if getattr(self.config, "is_decoder", False):
            raise ValueError(
                "Linformer cannot be causal: a token would see later tokens. Use it as an encoder (is_decoder=False)"
            )
        super().adapt()
        LinformerMix.link([layer.get_submodule(self.attention_path).mix for layer in self.unique_layers()])

    def padding_counts(self) -> bool:
        return self.config.mask_mode == "published"
