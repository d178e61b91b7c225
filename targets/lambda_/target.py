"""Lambda as a target: one λ a head, made from landmark queries, and a local term (arXiv 2102.08602)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...convert.families.grammar import Weight, number, shape_of
from ...convert.ops import Calibrated
from ...convert.positions import position_rules
from ...convert.recipe import Recipe
from ...convert.repo.modelcode import TargetCode
from ...convert.target import Check, Context, Rule, Scratch, Target, common_checks
from .options import LambdaOptions
from .scratch import starting_rules


def _config(context: Context) -> dict[str, Any]:
    options = context.options
    return {
        "key_depth": options.key_depth,
        "intra_depth": options.intra_depth,
        "local_context_size": options.local_context,
        "max_position_embeddings": options.max_length + context.family.special_positions(context.config),
        "use_cache": False,
    }


def _weights(context: Context) -> Sequence[Weight]:
    family, options = context.family, context.options
    heads = number(context.config, family.num_heads)
    width = family.head_width(context.config)
    landmarks = options.key_depth * options.intra_depth + 1
    shapes: dict[str, tuple[str | int, ...]] = {
        "landmarks": (heads, landmarks, width),
        "content_weight": (heads, landmarks, width),
        "content_bias": (heads, landmarks),
    }
    if options.local_context:
        shapes |= {"local_weight": (heads, options.local_context, width), "local_bias": (heads, options.local_context)}
    return [
        Weight(f"{path}.{family.code.attention_path}.mix.{name}", shape)
        for path in family.layer_paths(context.config)
        for name, shape in shapes.items()
    ]


def _rules(context: Context) -> Sequence[Rule]:
    rules = [
        Rule(
            (),
            weight.name,
            Calibrated(weight.name, shape_of(weight, context.config), "landmarks and least squares", "F32"),
            "fitted on text to the outputs of the source's attention",
        )
        for weight in _weights(context)
    ]
    return [*rules, *position_rules(context, context.options.max_length)]


LAMBDA = Target(
    name="lambda",
    summary="lambda layers, one per head: landmark queries and a local term, linear in the length (arXiv 2102.08602)",
    # End to end at a quarter of the rate the held-out cosine fell (0.961 to 0.953) and rose again only as the rate went
    # down; at a tenth it rose from the first look on (0.962 to 0.965).
    recipe=Recipe("attention:.5,hidden:.5", end_to_end=0.1),
    options=LambdaOptions,
    code=TargetCode(
        name="lambda",
        class_prefix="Lambda",
        attention=("lambda_attention", "LambdaAttention"),
        encoder_mixin=("lambda_outputs", "LambdaEncoderMixin"),
        head_mixin=("lambda_outputs", "LambdaHeadMixin"),
        config_mixin=("lambda_configuration", "LambdaConfigMixin"),
    ),
    config=_config,
    weights=_weights,
    rules=_rules,
    scratch=Scratch(idle=("calibrate",), rules=lambda context: starting_rules(context, _weights(context))),
    checks=(
        Check(
            "equal_to_formula",
            "effconv.targets.lambda_.checks:equal_to_formula",
            "the attention gives the outputs of a float64 implementation at every position",
            1e-5,
            means="the attention computes wrong results on this machine or with this version of torch",
        ),
        *common_checks(
            every_tensor_read="effconv.targets.lambda_.checks:every_tensor_read",
        ),
    ),
    calibration="effconv.targets.lambda_.fit:calibrate_lambda",
    variant=lambda options: "lambda-published" if options.groups == "1" else "",
)
