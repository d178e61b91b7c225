"""Linformer as a target: keys and values projected to a fixed number of rows (arXiv 2006.04768)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...convert.families.grammar import Weight, number, shape_of
from ...convert.io.dtypes import Array, from_float32
from ...convert.ops import Shape, generator
from ...convert.positions import equal_positions, position_rules
from ...convert.recipe import Recipe
from ...convert.repo.modelcode import TargetCode
from ...convert.target import Check, Context, Rule, Scratch, Target, common_checks
from ...templates.linformer_projection import default_peak, draw, peaked_segments
from .options import LinformerOptions

WHY = {
    "segment": "weighted means of neighbouring tokens, centred on another token in each layer",
    "mean": "means of neighbouring tokens",
    "strided": "single tokens at equal distances, shifted in each layer",
}


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection over positions, made from nothing but its shape (and, where it is random, a seed).

    Args:
        name: the canonical name, which with `seed` decides a random draw.
        size: (rows, positions), or (heads, rows, positions).
        init: as in the options. layer: segments favour another token in each.
        peak: the share of a segment's favourite token.
    """

    name: str
    size: Shape
    init: str
    layer: int
    peak: float
    seed: int
    dtype: str
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return self.size

    def apply(self, *inputs: Array) -> Array:
        *heads, rows, length = self.size
        if self.init in WHY:
            values = peaked_segments(rows, length, self.layer, self.peak)
            return from_float32(np.broadcast_to(values, self.size), self.dtype)
        random = generator(self.seed, self.name)
        drawn = [draw(self.init, rows, length, random) for _ in range(int(np.prod(heads, dtype=int)))]
        return from_float32(np.stack(drawn).reshape(self.size), self.dtype)


def _config(context: Context) -> dict[str, Any]:
    options = context.options
    return {
        "proj_dim": options.proj_dim,
        "projection_length": options.max_length,
        "sharing": options.sharing,
        "mask_mode": options.mask_mode,
        "projection_bias": options.projection_bias,
        "projection_weighting": options.weighting,
        "max_position_embeddings": options.max_length + context.family.special_positions(context.config),
        "use_cache": False,
    }


def _weights(context: Context) -> Sequence[Weight]:
    family, options = context.family, context.options
    heads = (number(context.config, family.num_heads),) if options.sharing == "none" else ()
    names = ["key_projection"] if options.sharing in ("kv", "layers") else ["key_projection", "value_projection"]
    layers = family.layer_paths(context.config)
    weights = []
    for path in layers[:1] if options.sharing == "layers" else layers:
        for name in names:
            full = f"{path}.{family.code.attention_path}.mix.{name}"
            weights.append(Weight(full, (*heads, options.proj_dim, options.max_length)))
            if options.projection_bias:
                weights.append(Weight(f"{full}_bias", (*heads, options.proj_dim), "zeros"))
    return weights


def _rules(context: Context) -> Sequence[Rule]:
    options = context.options
    peaks = {"segment": default_peak(options.sharing, options.weighting), "mean": 0.0, "strided": 1.0}
    layers = context.family.layer_paths(context.config)
    rules = []
    for weight in _weights(context):
        if weight.name.endswith("_bias"):
            continue  # zeros, like any new bias
        layer = next(i for i, path in enumerate(layers) if weight.name.startswith(f"{path}."))
        size = shape_of(weight, context.config)
        op = Projection(weight.name, size, options.init, layer, peaks.get(options.init, 0.0), context.seed, "F32")
        rules.append(Rule((), weight.name, op, WHY.get(options.init, f"random ({options.init})")))
    return [*rules, *position_rules(context, options.max_length)]


def _exact(manifest: Mapping[str, Any]) -> str:
    if manifest["options"]["mask_mode"] == "published":
        return "mask_mode published projects inputs of every length"
    return equal_positions(manifest)


def _masked(manifest: Mapping[str, Any]) -> str:
    return "mask_mode published does not mask padding" if manifest["options"]["mask_mode"] == "published" else ""


LINFORMER = Target(
    name="linformer",
    summary="keys and values projected to a fixed number of rows, linear in the length (arXiv 2006.04768)",
    recipe=Recipe("attention:.5,hidden:.5"),
    exact=lambda options: 0 if options.get("mask_mode", "masked") == "published" else int(options.get("proj_dim", 0)),
    label=lambda options: f"linformer, {options['proj_dim']} rows",
    options=LinformerOptions,
    code=TargetCode(
        name="linformer",
        class_prefix="Linformer",
        attention=("linformer_attention", "LinformerAttention"),
        encoder_mixin=("linformer_attention", "LinformerEncoderMixin"),
        config_mixin=("linformer_configuration", "LinformerConfigMixin"),
        others=(("linformer_projection", "peaked_segments"),),
    ),
    config=_config,
    weights=_weights,
    rules=_rules,
    scratch=Scratch(defaults={"init": "xavier"}, rules=_rules),  # as in the authors' code
    checks=(
        Check(
            "equal_to_source",
            "effconv.targets.linformer.checks:equal_to_source",
            "inputs of up to proj_dim tokens give the source's outputs on every head",
            1e-5,
            _exact,
            needs_source=True,
            means="a tensor was copied to the wrong place, or config.json does not describe the source's code",
        ),
        Check(
            "equal_to_formula",
            "effconv.targets.linformer.checks:equal_to_formula",
            "longer inputs give the outputs of a float64 implementation of the attention",
            1e-5,
            means="the attention computes wrong results on this machine or with this version of torch",
        ),
        *common_checks(
            _masked,
            every_tensor_read="effconv.targets.linformer.checks:every_tensor_read",
        ),
    ),
)
