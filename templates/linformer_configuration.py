# SPDX-License-Identifier: Apache-2.0
"""The options of Linformer attention, added to a stock config."""

from __future__ import annotations

from typing import Any

SHARING = ("heads", "kv", "layers", "none")
MASK_MODES = ("masked", "published")
WEIGHTINGS = ("none", "salience")


class LinformerConfigMixin:
    """Goes before a stock config class in the bases.

    Args:
        proj_dim: rows of the projections E and F: keys and values that a token sees in a long text.
        projection_length: positions that E and F are stored for, the longest input.
        sharing: "heads" (E and F a layer), "kv" (one matrix a layer for both), "layers" (one for all), "none" (E and F
            a head).
        mask_mode: "masked" leaves padding out; "published" uses the stored matrices as they are and zeroes padded rows.
        projection_bias: whether E and F have biases over rows (published mode only).
        projection_weighting: "salience" lets rows weigh their tokens by how much the average query asks for them.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    def __init__(
        self,
        proj_dim: int = 256,
        projection_length: int = 512,
        sharing: str = "kv",
        mask_mode: str = "masked",
        projection_bias: bool = False,
        projection_weighting: str = "none",
        **kwargs: Any,
    ) -> None:
        kwargs["use_cache"] = False
        super().__init__(**kwargs)
        self.proj_dim = proj_dim
        self.projection_length = projection_length
        self.sharing = sharing
        self.mask_mode = mask_mode
        self.projection_bias = projection_bias
        self.projection_weighting = projection_weighting
        faults = linformer_faults(self)
        if faults:
            raise ValueError(
                "these Linformer options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults)
            )


def linformer_faults(config: Any) -> list[str]:
    """What is wrong with the Linformer fields of a config, one sentence each, with what to do."""
    faults = []
    rows, length = config.proj_dim, config.projection_length
    if type(rows) is not int or rows < 3:
        faults.append(f"proj_dim must be an integer of at least 3, got {rows!r}")
    elif type(length) is not int or length <= rows:
        faults.append(
            f"proj_dim must be smaller than the length {length!r}, got {rows}: inputs of up to proj_dim tokens already "
            "have exact attention"
        )
    for name, values in (
        ("sharing", SHARING),
        ("mask_mode", MASK_MODES),
        ("projection_weighting", WEIGHTINGS),
    ):
        if getattr(config, name) not in values:
            faults.append(f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}")
    if config.projection_bias and config.mask_mode != "published":
        faults.append('projection_bias needs mask_mode "published"')
    return faults
