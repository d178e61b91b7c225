"""Notices about a conversion that is correct but may surprise its user. They are printed with the findings."""

from __future__ import annotations

from typing import Any

from .errors import did_you_mean
from .families.grammar import Config
from .families.selection import head_of
from .target import Context

DECODER = "is_decoder"


def overrides(context: Context, source: Config) -> dict[str, Any]:
    """Config fields that the conversion changes on request. To compare, the source must be run with them, too."""
    return {DECODER: True} if context.config.get(DECODER) and not source.get(DECODER) else {}


def notices(context: Context, source: Config, *, asked: str | None = None) -> list[str]:
    """One line per notice.

    Args:
        source: the source's config.json. asked: the architecture that was asked for.
    """
    return [*_part_of_a_whole(context, source), *_unknown_class(context, source, asked), *_causality(context, source)]


def _part_of_a_whole(context: Context, source: Config) -> list[str]:
    """Says that a larger model became a smaller one: who converts a model that generates may expect one."""
    named = source.get("architectures")
    if not (isinstance(named, list) and named and named[0] in context.family.wholes):
        return []
    made = context.family.class_name(context.head)
    return [f"the source is a {named[0]}: it was converted as {made}, its encoder, which does not generate text"]


def _unknown_class(context: Context, source: Config, asked: str | None) -> list[str]:
    """Says that a class is not known: a misspelt name would silently lose its head, or get another one."""
    named = None if asked is not None else head_of(source, context.family)[1]
    if named is None:
        return []
    return [
        f"config.json names the class {named}, which is not a {context.family.name} class that effconv knows: it was "
        f"converted as {context.family.class_name(context.head)}, and tensors beyond that class are carried unchanged"
        + did_you_mean(named, map(context.family.class_name, context.family.heads))
    ]


def _causality(context: Context, source: Config) -> list[str]:
    name, part = context.family.class_name(context.head), context.family.part(context.head)
    if part:
        return [f"{name} has only the {part}, which keeps its original attention: attention options have no effect"]
    if overrides(context, source):
        return [f"{name} was requested, so {DECODER} is set to true: attention is causal, unlike in the source"]
    if context.head.causal and not source.get(DECODER):
        return [
            f"the source is a {name} without {DECODER}, so its attention is not causal, and neither is the repo's: "
            f"--architecture {context.head.suffix} makes it causal"
        ]
    return []
