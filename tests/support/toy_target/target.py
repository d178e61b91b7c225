"""Uniform attention as a target: the smallest one there can be, without parameters and options of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effconv.convert.families.grammar import Weight
from effconv.convert.positions import position_rules
from effconv.convert.repo.modelcode import TargetCode
from effconv.convert.target import Check, Context, Rule, Target, common_checks

from .options import UniformOptions


def _config(context: Context) -> dict[str, Any]:
    positions = context.options.max_length + context.family.special_positions(context.config)
    return {"max_position_embeddings": positions, "use_cache": False}


def _weights(context: Context) -> Sequence[Weight]:
    return ()


def _rules(context: Context) -> Sequence[Rule]:
    return position_rules(context, context.options.max_length)


UNIFORM = Target(
    name="uniform",
    summary="every token gets the mean of all values",
    options=UniformOptions,
    code=TargetCode(
        name="uniform",
        class_prefix="Uniform",
        attention=("uniform_attention", "UniformAttention"),
        encoder_mixin=("uniform_attention", "UniformEncoderMixin"),
        config_mixin=("uniform_configuration", "UniformConfigMixin"),
        package=__package__,
    ),
    config=_config,
    weights=_weights,
    rules=_rules,
    checks=(
        Check(
            "equal_to_formula",
            f"{__package__}.checks:equal_to_formula",
            "the attention gives the outputs of a float64 implementation of its formula",
            1e-5,
            means="the attention computes wrong results on this machine or with this version of torch",
        ),
        *common_checks(every_tensor_read=f"{__package__}.checks:every_tensor_read"),
    ),
)
