"""Sources that were converted before: by effconv, or by the published LSG converter.

What they are is told from config.json alone. None of their code is run: the published one no longer loads, and code of
a source runs only when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .modelcode import LAMBDA_CODE, LAMBDA_PUBLISHED_CODE, LINFORMER_CODE, LSG_CODE, TRANSNORMER_CODE

COMPOSED = (LSG_CODE, LINFORMER_CODE, LAMBDA_CODE, TRANSNORMER_CODE)


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
    if model_type == LAMBDA_PUBLISHED_CODE.model_type:
        return Converted(model_type, "bert")
    for code in COMPOSED:
        if model_type.startswith(f"{code.name}-"):
            return Converted(code.name, model_type.removeprefix(f"{code.name}-"))
    if is_published_lsg(config):
        return Converted(LSG_CODE.name, model_type, published=True)
    return None


def is_published_lsg(config: Mapping[str, Any]) -> bool:
    """Whether a config with a dense model_type names the published LSG's code; any of three marks will do."""
    architectures, references = config.get("architectures"), config.get("auto_map")
    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    files = [str(value) for value in references.values()] if isinstance(references, dict) else []
    return (
        config.get("base_model_prefix") == LSG_CODE.name
        or any(name.startswith(LSG_CODE.class_prefix) for name in named)
        or any(file.rpartition("--")[2].startswith(f"modeling_{LSG_CODE.name}_") for file in files)
    )
