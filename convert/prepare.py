"""From a source to a plan: options are settled, the weights are opened, every tensor is planned. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.files import require_forms
from .families.activations import require_activation
from .families.converted import named_classes
from .families.grammar import Family, Head
from .families.refused import compares_with_source
from .families.selection import asked_config, family_of
from .io.checkpoint import Checkpoint
from .io.dtypes import BY_NAME
from .io.reader import open_checkpoint
from .io.source import Source, resolve, sentence_modules
from .io.tokenizer import SpecialTokens, special_tokens
from .options import Settings
from .plan import Plan
from .planner import check_floats, choose_head, make_plan
from .repo.emit import emitted_config
from .repo.sentence import COLBERT, COLBERT_PROJECTION, require_module_files
from .target import Context, Target


@dataclass(frozen=True)
class Asked:
    """A source and the requested conversion: options resolved, weights not opened yet.

    Attributes:
        family: the source's family. config: the source's config, with defaults filled in.
        options: with a value for each option.
    """

    source: Source
    target: Target
    family: Family
    config: Mapping[str, Any]
    options: Any
    settings: Settings


@dataclass(frozen=True)
class Prepared:
    """A source opened and planned, nothing written yet. The context has the resolved options.

    Attributes:
        random: how a model with random weights was asked for; {} for a conversion.
    """

    source: Source
    target: Target
    settings: Settings
    checkpoint: Checkpoint
    context: Context
    plan: Plan
    random: Mapping[str, Any] = field(default_factory=dict)


def ask(source: Source, target: Target, options: object, settings: Settings) -> Asked:
    """Resolves the options of a conversion.

    Raises:
        EffconvError: the target does not accept the source, an option is invalid for it, or a text cannot be read.
    """
    if target.calibration:
        require_forms(getattr(options, "calibrate", ()), "--calibrate")
    require_module_files(source, sentence_modules(source))
    own_code = settings.trust_remote_code and compares_with_source(target, options, settings)
    return Asked(source, target, *settle(target, options, source.config, own_code=own_code), settings)


def settle(
    target: Target, options: object, config: Mapping[str, Any], *, own_code: bool
) -> tuple[Family, Mapping[str, Any], Any]:
    """Family, config and options with a value for each option. Shared with conversions in memory.

    Args:
        own_code: whether to accept a source with its own modeling code as a standard model of its model_type.
    """
    again = target.name if target.accepts_converted else ""
    family = family_of(
        config,
        target.families,
        again=again,
        abilities=target.can,
        brought=target.brings,
        own_code=own_code,
        taker=f"effconv {target.asked_for}",
    )
    require_activation(config)
    config = family.read_config(config)
    return family, config, target.resolve_options(options, config)


def prepare(
    source: str | os.PathLike[str], target: Target, options: object, settings: Settings, *, remote: bool
) -> Prepared:
    """Resolves and plans.

    Args:
        remote: read only the headers of a Hub source's weights.

    Raises:
        EffconvError: the source or an option cannot be used.
    """
    found = resolve(source, revision=settings.revision, token=settings.token, offline=settings.offline)
    return planned(ask(found, target, options, settings), remote=remote)


def planned(asked: Asked, *, remote: bool) -> Prepared:
    """Opens the weights of a resolved source and plans."""
    source, target, settings = asked.source, asked.target, asked.settings
    family, config = asked.family, asked.config
    checkpoint = open_checkpoint(source, allow_pickle=settings.allow_pickle, remote=remote, formats=target.reads)
    check_floats(checkpoint.tensors.values())
    # A target that makes a model of another family has heads of its own: the source is read with the one that it has.
    read_as = settings.architecture if target.emits is None or target.brings else None
    head, unknown_class = choose_head(checkpoint, config, family, read_as, target.name)
    tokens = special_tokens(source, family)
    context, plan = plan_tensors(
        checkpoint, target, asked.options, family, head, config, tokens, settings, unknown_class
    )
    return Prepared(source, target, settings, checkpoint, context, plan)


def plan_tensors(
    checkpoint: Checkpoint,
    target: Target,
    options: object,
    family: Family,
    head: Head,
    config: Mapping[str, Any],
    tokens: SpecialTokens,
    settings: Settings,
    unknown_class: str | None = None,
    *,
    scratch: bool = False,
) -> tuple[Context, Plan]:
    """Context and plan. Shared with conversions in memory, and with models that begin with random weights."""
    if family.num_heads:
        family.head_width(config)
    if unknown_class and target.brings:  # the emitted model has no place for what such a class adds
        family.head(unknown_class)
    target.check_takes(family, head, config)
    emits = target.emits or family
    emitted_head = target.emitted_head(family, head, unknown_class, settings.architecture)
    config = asked_config(config, family, head, settings.architecture)
    context = Context(family, head, config, options, tokens, settings.seed, config, emits, emitted_head)
    context = replace(context, emitted=emitted_config(target, context))
    dtype = BY_NAME[settings.dtype] if settings.dtype else None
    asked = settings.architecture is not None
    plan = make_plan(
        checkpoint,
        target,
        context,
        unknown_class=unknown_class,
        asked=asked,
        dtype=dtype,
        requested=settings.drop,
        scratch=scratch,
    )
    if COLBERT in named_classes(config) and COLBERT_PROJECTION in plan.carried:  # it stays one
        named = [*context.emitted["architectures"], COLBERT]
        context = replace(context, emitted={**context.emitted, "architectures": named})
    return context, plan
