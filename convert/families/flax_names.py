"""How a family's JAX checkpoints name and lay out tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ops import Op


@dataclass(frozen=True, slots=True)
class FlaxNames:
    """How the family's JAX checkpoints name and lay out a tensor; a stored name with `/` is one of theirs.

    Attributes:
        prefix: of the base model's tensors in a checkpoint with a head.
        canonical: the canonical name of a stored one, None where no model of the family has it.
        name: the other way, without the prefix.
        operation: what a tensor of a canonical name goes through from one side to the other, in both directions.
    """

    prefix: str
    canonical: Callable[[str], str | None]
    name: Callable[[str], str]
    operation: Callable[[str], Op]


def is_flax(stored: str) -> bool:
    """Whether a stored name is that of a JAX checkpoint: the path of a leaf in a tree."""
    return "/" in stored
