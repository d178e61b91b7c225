"""Which tensors a repo has, which of them a head needs, and which are trained. No heavy imports."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import UnsupportedError, UsageError
from ..convert.families.grammar import Family, Head
from ..convert.families.registry import FAMILIES
from ..convert.io.reader import open_checkpoint
from ..convert.io.source import resolve
from ..convert.repo.heads import complete_heads, head_named
from ..convert.target import Target

# BiGS: what its paper trains once, before any task (arXiv 2212.10544, released fine-tuning code).
KERNELS = re.compile(r"\.[fb]s4\.(kernel\.(A_re|A_im|C|log_step)|D)$|token_type_embeddings\.weight$")
GLOBALS = re.compile(r"(^|\.)global_(embeddings\.weight|bias)$")


@dataclass(frozen=True)
class Stored:
    """The tensors of a repo by canonical name.

    Attributes:
        names: canonical name to the name in the files. shapes: by canonical name. new: canonical names of random ones.
        own: the head that the repo was made with.
    """

    family: Family
    target: Target
    own: Head
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    new: frozenset[str]

    def trained(self, head: Head) -> bool:
        """Whether the repo has a head of this kind that is not random."""
        needed = {weight.name for weight in head.weights}
        return bool(needed) and needed <= self.names.keys() - self.new

    def kept(self, head: Head) -> list[str]:
        """Canonical names of the tensors that a repo with this head has, too."""
        poolers = {weight.name for weight in self.family.pooler}
        needed = {weight.name for weight in self.family.head_weights(head)}
        foreign = [name for name in self.names if self.family.is_head_weight(name) or name in poolers]
        return [name for name in self.names if name in needed or name not in foreign]

    def full_name(self, canonical: str) -> str:
        """What a model with a head calls a tensor."""
        inside = not self.family.is_head_weight(canonical)
        return f"{self.family.prefix}.{canonical}" if inside else canonical

    def random(self, head: Head, config: Mapping[str, Any]) -> set[str]:
        """Canonical names of the head's tensors, and of its pooler, that the repo lacks or has untrained."""
        needed = {weight.name for weight in self.family.head_weights(head) if weight.when(config)}
        return {name for name in needed if name not in self.names or name in self.new}


def stored_of(folder: Path, manifest: Mapping[str, Any], target: Target) -> Stored:
    """The tensors of a repo, from the headers of its files.

    Raises:
        UnsupportedError: JAX weights, a decoder alone, or an architecture that this effconv does not make.
    """
    if target.weights_format.library != "transformers":
        raise UnsupportedError("JAX repos cannot be trained here", where=str(folder), hint="effconv jax2torch first")
    if manifest.get("part"):
        raise UnsupportedError(
            f"the repo is only the {manifest['part']} of its model, whose attention is the source's",
            where=str(folder),
            hint="convert the whole model, with another --architecture",
        )
    family = target.emits or FAMILIES.get(manifest["family"])
    own = None if family is None else head_named(target, family, manifest["architecture"])
    if family is None or own is None:
        raise UnsupportedError(
            f"this effconv makes no {manifest['architecture']} from a {manifest['family']}",
            where=str(folder),
            hint="upgrade effconv",
        )
    checkpoint = open_checkpoint(resolve(folder, offline=True))
    try:
        names = {str(family.canonical_name(name)): name for name in checkpoint.tensors}
        shapes = {str(family.canonical_name(t.name)): tuple(t.shape) for t in checkpoint.tensors.values()}
    finally:
        checkpoint.close()
    new = frozenset(str(family.canonical_name(name)) for name in manifest.get("new", ()))
    return Stored(family, target, own, names, shapes, new)


def heads_of(stored: Stored, own: Head, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[str]:
    """Auto classes whose tensors are all there: the trained head, and the base model if it has what that stores."""
    complete = complete_heads(stored.target, stored.family, own, dict(config), set(shapes.items()))
    trained = {head.auto for head in stored.target.heads(stored.family) if head.suffix in ("Model", own.suffix)}
    return [auto for auto in complete if auto in trained]  # others store the same shapes, but were not trained


def trains(freeze: str, stored: Stored, head: Head, config: Mapping[str, Any], folder: Path) -> Callable[[str], bool]:
    """Whether a parameter of this name is trained.

    Args:
        freeze: as `--freeze`. head: that is trained. config: of the repo.

    Raises:
        UsageError: `freeze` does not fit the repo.
    """
    prefix = f"{stored.family.prefix}."
    new = {weight.name for weight in head.weights} | stored.random(head, config)
    if freeze == "none":
        return lambda name: True
    if freeze == "kernels":
        if not any(KERNELS.search(name) and "s4." in name for name in stored.names):
            raise UsageError(
                f"--freeze kernels is for BiGS: a {stored.target.name} repo has no such kernels",
                where=str(folder),
                hint="use --freeze none or encoder",
            )
        return lambda name: not KERNELS.search(name)
    if freeze == "encoder":
        return lambda name: name.removeprefix(prefix) in new
    globals_there = any(GLOBALS.search(name) for name in stored.names) and config.get("num_global_tokens") != 0
    if not globals_there:
        why = "uses no global tokens (num_global_tokens is 0)" if "num_global_tokens" in config else "has none"
        raise UsageError(
            f"--freeze all-but-globals trains LSG's global tokens, and this {stored.target.name} repo {why}",
            where=str(folder),
            hint="convert with --num-global-tokens 16, or use --freeze encoder",
        )
    return lambda name: name.removeprefix(prefix) in new or bool(GLOBALS.search(name))
