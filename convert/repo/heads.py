"""Which heads a repo has: the one that its class names, and those whose tensors are all stored."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from ..families.grammar import Family, Head, shape_of
from ..target import Target
from .modelcode import class_name


def head_named(target: Target, family: Family, architecture: str) -> Head | None:
    """The head whose emitted class has this name; None where there is none.

    Args:
        family: of the emitted model.
    """
    named = (h for h in family.heads if class_name(family.code, target.code, h.suffix) == architecture)
    return next(named, None)


def complete_heads(
    target: Target, family: Family, own: Head, config: dict[str, Any], stored: Container[tuple[str, Sequence[int]]]
) -> list[str]:
    """The Auto classes of the heads whose tensors are all there.

    Args:
        family: of the emitted model. own: the repo's head. config: of the repo.
        stored: names without the base's prefix, and shapes: several heads call their tensors classifier.weight.
    """
    part = family.part(own)
    declared = {
        head.auto: family.weights(config, head)
        for head in target.heads(family)
        if family.part(head) == part  # a decoder alone has none of the target's attention
    }
    return [
        auto
        for auto, weights in declared.items()
        if all((weight.name, shape_of(weight, config)) in stored for weight in weights)
    ]
