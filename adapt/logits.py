"""How `--objective logits` compares the outputs of a head. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..convert.families.grammar import LABELS, number

DISTRIBUTION, VALUES = "distribution", "values"
# Heads that give several outputs, or read their texts in another shape: none of them is called logits.
WITHOUT_LOGITS = ("AutoModel", "AutoModelForQuestionAnswering", "AutoModelForMultipleChoice")
LABELLED = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")


def kind_of_logits(auto: str, config: Mapping[str, Any], family: str) -> str:
    """DISTRIBUTION if a softmax over the last axis is meaningful, VALUES if each number is independent.

    A softmax over one label is 1 whatever the logit is, and what a regression or a classifier of several labels at
    once gives adds up to nothing: a divergence would train nothing there, or something else.

    Returns:
        "" if the head gives no logits.
    """
    if auto == "AutoModelForPreTraining":  # ELECTRA's tells replaced tokens, the others give outputs of two heads
        return VALUES if family == "electra" else ""
    if auto in WITHOUT_LOGITS:
        return ""
    single = config.get("problem_type") in ("regression", "multi_label_classification")
    return VALUES if auto in LABELLED and (single or number(config, LABELS) == 1) else DISTRIBUTION
