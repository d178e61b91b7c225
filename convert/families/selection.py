"""Which family a config.json describes, and which of its heads."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..errors import BadInputError, UnsupportedError, UsageError
from .converted import LSG, converted
from .grammar import NEEDS, Config, Family, Head
from .refused import REFUSED, require_stock_code
from .registry import FAMILIES


def family_of(
    config: Config,
    supported: Iterable[str] | None = None,
    *,
    again: str = "",
    brought: Family | None = None,
    abilities: Collection[str] | None = None,
    own_code: bool = False,
    taker: str = "this target",
) -> Family:
    """The family of a checkpoint from its config's model_type.

    Args:
        supported: names of families; all where None.
        again: the target whose own repos are taken, as the family that they were made from.
        abilities: what the target can do, of `NEEDS`; None where that is not known.
        brought: a family that only the target reads, whose `read_config` knows what its configs can say.
        taker: the target as the errors name it.
        own_code: whether a source with modeling code of its own is taken for what its model_type says.

    Raises:
        UnsupportedError: with the reason, and the families that are supported or what to use instead.
        BadInputError: the config contradicts itself.
    """
    names = sorted(FAMILIES if supported is None else supported)
    before = converted(config)
    if before is not None and before.target != again:
        mend = ", or upgrade or resize this model with effconv lsg" if before.target == LSG else ""
        raise UnsupportedError(
            f"the source is already converted (to {before.target})",
            where="config.json",
            hint=f"convert the dense checkpoint that it was made from{mend}",
        )
    model_type = before.family if before else config.get("model_type")
    if brought is not None:
        if model_type in brought.model_types:
            return brought
        types = ", ".join(brought.model_types)
        names = sorted({*names, f"{brought.name} (model_type {types})"} - {brought.name})
    if isinstance(model_type, str) and model_type in FAMILIES and model_type not in names and abilities is not None:
        missing = sorted(FAMILIES[model_type].requirements - set(abilities))
        raise UnsupportedError(
            f"{taker} does not take {model_type}"
            + (f": {', and '.join(NEEDS[name] for name in missing)}" if missing else ""),
            where="config.json: model_type",
            hint=f"effconv targets lists the targets that take {model_type}; {taker} takes {', '.join(names)}",
        )
    if model_type not in names:
        reason, instead = REFUSED.get(str(model_type), ("", ""))
        raise UnsupportedError(
            (f"{model_type} is not supported: {reason}" if reason else f"the family {model_type!r} is not supported")
            if model_type
            else "config.json has no model_type",
            where="config.json: model_type",
            hint=(f"{_as_advice(instead)}. Supported: " if instead else "supported: ") + ", ".join(names),
        )
    if before is None and not own_code:
        require_stock_code(config)
    if config.get("pruned_heads"):
        raise UnsupportedError(
            "attention heads of the model were pruned, so its layers have different numbers of heads",
            where="config.json: pruned_heads",
            hint="use the checkpoint before pruning. If no head was removed from the weights, empty pruned_heads",
        )
    if (config.get("position_embedding_type") or "absolute") != "absolute":
        raise UnsupportedError(
            f"relative positions ({config['position_embedding_type']}) are not supported",
            where="config.json: position_embedding_type",
            hint="use a checkpoint with absolute positions",
        )
    if config.get("add_cross_attention") and not config.get("is_decoder"):
        raise BadInputError(
            "add_cross_attention is true but is_decoder is not: such a model cannot be built",
            where="config.json: add_cross_attention",
            hint="set is_decoder to true, or set add_cross_attention to false and remove its tensors",
        )
    return FAMILIES[str(model_type)]


def _as_advice(instead: str) -> str:
    """What to use instead as an imperative."""
    return instead if instead.startswith(("use ", "save ", "convert ", "only ", "give ")) else f"use {instead}"


def asked_config(config: Config, family: Family, head: Head, architecture: str | None) -> Config:
    """The config for the head that was asked for: a causal one is a decoder's, in which no token sees a later one.

    Args:
        architecture: as it was asked for; None where the head is the source's own, which then stays what it is.

    Raises:
        UsageError: a head that reads whole texts was asked for, of a decoder that has another head.
    """
    if architecture is None or family.code.encoder:  # a decoder beside an encoder is causal in any case
        return config
    if head.causal:
        return {**config, "is_decoder": True}
    if config.get("is_decoder") and head.suffix != "Model" and head != head_of(config, family)[0]:
        raise UsageError(
            f"the source is a decoder (causal attention), but {head.suffix} needs attention in both directions",
            where="--architecture, config.json: is_decoder",
            hint="set is_decoder to false in config.json for attention in both directions, or name the class in "
            "config.json: architectures to keep causal attention",
        )
    return config


def head_of(
    config: Config, family: Family, architecture: str | None = None, target: str = ""
) -> tuple[Head, str | None]:
    """The head to emit, and the source's own class name where it is not one of the family's.

    `architecture` may be a suffix (ForMaskedLM) or a class name (BertForMaskedLM, or LSGBertForMaskedLM of lsg).
    """
    if architecture is not None:
        return family.head_asked_for(architecture, target), None
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return family.head(family.default_head), None
    if named[0] in family.wholes:
        return family.head(family.default_head), None
    before = converted(config)
    suffix = family.suffix_of(named[0], before.target if before else target)
    if any(head.suffix == suffix for head in family.heads):
        return family.head(suffix), None
    return family.head("Model"), named[0]
