"""What a user should know of a finished conversion although nothing is wrong: it is said with the findings."""

from __future__ import annotations

from typing import Any

from .families.grammar import Config
from .target import Context

DECODER = "is_decoder"


def overrides(context: Context, source: Config) -> dict[str, Any]:
    """Fields of the source's config that the conversion was asked to change: whoever runs the source sets them too."""
    return {DECODER: True} if context.config.get(DECODER) and not source.get(DECODER) else {}


def notices(context: Context, source: Config) -> list[str]:
    """One line for each such thing.

    Args:
        source: the source's config.json as it stands.
    """
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
