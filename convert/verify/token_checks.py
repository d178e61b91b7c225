"""The check for tokenizers: source and repo give the same ids, masks and special tokens for fixed texts."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from ..io.tokenizer import has_tokenizer, tokenizer_in
from ..repo.origin import trained_elsewhere
from .loaded import DoesNotApply, Loaded
from .run import NO_SOURCE

RECORD = "tokenizer"  # of a manifest's measurements: what `verify` compares with where no source is given
VERSION = 1  # of the texts and of what is made of them: a record of another version cannot be compared
TIME_LIMIT = 120  # seconds for loading without trust_remote_code, which may wait for an answer
WORDS = 64  # of its vocabulary that a tokenizer is asked for, at most about twice as many
SHORT = 12  # tokens to which texts are cut in one of the ways

# Scripts, cases, accents, digits, white space, symbols, emoji, and what looks like special tokens.
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "DON'T lower-case: McDonald's NATO, naïve café, Ångström, ÆØÅ, Straße, ﬁne.",
    "Numbers 3.14159, 1,024 and 2026-11-27; mail a.b@example.org, https://example.org/x?y=1#z, C:\\temp, snake_case.",
    "  leading and trailing,\ttabs\nand\r\nlines,  double  spaces\u00a0and\u200bodd\u3000ones  ",
    "Быстрая коричневая лиса. Η γρήγορη αλεπού. שועל חום מהיר. الثعلب البني السريع.",
    "快速的棕色狐狸跳过懒狗。素早い茶色の狐、カタカナ。빠른 갈색 여우.",
    "तेज़ भूरी लोमड़ी। เร็วสุนัขจิ้งจอก Nhanh như cáo, İstanbul ığüşöç.",
    "Emoji 🦊👩‍👩‍👧 é (e + combining accent), ∑∫√ ≤ →, “quotes” — dash… ™",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <mask> <pad> <unk> <mask_1> <|endoftext|>",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaft MVKLLSYAWQQR",
    "",
    " ",
)
PAIRS = ((TEXTS[0], TEXTS[1]), (TEXTS[5], TEXTS[4]), (TEXTS[0], ""))
LONG = " ".join(TEXTS[:8]) * 40  # longer than what any source of 512 tokens takes


def same_tokens(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """The repo's tokenizer against the source's, or against the record of what the source's made.

    Called as a user calls it, with `trust_remote_code` and without: without, it may refuse to load, and must not give
    other ids.

    Raises:
        AssertionError: with the first text that differs, and what either makes of it.
        DoesNotApply: there is no tokenizer, or nothing to compare with.
    """
    if has_tokenizer(loaded.repo):
        loaded.require_trusted_tokenizer()
    expected = _source_encodings(loaded)
    if not has_tokenizer(loaded.repo):
        if expected is None:
            raise DoesNotApply("the repo has no tokenizer")
        raise AssertionError("the source has a tokenizer, but the repo has none of its files")
    require_tells_apart(loaded.tokenizer)
    ours = encodings(loaded.tokenizer, _left_out(loaded.repo))
    record = {"texts": VERSION, "sha256": digest(ours), "versions": _versions(), "words": len(loaded.tokenizer)}
    if expected is not None:
        require_same(ours, expected)
    else:
        record = _compared_with_record(record, loaded.manifest)
    length = int(loaded.tokenizer.model_max_length)
    if length != loaded.max_length and not trained_elsewhere(loaded.manifest):  # its user may want shorter texts
        raise AssertionError(f"the tokenizer truncates at {length:,} tokens, but the model takes {loaded.max_length:,}")
    return None, {"record": record, "encodings": len(ours), "without_trust_remote_code": _untrusted(loaded.repo, ours)}


def encodings(tokenizer: Any, left_out: Collection[str] = ()) -> dict[str, Any]:
    """What a tokenizer makes of the texts, by a name for each text and way: ids, masks, and the special tokens.

    Args:
        left_out: names of what it makes that the model has no use for.
    """
    made = {
        name: {key: ids for key, ids in value.items() if key not in left_out} for name, value in _encoded(tokenizer)
    }
    special = {str(token): int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
    sides = {"padding_side": tokenizer.padding_side, "truncation_side": tokenizer.truncation_side}
    return {**made, "special tokens": {**special, **sides}}


def require_tells_apart(tokenizer: Any) -> None:
    """Raises AssertionError for a tokenizer without a vocabulary: equal to the source's, and of no use.

    A class that does not find its files may load without them, and then gives special tokens alone, or one unknown
    token a word. Its own words are texts, too: a vocabulary of DNA knows no word of the others.
    """
    words = sorted(tokenizer.get_vocab())
    texts = [*(text for text in TEXTS if text.strip()), *words[:: max(1, len(words) // WORDS)]]
    made = [tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    special = set(tokenizer.all_special_ids)
    told = {ids for ids in made if not special.issuperset(ids)}
    if len(told) < 2:
        raise AssertionError(
            f"the tokenizer ({type(tokenizer).__name__}) gives no other ids than special tokens for any text: its "
            "vocabulary is missing, or is that of another class (tokenizer_config.json: tokenizer_class)"
        )


def digest(made: Mapping[str, Any]) -> str:
    """sha256 of what `encodings` gives."""
    return hashlib.sha256(json.dumps(made, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises AssertionError where two results of `encodings` differ, with the first difference."""
    differing = [name for name in theirs if ours.get(name) != theirs[name]]
    if differing:
        first = differing[0]
        raise AssertionError(
            f"{len(differing)} of {len(theirs)} encodings differ from the source's; {first}: "
            + _first_difference(ours[first], theirs[first])
        )


def _encoded(tokenizer: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    plain: dict[str, Any] = {"verbose": False}
    for number, text in enumerate(TEXTS):
        shown = repr(text if len(text) <= 24 else text[:24] + "...")
        yield f"text {number} {shown}", tokenizer(text, **plain)
        yield f"text {number} without special tokens", tokenizer(text, add_special_tokens=False, **plain)
        yield f"text {number} cut", tokenizer(text, truncation=True, max_length=SHORT, **plain)
    for number, (one, other) in enumerate(PAIRS):
        yield f"pair {number}", tokenizer(one, other, **plain)
        yield f"pair {number} cut", tokenizer(one, other, truncation="longest_first", max_length=SHORT, **plain)
    yield "the long text", tokenizer(LONG, **plain)
    if tokenizer.pad_token is not None:
        yield "a padded batch", tokenizer(list(TEXTS), padding=True, **plain)


def _source_encodings(loaded: Loaded) -> dict[str, Any] | None:
    """What the source's own tokenizer makes of the texts; None without a source, or where it has no tokenizer."""
    source = loaded.source
    if source is None or not (source / "config.json").is_file():
        return None
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=loaded.trust_remote_code)
    except Exception as error:
        if not has_tokenizer(source):
            return None
        if has_tokenizer(loaded.repo):
            require_tells_apart(loaded.tokenizer)  # what the repo brings must work in any case
        reason = str(error).strip().splitlines() or [""]
        raise DoesNotApply(
            f"the source's own tokenizer does not load here ({type(error).__name__}: {reason[0]})"
        ) from None
    if not has_tokenizer(source):
        return None  # made by transformers from nothing
    return encodings(theirs, _left_out(loaded.repo))


def _compared_with_record(record: dict[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's record, where it agrees with what the repo's tokenizer made just now."""
    stated = manifest.get("measurements", {}).get(RECORD)
    if not isinstance(stated, Mapping) or stated.get("texts") != record["texts"]:
        raise DoesNotApply(f"{NO_SOURCE}, and the manifest has no record of what its tokenizer made")
    if stated.get("sha256") == record["sha256"]:
        return dict(stated)
    if stated.get("versions") != record["versions"]:
        raise DoesNotApply(
            f"the source's ids were recorded with {_named(stated.get('versions'))}, but {_named(record['versions'])} "
            "gives other ids: pass --against SOURCE to compare both tokenizers here"
        )
    if trained_elsewhere(manifest) and stated.get("words") not in (None, record["words"]):
        raise DoesNotApply(
            f"the vocabulary was changed after the conversion, from {stated['words']:,} to {record['words']:,} tokens"
        )
    raise AssertionError("the ids differ from those of the source in the manifest")


def _untrusted(repo: Path, ours: Mapping[str, Any]) -> str:
    """What a user gets who leaves `trust_remote_code` out; nobody answers the question that transformers may ask."""
    if tokenizer_in(repo).references:
        return "not compared: the tokenizer has Python code of its own"
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    terminal, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(repo)
    except Exception:  # transformers refuses, which is right: the repo has code of its own
        return "refused"
    finally:
        sys.stdin = terminal
        faulthandler.cancel_dump_traceback_later()
    try:
        require_same(encodings(tokenizer, _left_out(repo)), ours)
    except AssertionError as error:
        raise AssertionError(
            f"without trust_remote_code, {error}".replace("the source", "the repo with trust_remote_code")
        ) from None
    return "the same"


def _versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}


def _named(versions: object) -> str:
    pairs = versions.items() if isinstance(versions, Mapping) else ()
    return " and ".join(f"{name} {version}" for name, version in pairs) or "unknown versions"


def _left_out(repo: Path) -> tuple[str, ...]:
    """Token types, for a model that has one type or none: whether a class gives them depends on the version."""
    config = json.loads((repo / "config.json").read_text(encoding="utf-8"))
    types = config.get("type_vocab_size")
    return () if isinstance(types, int) and types > 1 else ("token_type_ids",)


def _first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], most: int = 8) -> str:
    """Where two encodings differ first, in words."""
    key = next(key for key in (*theirs, *ours) if ours.get(key) != theirs.get(key))
    one, other = ours.get(key), theirs.get(key)
    if not (isinstance(one, list) and isinstance(other, list)):
        return f"{key} is {one}, but the source gives {other}"
    pairs = enumerate(zip(one, other, strict=False))
    at = next((i for i, (x, y) in pairs if x != y), min(len(one), len(other)))
    one, other = (json.dumps(values[at : at + most]) for values in (one, other))
    return f"{key} from {at} on are {one}, but the source gives {other}"
