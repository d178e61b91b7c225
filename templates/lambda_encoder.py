# SPDX-License-Identifier: Apache-2.0
"""What Lambda attention adds to an encoder: the refusal of decoders. Its parameters stand in its attention modules."""

from __future__ import annotations

from .efficient_encoder import EncoderMixin


class LambdaEncoderMixin(EncoderMixin):
    """An encoder with Lambda attention (arXiv 2102.08602), one λ a head."""

    def adapt(self) -> None:
        if getattr(self.config, "is_decoder", False):
            raise ValueError(
                "Lambda attention cannot be causal: a token would see later tokens. Use it as an encoder "
                "(is_decoder=False)"
            )
        super().adapt()
