"""Small labelled data for each task, in the tiny tokenizers' own words, and what a tiny model can learn of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt_text import documents

MARKS = ("he had not " * 3, "was for the " * 3)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_for(task: str, count: int = 24, seed: int = 0, words: int = 40) -> list[dict[str, Any]]:
    """Rows of a task under its usual column names."""
    rng = random.Random(seed)
    texts = [" ".join(text.split()[: rng.randint(4, words)]) for text in documents(count, words, seed)]
    return [_ROW[task](text, i) for i, text in enumerate(texts)]


def _tokens(text: str, i: int) -> dict[str, Any]:
    words = text.split()[:12]
    return {"tokens": words, "tags": ["B-THE" if word == "the" else "O" for word in words]}


def _question(text: str, i: int) -> dict[str, Any]:
    word = text.split()[i % 3]
    answers = {"text": [word], "answer_start": [text.index(word)]} if i % 4 else {"text": [], "answer_start": []}
    return {"context": text, "question": "what is it", "answers": answers}


_ROW = {
    # The first and the last words tell the class.
    "classification": lambda text, i: {"text": f"{MARKS[i % 2]} {text} {MARKS[i % 2]}", "label": "np"[i % 2]},
    "multilabel": lambda text, i: {"text": text, "label": ["a", "b", "c"][: i % 4]},
    "regression": lambda text, i: {"text": text, "label": len(text) / 100},
    "tokens": _tokens,
    "question": _question,
    "choice": lambda text, i: {"text": text, "choices": ["it is", "they are", "he had"], "label": i % 3},
    "summarize": lambda text, i: {"text": text, "summary": " ".join(text.split()[:4])},
}
TASKS = tuple(_ROW)
