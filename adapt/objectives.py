"""Objectives: a batch and what the teacher did with it → one loss.

Every objective is a sum over this process's texts divided by a count over the global batch, so that the losses of the
parts of a batch, on whatever process, add up to that of the whole. Errors are relative to how much the teacher's own
values vary in that layer (`Scales`, measured once on held-out text), so that no layer rules by its size.

Axes: b text, t token, w model width, l layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import IGNORED, Batch
from .contrastive import contrastive_loss
from .logits import VALUES
from .models import Pair
from .teacher import Lesson, lesson, pooled

LAST_COSINE = 1.0  # weight of 1 - cosine of the last states beside the mean error of all layers


@dataclass(frozen=True)
class Scales:
    """Mean squared distance of the teacher's values from their mean, a number a layer.

    Attributes:
        states: of the states before each layer and after the last. attended: of what each attention adds.
    """

    states: tuple[float, ...]
    attended: tuple[float, ...]


def scales_of(lessons: Sequence[Lesson]) -> Scales:
    """The scales over some texts."""

    def spread(values: Sequence[Tensor]) -> float:
        rows = torch.cat([x.flatten(0, 1).double() for x in values])
        return float((rows - rows.mean(0)).square().sum(-1).mean().clamp_min(1e-12))

    return Scales(
        tuple(spread(layer) for layer in zip(*(taught.states for taught in lessons), strict=True)),
        tuple(spread(layer) for layer in zip(*(taught.attended for taught in lessons if taught.attended), strict=True)),
    )


class Objective(nn.Module):
    """The student, with the loss of one phase as its forward: whatever wraps a module for training sees all of it."""

    def __init__(self, pair: Pair, objectives: Sequence[str], scales: Scales | None) -> None:
        super().__init__()
        self.student = pair.student
        self._pair = (pair,)  # in a tuple: the teacher is no part of what is trained, wrapped or saved
        self._objectives = tuple(objectives)
        self._scales = scales

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of each objective, whose sum is to be minimised."""
        pair, scales = self._pair[0], self._scales
        losses: dict[str, Tensor] = {}
        objectives = set(self._objectives)
        if batch.pieces is not None:  # the windows that the others would match have the mean that it is to improve on
            objectives -= {"hidden", "sentence"}
        taught: Any = lesson(pair, batch.ids) if objectives - {"mlm", "contrastive"} else None
        student: Any = None
        if {"hidden", "logits", "sentence", "contrastive"} & objectives:
            student = self.student(batch.ids, output_hidden_states=True)
        for name in (name for name in self._objectives if name in objectives):
            if name == "mlm":
                losses[name] = masked_lm_loss(self.student(batch.masked_ids).logits, batch)
            elif name == "attention":
                losses[name] = attention_loss(pair, taught, scales, batch.tokens)
            elif name == "hidden":
                losses[name] = hidden_loss(student.hidden_states, taught.states, scales, batch.tokens)
            elif name == "sentence":
                embedding = pooled(student.hidden_states[-1], pair.pooling)
                losses[name] = sentence_loss(embedding, taught.embedding, batch.rows)
            elif name == "contrastive" and batch.pieces is not None:
                losses[name] = contrastive_loss(pooled(student.hidden_states[-1], pair.pooling), batch)
            elif name == "logits":
                losses[name] = logit_loss(student.logits, taught.logits, batch, pair.logits)
        return losses


def attention_loss(pair: Pair, taught: Lesson, scales: Scales | None, tokens: int) -> Tensor:
    """What each layer's attention adds to the teacher's own input of it: relative squared error, mean over l."""
    assert scales is not None
    losses = []
    for layer, given, wanted, scale in zip(
        pair.student_layers(), taught.inputs, taught.attended, scales.attended, strict=True
    ):
        got = attended(pair, layer, given)
        losses.append((got.float() - wanted.float()).square().sum() / (scale * tokens))
    return torch.stack(losses).mean()


def attended(pair: Pair, layer: Any, states: Tensor) -> Tensor:
    """What a student's layer adds by attention of this input (b, t, w), after the output projection: (b, t, w)."""
    assert pair.family is not None
    attention = layer.get_submodule(pair.family.code.attention_path)
    q, k, v = (
        getattr(attention, name)(states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for name in attention.projections
    )
    context = attention.mix(q, k, v, None).transpose(1, 2).flatten(2)
    added: Tensor = layer.get_submodule(pair.family.output_projection)(context)
    return added


def hidden_loss(got: Sequence[Tensor], wanted: Sequence[Tensor], scales: Scales | None, tokens: int) -> Tensor:
    """States after each layer: relative squared error, mean over l, and 1 - cosine of the last ones."""
    assert scales is not None
    errors = [
        (a.float() - b.float()).square().sum() / (scale * tokens)
        for a, b, scale in zip(got[1:], wanted[1:], scales.states[1:], strict=True)
    ]
    cosine = (1 - F.cosine_similarity(got[-1].float(), wanted[-1].float(), dim=-1)).sum() / tokens
    return torch.stack(errors).mean() + LAST_COSINE * cosine


def sentence_loss(got: Tensor, wanted: Tensor, texts: int) -> Tensor:
    """1 - cosine of the texts' embeddings (b, w), mean over the texts of the global batch."""
    return (1 - F.cosine_similarity(got.float(), wanted.float(), dim=-1)).sum() / texts


def logit_loss(got: Tensor, wanted: Tensor, batch: Batch, kind: str) -> Tensor:
    """KL divergence of the student's distributions from the teacher's (nats), mean over tokens, or texts.

    Where each number counts by itself (`kind`), their mean squared difference.
    """
    if kind == VALUES:
        return (got.float() - wanted.float()).square().sum() / (batch.rows * wanted[0].numel())
    count = batch.tokens if got.dim() == 3 and got.shape[1] == batch.ids.shape[1] else batch.rows
    given, taught = got.float().log_softmax(-1), wanted.float().log_softmax(-1)
    return F.kl_div(given, taught, log_target=True, reduction="sum") / count


def masked_lm_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of the masked tokens (nats), mean over those of the global batch."""
    assert batch.labels is not None
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss / max(batch.masked, 1)
