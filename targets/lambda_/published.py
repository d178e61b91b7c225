"""The published LambdaBERT as a target: one λ shared by all heads, to be trained (arXiv 2102.08602; `--groups 1`).

Embeddings, output projections, feed-forwards and heads come from the source. What mixes tokens is new: a λ shared by
all heads cannot hold what attention heads with keys of their own have learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...convert.errors import UsageError
from ...convert.families.bert import BERT, BERT_NSP, BERT_PREDICTIONS, BERT_TIED
from ...convert.families.code import FamilyCode
from ...convert.families.grammar import Config, Family, Head, Weight, linear, norm, number
from ...convert.positions import position_rules
from ...convert.recipe import Recipe
from ...convert.repo.modelcode import StandaloneCode
from ...convert.target import Check, Context, Rule, Scratch, Target, common_checks
from .options import POSITION_STD, LambdaOptions

# Fields of the emitted config, in which the shapes of the layer are written.
QUERY, KEY, VALUE, WIDTH = "query_channels", "key_channels", "value_channels", "hidden_size"


def _norm_1d(name: str, size: str) -> tuple[Weight, ...]:
    """A batch norm: scale, shift and running statistics, which start as those of standardised inputs."""
    return (
        *norm(name, size),
        Weight(f"{name}.running_mean", (size,), "zeros"),
        Weight(f"{name}.running_var", (size,), "ones"),
        Weight(f"{name}.num_batches_tracked", (), "zeros", dtype="I64"),
    )


def _local(config: Config) -> bool:
    return config.get("local_context_size") is not None


def _global(config: Config) -> bool:
    return not _local(config)


LAYER = (
    Weight("lambdalayer.self.query.weight", (QUERY, WIDTH, 1), "fan-in"),
    Weight("lambdalayer.self.key.weight", (KEY, WIDTH, 1), "fan-in"),
    Weight("lambdalayer.self.value.weight", (VALUE, WIDTH, 1), "fan-in"),
    *_norm_1d("lambdalayer.self.norm_q", QUERY),
    *_norm_1d("lambdalayer.self.norm_v", VALUE),
    Weight(
        "lambdalayer.self.rel_pos_embed",
        ("key_depth", "intra_depth", 1, "local_context_size"),
        when=_local,
        std="position_std",
    ),
    Weight(
        "lambdalayer.self.pos_diagonal",
        ("max_position_embeddings", "intra_depth", "key_depth"),
        when=_global,
        std="position_std",
    ),
    *linear("lambdalayer.output.dense", WIDTH, WIDTH),
    *norm("lambdalayer.output.LayerNorm", WIDTH),
    *linear("intermediate.dense", WIDTH, "intermediate_size"),
    *linear("output.dense", "intermediate_size", WIDTH),
    *norm("output.LayerNorm", WIDTH),
)
# The head that has all of a source's head: without its classifier, a classifier would not be what it was.
KEPT_IN = {
    "Model": "Model",
    **dict.fromkeys(("ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"), "ForPreTrainingNSP"),
}
SOP_PREDICTIONS = tuple(replace(weight, name=weight.name.removeprefix("cls.")) for weight in BERT_PREDICTIONS)
SOP_TIED = {
    alias.removeprefix("cls."): name.removeprefix("cls.") if name.startswith("cls.") else name
    for alias, name in BERT_TIED.items()
}

LAMBDA_BERT = Family(
    name="lambdabert",
    prefix="lambdabert",
    code=FamilyCode(
        module="bert", model_type="lambdabert", class_prefix="LambdaBert", attention_path="lambdalayer.self"
    ),
    output_projection="lambdalayer.output.dense",
    embeddings=BERT.embeddings,
    layer=LAYER,
    pooler=BERT.pooler,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForPreTrainingNSP", "AutoModelForPreTraining", BERT_PREDICTIONS + BERT_NSP, True, BERT_TIED),
        Head(
            "ForPreTrainingSOP",
            "AutoModelForPreTraining",
            (*SOP_PREDICTIONS, *linear("sop_classifier.classifier", WIDTH, 2)),
            True,
            SOP_TIED,
        ),
    ),
    default_head="ForPreTrainingNSP",
    special_tokens=BERT.special_tokens,
)


def _config(context: Context) -> dict[str, Any]:
    options = context.options
    hidden = number(context.config, "hidden_size")
    heads = options.num_lambda_queries or number(context.config, "num_attention_heads")
    if hidden % heads:
        raise UsageError(
            f"--num-lambda-queries must divide the hidden size {hidden}, got {heads}",
            where="--num-lambda-queries",
            hint="the width of a value is the hidden size divided by it",
        )
    width = hidden // heads
    return {
        "num_lambda_queries": heads,
        "key_depth": options.key_depth,
        "intra_depth": options.intra_depth,
        "local_context_size": options.local_context or None,
        "position_std": POSITION_STD if options.position_std is None else options.position_std,
        QUERY: heads * options.key_depth,
        KEY: options.key_depth * options.intra_depth,
        VALUE: width * options.intra_depth,
        "output_lambda_params": True,
        "max_position_embeddings": options.max_length,
    }


def _rules(context: Context) -> Sequence[Rule]:
    """The attention's output block keeps its weights under the published name."""
    renamed = [
        Rule((f"{path}.attention.{name}",), f"{path}.lambdalayer.{name}")
        for path in context.family.layer_paths(context.config)
        for name in ("output.dense.weight", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias")
    ]
    return [*renamed, *_predictions(context), *position_rules(context, context.options.max_length)]


def _predictions(context: Context) -> list[Rule]:
    """The masked-LM head of a source that has one, under the name that it has in the class with sentence order."""
    stored = {weight.name for weight in context.head.weights}
    if context.emitted_head.suffix != "ForPreTrainingSOP" or not stored.issuperset(w.name for w in BERT_PREDICTIONS):
        return []
    names = [weight.name for weight in BERT_PREDICTIONS]
    if not context.config.get("tie_word_embeddings", True):
        names += BERT_TIED
    return [Rule((name,), name.removeprefix("cls.")) for name in names]


def _drops(context: Context) -> Mapping[str, str]:
    why = "not used: all heads share one λ"
    return {
        f"{path}.attention.self.{name}.{kind}": why
        for path in context.family.layer_paths(context.config)
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    }


LAMBDA_PUBLISHED = Target(
    name="lambda-published",
    summary="published LambdaBERT, one λ for all heads, needs training (effconv lambda --groups 1; arXiv 2102.08602)",
    only=("bert",),
    recipe=Recipe("hidden", train="all", end_to_end=1.0),
    options=LambdaOptions,
    code=StandaloneCode(
        model_type="lambda-published",
        module="lambda_published",
        config="lambda_published.LambdaBertConfig",
        files=("lambda_attention.py", "lambda_published.py"),
    ),
    config=_config,
    weights=lambda context: (),
    rules=_rules,
    scratch=Scratch(
        defaults={"key_depth": 8, "intra_depth": 4, "local_context": 0, "num_lambda_queries": 8},  # of its config class
        idle=("calibrate",),
    ),
    checks=(
        Check(
            "equal_to_formula",
            "effconv.targets.lambda_.checks:published_equal_to_formula",
            "the first layer gives the outputs of a float64 implementation",
            1e-5,
            means="the attention computes wrong results on this machine or with this version of torch",
        ),
        *common_checks(
            stock_attention_equals_source="effconv.targets.lambda_.checks:published_stock_attention",
            every_tensor_read="effconv.targets.lambda_.checks:every_tensor_read",
            same_embedding="effconv.targets.lambda_.checks:published_same_embedding",
        ),
    ),
    emits=LAMBDA_BERT,
    emitted_suffix=lambda suffix: KEPT_IN.get(suffix, ""),
    drops=_drops,
    command="lambda",
    chosen_by="--groups 1",
)
