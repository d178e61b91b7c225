"""LSG as a target: which options it takes, which tensors it changes, what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..convert.families import ENCODERS
from ..convert.family import Weight
from ..convert.modelcode import LSG_CODE
from ..convert.positions import equal_positions, position_rules
from ..convert.target import PADDING_CHANGES_NOTHING, SAVED_AGAIN_EQUAL, Check, Context, Rule, Target
from .global_embeddings import GlobalEmbeddings
from .options import ROWS, LSGOptions
from .upgrade import CONFIG_FIELDS, complete, globals_of, stated, upgraded

# Families whose token type 0 is part of every embedding, and so of the globals too.
TYPED = ("bert", "electra", "albert", "ernie")


def _config(context: Context) -> dict[str, Any]:
    fields = {name: getattr(context.options, name) for name in CONFIG_FIELDS}
    fields["pool_with_global"] = fields["pool_with_global"] or fields["mask_first_token"]
    seed = context.config.get("lsh_seed") if stated(context.config) else None
    return {
        **fields,
        "lsh_seed": context.seed if seed is None else seed,
        "max_position_embeddings": context.options.max_length + context.family.special_positions,
        "use_cache": False,  # block attention keeps no key and value cache
    }


def _weights(context: Context) -> Sequence[Weight]:
    words = next(weight for weight in context.family.embeddings if weight.name == context.family.words)
    return (Weight(context.family.global_embeddings, (ROWS, words.shape[1])),)


def _drops(context: Context) -> dict[str, str]:
    made = bool(stated(context.config)) and globals_of(context) == "made"
    return {context.family.global_embeddings: "made anew (--reset-global-tokens)"} if made else {}


def _rules(context: Context) -> Sequence[Rule]:
    family, options = context.family, context.options
    asked = "--keep-first-global-token" if options.keep_first_global_token else "--reset-global-tokens"
    if not stated(context.config) and (options.keep_first_global_token or options.reset_global_tokens):
        raise UsageError(
            "only a source that is LSG already has global tokens to keep or to make anew",
            where=asked,
            hint="leave it out for a dense source",
        )
    resized = position_rules(context, options.max_length, options.positions)
    kept = (family.global_embeddings,)
    if globals_of(context) == "kept":
        return [Rule(kept, family.global_embeddings), *resized]
    made = GlobalEmbeddings(
        bos=_bos(context),
        mask=_mask(context),
        special=family.special_positions,
        stride=options.global_positional_stride,
        init=options.global_init,
        seed=context.seed,
        keeps_first=options.keep_first_global_token,
    )
    inputs = (family.positions, family.words, *_types(context), *(kept if made.keeps_first else ()))
    return [Rule(inputs, family.global_embeddings, made), *resized]


def _types(context: Context) -> tuple[str, ...]:
    family = context.family
    if not context.options.use_token_ids or family.name not in TYPED:
        return ()
    stored = {weight.name for weight in family.base_weights(context.config)}
    return tuple(name for name in family.token_types if name in stored)


def _bos(context: Context) -> int:
    tokens, config = context.tokens, context.config
    for token in (tokens.bos, tokens.cls, config.get("bos_token_id")):
        if isinstance(token, int):
            return token
    raise BadInputError(
        "no beginning-of-sequence token: neither the tokenizer nor config.json names one",
        where="tokenizer_config.json",
        hint="add the tokenizer's files to the source, or bos_token_id to config.json",
    )


def _mask(context: Context) -> int | None:
    if context.options.global_init == "random":
        return None
    if context.tokens.mask is None:
        raise BadInputError(
            "the tokenizer has no mask token, whose embedding the global tokens start from",
            where="tokenizer_config.json: mask_token",
            hint="add the tokenizer's files to the source, or pass --global-init random",
        )
    return context.tokens.mask


def _padding(manifest: Mapping[str, Any]) -> str:
    options = manifest["options"]
    if not options["adaptive"]:
        return "the model takes whole blocks only (adaptive is off)"
    if options["sparsity_type"] == "none" or not options["sparse_block_size"]:
        return ""
    if options["sparsity_factor"] == options["block_size"]:
        return "with one sparse key a block, a text padded beyond two blocks sees its own block twice, as published"
    if options["sparsity_type"] == "bos_pooling" and options["bos_pooling_padding"] == "published":
        return "groups of bos_pooling that are all padding stay visible, as published"
    return ""


LSG = Target(
    name="lsg",
    says="local + sparse + global attention, linear in the length (arXiv 2210.15497)",
    families=ENCODERS,
    causal=True,
    again=True,
    complete=complete,
    upgraded=upgraded,
    drops=_drops,
    options=LSGOptions,
    code=LSG_CODE,
    config=_config,
    weights=_weights,
    rules=_rules,
    checks=(
        Check(
            "equal_to_source",
            "effconv.lsgify.checks:equal_to_source",
            "without global tokens, inputs of up to two blocks give the source's outputs on every head",
            1e-5,
            equal_positions,
        ),
        Check(
            "equal_to_formula",
            "effconv.lsgify.checks:equal_to_formula",
            "longer inputs give what a dense, masked float64 form of the attention formula gives",
            1e-5,
        ),
        PADDING_CHANGES_NOTHING.limited(_padding),
        SAVED_AGAIN_EQUAL,
    ),
)
