"""Training the new positions alone: up to the source's length, a repo then gives what it gave before.

Zhu et al., LongEmbed, arXiv 2404.12096, train an encoder's added position embeddings and freeze the rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..convert.errors import UnsupportedError, UsageError
from .models import Pair, position_table


def new_positions(pair: Pair) -> int:
    """The first row of the table that is trained: the one behind the last that a text of the source's length uses.

    Raises:
        UsageError: the table is no longer than the source's.
    """
    table = pair.student.get_parameter(position_table(pair))
    assert pair.family is not None
    first = pair.family.special_rows(pair.base.config.to_dict()) + int(pair.manifest["source_max_length"])
    if first >= table.shape[0]:
        raise UsageError(
            f"nothing to train: the repo has no more positions than its source ({pair.reach})",
            where="--train",
            hint="pass --train attention or all, or convert with a larger --max-len",
        )
    return first


def train_new_positions_alone(pair: Pair, train: str, accelerator: Any) -> None:
    """Keeps every gradient from the rows of the source: Adam leaves a row that never had one as it is, bit for bit.

    Args:
        train: positions, or offsets: one vector for each further copy of the source's positions, added to all its rows.

    Raises:
        UnsupportedError: processes share the parameters (FSDP), so that none has the rows of the whole table.
    """
    name, first = position_table(pair), new_positions(pair)
    if any(kind in str(accelerator.distributed_type) for kind in ("FSDP", "DEEPSPEED")):
        raise UnsupportedError(
            "rows of the position table cannot be trained apart with FSDP or DeepSpeed",
            where=f"--train {train}",
            hint="use DDP (accelerate launch --multi_gpu) or one process",
        )
    copies = int(pair.manifest["source_max_length"]) if train == "offsets" else 0
    pair.student.get_parameter(name).register_hook(partial(_gradient, first, copies))


def _gradient(first: int, copies: int, gradient: Tensor) -> Tensor:
    """That of the rows from `first` on; with `copies`, each row has the sum over its copy of so many rows."""
    kept = torch.zeros_like(gradient)
    if not copies:
        kept[first:] = gradient[first:]
    for begin in range(first, gradient.shape[0], copies) if copies else ():
        rows = gradient[begin : begin + copies]
        kept[begin : begin + copies] = rows.sum(0, keepdim=True)
    return kept
