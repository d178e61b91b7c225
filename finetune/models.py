"""Loads a repo with the head of a task. Its files have been compared with the manifest before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..convert.errors import BadInputError, UnsupportedError
from ..convert.families.grammar import Head
from .heads import Stored
from .labels import Labels
from .tasks import Task

DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "activation_dropout"),
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "qa_dropout", "summary_last_dropout"),
)


def load_model(
    folder: Path, task: Task, head: Head, labels: Labels, stored: Stored, *, seed: int, dropout: float | None
) -> Any:
    """The repo's model in float32 with this head, which is random where the repo has none, or not that of the labels.

    Raises:
        UnsupportedError: the repo's code has no class for the head. BadInputError: a tensor of the encoder is missing.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if head.auto not in getattr(config, "auto_map", {head.auto}):  # a stock model has every class
        raise UnsupportedError(
            f"the repo's code has no class for {head.auto}", where=str(folder), hint="run effconv refresh on it first"
        )
    for name, value in label_fields(task, labels).items():
        setattr(config, name, {int(i): n for i, n in value.items()} if name == "id2label" else value)
    if dropout is not None:
        for name in DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, dropout)
    transformers.set_seed(seed)  # the same new head in every process
    model, info = getattr(transformers, head.auto).from_pretrained(
        folder,
        config=config,
        trust_remote_code=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    family = stored.family
    expected = {weight.name for weight in (*family.head_weights(head), *family.pooler)} | set(head.tied)
    missing = {str(family.canonical_name(name)) for name in info["missing_keys"]}
    odd = sorted(missing - expected)
    mismatched = {str(family.canonical_name(entry[0])) for entry in info["mismatched_keys"]}
    odd += sorted(mismatched - {weight.name for weight in head.weights})
    if odd:
        raise BadInputError(
            f"the repo lacks tensors of its encoder: {', '.join(odd[:4])}", where=str(folder), hint="convert it again"
        )
    if labels.replaced:
        with torch.no_grad():
            begin_anew(model, head, stored, mismatched)
    return model


def begin_anew(model: nn.Module, head: Head, stored: Stored, done: set[str]) -> None:
    """Random values for a head that has been loaded: those that its class starts with."""
    names = {weight.name for weight in head.weights} - done
    for path, module in model.named_modules():
        own = {
            str(stored.family.canonical_name(f"{path}.{name}")) for name, _ in module.named_parameters(recurse=False)
        }
        if own & names:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            module._is_hf_initialized = False  # type: ignore[assignment]
            model._init_weights(module)  # type: ignore[operator]


def label_fields(task: Task, labels: Labels) -> dict[str, Any]:
    """Fields of config.json about the labels."""
    if not labels.names:
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(labels.names)},
        "label2id": {name: i for i, name in enumerate(labels.names)},
        **({"problem_type": task.problem} if task.problem else {}),
    }


def choose(model: nn.Module, trained: Callable[[str], bool]) -> dict[str, int]:
    """Sets `requires_grad`; returns how many parameters there are, and how many of them are trained."""
    counts = {"parameters": 0, "trained": 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
        counts["parameters"] += parameter.numel()
        counts["trained"] += parameter.numel() * parameter.requires_grad
    return counts


def tokenizer_of(folder: Path, task: Task) -> Any:
    """The repo's tokenizer; for words, one that takes words."""
    import transformers

    more: Mapping[str, Any] = {"add_prefix_space": True} if task.name == "tokens" else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True, **more)
    if tokenizer.pad_token_id is None:
        raise BadInputError("the tokenizer has no padding token", where=str(folder), hint="add one to the tokenizer")
    return tokenizer
