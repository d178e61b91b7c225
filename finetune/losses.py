"""The loss of each task, summed over a batch's rows and divided by a count over the whole step.

So the losses of several processes, and of the parts of a step, add up to that of one process with all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import IGNORED
from .tasks import Task

Loss = Callable[..., Tensor]


def loss_of(task: Task, visible: Callable[[], Tensor | None] = lambda: None) -> Loss:
    """The loss as transformers' Trainer calls it: with outputs, labels, and how many labels the step has.

    Args:
        visible: gives the mask (b, t) of the batch at hand, which spans need: padding cannot be the end of an answer.
    """
    summed = {"regression": _squares, "multilabel": _binary}.get(task.name, _classes)
    if task.name == "question":

        def summed(outputs: Any, labels: Tensor) -> Tensor:
            return _spans(outputs, labels, visible())

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        count = torch.as_tensor(count, device=labels.device).clamp(min=1)
        return summed(outputs, labels) / count

    return loss


def _classes(outputs: Any, labels: Tensor) -> Tensor:
    logits = outputs["logits"].float()
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _squares(outputs: Any, labels: Tensor) -> Tensor:
    return F.mse_loss(outputs["logits"].float().squeeze(-1), labels.float(), reduction="sum")


def _binary(outputs: Any, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs["logits"].float(), labels.float(), reduction="sum")


def _spans(outputs: Any, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Of the first and the last token of an answer; labels are (b, 2). Padding, which depends on the batch, is out."""
    ends = [outputs[name].float() for name in ("start_logits", "end_logits")]
    if mask is not None:
        ends = [end.masked_fill(mask == 0, -torch.inf) for end in ends]
    losses = [F.cross_entropy(end, i, reduction="sum") for end, i in zip(ends, labels.unbind(-1), strict=True)]
    return losses[0] + losses[1]
