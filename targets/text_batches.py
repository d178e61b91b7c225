"""Calibration text: read, tokenized with the source's own tokenizer, cut into texts of mixed lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..convert.errors import BadInputError
from ..convert.text import check_tokens, fitting_text, joined, special_ends
from ..convert.windows import windows


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Token ids of a text, and what the manifest says of it.

    Attributes:
        tokens: ids without special tokens. prefix, suffix: those that the tokenizer puts around a text.
        record: name, sha256, number of tokens, share of unknown ones.
    """

    tokens: list[int]
    prefix: list[int]
    suffix: list[int]
    record: dict[str, Any]
    findings: list[str]


def read_text(files: Sequence[Path], tokenizer: Any, rows: int, where: str = "--calibrate") -> CalibrationText:
    """Reads and tokenizes the files or, without files, the built-in text.

    Args:
        files: UTF-8 text. where: the option that lists them.
        tokenizer: the source's.
        rows: number of the source's word embeddings.

    Raises:
        BadInputError: a text cannot be read or is mostly unknown to the tokenizer, or the tokenizer is another model's.
    """
    if files:
        text, name = joined(files, where), ", ".join(path.name for path in files)
    else:
        text = fitting_text()
        name = "the built-in English text"
    tokens = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    prefix, suffix = special_ends(tokenizer)
    unknown, findings = check_tokens([*tokens, *prefix, *suffix], tokenizer, rows, name)
    record = {
        "text": name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokens": len(tokens),
        "unknown_share": round(unknown, 4),
    }
    return CalibrationText(list(tokens), prefix, suffix, record, findings)


def text_batches(
    tokens: Sequence[int],
    prefix: Sequence[int],
    suffix: Sequence[int],
    lengths: Sequence[int] = (512, 256, 128, 64, 32),
    budget: int = 32_768,
    longest_share: float = 0.4,
    batch_tokens: int = 2048,
) -> list[Tensor]:
    """Cut a token stream into texts of mixed lengths, evenly over the stream, with the special tokens around each.

    The longest length gets `longest_share` of the budget (tokens), the others equal parts: attention spreads with the
    length, and a fit on one length is worse on the others. If the stream is short, no text is repeated: the longest
    lengths are skipped, and the budget shrinks.
    """
    stream = torch.as_tensor(list(tokens), dtype=torch.long)
    around = len(prefix) + len(suffix)
    asked, lengths = lengths, [n for n in sorted(set(lengths), reverse=True) if around < n <= len(stream) + around]
    if not lengths:
        raise BadInputError(
            f"the calibration text has only {len(stream):,} tokens",
            where="--calibrate",
            hint=f"give a text of at least {max(min(asked) - around, 1):,} tokens",
        )
    shares = [longest_share] + [(1 - longest_share) / max(1, len(lengths) - 1)] * (len(lengths) - 1)
    budget = min(budget, len(stream) * len(lengths))
    out: list[Tensor] = []
    for i, (n, share) in enumerate(zip(lengths, shares, strict=True)):
        body = n - around
        count = max(1, min(round(budget * share / n), len(stream) // body))
        room = len(stream) - body
        # Texts of different lengths start at different phases, so that they are not cut from the same places.
        phase = (i + 0.5) / len(lengths)
        starts = [int((k + phase) * room / count) for k in range(count)]
        out += torch.split(windows(stream, starts, n, prefix, suffix), max(1, batch_tokens // n))
    return out
