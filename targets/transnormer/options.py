"""Options of the TransNormer target."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from ...convert.errors import UsageError
from ...convert.options import CALIBRATE_HELP, MAX_LENGTH_HELP, option, require_sound
from ...convert.text import one_or_several

NAMES = {"attention_norm": "norm", "feed_forward": "ffn"}  # in the config
FIRST_HALF = "first-half"


@dataclass(frozen=True, slots=True)
class TransNormerOptions:
    """Options of `effconv transnormer`, in addition to the common ones."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
    variant: Literal["t1", "t2"] = option(
        "t2", "Attention in blocks and feature map of linear attention. t1: ReLU and elu. t2: softmax and 1 + elu."
    )
    block_size: int = option(64, "Tokens per block in layers with DiagAttention (block attention).")
    diag_layers: str = option(
        FIRST_HALF, "Layers with DiagAttention: first-half, a number N (the first N), or indices such as 0,2,4."
    )
    norm: Literal["simplermsnorm", "rmsnorm", "gatedrmsnorm", "layernorm"] = option(
        "simplermsnorm", "Norm after linear attention."
    )
    ffn: Literal["dense", "glu"] = option("dense", "glu: add a gate to every feed-forward layer, initially 1.")
    position_encoding: Literal["none", "lrpe", "rotary"] = option(
        "none", "Extra position encoding inside attention. lrpe starts as the identity."
    )
    layer_order: Literal["alternate", "both"] = option(
        "alternate",
        "alternate: a layer has DiagAttention or linear attention. both: each layer has one after the other, as the "
        "published models for the Long Range Arena (only for new models).",
    )
    calibrate: tuple[Path, ...] = option((), CALIBRATE_HELP)
    mask_mode: Literal["masked", "published"] = option(
        "masked",
        "published: padding is not masked, as in the authors' code.",
        panel="Compatibility with published TransNormer weights",
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every invalid option."""
        from ...templates.transnormer_configuration import transnormer_faults

        object.__setattr__(self, "calibrate", tuple(Path(path) for path in one_or_several(self.calibrate)))
        faults = transnormer_faults(
            SimpleNamespace(
                variant=self.variant,
                block_size=self.block_size,
                diag_layers=[],
                attention_norm=self.norm,
                position_encoding=self.position_encoding,
                feed_forward=self.ffn,
                mask_mode=self.mask_mode,
                layer_order=self.layer_order,
            )
        )
        if self.max_length < 1:
            faults.append(f"max_length must be a positive integer, got {self.max_length}")
        if self.layer_order == "both" and self.diag_layers != FIRST_HALF:
            faults.append("diag_layers has no effect with --layer-order both: each layer has both kinds of attention")
        elif self.diag_layers != FIRST_HALF and not all(part.isdecimal() for part in self.diag_layers.split(",")):
            faults.append(
                f"diag_layers must be first-half, a number, or indices such as 0,2,4, got {self.diag_layers!r}"
            )
        require_sound("transnormer", faults, self, NAMES)

    def idle(self, layers: int) -> list[str]:
        """Options without effect in a model of this many layers, one sentence each."""
        if self.layer_order == "both":
            return []
        blocks, usual = len(self.diag_indices(layers)), {field.name: field.default for field in fields(self)}
        faults = []
        if not blocks and self.block_size != usual["block_size"]:
            faults.append("block_size has no effect: with this diag_layers no layer has DiagAttention")
        if blocks == layers and self.variant == "t2" and self.norm != usual["norm"]:
            faults.append("norm has no effect: with this diag_layers no layer has linear attention")
        return faults

    def diag_indices(self, layers: int) -> list[int]:
        """Indices of the layers with DiagAttention, of `layers` in total.

        Raises:
            UsageError: an index is out of range.
        """
        if self.layer_order == "both":
            return []
        if self.diag_layers == FIRST_HALF:
            return list(range(layers // 2))
        parts = [int(part) for part in self.diag_layers.split(",")]
        if len(parts) == 1 and parts[0] > layers:
            raise UsageError(
                f"the model has only {layers} layers, got {parts[0]}",
                where="--diag-layers",
                hint=f"give a number from 0 to {layers}",
            )
        if len(parts) > 1 and max(parts) >= layers:
            raise UsageError(
                f"the model has no layer {max(parts)}",
                where="--diag-layers",
                hint=f"give indices from 0 to {layers - 1}",
            )
        return list(range(parts[0])) if len(parts) == 1 else sorted(set(parts))
