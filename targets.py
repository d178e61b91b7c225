"""Every target by name. Adding one: a `Target` in its own file, its templates, and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from .convert.errors import UnsupportedError
from .convert.lambda_ import LAMBDA
from .convert.linformer import LINFORMER
from .convert.target import Target
from .convert.transnormer import TRANSNORMER
from .lsgify.target import LSG

TARGETS: Mapping[str, Target] = {target.name: target for target in (LSG, LINFORMER, LAMBDA, TRANSNORMER)}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        UnsupportedError: with the names there are.
    """
    if name not in TARGETS:
        raise UnsupportedError(f"no target {name!r}", hint="one of " + ", ".join(TARGETS))
    return TARGETS[name]
