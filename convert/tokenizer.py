"""Tokenizer files, read and edited as JSON: special token ids, and the length at which a tokenizer cuts.

Re-saving a tokenizer through a library may change it; editing two numbers in its JSON cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .source import Source

UNPORTABLE = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "cache_dir")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the special tokens; None where the tokenizer has none."""

    bos: int | None = None
    cls: int | None = None
    mask: int | None = None
    sep: int | None = None
    pad: int | None = None


def special_tokens(source: Source) -> SpecialTokens:
    """Ids of the special tokens, from the tokenizer's files alone (no tokenizer library is imported)."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if source.has(file):
            for key, value in _mapping(source.json(file)).items():
                content = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(content, str):
                    names[key.removesuffix("_token")] = content
    ids = _vocabulary(source, set(names.values()) | {"[CLS]", "[SEP]", "[MASK]", "[PAD]"})
    if not names:  # a bare vocab.txt is BERT's, whose tokens have fixed names
        names = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}
    return SpecialTokens(**{key: ids.get(names.get(key, "")) for key in ("bos", "cls", "mask", "sep", "pad")})


def edited(name: str, parsed: dict[str, Any], max_length: int, tokenizer_class: str) -> dict[str, Any]:
    """A tokenizer file's JSON with the new maximum length and no stale truncation.

    `tokenizer_class` is written where the source names none: AutoTokenizer would look it up by model_type, which is new.
    """
    result = dict(parsed)
    if name == "tokenizer_config.json":
        for key in UNPORTABLE:  # paths of somebody's machine
            result.pop(key, None)
        result["model_max_length"] = max_length
        result.setdefault("tokenizer_class", tokenizer_class)
        for key in ("max_length", "truncation", "max_len"):
            result.pop(key, None)
    elif name == "tokenizer.json":
        # The raw library cuts and pads by these two sections, whatever model_max_length says (MiniLM's cuts at 128).
        result["truncation"] = None
        result["padding"] = None
    return result


def _vocabulary(source: Source, wanted: set[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    if source.has("tokenizer.json"):
        parsed = _mapping(source.json("tokenizer.json"))
        vocabulary = _mapping(parsed.get("model")).get("vocab")
        if isinstance(vocabulary, dict):
            ids.update({token: vocabulary[token] for token in wanted if type(vocabulary.get(token)) is int})
        elif isinstance(vocabulary, list):  # Unigram: [piece, score] pairs
            ids.update({entry[0]: i for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry[0] in wanted})
        for entry in parsed.get("added_tokens") or ():
            if isinstance(entry, dict) and entry.get("content") in wanted and type(entry.get("id")) is int:
                ids[entry["content"]] = entry["id"]
    elif source.has("vocab.txt"):
        with source.path("vocab.txt").open(encoding="utf-8", errors="replace") as lines:
            ids.update({line.rstrip("\n"): i for i, line in enumerate(lines) if line.rstrip("\n") in wanted})
    elif source.has("vocab.json"):
        vocabulary = _mapping(source.json("vocab.json"))
        ids.update({token: vocabulary[token] for token in wanted if type(vocabulary.get(token)) is int})
    if source.has("added_tokens.json"):
        ids.update({k: v for k, v in _mapping(source.json("added_tokens.json")).items() if k in wanted and type(v) is int})
    if source.has("tokenizer_config.json"):
        for key, entry in _mapping(_mapping(source.json("tokenizer_config.json")).get("added_tokens_decoder")).items():
            if isinstance(entry, dict) and entry.get("content") in wanted and key.isdigit():
                ids[entry["content"]] = int(key)
    return ids


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}



