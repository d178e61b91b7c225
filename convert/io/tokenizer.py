"""Reads and edits tokenizer files as JSON: special token ids and the truncation length.

Saving a tokenizer with a library may change it. Editing two numbers in its JSON does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..families.grammar import Family
from .source import TOKENIZER_FILES, Source

SETTINGS_ALONE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
AS_STORED = "PreTrainedTokenizerFast"  # in transformers 4 and 5 the class that takes tokenizer.json as it stands
UNPORTABLE = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "cache_dir")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the special tokens; None where the tokenizer has none."""

    bos: int | None = None
    cls: int | None = None
    mask: int | None = None
    sep: int | None = None
    pad: int | None = None


def has_tokenizer(folder: Path) -> bool:
    """Whether there are vocabulary files. From settings alone, transformers makes an empty tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES if name not in SETTINGS_ALONE)


def require_tokenizer(repo: Path) -> None:
    """Raises BadInputError for a repo without a tokenizer."""
    if not has_tokenizer(repo):
        raise BadInputError(
            "the repo has no tokenizer", where=str(repo), hint="convert a source that includes its tokenizer"
        )


def special_tokens(source: Source, defaults: Mapping[str, str]) -> SpecialTokens:
    """Ids of the special tokens, read from the tokenizer's files without a tokenizer library.

    Args:
        defaults: special tokens that the files do not name. A token that they set to null does not exist.
    """
    names: dict[str, str | None] = dict(defaults)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if source.has(file):
            for key, value in source.json(file).items():
                content = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and (content is None or isinstance(content, str)):
                    names[key.removesuffix("_token")] = content
    ids = _vocabulary(source, {name for name in names.values() if name})
    return SpecialTokens(**{key: ids.get(names.get(key) or "") for key in ("bos", "cls", "mask", "sep", "pad")})


def class_to_load(source: Source, family: Family) -> str:
    """The tokenizer class that AutoTokenizer uses for the source. The new model_type would not lead to it.

    It is the one that tokenizer_config.json names, else config.json, else the family's. For some families transformers
    5 loads tokenizer.json as it stands, whatever the files name.
    """
    stock = source.config.get("model_type") == family.code.model_type
    if family.tokenizer_as_stored and stock and source.has("tokenizer.json"):
        return AS_STORED
    files = [source.json("tokenizer_config.json")] if source.has("tokenizer_config.json") else []
    named = [file.get("tokenizer_class") for file in (*files, source.config)]
    return next((name for name in named if isinstance(name, str) and name), family.tokenizer_class)


def edited(name: str, parsed: dict[str, Any], max_length: int, tokenizer_class: str) -> dict[str, Any]:
    """A tokenizer file's JSON with the new maximum length, the class to load and no stale truncation."""
    result = dict(parsed)
    if name == "tokenizer_config.json":
        for key in UNPORTABLE:  # paths of somebody's machine
            result.pop(key, None)
        result["model_max_length"] = max_length
        result["tokenizer_class"] = tokenizer_class
        for key in ("max_length", "truncation", "max_len"):
            result.pop(key, None)
    elif name == "tokenizer.json":
        # The raw library cuts and pads by these two sections, whatever model_max_length says (MiniLM's cuts at 128).
        result["truncation"] = None
        result["padding"] = None
    return result


def _vocabulary(source: Source, wanted: set[str]) -> dict[str, int]:
    """Ids of the wanted tokens, as far as the files know them; what is written last wins."""
    found: list[tuple[object, object]] = []
    if source.has("tokenizer.json"):
        parsed = source.json("tokenizer.json")
        vocabulary = _mapping(parsed.get("model")).get("vocab")
        if isinstance(vocabulary, list):  # Unigram: [piece, score] pairs
            pieces = (entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary)
            found += [(piece, i) for i, piece in enumerate(pieces) if isinstance(piece, str) and piece in wanted]
        found += [(token, _mapping(vocabulary).get(token)) for token in wanted]
        added = parsed.get("added_tokens")
        entries = [_mapping(entry) for entry in added] if isinstance(added, list) else []
        found += [(entry.get("content"), entry.get("id")) for entry in entries]
    elif source.has("vocab.txt"):
        with source.path("vocab.txt").open(encoding="utf-8", errors="replace") as lines:
            found += [(line.rstrip("\n"), i) for i, line in enumerate(lines) if line.rstrip("\n") in wanted]
    elif source.has("vocab.json"):
        vocabulary = source.json("vocab.json")
        found += [(token, vocabulary.get(token)) for token in wanted]
    if source.has("added_tokens.json"):
        found += list(source.json("added_tokens.json").items())
    if source.has("tokenizer_config.json"):
        decoder = _mapping(source.json("tokenizer_config.json").get("added_tokens_decoder"))
        found += [
            (_mapping(entry).get("content"), int(key))
            for key, entry in decoder.items()
            if re.fullmatch(r"\d{1,9}", key)
        ]
    return {token: i for token, i in found if isinstance(token, str) and token in wanted and type(i) is int}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
