"""All targets by name. A new target needs a `Target` in its own folder, its templates, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from ..convert.errors import UnsupportedError
from ..convert.families.grammar import Family
from ..convert.families.registry import FAMILIES
from ..convert.target import Target
from ..lsgify.target import LSG
from .bigs.target import JAX2TORCH, RESIZED, TORCH2JAX
from .lambda_.published import LAMBDA_PUBLISHED
from .lambda_.target import LAMBDA
from .linformer.target import LINFORMER
from .transnormer.target import TRANSNORMER

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (LSG, LINFORMER, LAMBDA, LAMBDA_PUBLISHED, TRANSNORMER, JAX2TORCH, TORCH2JAX, RESIZED)
}


def families() -> dict[str, Family]:
    """Every family that some target takes, by name: those that stand in `FAMILIES`, and those that a target brings."""
    brought = {target.emits.name: target.emits for target in TARGETS.values() if target.emits}
    return {**FAMILIES, **{name: family for name, family in brought.items() if name in _taken()}}


def _taken() -> set[str]:
    return {name for target in TARGETS.values() for name in target.families}


def target_named(name: str, options: object = None) -> Target:
    """The target of that name, or the one that takes over for these options.

    Raises:
        UnsupportedError: the name is unknown; the message lists all names.
    """
    if name not in TARGETS:
        raise UnsupportedError(f"unknown target {name!r}", where="target", hint="use one of " + ", ".join(TARGETS))
    variant = TARGETS[name].variant(options) if options is not None else ""
    return TARGETS[variant or name]
