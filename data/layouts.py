"""Where a tokenizer puts special tokens around a text and a pair of texts, and the examples that come of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..convert.errors import BadInputError
from ..convert.text import special_ends
from .documents import Tokens

Example = dict[str, Any]  # of arrays (t,), and of numbers
SEPARATOR = -1  # in the place of "a word begins here": a special token between documents


@dataclass(frozen=True, slots=True)
class Layout:
    """Special tokens around texts.

    Attributes:
        special: ids before the first text, after it, and so on. types: token type of each of these parts and, between
            them, of the texts.
    """

    special: tuple[tuple[int, ...], ...]
    types: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.special))

    def example(self, *texts: Tokens, words: bool = False) -> Example:
        """`input_ids` int32, `token_type_ids` and `special_tokens_mask` int8, and with `words` `word_starts` int8."""
        parts = []
        for ids, text in zip(self.special, (*texts, None), strict=True):
            parts.append(np.array([[id, SEPARATOR] for id in ids], np.int32).reshape(-1, 2))
            if text is not None:
                parts.append(text)
        tokens = np.concatenate(parts)
        example: Example = {
            "input_ids": tokens[:, 0],
            "token_type_ids": np.repeat(np.array(self.types, np.int8), [len(part) for part in parts]),
            "special_tokens_mask": (tokens[:, 1] == SEPARATOR).astype(np.int8),
        }
        if words:
            example["word_starts"] = (tokens[:, 1] != 0).astype(np.int8)
        return example


BARE = Layout(((), ()), (0, 0, 0))  # of causal models: no special tokens around a text


def single_layout(tokenizer: Any) -> Layout:
    """Of one text, as the tokenizer makes it."""
    prefix, suffix = special_ends(tokenizer)
    return Layout((tuple(prefix), tuple(suffix)), (0, 0, 0))


def pair_layout(tokenizer: Any) -> Layout:
    """Of two texts.

    Raises:
        BadInputError: the tokenizer puts nothing between two texts, or does not keep their tokens together.
    """
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
    encoded = tokenizer("a", "b")
    whole = encoded["input_ids"]
    types = encoded.get("token_type_ids") or [0] * len(whole)
    first = _find(whole, a, 0)
    second = _find(whole, b, first + len(a)) if first >= 0 else -1
    if second <= first + len(a):
        raise BadInputError(
            f"cannot tell the special tokens from a pair of texts: 'a' is {a}, 'b' is {b} and both are {whole}",
            where="the tokenizer",
            hint="mlm+nsp and mlm+sop need a tokenizer that puts a special token between two texts, such as BERT's",
        )
    places = [0, first, first + len(a), second, second + len(b), len(whole)]
    prefix, between, suffix = (tuple(whole[places[i] : places[i + 1]]) for i in (0, 2, 4))
    part_types = tuple(types[at] if at < len(types) else types[-1] for at in places[:-1])
    return Layout((prefix, between, suffix), part_types)


def separator_id(tokenizer: Any, token: str | None) -> int | None:
    """The id of the token between documents.

    Raises:
        BadInputError: the tokenizer does not have the token that is asked for.
    """
    if token is None:
        return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise BadInputError(
            f"the tokenizer has no token {token!r}",
            where="--separator-token",
            hint="give a token of the vocabulary, such as [SEP]",
        )
    return int(found)


def require_mask_token(tokenizer: Any, objective: str) -> None:
    """Raises BadInputError where masks are asked for and the tokenizer has no mask token."""
    if objective != "clm" and tokenizer.mask_token_id is None:
        raise BadInputError(
            f"the tokenizer has no mask token, which objective {objective} needs",
            where="--tokenizer",
            hint="give the tokenizer of a masked language model, or --objective clm",
        )


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of what a tokenizer makes of texts: vocabulary, special tokens, and the ids of a line with many scripts.

    The same on every version of transformers that makes the same of texts.
    """
    probe = "The quick brown Fox, naïve café: 12,345.67 états-unis Straße Ελλάδα русский 日本語 한국어 العربية 🙂"
    text = json.dumps(
        [
            sorted(tokenizer.get_vocab().items()),
            sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
            tokenizer(probe, truncation=False, verbose=False)["input_ids"],
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _find(ids: list[int], part: list[int], begin: int) -> int:
    return next((i for i in range(begin, len(ids)) if part and ids[i : i + len(part)] == part), -1)
