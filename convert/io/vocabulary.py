"""Ids of tokens, read from a tokenizer's vocabulary files without a tokenizer library.

A sentencepiece model is a protobuf message whose field 1 holds the pieces in order. Reading that one field takes thirty
lines, where the sentencepiece and protobuf packages would be two dependencies of every conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from .source import Source
from .tokenizer_classes import FILE, SPECIAL, TokenizerClass

FIRST = ("bos", "pad", "eos", "unk")  # ids 0 to 3 of a fairseq vocabulary, which its files do not hold
PEGASUS_OFFSET = 103  # ids before the first piece: pad, end, two masks and tokens that only pre-training used
FIXED_WIDTH = {1: 8, 5: 4}  # bytes of a protobuf value by its wire type

Names = Mapping[str, str]


def token_ids(source: Source, kind: TokenizerClass | None, names: Names) -> dict[str, int]:
    """Ids of the named special tokens, as far as the files know them.

    Args:
        kind: the tokenizer's class; None for one that transformers does not have.
        names: what the tokenizer calls its special tokens, by the keys of `SPECIAL`.

    Raises:
        BadInputError: a damaged file.
    """
    wanted = set(names.values())
    ids = {token: i for token, i in _vocabulary(source, kind, names).items() if token in wanted}
    if source.has("added_tokens.json"):
        ids |= _valid(source.json("added_tokens.json").items(), wanted)
    if source.has("tokenizer_config.json"):
        decoder = _mapping(source.json("tokenizer_config.json").get("added_tokens_decoder"))
        numbered = ((key, entry) for key, entry in decoder.items() if re.fullmatch(r"\d{1,9}", key))
        ids |= _valid(((_mapping(entry).get("content"), int(key)) for key, entry in numbered), wanted)
    return ids


def largest_id(source: Source) -> int | None:
    """The largest id in tokenizer.json and added_tokens.json; None for a tokenizer without the first."""
    if not source.has(FILE):
        return None
    parsed = source.json(FILE)
    vocabulary = _mapping(parsed).get("model")
    words = _mapping(vocabulary).get("vocab")
    ids: list[object] = [len(words) - 1] if isinstance(words, list) else list(_mapping(words).values())
    added = _mapping(parsed).get("added_tokens")
    ids += [_mapping(entry).get("id") for entry in added] if isinstance(added, list) else []
    if source.has("added_tokens.json"):
        ids += _mapping(source.json("added_tokens.json")).values()
    return max((i for i in ids if type(i) is int), default=None)


def _vocabulary(source: Source, kind: TokenizerClass | None, names: Names) -> Mapping[str, int]:
    """Ids from the first vocabulary file that the class would read."""
    settings = source.json("tokenizer_config.json") if source.has("tokenizer_config.json") else {}
    stored = [name for name in kind.files if source.has(name)] if kind else []
    pieces = next((name for name in stored if name.endswith(".model") and name != "dict.txt"), "")
    if kind and pieces == "spiece.model" and settings.get("subword_tokenizer_type") == "sentencepiece":
        return _listed(read_pieces(source.path(pieces), pieces))  # a BertJapaneseTokenizer: vocab.txt is not read
    if source.has(FILE) and (kind is None or FILE in kind.files):
        return _from_tokenizer_file(source.json(FILE), set(names.values()))
    if kind and kind.layout == "counted":
        name = next((name for name in stored if name.endswith(".txt")), "")
        return _with_missing(_counted(source.path(name), name, names), names) if name else {}
    if source.has("vocab.json") and (kind is None or "vocab.json" in kind.files or not stored):
        return _valid(source.json("vocab.json").items(), set(names.values()))
    if source.has("vocab.txt") and (kind is None or "vocab.txt" in kind.files or not stored):
        return _lines(source.path("vocab.txt"), set(names.values()))
    if kind and kind.layout == "bytes":
        return {names[key]: i for i, key in enumerate(("pad", "eos", "unk")) if key in names} | {"<extra_id_0>": 259}
    if kind and pieces:
        return _from_pieces(read_pieces(source.path(pieces), pieces), kind, names, settings)
    return {}


def _from_tokenizer_file(parsed: Mapping[str, Any], wanted: set[str]) -> dict[str, int]:
    vocabulary = _mapping(parsed.get("model")).get("vocab")
    found: list[tuple[object, object]]
    if isinstance(vocabulary, list):  # Unigram: [piece, score] pairs
        found = [(entry[0] if isinstance(entry, list) and entry else None, i) for i, entry in enumerate(vocabulary)]
    else:
        found = [(token, _mapping(vocabulary).get(token)) for token in wanted]
    added = parsed.get("added_tokens")
    entries = [_mapping(entry) for entry in added] if isinstance(added, list) else []
    return _valid([*found, *((entry.get("content"), entry.get("id")) for entry in entries)], wanted)


def _lines(path: Path, wanted: set[str]) -> dict[str, int]:
    """A token a line; the last of several equal lines counts, as in transformers."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        tokens = ((line.removesuffix("\n"), i) for i, line in enumerate(lines))
        return {token: i for token, i in tokens if token in wanted}


def _counted(path: Path, name: str, names: Names) -> dict[str, int]:
    """A token and its count a line (PhoBERT, BERTweet, BARTpho), after four tokens that the file does not hold."""
    ids: dict[str, int] = {}
    for key in FIRST:
        if key in names:
            ids.setdefault(names[key], len(ids))
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        token, space, _ = line.strip().rpartition(" ")
        if not space:
            raise BadInputError(
                f"{name} has a line without a count: {line[:40]!r}", where=name, hint="download it again"
            )
        ids[token] = len(ids)
    return ids


def _from_pieces(pieces: list[str], kind: TokenizerClass, names: Names, settings: Mapping[str, Any]) -> dict[str, int]:
    """Ids as the class numbers the pieces of a sentencepiece model."""
    ids = _listed(pieces)
    if kind.layout == "fairseq":  # the first three pieces give way to four tokens; codes and the mask come last
        ids = {piece: i + 1 for piece, i in ids.items() if i >= 3}
        ids |= {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(pieces) + 1 + kind.codes}
    if kind.layout == "camembert":
        ids = {"<pad>": 1, **{piece: i + 4 for piece, i in ids.items()}, "<unk>": 3}
    if kind.layout == "pegasus":
        offset = settings.get("offset", PEGASUS_OFFSET)
        ids = {piece: i + offset for piece, i in ids.items() if type(offset) is int}
        return ids | {names[key]: i for key, i in (("pad", 0), ("eos", 1), ("mask", 3)) if key in names}
    if kind.layout == "t5":  # the first sentinel comes last
        sentinels = settings.get("extra_ids", 100)
        if type(sentinels) is int and sentinels > 0:
            ids["<extra_id_0>"] = len(pieces) + sentinels - 1
    return _with_missing(ids, names)


def _with_missing(ids: dict[str, int], names: Names) -> dict[str, int]:
    """With the special tokens that the vocabulary lacks: the class adds them at the end, in this order."""
    result = dict(ids)
    end = max(ids.values(), default=-1) + 1
    for key in SPECIAL:
        if key in names and names[key] not in result:
            result[names[key]] = end
            end += 1
    return result


def _listed(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}


def read_pieces(path: Path, name: str) -> list[str]:
    """The pieces of a sentencepiece model, in order.

    Raises:
        BadInputError: the file is not such a model.
    """
    data = path.read_bytes()
    try:
        pieces = [
            next(bytes(value).decode() for key, value in _fields(message) if key == 1)
            for number, message in _fields(memoryview(data))
            if number == 1
        ]
    except (ValueError, IndexError, StopIteration):
        pieces = []
    if not pieces:
        raise BadInputError(f"{name} is not a sentencepiece model", where=name, hint="download the file again")
    return pieces


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and value of each field of a protobuf message; only values with a length have a content here."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 2:
            size, at = _varint(message, at)
        elif wire == 0:
            start = at
            _, at = _varint(message, at)
            size, at = at - start, start
        else:
            size = FIXED_WIDTH.get(wire, end + 1)
        if at + size > end:
            raise ValueError("a field ends after the message")
        yield key >> 3, message[at : at + size] if wire == 2 else message[:0]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, least significant first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _valid(pairs: Any, wanted: set[str]) -> dict[str, int]:
    return {token: i for token, i in pairs if isinstance(token, str) and token in wanted and type(i) is int}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
