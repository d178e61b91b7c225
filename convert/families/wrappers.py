"""Prefixes that a wrapper puts before the names of a model's tensors: DDP, torch.compile, FSDP, PEFT, Lightning.

transformers does not know them: it leaves every weight of such a file at random, and warns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .flax_names import is_flax
from .grammar import Config, Family

# Before all names, in any order. `model.` is also the base of a BART: what the family itself reads is never taken away.
LEADING = ("module.", "model.", "base_model.model.", "base_model.", "0.auto_model.", "0.model.")
# Anywhere in a name, since a part of a model can be wrapped: no model has a module of such a name.
ANYWHERE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DEEPEST = 4  # wrappers around each other


@dataclass(frozen=True, slots=True)
class Wrapping:
    """The prefix of the wrappers around a checkpoint's model; "" without one."""

    prefix: str = ""

    def strip(self, stored: str) -> str:
        """A stored name without what wrappers added to it."""
        return stored if is_flax(stored) else ANYWHERE.sub("", stored).removeprefix(self.prefix)

    def removed(self, stored: str) -> str:
        """What `strip` takes away, in words; "" for nothing."""
        if self.strip(stored) == stored:
            return ""
        parts = [*dict.fromkeys(ANYWHERE.findall(stored)), *([self.prefix] if self.prefix else [])]
        return f"without {' and '.join(parts)} of a wrapper"


def wrapping_of(names: Iterable[str], family: Family, config: Config) -> Wrapping:
    """Which prefix to take away so that most of the family's tensors are found; the shortest one of those.

    Args:
        names: as stored.
    """
    inner = [ANYWHERE.sub("", name) for name in names if not is_flax(name)]
    candidates = {"": inner}
    for _ in range(DEEPEST):
        longer = {prefix + wrapper for prefix in candidates for wrapper in LEADING} - candidates.keys()
        found = {prefix: [name for name in inner if name.startswith(prefix)] for prefix in longer}
        candidates |= {prefix: begun for prefix, begun in found.items() if begun}
    if len(candidates) == 1:
        return Wrapping()
    base = {weight.name for weight in family.base_weights(config)}

    def fitting(prefix: str) -> int:
        return len(base & {family.canonical_name(name.removeprefix(prefix)) for name in candidates[prefix]})

    return Wrapping(max(candidates, key=lambda prefix: (fitting(prefix), -len(prefix))))
