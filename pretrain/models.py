"""The model with the heads of an objective, and its losses.

A loss is a sum over this process's rows divided by a count over the global batch, so that the losses, and so the
gradients, of the parts of a batch add up to those of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.masking import IGNORED
from .batches import Batch

PAIR_LOGITS = ("seq_relationship_logits", "sop_logits", "pair_logits")  # of BERT and BiGS, ALBERT, LambdaBERT


class Losses(nn.Module):
    """The model, with the losses of the objective as its forward: whatever wraps a module for training sees all of it.

    Args:
        words: name of the loss of tokens, "mlm" or "clm". pair: "nsp", "sop" or None.
    """

    def __init__(self, model: Any, words: str, pair: str | None) -> None:
        super().__init__()
        self.student, self._words, self._pair = model, words, pair

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each part of the objective (nats), whose sum is to be minimised."""
        tokens, pairs = outputs(self.student, batch)
        wanted = batch.labels[batch.labels != IGNORED]
        losses = {self._words: F.cross_entropy(tokens, wanted, reduction="sum") / max(batch.predicted, 1)}
        if self._pair is not None:
            assert pairs is not None
            assert batch.pairs is not None
            losses[self._pair] = F.cross_entropy(pairs, batch.pairs, reduction="sum") / batch.rows
        return losses


def outputs(model: Any, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits (n, vocabulary) of the n tokens to be predicted, and (b, 2) of pairs, in float32; None without pairs."""
    given: dict[str, Any] = {"input_ids": batch.ids, "return_dict": True}
    if batch.mask is not None:
        given["attention_mask"] = batch.mask
    if batch.types is not None:
        given["token_type_ids"] = batch.types
    found = model(**given)
    logits = found.logits if getattr(found, "prediction_logits", None) is None else found.prediction_logits
    pairs = None
    if batch.pairs is not None:
        pairs = next(found[name] for name in PAIR_LOGITS if name in found).float()
    return logits[batch.labels != IGNORED].float(), pairs


def averages(model: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of batch norms by name, which training moves though they have no gradient."""
    kinds = ("running_mean", "running_var")
    return {name: value for name, value in model.named_buffers() if name.endswith(kinds)}


def has_dropout(model: nn.Module) -> bool:
    """Whether a step of training draws random numbers."""
    config = model.config
    names = ("attention_probs_dropout_prob", "attention_dropout", "hidden_dropout_prob", "dropout")
    return any(isinstance(module, nn.Dropout) and module.p for module in model.modules()) or any(
        isinstance(value := getattr(config, name, None), float) and value > 0 for name in names
    )


@torch.no_grad()
def load_values(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts values into parameters and averages of these names."""
    known = {**dict(model.named_parameters()), **averages(model)}
    for name, value in state.items():
        known[name].copy_(value)
