"""Inspects a source: what it is and which targets accept it. Reads config and headers, no tensor data."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass

from .convert.errors import BadInputError, UnsupportedError
from .convert.families.converted import converted
from .convert.families.grammar import Family
from .convert.families.registry import FAMILIES
from .convert.families.selection import family_of
from .convert.io.reader import DENSE_FORMATS, FILES, open_checkpoint
from .convert.io.source import Source, resolve, sentence_modules
from .convert.io.tokenizer import tokenizer_of
from .convert.options import Settings
from .convert.planner import check_floats, choose_head
from .convert.prepare import ask, planned
from .convert.target import Target
from .targets.registry import TARGETS


@dataclass(frozen=True, slots=True)
class Inspection:
    """Result of `effconv inspect`.

    Attributes:
        parameters: number of elements of all stored tensors. bytes: size of their data.
        max_length: maximum input length in tokens.
        tokenizer: class and vocabulary files of its tokenizer.
        becomes: targets that accept its family and head.
        why_not: why no target accepts it, if none does.
    """

    name: str
    commit: str | None
    family: str
    architecture: str | None
    head: str | None
    sentence_transformers: bool
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    tensors: int
    max_length: int | None
    tokenizer: str
    becomes: list[str]
    why_not: str = ""

    def described(self) -> dict[str, object]:
        return asdict(self)


def inspect_source(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> Inspection:
    """Says what a source is and what it can become, from its config and headers alone.

    Args:
        source: a folder or a Hub id.
        revision: branch, tag or commit of a Hub id.
        token: Hub token; by default HF_TOKEN, else the stored login.
        offline: open no socket; read a Hub id from the cache.

    Returns:
        Family, head, size and length of the source, and the names of the targets that take it. A source that cannot be
        converted is not an error: `becomes` is empty, and `why_not` has the reason.

    Raises:
        EffconvError: the source cannot be found or read.
    """
    found = resolve(source, revision=revision, token=token, offline=offline)
    model_type = found.config.get("model_type")
    own = [target for target in TARGETS.values() if target.brings and model_type in target.brings.model_types]
    formats = list(dict.fromkeys(name for target in own for name in target.reads)) or DENSE_FORMATS
    checkpoint = open_checkpoint(found, remote=True, formats=formats)
    tensors = list(checkpoint.tensors.values())
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    head = max_length = family = None
    becomes: list[str] = []
    why_not = ""
    try:
        if own:
            head, max_length, becomes = _as_planned(found, own)
        else:
            before = converted(found.config)
            family = family_of(found.config, FAMILIES, again=before.target if before else "")
            check_floats(tensors)
            chosen, unknown_class = choose_head(checkpoint, found.config, family, None)
            head = chosen.suffix
            max_length = family.longest(family.read_config(found.config))
            becomes = [
                target.name
                for target in TARGETS.values()
                if target.takes(family, chosen, found.config)
                and target.keeps(chosen, unknown_class)
                and (before is None or (target.accepts_converted and target.name == before.target))
            ]
            if before is not None and not becomes:
                why_not = f"already converted to {before.target}; convert the dense checkpoint it was made from"
    except UnsupportedError as error:
        why_not = error.what + (f" ({error.hint})" if error.hint else "")
    finally:
        checkpoint.close()
    architectures = found.config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    return Inspection(
        name=found.hub_id or found.name,
        commit=found.commit,
        family=str(found.config.get("model_type")),
        architecture=None if named is None else str(named),
        head=head,
        sentence_transformers=bool(sentence_modules(found)),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=dtypes,
        tensors=len(tensors),
        max_length=max_length,
        tokenizer=_tokenizer(found, family),
        becomes=becomes,
        why_not=why_not,
    )


def _tokenizer(source: Source, family: Family | None) -> str:
    try:
        return tokenizer_of(source, family).described()
    except BadInputError as error:
        return f"damaged: {error.what}"


def _as_planned(source: Source, targets: list[Target]) -> tuple[str | None, int | None, list[str]]:
    """Head, tokens and names of those targets, of a family that they bring, that read what is stored."""
    head, max_length, becomes = None, None, []
    for target in targets:
        if any(source.has(FILES[name]) or source.has(f"{FILES[name]}.index.json") for name in target.reads):
            ready = planned(ask(source, target, target.options(), Settings()), remote=True)
            ready.checkpoint.close()
            head, max_length = ready.context.head.suffix, int(ready.context.options.max_length)
            becomes.append(target.name)
    return head, max_length, becomes
