"""Upgrades existing LSG models: published repos, whose code no longer loads, and repos made by effconv.

Their weights stay bit-identical, and so does every config field that no option changes. Positions are tiled again if
the length differs. The trained global tokens are kept unless an option re-initialises them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..convert.errors import BadInputError, UsageError
from ..convert.families.converted import LSG, converted
from ..convert.families.grammar import Config
from ..convert.families.registry import ENCODER_DECODERS, FAMILIES
from ..convert.options import is_open
from ..convert.target import Context
from ..templates.lsg_configuration import SPARSITY_TYPES
from .options import ROWS, LSGOptions

# What an emitted config states of the options, and a source that is LSG already states too.
CONFIG_FIELDS = tuple(field.name for field in fields(LSGOptions) if is_open(field) and field.name != "max_length")


def stated(config: Config) -> dict[str, Any]:
    """The options that a source states, in the form that effconv takes: {} unless it is LSG already."""
    before = converted(config)
    if before is None or before.target != LSG or before.family not in FAMILIES:
        return {}
    found = {name: config[name] for name in CONFIG_FIELDS if config.get(name) is not None}
    found["max_length"] = FAMILIES[before.family].longest(config)
    if not before.published:
        return found
    # What the published code makes of such a config when it loads it, and what it does where ours can do either.
    if config.get("sparsity_type", "norm") not in SPARSITY_TYPES:
        found["sparsity_type"] = "none"
    if isinstance(found.get("num_global_tokens"), int):
        found["num_global_tokens"] = min(max(found["num_global_tokens"], 1), ROWS)
    behaviour = dict.fromkeys(("causal_globals", "bos_pooling_padding", "decoder_first_token"), "published")
    return {**behaviour, **found}


def resolve_options(options: LSGOptions, config: Config) -> LSGOptions:
    """Fills in the options that were not given.

    Raises:
        UsageError: an option has no effect for models of this architecture.
        BadInputError: the source's config has invalid LSG settings.
    """
    before = converted(config)
    family = before.family if before else config.get("model_type")
    if options.decoder_first_token == "published" and family in FAMILIES and family not in ENCODER_DECODERS:
        raise UsageError(f"{family} has no decoder", where="--decoder-first-token", hint="leave out this option")
    try:
        filled = options.filled(stated(config) or usual_for(str(family)))
    except UsageError as error:
        raise BadInputError(
            f"with the settings of the source, {error.what}",
            where="config.json",
            hint="override the settings with options such as --block-size",
        ) from None
    if options.pool_with_global is False and filled.mask_first_token:
        raise UsageError(
            "if the first token is masked, the first global token must be returned in its place",
            where="--no-pool-with-global, --mask-first-token",
            hint="leave one of them out",
        )
    return filled


def usual_for(family: str) -> dict[str, Any]:
    """Defaults of a family that are not those of all others.

    Where a bias on scores says how close a key is, its norm says less of its weight. Untrained all-mpnet-base-v2 on 512
    tokens of WikiText-2 valid, cosine of tokens / of sentences to the source: norm .972 / .989, stride .984 / .992,
    bos_pooling .990 / .994.
    """
    biased = family in FAMILIES and FAMILIES[family].score_bias
    return {"sparsity_type": "bos_pooling"} if biased else {}


def globals_of(context: Context) -> str:
    """Where the table of global embeddings comes from: "made", "kept", or made but for a "kept first" row."""
    if context.options.keep_first_global_token:
        return "kept first"
    return "kept" if stated(context.config) and not context.options.reset_global_tokens else "made"


def upgraded(context: Context) -> dict[str, Any]:
    """What the source was, for card and manifest: {} for a dense one."""
    before, options = converted(context.config), stated(context.config)
    if before is None or not options:
        return {}
    named = context.config.get("architectures")
    return {
        "published": before.published,
        "architecture": str(named[0]) if isinstance(named, list) and named else None,
        "global_tokens": globals_of(context),
        "options": options,
    }
