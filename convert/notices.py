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
        return [f"{name} is the {part} alone, which keeps its stock attention: options of the attention do not act"]
    if overrides(context, source):
        return [f"{name} was asked for, so {DECODER} is set: a token sees no later one, unlike in the source"]
    if context.head.causal and not source.get(DECODER):
        return [
            f"the source is a {name} without {DECODER}, in which a token sees later ones, and so is the repo; "
            f"--architecture {context.head.suffix} makes it causal"
        ]
    return []
