"""Front matter of cards, read as the Hub reads it: YAML 1.2, in which `no` is Norwegian and a date is a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

BOM = "\ufeff"  # some editors begin a file with it
FRONT = re.compile(rf"\A{BOM}?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# Plain scalars of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema) that are not texts.
CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
}
TEXTS = ("language", "datasets", "license")  # fields that hold texts, or lists of texts


def loaded(text: str) -> Any:
    """The YAML document.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it cannot be read.
    """
    import yaml

    return yaml.load(text, Loader=_loader())


def carried(fields: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of these names of a source's card that the Hub takes: texts, and lists of texts."""
    found: dict[str, Any] = {}
    for name in names:
        value = fields.get(name)
        if name in TEXTS and isinstance(value, list):
            value = [item for item in value if isinstance(item, str) and item]
        if value and (isinstance(value, str) or (isinstance(value, list) and name in TEXTS)):
            found[name] = value
    return found


@functools.cache
def _loader() -> Any:
    import yaml

    class Core(yaml.SafeLoader):  # type: ignore[misc]
        """Plain scalars by the core schema; everything else as PyYAML has it."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    for name, (pattern, first) in CORE.items():
        letters = [letter if letter != "\0" else "" for letter in first]
        Core.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), letters)
    return Core
