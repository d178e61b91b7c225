"""TransNormer as a target: blocks in some layers, linear attention with a norm in the others (arXiv 2210.10340)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...convert.errors import UnsupportedError, UsageError
from ...convert.families.grammar import Config, Family, Weight, number, shape_of
from ...convert.io.dtypes import Array, from_float32
from ...convert.ops import Calibrated, New, Shape, generator
from ...convert.options import require_sound
from ...convert.positions import position_rules
from ...convert.recipe import Recipe
from ...convert.repo.modelcode import TargetCode
from ...convert.target import Check, Context, Rule, Scratch, Target, common_checks
from .options import TransNormerOptions

BLOCK, LOCAL = "attention.", "attention.local."  # a stock attention block, and the one before it
NORM_WEIGHTS = {
    "simplermsnorm": {},
    "rmsnorm": {"scale": "ones"},
    "gatedrmsnorm": {"scale": "ones", "gate": "ones"},
    "layernorm": {"weight": "ones", "bias": "zeros"},
}


@dataclass(frozen=True, slots=True)
class Rotary:
    """The fixed angles of rotary positions: θ_i = 10000^(−2i/d), as (1, 1, d/2)."""

    width: int
    dtype: str = "F32"
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return (1, 1, self.width // 2)

    def apply(self, *inputs: Array) -> Array:
        angles = 10000.0 ** (-2.0 * np.arange(self.width // 2) / self.width)
        return from_float32(angles.astype(np.float32).reshape(1, 1, -1), self.dtype)


@dataclass(frozen=True, slots=True)
class Reflection:
    """The reflection v of LRPE: a random unit vector, which is not trained."""

    name: str
    width: int
    seed: int
    dtype: str = "F32"
    action = "new"

    def shape(self, *inputs: Shape) -> Shape:
        return (self.width,)

    def apply(self, *inputs: Array) -> Array:
        values = generator(self.seed, self.name).standard_normal(self.width)
        return from_float32((values / np.sqrt((values**2).sum())).astype(np.float32), self.dtype)


def _config(context: Context) -> dict[str, Any]:
    options, width = context.options, context.family.head_width(context.config)
    if options.position_encoding != "none" and width % 2:
        raise UsageError(
            f"{options.position_encoding} needs an even head size, and the heads of this source have {width} channels",
            where="--position-encoding",
            hint="leave out --position-encoding",
        )
    if options.layer_order == "both" and context.family.code.attention_path != "attention.self":
        raise UnsupportedError(
            f"the attention block of {context.family.name} has no residual of its own, so a layer cannot have two",
            where="--layer-order both",
            hint="use --family bert or roberta-prelayernorm",
        )
    layers = len(context.family.layer_paths(context.config))
    require_sound("transnormer", options.idle(layers), options)
    return {
        "variant": options.variant,
        "block_size": options.block_size,
        "diag_layers": options.diag_indices(layers),
        "attention_norm": options.norm,
        "position_encoding": options.position_encoding,
        "feed_forward": options.ffn,
        "mask_mode": options.mask_mode,
        "layer_order": options.layer_order,
        "max_position_embeddings": options.max_length + context.family.special_positions(context.config),
        "use_cache": False,
    }


def _weights(context: Context) -> Sequence[Weight]:
    """Norms, positions and gates, as far as the options ask for them."""
    family, options = context.family, context.options
    hidden = number(context.config, family.hidden_size)
    width = family.head_width(context.config)
    diag = set(context.options.diag_indices(len(family.layer_paths(context.config))))
    weights: list[Weight] = []
    for index, path in enumerate(family.layer_paths(context.config)):
        mixes = {f"{path}.{family.code.attention_path}.mix": index in diag}
        if options.layer_order == "both":
            mixes[f"{path}.{LOCAL}self.mix"] = True
            blocks = [weight for weight in family.layer if weight.name.startswith(BLOCK)]
            weights += [replace(weight, name=f"{path}.{LOCAL}{weight.name.removeprefix(BLOCK)}") for weight in blocks]
        for mix, local in mixes.items():
            if not local or options.variant == "t1":
                weights += [
                    Weight(f"{mix}.norm.{name}", (hidden,), how) for name, how in NORM_WEIGHTS[options.norm].items()
                ]
            if options.position_encoding != "none":
                weights.append(Weight(f"{mix}.lrpe.theta", (1, 1, width // 2), "zeros"))
            if options.position_encoding == "lrpe":
                weights.append(Weight(f"{mix}.lrpe.v", (width,), "zeros"))
        if options.ffn == "glu":
            gate = f"{path}.{family.feed_forward}.gate" if family.feed_forward else f"{path}.gate"
            weights.append(Weight(f"{gate}.weight", (family.inner_size, hidden), "zeros"))
            weights.append(Weight(f"{gate}.bias", (family.inner_size,), "ones"))
    return weights


def _rules(context: Context) -> Sequence[Rule]:
    family, options = context.family, context.options
    if options.layer_order == "both":
        raise UsageError(
            "a layer of the source has one attention, and nothing to begin a second one with",
            where="--layer-order both",
            hint="leave it out, or make a new model: effconv new transnormer --layer-order both",
        )
    layers = family.layer_paths(context.config)
    diag = set(options.diag_indices(len(layers)))
    hidden = number(context.config, family.hidden_size)
    rules: list[Rule] = []
    for name in fitted_names(family, context.config, diag, options.variant):
        module, _, kind = name.rpartition(".")
        why = (
            "least squares to the source's attention" if module.endswith(family.output_projection) else "features of φ"
        )
        size = (hidden, hidden) if kind == "weight" else (hidden,)
        rules.append(Rule((name,), name, Calibrated(name, size, why, "F32"), f"fitted on text: {why}"))
    for path in layers:
        if options.position_encoding == "rotary":
            theta = f"{path}.{family.code.attention_path}.mix.lrpe.theta"
            rules.append(Rule((), theta, Rotary(family.head_width(context.config)), "fixed angles"))
    return [*rules, *position_rules(context, options.max_length)]


def _scratch_rules(context: Context) -> list[Rule]:
    """Angles and reflections as published, and gates that are layers like any other."""
    width = context.family.head_width(context.config)
    rules = []
    for weight in _weights(context):
        part = weight.name.rpartition(".lrpe.")[2]
        if part == "theta":
            rules.append(Rule((), weight.name, Rotary(width), "angles of rotary positions"))
        elif part == "v":
            rules.append(Rule((), weight.name, Reflection(weight.name, width, context.seed), "a random unit vector"))
        elif ".gate." in weight.name and ".norm." not in weight.name:
            size = shape_of(weight, context.config)
            init = "normal" if weight.name.endswith("weight") else "zeros"
            std = float(context.config.get("initializer_range", 0.02))
            rules.append(Rule((), weight.name, New(weight.name, size, init, std, context.seed, "F32"), init))
    return rules


def fitted_names(family: Family, config: Config, diag_layers: Collection[int], variant: str) -> list[str]:
    """Canonical names of the source's tensors that are fitted anew, layer by layer.

    Args:
        diag_layers: indices of the layers with DiagAttention. variant: t1 or t2.
    """
    names = []
    for index, path in enumerate(family.layer_paths(config)):
        modules = [family.output_projection]
        if index not in diag_layers and variant == "t2":
            modules += [f"{family.code.attention_path}.{name}" for name in family.code.projections]
        names += [f"{path}.{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    return names


def _masked(manifest: Mapping[str, Any]) -> str:
    return "mask_mode published does not mask padding" if manifest["options"]["mask_mode"] == "published" else ""


TRANSNORMER = Target(
    name="transnormer",
    summary="attention in blocks, then linear attention with a norm (arXiv 2210.10340)",
    recipe=Recipe("attention:.5,hidden:.5"),
    options=TransNormerOptions,
    code=TargetCode(
        name="transnormer",
        class_prefix="TransNormer",
        attention=("transnormer_attention", "TransNormerAttention"),
        encoder_mixin=("transnormer_attention", "TransNormerEncoderMixin"),
        config_mixin=("transnormer_configuration", "TransNormerConfigMixin"),
    ),
    config=_config,
    weights=_weights,
    rules=_rules,
    scratch=Scratch(idle=("calibrate",), rules=_scratch_rules),
    checks=(
        Check(
            "equal_to_formula",
            "effconv.targets.transnormer.checks:equal_to_formula",
            "each kind of layer gives the outputs of a float64 implementation of its attention",
            1e-5,
            means="the attention computes wrong results on this machine or with this version of torch",
        ),
        *common_checks(
            _masked,
            stock_attention_equals_source="effconv.targets.transnormer.checks:stock_attention_equals_source",
            every_tensor_read="effconv.targets.transnormer.checks:every_tensor_read",
            same_embedding="effconv.targets.transnormer.checks:same_embedding",
        ),
    ),
    calibration="effconv.targets.transnormer.fit:calibrate_transnormer",
    causal=True,
)
