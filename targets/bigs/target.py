"""BiGS between JAX and torch, and to another length: names, shapes, plan and configs of both sides.

A tensor has one canonical name, the torch one without the base model's prefix. `NAMES` pairs it with the JAX name and
the operation between the two, which is its own inverse. The plan is the common one, which `BIGS.flax` tells both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...convert.errors import BadInputError, UsageError, listing
from ...convert.families.bert import BERT_NSP, BERT_PREDICTIONS, BERT_TIED
from ...convert.families.code import FamilyCode
from ...convert.families.flax_names import FlaxNames
from ...convert.families.grammar import Config, Family, Head, Weight, linear, norm, number, when
from ...convert.families.parts import BRACKETED, CHOICE, CLASSIFIER, INNER, POOLER, H, embeddings
from ...convert.io.formats import FLAX, SAFETENSORS
from ...convert.ops import Copy, InterpolatePositions, Op, TilePositions, Transpose
from ...convert.repo.modelcode import StandaloneCode, auto_map
from ...convert.target import (
    EVERY_TENSOR_READ,
    PADDING_CHANGES_NOTHING,
    RUNS_AT_FULL_LENGTH,
    SAME_TOKENS,
    SAVED_AGAIN_EQUAL,
    Check,
    Context,
    Rule,
    Scratch,
    Target,
)
from .options import BiGSOptions
from .scratch import starting_rules

MODEL_TYPES = ("BiGS", "bigs-encoder")  # as published, and ours
JAX_PREFIX, TORCH_PREFIX = "s4_bert", "bigs"
MODES, HEADS = "num_ssm", "num_ssm_heads"
UNCAST = "the phases of a convolution do not survive less"
DENSE = {
    "dv": (H, INNER), "du_forward": (H, H), "du_backward": (H, H), "duc_forward": (H, H), "duc_backward": (H, H),
    "dol": (H, INNER), "do": (INNER, H),
}  # fmt: skip
# What a published config leaves out, and the fields of one that the emitted config keeps.
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 24, "intermediate_size": 3072, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2, "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute", "num_ssm": 64, "pre_norm": True,
    "pooler_type": "non_padding_mean", "classifier_dropout": None, "decode": False, "tie_word_embeddings": True,
    "layer_gelu": "tanh", "mask_mode": "pooler",
}  # fmt: skip
CARRIED_FIELDS = (
    "num_ssm_heads", "scaling", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "bos_token_id",
    "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
)  # fmt: skip
TORCH_CODE = StandaloneCode(
    model_type=MODEL_TYPES[1],
    module="modeling_bigs",
    config="configuration_bigs.BiGSConfig",
    files=("bigs_ssm.py", "configuration_bigs.py", "modeling_bigs.py"),
)
JAX_CODE = StandaloneCode(
    model_type=MODEL_TYPES[0],
    module="modeling_bigs_jax",
    config="modeling_bigs_jax.BiGSConfig",
    files=("modeling_bigs_jax.py",),
    auto=False,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor on both sides, `{i}` for the layer; `op` leads from either to the other."""

    jax: str
    torch: str
    op: Op = Copy()


def _dense(jax: str, torch: str) -> tuple[Pair, Pair]:
    return Pair(f"{jax}/kernel", f"{torch}.weight", Transpose()), Pair(f"{jax}/bias", f"{torch}.bias")


def _norm(jax: str, torch: str) -> tuple[Pair, Pair]:
    return Pair(f"{jax}/scale", f"{torch}.weight"), Pair(f"{jax}/bias", f"{torch}.bias")


NAMES: tuple[Pair, ...] = (
    *(
        Pair(f"embeddings/{name}_embeddings/embedding", f"embeddings.{name}_embeddings.weight")
        for name in ("word", "position", "token_type")
    ),
    *_norm("embeddings/LayerNorm", "embeddings.LayerNorm"),
    *_norm("encoder/layer/{i}/LayerNorm", "encoder.layer.{i}.LayerNorm"),
    *(pair for name in DENSE for pair in _dense(f"encoder/layer/{{i}}/{name}", f"encoder.layer.{{i}}.{name}")),
    *(
        Pair(f"encoder/layer/{{i}}/{way}/{name}", f"encoder.layer.{{i}}.{way}.kernel.{name}")
        for way in ("fs4", "bs4")
        for name in ("A_re", "A_im", "C", "log_step")
    ),
    *(Pair(f"encoder/layer/{{i}}/{way}/D", f"encoder.layer.{{i}}.{way}.D") for way in ("fs4", "bs4")),
    *_dense("pooler/dense", "pooler.dense"),
    *_dense("cls/predictions/transform/dense", "cls.predictions.transform.dense"),
    *_norm("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm"),
    Pair("cls/predictions/bias", "cls.predictions.bias"),
    Pair("cls/predictions/decoder/kernel", "cls.predictions.decoder.weight", Transpose()),
    *_dense("cls/seq_relationship", "cls.seq_relationship"),
    *_dense("classifier", "classifier"),
    *_dense("qa_outputs", "qa_outputs"),
)
BY_JAX = {pair.jax: pair for pair in NAMES}
BY_TORCH = {pair.torch: pair for pair in NAMES}


def canonical_name(stored: str) -> str | None:
    """The canonical name of a tensor of a JAX checkpoint; None for one that no BiGS model has."""
    pattern, layer = _pattern(stored.removeprefix(f"{JAX_PREFIX}/"), "/")
    pair = BY_JAX.get(pattern)
    return pair.torch.replace("{i}", layer) if pair else None


def jax_name(canonical: str) -> str:
    """The JAX name of a canonical one, without the base model's prefix."""
    pattern, layer = _pattern(canonical, ".")
    return BY_TORCH[pattern].jax.replace("{i}", layer)


def operation(canonical: str) -> Op:
    """What a tensor goes through from one side to the other, in both directions."""
    pair = BY_TORCH.get(_pattern(canonical, ".")[0])
    return pair.op if pair else Copy()


def _pattern(name: str, separator: str) -> tuple[str, str]:
    """A name with `{i}` for its layer, and the layer."""
    start = f"encoder{separator}layer{separator}"
    found = re.fullmatch(rf"{re.escape(start)}(0|[1-9][0-9]{{0,4}}){re.escape(separator)}(.+)", name, re.ASCII)
    return (f"{start}{{i}}{separator}{found[2]}", found[1]) if found else (name, "")


def is_multi_head(config: Config) -> bool:
    """The condition that the convolutions' tensors have an axis of heads."""
    return config.get(HEADS) is not None


def _convolution(way: str, heads: tuple[str, ...]) -> tuple[Weight, ...]:
    return (
        Weight(f"{way}.D", (*heads, 1), "ones", uncast=UNCAST),
        Weight(f"{way}.kernel.A_re", (*heads, MODES), uncast=UNCAST),
        Weight(f"{way}.kernel.A_im", (*heads, MODES), uncast=UNCAST),
        Weight(f"{way}.kernel.C", (*heads, MODES, 2), uncast=UNCAST),
        Weight(f"{way}.kernel.log_step", (*heads, 1), uncast=UNCAST),
    )


BIGS = Family(
    name="bigs",
    prefix=TORCH_PREFIX,
    code=FamilyCode(module="bigs", model_type=MODEL_TYPES[1], class_prefix="BiGS"),
    embeddings=embeddings(H),
    layer=(
        *norm("LayerNorm", H),
        *(weight for name, sizes in DENSE.items() for weight in linear(name, *sizes)),
        *(
            weight
            for way in ("fs4", "bs4")
            for weight in (
                *when(lambda config: not is_multi_head(config), _convolution(way, ())),
                *when(is_multi_head, _convolution(way, (HEADS,))),
            )
        ),
    ),
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForPreTraining", "AutoModelForPreTraining", BERT_PREDICTIONS + BERT_NSP, True, BERT_TIED),
        Head("ForMaskedLM", "AutoModelForMaskedLM", BERT_PREDICTIONS, False, BERT_TIED),
        Head("ForNextSentencePrediction", "AutoModelForNextSentencePrediction", BERT_NSP, True),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER, True),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", linear("qa_outputs", H, 2)),
    ),
    default_head="ForMaskedLM",
    special_tokens=BRACKETED,
    tokenizer="BertTokenizer",
    num_heads="",
    same={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    model_types=MODEL_TYPES,
    read_config=lambda config: read_bigs_config(config),
    flax=FlaxNames(JAX_PREFIX, canonical_name, jax_name, operation),
)


def to_torch_config(context: Context) -> dict[str, Any]:
    """config.json of a torch repo."""
    heads = {head.suffix: head.auto for head in BIGS.heads}
    return {
        **_config(context),
        "model_type": TORCH_CODE.model_type,
        "auto_map": auto_map(BIGS.code, TORCH_CODE, heads),
        # Whatever the weights are stored in, they are applied in float32, as the published model does: its logits
        # shift by 0.1 and more otherwise. A user may still ask for another dtype at loading.
        "dtype": "float32",
    }


def to_jax_config(context: Context) -> dict[str, Any]:
    """config.json of a JAX repo, under the published model_type: no Auto class takes it for something else."""
    return {**_config(context), "model_type": MODEL_TYPES[0]}


def _config(context: Context) -> dict[str, Any]:
    source, options = context.config, context.options
    return {
        **{key: source[key] for key in (*DEFAULTS, *CARRIED_FIELDS) if key in source},
        "max_position_embeddings": options.max_length,
        "layer_gelu": options.layer_gelu,
        "mask_mode": options.mask_mode,
        "architectures": [f"BiGS{context.head.suffix}"],
    }


def read_bigs_config(config: Config) -> Config:
    """A source's config with what published ones leave out, checked."""
    whole = {**DEFAULTS, **config}
    check_bigs_config(whole)
    return whole


def resolve_options(options: BiGSOptions, config: Config) -> BiGSOptions:
    """Fills in the options that were not given, from the source's config."""
    stored = number(config, "max_position_embeddings")
    if options.positions != "repeat" and options.max_length in (None, stored):
        raise UsageError(
            f"the source and the result both take {stored} tokens: the position table does not change",
            where="--positions",
            hint="leave out --positions, or give another --max-len",
        )
    return replace(
        options,
        max_length=options.max_length or stored,
        layer_gelu=options.layer_gelu or config["layer_gelu"],
        mask_mode=options.mask_mode or config["mask_mode"],
    )


def _rules(context: Context) -> list[Rule]:
    """The position table, where its length changes."""
    length, positions = context.options.max_length, context.family.positions
    if length == number(context.config, "max_position_embeddings"):
        return []
    resize = TilePositions if context.options.positions == "repeat" else InterpolatePositions
    return [Rule((positions,), positions, resize(length))]


def check_bigs_config(config: Config) -> None:
    """Raises BadInputError with every field that is invalid for a BiGS encoder."""
    choices = {
        "layer_gelu": ("tanh", "erf"), "mask_mode": ("pooler", "inert"), "pooler_type": ("non_padding_mean", "mean"),
        "position_embedding_type": ("absolute",), "decode": (False,), "pre_norm": (True, False),
        "tie_word_embeddings": (True, False),
    }  # fmt: skip
    faults = [
        f"{name} must be one of {', '.join(map(str, values))}, got {config[name]!r}"
        for name, values in choices.items()
        if not any(config[name] is value or config[name] == value for value in values)
    ]
    if config.get(HEADS) is not None and number(config, H) % number(config, HEADS):
        faults.append(f"{HEADS} must divide hidden_size {config[H]}, got {config[HEADS]}")
    if faults:
        raise BadInputError(
            f"this is not the config of a BiGS encoder:\n{listing(faults)}",
            where="config.json",
            hint="compare it with the config of a published BiGS model",
        )


def _padding(manifest: Mapping[str, Any]) -> str:
    return (
        ""
        if manifest["options"]["mask_mode"] == "inert"
        else "padding affects the outputs, as published (mask_mode pooler)"
    )


def _cast(manifest: Mapping[str, Any]) -> str:
    return "the weights were cast" if manifest["settings"]["dtype"] else ""


CHECKS = "effconv.targets.bigs.checks"
EQUAL_TO_SOURCE = Check(
    "equal_to_source",
    f"{CHECKS}:equal_to_source",
    "the outputs equal those of the source's weights in a float64 implementation of BiGS",
    5e-5,
    _cast,
    needs_source=True,
    means="a tensor was copied to the wrong place, or config.json does not match the training of the weights",
)
TORCH_EQUALS_FORMULA = Check(
    "equal_to_formula",
    f"{CHECKS}:torch_equals_formula",
    "the model gives the outputs of a float64 implementation of BiGS",
    5e-5,
    means="the model computes wrong results on this machine or with this version of torch",
)
FRAMEWORKS_AGREE = Check(
    "jax_and_torch_agree",
    f"{CHECKS}:frameworks_agree",
    "the same weights give the same outputs in JAX and in PyTorch (without JAX: in a float64 implementation)",
    5e-5,
    means="JAX or PyTorch computes wrong results on this machine",
)


def _target(name: str, summary: str, folder_suffix: str, **fields: Any) -> Target:
    return Target(
        name=name,
        summary=summary,
        only=(BIGS.name,),
        emits=BIGS,
        options=BiGSOptions,
        folder_suffix=folder_suffix,
        weights=lambda context: (),
        rules=_rules,
        resolve_options=resolve_options,
        whole_config=True,
        new_last=True,
        **fields,
    )


_TORCH: Mapping[str, Any] = {
    "config": to_torch_config,
    "weights_format": SAFETENSORS,
    "code": TORCH_CODE,
    "checks": (
        EQUAL_TO_SOURCE,
        TORCH_EQUALS_FORMULA,
        FRAMEWORKS_AGREE,
        PADDING_CHANGES_NOTHING.limited(_padding),
        SAVED_AGAIN_EQUAL,
        EVERY_TENSOR_READ.by(f"{CHECKS}:every_tensor_read"),
        RUNS_AT_FULL_LENGTH,
        SAME_TOKENS,
    ),
}
JAX2TORCH = _target("jax2torch", "BiGS (arXiv 2212.10544) from JAX to PyTorch", "torch", reads=("msgpack",), **_TORCH)
RESIZED = _target(
    "bigs",
    "BiGS (arXiv 2212.10544) in PyTorch, with another maximum length",
    "torch",
    scratch=Scratch(
        family=BIGS.name,
        idle=("positions",),
        rules=lambda context: starting_rules(context, BIGS.base_weights(context.config)),
    ),
    **_TORCH,
)
TORCH2JAX = _target(
    "torch2jax",
    "BiGS (arXiv 2212.10544) from PyTorch to JAX",
    "jax",
    config=to_jax_config,
    weights_format=FLAX,
    code=JAX_CODE,
    checks=(EQUAL_TO_SOURCE, FRAMEWORKS_AGREE, EVERY_TENSOR_READ.by(f"{CHECKS}:every_jax_tensor_read"), SAME_TOKENS),
)
