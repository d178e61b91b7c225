"""Metrics of the tasks: scikit-learn's for classes and numbers, and those of spans and summaries, written out here.

Spans of entities are counted as the CoNLL task counts them (whole spans of BIO labels); answers as SQuAD does (words
without articles and punctuation); ROUGE on lower-case words, without stemming.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .features import IGNORED, Features, Texts
from .tasks import Task

Metrics = Callable[[Any], dict[str, float]]
CANDIDATES, LONGEST_ANSWER = 20, 30  # ends of spans that are tried; tokens of an answer


def reduced(task: Task) -> Callable[[Any, Any], Any] | None:
    """What is kept of a batch's outputs: a class instead of all logits, and no states of an encoder."""

    def keep(outputs: Any, labels: Any) -> Any:
        parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        if task.name == "question":
            return tuple(parts[:2])
        return parts[0].argmax(-1) if task.name in ("classification", "tokens", "choice") else parts[0]

    return None if task.name == "summarize" else keep  # whose predictions are generated texts


def metrics_for(task: Task, names: Sequence[str], labels: Sequence[str], tokenizer: Any) -> Callable[..., Metrics]:
    """Makes, for evaluation features and their texts, what computes the metrics of Trainer's predictions.

    Args:
        names: of the metrics. labels: of the head's outputs.
    """
    wanted = [name for name in names if name != "loss"]

    def for_rows(features: Features, texts: Texts) -> Metrics:
        def compute(found: Any) -> dict[str, float]:
            values = _compute(task, found.predictions, found.label_ids, labels, tokenizer, features, texts)
            return {name: float(values[name]()) for name in wanted}

        return compute

    return for_rows


def _compute(
    task: Task,
    predicted: Any,
    stated: Any,
    labels: Sequence[str],
    tokenizer: Any,
    features: Features,
    texts: Texts,
) -> Mapping[str, Callable[[], float]]:
    if task.name in ("classification", "choice"):
        return _of_classes(stated, predicted, len(labels))
    if task.name == "multilabel":
        return _of_sets(stated > 0.5, predicted > 0)
    if task.name == "regression":
        return _of_numbers(stated, np.asarray(predicted).reshape(-1))
    if task.name == "tokens":
        return _of_entities(stated, predicted, labels)
    if task.name == "question":
        return _of_answers(answers_of(predicted, features, len(texts.first), texts.first), texts.labels)
    ids = [np.where(part == IGNORED, tokenizer.pad_token_id, part) for part in (predicted, stated)]
    guessed, wanted = (tokenizer.batch_decode(part, skip_special_tokens=True) for part in ids)
    return {name: lambda name=name: _rouge(name, guessed, wanted) for name in ("rouge1", "rouge2", "rougeL")}  # type: ignore[misc]


def _of_classes(stated: Any, predicted: Any, classes: int) -> Mapping[str, Callable[[], float]]:
    from sklearn import metrics

    usual = "binary" if classes == 2 else "macro"  # binary: of the second class, as GLUE has it
    more: dict[str, Any] = {"zero_division": 0}
    return {
        "accuracy": lambda: metrics.accuracy_score(stated, predicted),
        "matthews": lambda: metrics.matthews_corrcoef(stated, predicted),
        "f1": lambda: metrics.f1_score(stated, predicted, average=usual, **more),
        "precision": lambda: metrics.precision_score(stated, predicted, average=usual, **more),
        "recall": lambda: metrics.recall_score(stated, predicted, average=usual, **more),
        **{
            f"f1_{kind}": lambda kind=kind: metrics.f1_score(stated, predicted, average=kind, **more)  # type: ignore[misc]
            for kind in ("macro", "micro", "weighted")
        },
    }


def _of_sets(stated: Any, predicted: Any) -> Mapping[str, Callable[[], float]]:
    from sklearn import metrics

    more: dict[str, Any] = {"zero_division": 0}
    return {
        "accuracy": lambda: metrics.accuracy_score(stated, predicted),
        "f1": lambda: metrics.f1_score(stated, predicted, average="micro", **more),
        "f1_macro": lambda: metrics.f1_score(stated, predicted, average="macro", **more),
        "precision": lambda: metrics.precision_score(stated, predicted, average="micro", **more),
        "recall": lambda: metrics.recall_score(stated, predicted, average="micro", **more),
    }


def _of_numbers(stated: Any, predicted: Any) -> Mapping[str, Callable[[], float]]:
    from scipy import stats
    from sklearn import metrics

    constant = np.ptp(predicted) == 0 or np.ptp(stated) == 0  # then a correlation is not defined
    return {
        "pearson": lambda: 0.0 if constant else stats.pearsonr(predicted, stated).statistic,
        "spearman": lambda: 0.0 if constant else stats.spearmanr(predicted, stated).statistic,
        "mse": lambda: metrics.mean_squared_error(stated, predicted),
        "mae": lambda: metrics.mean_absolute_error(stated, predicted),
    }


def _of_entities(stated: Any, predicted: Any, labels: Sequence[str]) -> Mapping[str, Callable[[], float]]:
    real = stated != IGNORED
    right = wanted = guessed = 0
    for row in range(len(stated)):
        one, two = (entities([labels[i] for i in part[row][real[row]]]) for part in (stated, predicted))
        right, wanted, guessed = right + len(one & two), wanted + len(one), guessed + len(two)
    share = lambda part, whole: part / whole if whole else 0.0  # noqa: E731
    return {
        "accuracy": lambda: float((stated == predicted)[real].mean()),
        "precision": lambda: share(right, guessed),
        "recall": lambda: share(right, wanted),
        "f1": lambda: share(2 * right, guessed + wanted),
    }


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Spans of BIO labels as (kind, first, end). Labels without B- and I- are spans of one word, but for O."""
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for i, label in enumerate((*labels, "O")):
        prefix, dash, rest = label.partition("-")
        continues = prefix == "I" and dash and rest == kind
        if kind and not continues:
            found.add((kind, start, i))
            kind = ""
        if continues or label == "O":
            continue
        if dash and prefix in ("B", "I"):
            kind, start = rest, i
        else:
            found.add((label, i, i + 1))
    return found


def answers_of(logits: Any, features: Features, rows: int, contexts: Sequence[str]) -> list[str]:
    """The best answer to each question over the windows of its context; "" where no answer scores best."""
    best: list[tuple[float, str]] = [(-np.inf, "")] * rows
    none: list[float] = [np.inf] * rows
    for start, end, row, offsets in zip(*logits, features.rows, features.offsets, strict=True):
        none[row] = min(none[row], float(start[0] + end[0]))
        inside = np.asarray([span is not None for span in offsets])
        begins, ends = (np.where(inside, part[: len(offsets)], -np.inf) for part in (start, end))
        for i in np.argsort(-begins)[:CANDIDATES]:
            for j in np.argsort(-ends)[:CANDIDATES]:
                first, last = offsets[i], offsets[j]
                if first and last and i <= j < i + LONGEST_ANSWER and begins[i] + ends[j] > best[row][0]:
                    best[row] = (float(begins[i] + ends[j]), contexts[row][first[0] : last[1]])
    return [text if score > null else "" for (score, text), null in zip(best, none, strict=True)]


def _of_answers(found: Sequence[str], stated: Sequence[Any]) -> Mapping[str, Callable[[], float]]:
    wanted = [[text for _, text in answers] or [""] for answers in stated]
    return {
        "exact_match": lambda: _mean(
            max(_words_of(a) == _words_of(b) for b in answers) for a, answers in zip(found, wanted, strict=True)
        ),
        "f1": lambda: _mean(
            max(_overlap(_words_of(a), _words_of(b)) for b in answers) for a, answers in zip(found, wanted, strict=True)
        ),
    }


def _words_of(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(one: Sequence[Any], two: Sequence[Any]) -> float:
    """F1 of two bags."""
    if not one or not two:
        return float(one == two)
    return 2 * sum((Counter(one) & Counter(two)).values()) / (len(one) + len(two))


def _rouge(name: str, found: Sequence[str], wanted: Sequence[str]) -> float:
    pairs = [[re.findall(r"\w+", text.lower()) for text in pair] for pair in zip(found, wanted, strict=True)]
    if name == "rougeL":
        return _mean(2 * _common(a, b) / (len(a) + len(b)) if a and b else 0.0 for a, b in pairs)
    size = int(name[-1])
    grams = [[list(zip(*(part[i:] for i in range(size)), strict=False)) for part in pair] for pair in pairs]
    return _mean(_overlap(a, b) if a and b else 0.0 for a, b in grams)


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(two) + 1)
    for word in one:
        before = 0
        for i, other in enumerate(two, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / max(len(found), 1)
