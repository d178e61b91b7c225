"""Sources that were converted before: by effconv, or by the published LSG converter.

What they are is told from config.json alone: the model_type is TARGET-FAMILY, whatever the target. None of their code
is run: the published one no longer loads, and code of a source runs only when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .refused import REFUSED
from .registry import FAMILIES

LSG, LSG_PREFIX = "lsg", "LSG"  # of files and classes of the published LSG converter
PUBLISHED_LAMBDA = "lambda-published"  # the one model_type that does not name its family
DENSE = (*FAMILIES, *REFUSED)  # model types of models that nobody converted


@dataclass(frozen=True, slots=True)
class Converted:
    """What a source is already.

    Attributes:
        target: name of the target. family: of the dense model it was made from, as its model_type.
        published: whether the published LSG converter made it, which left the dense model_type.
    """

    target: str
    family: str
    published: bool = False


def converted(config: Mapping[str, Any]) -> Converted | None:
    """What the source of this config.json was converted to before; None for a dense one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    if model_type == PUBLISHED_LAMBDA:
        return Converted(model_type, "bert")
    if model_type not in DENSE:  # as xlm-roberta is
        for family in sorted(DENSE, key=len, reverse=True):  # lsg-xlm-roberta was no roberta
            if model_type.endswith(f"-{family}") and model_type != f"-{family}":
                return Converted(model_type.removesuffix(f"-{family}"), family)
    if is_published_lsg(config):
        return Converted(LSG, model_type, published=True)
    return None


def is_published_lsg(config: Mapping[str, Any]) -> bool:
    """Whether a config with a dense model_type names the published LSG's code; any of three marks will do."""
    named, references = named_classes(config), config.get("auto_map")
    files = [str(value) for value in references.values()] if isinstance(references, dict) else []
    return (
        config.get("base_model_prefix") == LSG
        or any(name.startswith(LSG_PREFIX) for name in named)
        or any(file.rpartition("--")[2].startswith(f"modeling_{LSG}_") for file in files)
    )


def named_classes(config: Mapping[str, Any]) -> list[str]:
    """The class names in a config's `architectures`; what is no list of texts names none."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
