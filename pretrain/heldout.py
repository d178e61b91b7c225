"""Figures on held-out examples, always the same ones with the same masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..convert.text import six_digits
from ..data.masking import IGNORED
from .batches import Collator
from .corpus import Example
from .models import outputs

AT_ONCE = 16  # examples in a run of the model
SEED = (0, 4)  # of the masks


class HeldOut:
    """The held-out examples.

    Args:
        words: name of the loss of tokens, "mlm" or "clm". pair: "nsp", "sop" or None.
        length: tokens of an example, at most, which the figures state.
    """

    def __init__(
        self, examples: Sequence[Example], collate: Collator, words: str, pair: str | None, length: int, device: Any
    ) -> None:
        self._words, self._pair, self._length, self._texts = words, pair, length, len(examples)
        groups = [examples[i : i + AT_ONCE] for i in range(0, len(examples), AT_ONCE)]
        self._batches = [collate(group, (*SEED, i)).to(device) for i, group in enumerate(groups)]

    def measure(self, model: Any) -> dict[str, Any]:
        """Mean loss (nats), perplexity and accuracy of tokens, and loss and accuracy of pairs."""
        was_training = model.training
        model.eval()
        try:
            return self._measure(model)
        finally:
            model.train(was_training)

    @torch.no_grad()
    def _measure(self, model: Any) -> dict[str, Any]:
        sums = dict.fromkeys(("tokens", "token_loss", "right", "pair_loss", "pairs_right"), 0.0)
        for batch in self._batches:
            logits, pairs = outputs(model, batch)
            wanted = batch.labels[batch.labels != IGNORED]
            sums["tokens"] += len(wanted)
            sums["token_loss"] += float(F.cross_entropy(logits.double(), wanted, reduction="sum"))
            sums["right"] += int((logits.argmax(-1) == wanted).sum())
            if pairs is not None:
                assert batch.pairs is not None
                sums["pair_loss"] += float(F.cross_entropy(pairs.double(), batch.pairs, reduction="sum"))
                sums["pairs_right"] += int((pairs.argmax(-1) == batch.pairs).sum())
        loss = sums["token_loss"] / max(sums["tokens"], 1)
        row: dict[str, Any] = {
            "tokens": self._length,
            "texts": self._texts,
            "predicted": int(sums["tokens"]),
            f"{self._words}_loss": six_digits(loss),
            "perplexity": six_digits(math.exp(min(loss, 700.0))),
            f"{self._words}_accuracy": six_digits(sums["right"] / max(sums["tokens"], 1)),
        }
        if self._pair is not None:
            row[f"{self._pair}_loss"] = six_digits(sums["pair_loss"] / self._texts)
            row[f"{self._pair}_accuracy"] = six_digits(sums["pairs_right"] / self._texts)
        return row


def score(row: dict[str, Any]) -> float:
    """One number to keep the best state by, higher is better: minus the sum of the losses."""
    return -sum(float(value) for name, value in row.items() if name.endswith("_loss"))
