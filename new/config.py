"""From the options of `effconv new` to the config of the stock model whose attention is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..convert.errors import UnsupportedError, UsageError, did_you_mean
from ..convert.families.grammar import Family, Head
from ..convert.io.tokenizer import SpecialTokens
from ..convert.target import Target
from ..targets.bigs.target import BIGS
from ..targets.bigs.target import DEFAULTS as BIGS_FIELDS
from .families import STARTS, Start
from .options import NewOptions
from .presets import Preset, Sizes, default_preset, presets_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A new model, before its tokenizer is known.

    Attributes:
        target: that makes it. name: of the preset. preset: the sizes and fields to begin with.
        family: of the stock model. start: of that family. length: longest input in tokens.
        head: of the family. options: as given.
    """

    target: Target
    name: str
    preset: Preset
    family: Family
    start: Start
    length: int
    head: Head
    causal: bool
    options: NewOptions


def preset_named(command: str, given: str | None) -> tuple[str, Preset]:
    """The preset of that name for a target's command; by default base, or the published model of BiGS.

    Raises:
        UsageError: there is no such preset; the message lists those there are.
    """
    known = presets_of(command)
    name = given or default_preset(command)
    if name not in known:
        raise UsageError(
            f"{command} has no preset {name!r}{did_you_mean(name, known)}",
            where="--like",
            hint="use one of " + ", ".join(known),
        )
    return name, known[name]


def family_named(target: Target, name: str) -> Family:
    """The family of that name, if the target takes it.

    Raises:
        UnsupportedError: it does not.
    """
    from ..targets.registry import families

    found = families().get(name)
    if found is None or name not in STARTS or name not in target.families:
        known = [family for family in target.families if family in STARTS]
        raise UnsupportedError(
            f"{target.asked_for} makes no {name}{did_you_mean(name, known)}",
            where="--family",
            hint="use one of " + ", ".join(known),
        )
    return found


def head_for(family: Family, target: Target, options: NewOptions, causal: bool, usual: str) -> Head:
    """The head of the stock model.

    Args:
        usual: of the preset; "" where it names none.

    Raises:
        UsageError: there is no such head, or it reads whole texts and the model shall be causal.
        UnsupportedError: the target or the family cannot be causal.
    """
    if causal and not target.causal:
        raise UnsupportedError(
            f"{target.asked_for} attention is never causal: a token would see later tokens",
            where="--causal",
            hint="leave out --causal, or use lsg, transnormer or dense",
        )
    own = options.architecture if target.emits is None or target.brings else None
    if own is not None:
        head = family.head_asked_for(own, target.name)
    elif causal:
        named = next((head for head in family.heads if head.causal and not family.part(head)), None)
        if named is None:
            raise UnsupportedError(
                f"{family.name} has no causal language-model head", where="--causal", hint="use --family bert"
            )
        head = named
    else:
        known = [head.suffix for head in family.heads]
        head = family.head(next((name for name in (usual, "ForMaskedLM") if name in known), family.default_head))
    if causal and not head.causal and head.suffix != "Model":
        raise UsageError(
            f"{head.suffix} needs attention in both directions", where="--causal", hint="leave out --architecture"
        )
    return head


def stock_config(asked: Asked, vocab: int, tokens: SpecialTokens) -> dict[str, Any]:
    """config.json of the stock model.

    Args:
        tokens: of the tokenizer; all None without one.

    Raises:
        UsageError: a size or a field that the family does not have.
    """
    family, start, options = asked.family, asked.start, asked.options
    bigs = family is BIGS
    fields = {**(BIGS_FIELDS if bigs else {}), **start.fields, **asked.preset.fields}
    config = {
        **fields,
        **_sizes(start, asked.preset.sizes, options, asked.name),
        **_special(fields, tokens),
        "vocab_size": vocab,
        "model_type": family.model_types[0] if bigs else family.code.model_type,
        "architectures": [family.class_name(asked.head)],
    }
    if asked.causal:
        config |= {"is_decoder": True, **_generation(tokens)}
    further = options.further_fields()
    unknown = sorted(further.keys() - config.keys() - ({"num_ssm_heads", "scaling"} if bigs else set()) - LABELS)
    if unknown:
        raise UsageError(
            f"{family.name} has no field {', '.join(unknown)}{did_you_mean(unknown[0], config)}",
            where="--set",
            hint="use one of " + ", ".join(sorted(config)),
        )
    config |= further
    special = 0 if bigs or start.length != "max_position_embeddings" else family.special_positions(config)
    return {**config, start.length: asked.length + special}


LABELS = {"num_labels", "id2label", "label2id", "problem_type", "classifier_dropout"}


def _sizes(start: Start, sizes: Sizes, options: NewOptions, preset: str) -> dict[str, int]:
    """The sizes by the family's fields. The feed-forward keeps its ratio to the hidden size."""
    hidden = options.hidden or sizes.hidden
    inner = options.intermediate or max(sizes.inner * hidden // sizes.hidden, 1)
    heads = options.heads or sizes.heads
    found = dict.fromkeys(start.layers, options.layers or sizes.layers) | {start.hidden: hidden}
    found |= dict.fromkeys(start.heads, heads) | dict.fromkeys(start.inner, inner)
    if options.heads and not start.heads:
        raise UsageError("BiGS has no attention heads", where="--heads", hint="pass --set num_ssm_heads=N")
    if options.embedding and not start.embedding:
        raise UsageError(
            "the embeddings of this family are as wide as its layers", where="--embedding", hint="leave out --embedding"
        )
    if start.heads and hidden % heads:
        raise UsageError(
            f"--hidden must be a multiple of --heads, got {hidden} and {heads}",
            where="--hidden" if options.hidden else "--heads",
            hint=f"{preset} has {sizes.heads} heads and a hidden size of {sizes.hidden}",
        )
    if start.embedding:
        found[start.embedding] = options.embedding or start.embedding_width(hidden)
    if "d_kv" in start.fields:
        found["d_kv"] = hidden // heads
    return found


def _special(fields: Mapping[str, Any], tokens: SpecialTokens) -> dict[str, int | None]:
    """Ids of special tokens by the config's fields, as far as the tokenizer says them.

    A model without a padding token must not take another one for it, whose embedding would then never be trained.
    """
    known = {
        "pad_token_id": tokens.pad,
        "bos_token_id": tokens.bos if tokens.bos is not None else tokens.cls,
        "eos_token_id": tokens.eos if tokens.eos is not None else tokens.sep,
    }
    named = any(value is not None for value in known.values())
    found: dict[str, int | None] = {n: value for n, value in known.items() if n in fields and value is not None}
    if named and tokens.pad is None and "pad_token_id" in fields:
        found["pad_token_id"] = None
    return found


def _generation(tokens: SpecialTokens) -> dict[str, int]:
    known = {
        "bos_token_id": tokens.bos if tokens.bos is not None else tokens.cls,
        "eos_token_id": tokens.eos if tokens.eos is not None else tokens.sep,
    }
    return {name: value for name, value in known.items() if value is not None}
