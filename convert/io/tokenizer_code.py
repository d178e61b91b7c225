"""A tokenizer with Python code of its own: which files belong to it. The code is read as text and never run here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..errors import BadInputError
from .python_files import imported_files
from .tokenizer_classes import SETTINGS

AUTO = "AutoTokenizer"
# Whatever the code names: not code, weights or hidden files, and what the repo has of its own.
NEVER = re.compile(r"\..*|(config|modules)\.json|.*\.(py|safetensors)|(pytorch_|tf_|flax_)?model.*\.(bin|h5|msgpack)")
# Files beside a model that belong to the model, to its training or to a page. A class of its own may read any other.
MODEL_FILES = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot|onnx|onnx_data|gguf|tflite|mlmodel|npz|py|pyc|md|rst|png|jpe?g|gif|svg"
    r"|pdf|ipynb|html?|log|zip|gz|tar|parquet|arrow|csv|jsonl|lock|sh|yml|yaml)|.*\.index\.json|\..*|LICEN[CS]E.*|NOTICE.*"
    r"|requirements.*\.txt|(config|modules|generation_config|adapter_config|(train|eval|test|all)_results|trainer_state"
    r"|preprocessor_config|processor_config|effconv|sentence_\w+_config|config_sentence_transformers)\.json"
    r"|events\.out.*|pytorch_model.*|tf_model.*|flax_model.*|model_args\.json|chat_template\..*",
    re.IGNORECASE,
)


def own_references(settings: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The classes with code of their own that AutoTokenizer loads (`module.Class`, or `user/name--module.Class`).

    Args:
        settings: tokenizer_config.json. config: config.json, which counts where tokenizer_config.json names no class.
    """
    named = auto_map(settings, config)
    named = named.get(AUTO) if isinstance(named, dict) else named
    found = named if isinstance(named, list) else [named]
    return [reference for reference in found if isinstance(reference, str) and reference]


def auto_map(settings: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The `auto_map` that leads to the tokenizer's own code; None for a class of transformers."""
    if settings.get("auto_map") is not None or settings.get("tokenizer_class"):
        return settings.get("auto_map")
    stated = config.get("auto_map")
    reference = stated.get(AUTO) if isinstance(stated, dict) else None
    return None if reference is None else {AUTO: reference if isinstance(reference, list) else [reference, None]}


def code_files(references: Iterable[str], has: Callable[[str], bool], read: Callable[[str], str]) -> list[str]:
    """Names of the Python files of these classes, with those that they import relatively.

    Args:
        has: whether the source has a file of that name. read: its text.

    Raises:
        BadInputError: the file of a class is missing.
    """
    found: list[str] = []
    for reference in references:
        if "--" in reference:  # in another repo of the Hub, from which transformers loads it
            continue
        name = f"{reference.partition('.')[0]}.py"
        if not has(name):
            raise BadInputError(
                f"the tokenizer is the class {reference}, but {name} is missing",
                where="tokenizer_config.json: auto_map",
                hint=f"add {name} to the source, or remove auto_map to use a tokenizer class of transformers",
            )
        found.append(name)
    for name in found:  # grows while it is read
        found += [file for file in imported_files(read(name)) if has(file) and file not in found]
    return list(dict.fromkeys(found))


def may_read(names: Iterable[str], code: Iterable[str]) -> list[str]:
    """The files that a tokenizer with code of its own may read: what its code names, and what is nobody else's.

    Args:
        names: of the source's files, relative to config.json. code: the text of its code files.
    """
    quoted = set(re.findall(r"[\"']([^\"'\n]+)[\"']", "\n".join(code)))
    return [
        name
        for name in names
        if name not in SETTINGS
        and not NEVER.fullmatch(PurePosixPath(name).name)
        and (
            PurePosixPath(name).name in quoted
            or name in quoted
            or ("/" not in name and not MODEL_FILES.fullmatch(name))
        )
    ]
