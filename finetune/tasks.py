"""The tasks of `effconv finetune` as data: head, columns, metrics. No heavy imports.

Tasks of GLUE are entries, too: their dataset on the Hub, its columns, and the metrics that are reported for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..convert.errors import UnsupportedError, UsageError, did_you_mean
from ..convert.families.grammar import Family, Head

LOWER_IS_BETTER = ("mse", "mae", "loss")
GLUE_DATASET = "nyu-mll/glue"


@dataclass(frozen=True, slots=True)
class Task:
    """What a head is trained for.

    Attributes:
        auto: Auto class of the head. pipeline: the task's name on the Hub.
        text, label: columns. pair: the second text's, "" where there is none.
        metrics: those that are known; the first `usual` of them are reported unless others are asked for.
        problem: `problem_type` of the config.
        glue: its name in GLUE. evaluated: the dataset's split to evaluate on.
    """

    name: str
    auto: str
    pipeline: str
    metrics: tuple[str, ...]
    usual: int = 1
    text: str = "text"
    label: str = "label"
    pair: str = ""
    choices: str = ""
    problem: str | None = None
    glue: str = ""
    evaluated: str = "validation"


_CLASSES = ("f1_macro", "f1_micro", "f1_weighted", "precision", "recall")
_CLASSIFIER = "AutoModelForSequenceClassification"
CLASSIFICATION = Task(
    "classification",
    _CLASSIFIER,
    "text-classification",
    ("accuracy", "f1", "matthews", *_CLASSES),
    2,
    problem="single_label_classification",
)
REGRESSION = Task(
    "regression", _CLASSIFIER, "text-classification", ("pearson", "spearman", "mse", "mae"), 3, problem="regression"
)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        CLASSIFICATION,
        Task(
            "multilabel",
            _CLASSIFIER,
            "text-classification",
            ("f1", "f1_macro", "accuracy", "precision", "recall"),
            3,
            problem="multi_label_classification",
        ),
        REGRESSION,
        Task(
            "tokens",
            "AutoModelForTokenClassification",
            "token-classification",
            ("f1", "precision", "recall", "accuracy"),
            4,
            text="tokens",
            label="tags",
        ),
        Task(
            "question",
            "AutoModelForQuestionAnswering",
            "question-answering",
            ("f1", "exact_match"),
            2,
            text="context",
            pair="question",
            label="answers",
        ),
        Task("choice", "AutoModelForMultipleChoice", "multiple-choice", ("accuracy",), choices="choices"),
        Task("summarize", "AutoModelForSeq2SeqLM", "summarization", ("rougeL", "rouge1", "rouge2"), 3, label="summary"),
    )
}


def _glue(name: str, text: str, pair: str, metrics: tuple[str, ...], task: Task = CLASSIFICATION, **more: str) -> Task:
    own = (*metrics, *(metric for metric in task.metrics if metric not in metrics))
    return replace(task, glue=name, text=text, pair=pair, metrics=own, usual=len(metrics), **more)  # type: ignore[arg-type]


GLUE: Mapping[str, Task] = {
    task.glue: task
    for task in (
        _glue("cola", "sentence", "", ("matthews", "accuracy")),
        _glue("sst2", "sentence", "", ("accuracy",)),
        _glue("mrpc", "sentence1", "sentence2", ("f1", "accuracy")),
        _glue("qqp", "question1", "question2", ("f1", "accuracy")),
        _glue("stsb", "sentence1", "sentence2", ("pearson", "spearman"), REGRESSION),
        _glue("mnli", "premise", "hypothesis", ("accuracy",), evaluated="validation_matched"),
        _glue("qnli", "question", "sentence", ("accuracy",)),
        _glue("rte", "sentence1", "sentence2", ("accuracy",)),
        _glue("wnli", "sentence1", "sentence2", ("accuracy",)),
    )
}


def task_named(name: str) -> Task:
    """The task that `--task` names.

    Raises:
        UsageError: with the tasks there are.
    """
    kind, colon, entry = name.partition(":")
    known: Mapping[str, Task] = GLUE if colon else TASKS
    wanted = entry if colon else kind
    if wanted in known and kind in ("glue", wanted):
        return known[wanted]
    every = [*TASKS, *(f"glue:{task}" for task in GLUE)]
    raise UsageError(
        f"unknown task {name!r}{did_you_mean(name, every)}", where="--task", hint="use one of " + ", ".join(every)
    )


def head_for(family: Family, task: Task) -> Head:
    """The family's head for a task.

    Raises:
        UnsupportedError: it has none.
    """
    found = next((head for head in family.heads if head.auto == task.auto), None)
    if found is None:
        possible = [name for name, other in TASKS.items() if any(head.auto == other.auto for head in family.heads)]
        raise UnsupportedError(
            f"{family.name} has no head for {task.name} ({task.auto})",
            where=f"--task {task.name}",
            hint=f"tasks for {family.name}: {', '.join(possible)}" if possible else "convert a model of another family",
        )
    return found


def metrics_of(task: Task, asked: str | None) -> tuple[str, ...]:
    """The metrics to report; the first one chooses the best state.

    Raises:
        UsageError: one that the task does not have.
    """
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(","))) if asked else task.metrics[: task.usual]
    known = (*task.metrics, "loss")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"{task.name} has no metric {', '.join(map(repr, unknown))}{did_you_mean(unknown[0], known)}",
            where="--metric",
            hint="use some of " + ", ".join(known),
        )
    return names
