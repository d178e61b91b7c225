"""The objectives of pretraining, and the heads that they need. No heavy imports.

    mlm       masked tokens
    mlm+nsp   and whether the second text follows the first (label 0) or is of another document (1)
    mlm+sop   and whether the two texts are in their order (0) or swapped (1)
    clm       each token from those before it

The loss of an objective of two parts is the sum of both cross entropies, as BERT, ALBERT and LambdaBERT have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.errors import UnsupportedError
from ..convert.families.grammar import Family, Head
from ..convert.families.registry import FAMILIES
from ..convert.repo.manifest import config_of
from ..convert.target import Target

OBJECTIVES = ("mlm", "mlm+nsp", "mlm+sop", "clm")
MASKED, PAIRED, CAUSAL = "AutoModelForMaskedLM", "AutoModelForPreTraining", "AutoModelForCausalLM"


def pair_kind(objective: str) -> str | None:
    """What an objective says of two texts: "nsp", "sop" or nothing."""
    return objective.partition("+")[2] or None


def words_of(objective: str) -> str:
    """The part of an objective that predicts tokens: "mlm" or "clm"."""
    return objective.partition("+")[0]


def auto_for(folder: Path, manifest: Mapping[str, Any], target: Target, objective: str) -> str:
    """The Auto class whose model has the heads of the objective.

    Raises:
        UnsupportedError: the repo has none.
    """
    config = config_of(folder)
    there = {manifest["auto"], *manifest["heads"]}
    causal, where = bool(config.get("is_decoder")), f"--objective {objective}"
    if objective == "clm":
        if not causal or CAUSAL not in there:
            raise UnsupportedError(
                "clm needs a causal model, and the repo "
                + ("has no causal-LM head" if causal else "is an encoder: its tokens see those after them"),
                where=where,
                hint=(
                    f"make one with effconv new {target.command or target.name} --causal, or pass --objective mlm"
                    if target.causal
                    else "make one with effconv new lsg --causal (or new transnormer), or pass --objective mlm"
                ),
            )
        return CAUSAL
    if causal:
        raise UnsupportedError(
            f"{objective} needs an encoder, and the repo is a decoder (causal attention)",
            where=where,
            hint="pass --objective clm",
        )
    family = target.emits or FAMILIES.get(manifest["family"])
    paired = _paired(family)
    if pair_kind(objective) is None:
        if MASKED in there:
            return MASKED
        if PAIRED in there and paired:
            return PAIRED
        raise UnsupportedError(
            "the repo has no masked-LM head", where=where, hint="make it with --architecture ForMaskedLM"
        )
    if paired is None:
        raise UnsupportedError(
            f"a model of the family {manifest['family']} has no head for pairs of texts",
            where=where,
            hint="pass --objective mlm, or use a model of bert, albert, lambda --groups 1 or BiGS",
        )
    if PAIRED not in there:
        raise UnsupportedError(
            "the repo has no head for pairs of texts (next sentence or sentence order)",
            where=where,
            hint=f"make it with --architecture {paired.suffix}, or pass --objective mlm",
        )
    _check_kind(str(manifest["architecture"]), objective)
    return PAIRED


def _paired(family: Family | None) -> Head | None:
    """The head of a family that predicts masked tokens and says something of two texts."""
    if family is None or family.name == "electra":  # whose pretraining head tells replaced tokens
        return None
    return next((head for head in family.heads if head.auto == PAIRED), None)


def _check_kind(architecture: str, objective: str) -> None:
    """Refuses a class that names its pair head after the other task: who loads it would read its outputs wrongly."""
    for kind, other in (("NSP", "SOP"), ("SOP", "NSP")):
        if architecture.endswith(f"ForPreTraining{kind}") and pair_kind(objective) == other.lower():
            raise UnsupportedError(
                f"{architecture} has a head for {kind}, not for {other}",
                where=f"--objective {objective}",
                hint=f"make it with --architecture ForPreTraining{other}, or pass --objective mlm+{kind.lower()}",
            )
