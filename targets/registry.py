"""Every target by name. To add one: a folder with its options and its `Target`, and a row here.

The rows are data, and a target is imported when it is asked for: the command line lists them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..convert.errors import UnsupportedError

if TYPE_CHECKING:
    from ..convert.families.grammar import Family
    from ..convert.target import Target


WITH_SUFFIX = "SOURCE-{0}, or SOURCE-{0}-LENGTH with --max-len"


@dataclass(frozen=True, slots=True)
class Row:
    """Where a target is, and the command that makes it.

    Attributes:
        place: `package.module:name` of the `Target`; the package may be another one than effconv.
        options: likewise of the options of its command; "" for a target that another one's command makes.
        help: what the command says of itself.
        example: a source of it, as a Hub id or a folder.
        new: what `effconv new` says of it; "" for a target that it does not make.
        output: its default output folder as the help says it; "" for TARGET-SOURCE-LENGTH.
    """

    place: str
    options: str = ""
    help: str = ""
    example: str = "bert-base-uncased"
    new: str = ""
    output: str = ""


ROWS = {
    "lsg": Row(
        "effconv.lsgify.target:LSG",
        "effconv.lsgify.options:LSGOptions",
        "Convert to LSG: local, sparse and global attention (arXiv 2210.15497).",
        new="LSG: local, sparse and global attention.",
    ),
    "linformer": Row(
        "effconv.targets.linformer.target:LINFORMER",
        "effconv.targets.linformer.options:LinformerOptions",
        "Convert to Linformer: projected keys and values (arXiv 2006.04768).",
        new="Linformer: projected keys and values.",
    ),
    "lambda": Row(
        "effconv.targets.lambda_.target:LAMBDA",
        "effconv.targets.lambda_.options:LambdaOptions",
        "Convert to lambda layers (LambdaNetworks), fitted on text (arXiv 2102.08602).",
        new="Lambda layers; with --groups 1 the published LambdaBERT.",
    ),
    "lambda-published": Row("effconv.targets.lambda_.published:LAMBDA_PUBLISHED"),
    "transnormer": Row(
        "effconv.targets.transnormer.target:TRANSNORMER",
        "effconv.targets.transnormer.options:TransNormerOptions",
        "Convert to TransNormer: block, then linear attention, fitted on text (arXiv 2210.10340).",
        new="TransNormer: block and linear attention.",
    ),
    "jax2torch": Row(
        "effconv.targets.bigs.target:JAX2TORCH",
        "effconv.targets.bigs.options:BiGSOptions",
        "Convert a BiGS checkpoint (gated state-space encoder, arXiv 2212.10544) from JAX to PyTorch.",
        "JunxiongWang/BiGS_512",
        output=WITH_SUFFIX.format("torch"),
    ),
    "torch2jax": Row(
        "effconv.targets.bigs.target:TORCH2JAX",
        "effconv.targets.bigs.options:BiGSOptions",
        "Convert a BiGS checkpoint from PyTorch to JAX.",
        "BiGS_512-torch, made by jax2torch",
        output=WITH_SUFFIX.format("jax"),
    ),
    "bigs": Row(
        "effconv.targets.bigs.target:RESIZED",
        "effconv.targets.bigs.options:BiGSOptions",
        "Change the maximum length or the GELU variant of a PyTorch BiGS checkpoint.",
        "BiGS_512-torch, made by jax2torch",
        new="BiGS: gated state-space encoder, without attention.",
        output="SOURCE-bigs (with --max-len SOURCE-LENGTH) if SOURCE ends in -torch, else "
        + WITH_SUFFIX.format("torch"),
    ),
}


# Targets of `effconv new` alone: nothing is converted to them, so that `TARGETS` does not list them.
NEW_ONLY = {
    "dense": Row(
        "effconv.targets.dense.target:DENSE",
        "effconv.targets.dense.options:DenseOptions",
        new="A stock model of transformers: a control of the same sizes.",
    ),
}
CREATABLE = {name: row for name, row in {**ROWS, **NEW_ONLY}.items() if row.new}


def at(place: str) -> Any:
    """What is at `package.module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Targets(MutableMapping[str, "Target"]):
    """The targets by name; each is imported at its first use."""

    def __init__(self) -> None:
        """All of `ROWS`."""
        self._loaded: dict[str, Target] = {}

    def __getitem__(self, name: str) -> Target:
        if name not in self._loaded:
            self._loaded[name] = at({**NEW_ONLY, **ROWS}[name].place)
        return self._loaded[name]

    def __setitem__(self, name: str, target: Target) -> None:
        self._loaded[name] = target

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in {**ROWS, **self._loaded} if name not in NEW_ONLY])

    def __len__(self) -> int:
        return len(list(iter(self)))


TARGETS = Targets()


def families() -> dict[str, Family]:
    """Every family that some target takes, by name: those of `FAMILIES`, and those that a target brings."""
    from ..convert.families.registry import FAMILIES

    brought = {target.brings.name: target.brings for target in TARGETS.values() if target.brings}
    return {**FAMILIES, **brought}


def target_named(name: str, options: object = None) -> Target:
    """The target of that name, or the one that takes over for these options.

    Raises:
        UnsupportedError: the name is unknown; the message lists all names.
    """
    if name not in TARGETS:
        raise UnsupportedError(f"unknown target {name!r}", where="target", hint="use one of " + ", ".join(TARGETS))
    variant = TARGETS[name].variant(options) if options is not None else ""
    return TARGETS[variant or name]
