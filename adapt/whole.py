"""Retrieval of whole documents by sentences that were cut out of them.

A query is a sentence of the document, and the document is embedded without it, so that what is compared is what the
rest of the document says. Sentences are chosen by seed among those of a fitting length that no document has twice.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..convert.errors import BadInputError
from ..convert.text import check_tokens, counted
from ..data.named import NamedText
from ..data.sentences import sentences_by_rule
from .ranking import Task


@dataclass(frozen=True)
class WholeTask:
    """The task, and what it was made of.

    Attributes:
        texts: the documents without the queries' sentences, as they are embedded. sentences: the queries.
        record: names, sha256 and counts: documents read, `left_out` (short, or without a fitting sentence), `cut` (at
            the maximum length).
    """

    task: Task
    texts: list[str]
    sentences: list[str]
    record: dict[str, Any]


def whole_task(
    named: Sequence[NamedText],
    tokenizer: Any,
    rows: int,
    *,
    documents: int,
    longer_than: int,
    room: int,
    queries: int,
    size: int,
    seed: int,
) -> WholeTask:
    """The task of whole documents.

    Args:
        named: the texts, of which the first `documents` that are long enough are taken.
        rows: of the model's table of words.
        longer_than: tokens that a document must exceed: shorter ones tell nothing about long models.
        room: tokens of a document at most; it is cut behind the last sentence that fits.
        queries: sentences a document, at most. size: tokens of one, from half to twice as many.

    Raises:
        BadInputError: there are fewer than two such documents.
    """
    lines = [_sentences(text.text) for text in named]
    known = Counter(" ".join(sentence.split()) for document in lines for line in document for sentence in line)
    texts: list[str] = []
    found: list[list[str]] = []
    cut = looked_at = 0
    for number, document in enumerate(lines):
        if len(texts) == documents:
            break
        looked_at += 1
        flat = [sentence for line in document for sentence in line]
        lengths = [len(ids) for ids in _ids(flat, tokenizer)]
        fitting = _fitting(lengths, room)
        if sum(lengths[:fitting]) <= longer_than:
            continue
        candidates = [
            i
            for i in range(fitting)
            if size / 2 <= lengths[i] <= 2 * size and known[" ".join(flat[i].split())] == 1 and _is_prose(flat[i])
        ]
        random.Random(f"{seed} {number}").shuffle(candidates)
        chosen: list[int] = []
        for i in candidates:
            if len(chosen) < queries and not any(flat[i] in other for j, other in enumerate(flat) if j != i):
                chosen.append(i)
        if chosen:
            texts.append(_without(document, set(chosen), fitting))
            found.append([flat[i] for i in sorted(chosen)])
            cut += fitting < len(flat)
    if len(texts) < 2:
        raise BadInputError(
            f"{counted(looked_at, 'document')} of the data: {len(texts)} of more than {longer_than} tokens "
            f"with a sentence of {size // 2} to {2 * size} tokens, but retrieval needs at least 2",
            where="--data",
            hint="give more or longer documents, other --query-tokens, or measure windows of a text (without --whole)",
        )
    bodies = [torch.tensor(ids[:room]) for ids in _ids(texts, tokenizer)]
    sentences = [sentence for several in found for sentence in several]
    asked = [torch.tensor(ids) for ids in _ids(sentences, tokenizer)]
    answers = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(several) for several in found]))
    unknown, _ = check_tokens(torch.cat(bodies).tolist(), tokenizer, rows, "--data")
    record = {
        "text": ", ".join(dict.fromkeys(text.file.rpartition("/")[2] for text in named)),
        "sha256": hashlib.sha256("".join(text.text for text in named).encode("utf-8", "surrogatepass")).hexdigest(),
        "tokens": sum(map(len, bodies)),
        "unknown_share": round(unknown, 4),
        "left_out": looked_at - len(texts),
        "cut": cut,
    }
    return WholeTask(Task(bodies, asked, answers, answers), texts, sentences, record)


def _sentences(text: str) -> list[list[str]]:
    """The sentences of each line."""
    return [list(sentences_by_rule(line)) for line in text.splitlines()]


def _ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)[
        "input_ids"
    ]
    return found


def _fitting(lengths: Sequence[int], room: int) -> int:
    """How many sentences from the first on have at most so many tokens."""
    total = 0
    for i, length in enumerate(lengths):
        total += length
        if total > room:
            return i
    return len(lengths)


def _is_prose(sentence: str) -> bool:
    """Whether it is not a heading as WikiText has them (` = = Title = = `)."""
    return not sentence.lstrip().startswith("= ")


def _without(document: list[list[str]], chosen: set[int], fitting: int) -> str:
    """The first `fitting` sentences but the chosen ones, line by line."""
    lines, number = [], 0
    for line in document:
        kept = [s for i, s in enumerate(line, number) if i < fitting and i not in chosen]
        number += len(line)
        if kept:
            lines.append(" ".join(kept))
    return "\n".join(lines)
