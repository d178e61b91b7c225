# SPDX-License-Identifier: Apache-2.0
"""The options of TransNormer attention, added to a stock config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VARIANTS = ("t1", "t2")
NORMS = ("simplermsnorm", "rmsnorm", "gatedrmsnorm", "layernorm")
POSITIONS = ("none", "lrpe", "rotary")
FEED_FORWARDS = ("dense", "glu")
MASK_MODES = ("masked", "published")
LAYER_ORDERS = ("alternate", "both")


class TransNormerConfigMixin:
    """Goes before a stock config class in the bases.

    Args:
        variant: "t1" (relu inside blocks, φ = elu) or "t2" (softmax inside blocks, φ = 1 + elu).
        block_size: tokens of a block in the layers with DiagAttention.
        diag_layers: indices of those layers; the others have NormAttention, which is linear.
        attention_norm: over the full width after linear attention (and after T1's blocks): "simplermsnorm", "rmsnorm",
            "gatedrmsnorm" or "layernorm".
        linear_activation: φ of the linear layers; None for the variant's own.
        position_encoding: "none", "lrpe" (reflection and learned rotation) or "rotary", beside the stock positions.
        feed_forward: "dense", or "glu" for a gate in every feed-forward.
        layer_order: "alternate": DiagAttention in `diag_layers`, NormAttention in the others. "both": each layer has
            DiagAttention, then NormAttention, then the feed-forward, as the authors' models for the Long Range Arena.
        mask_mode: "masked" keeps padding and the filled-up end of the last block out; "published" counts both.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    def __init__(
        self,
        variant: str = "t2",
        block_size: int = 64,
        diag_layers: Sequence[int] = (),
        attention_norm: str = "simplermsnorm",
        linear_activation: str | None = None,
        position_encoding: str = "none",
        feed_forward: str = "dense",
        mask_mode: str = "masked",
        layer_order: str = "alternate",
        **kwargs: Any,
    ) -> None:
        kwargs["use_cache"] = False
        super().__init__(**kwargs)
        self.variant = variant
        self.block_size = block_size
        self.diag_layers = list(diag_layers)
        self.attention_norm = attention_norm
        self.linear_activation = linear_activation
        self.position_encoding = position_encoding
        self.feed_forward = feed_forward
        self.mask_mode = mask_mode
        self.layer_order = layer_order
        faults = transnormer_faults(self)
        if faults:
            raise ValueError(
                "these TransNormer options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults)
            )


def transnormer_faults(config: Any) -> list[str]:
    """What is wrong with the TransNormer fields of a config, one sentence each, with what to do."""
    faults = []
    if type(config.block_size) is not int or config.block_size < 1:
        faults.append(f"block_size must be a positive integer, got {config.block_size!r}")
    if any(type(index) is not int or index < 0 for index in config.diag_layers):
        faults.append(f"diag_layers must be indices of layers, from 0, got {config.diag_layers!r}")
    for name, values in (
        ("variant", VARIANTS),
        ("attention_norm", NORMS),
        ("position_encoding", POSITIONS),
        ("feed_forward", FEED_FORWARDS),
        ("mask_mode", MASK_MODES),
        ("layer_order", LAYER_ORDERS),
    ):
        if getattr(config, name) not in values:
            faults.append(f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}")
    if config.layer_order == "both" and config.diag_layers:
        faults.append(f"diag_layers must be empty with layer_order both, got {config.diag_layers!r}")
    return faults
