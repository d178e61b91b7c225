"""The dense source with a longer position table: full attention over the whole document, without any training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.families.grammar import Family
from ..convert.io.dtypes import Array
from ..convert.ops import InterpolatePositions, TilePositions


def stretched(model: Any, family: Family, length: int, how: str) -> nn.Module:
    """The same model for `length` tokens, its position tables as a conversion makes them.

    Args:
        model: the source's base model, in float32. It is not changed.
        how: "repeat" or "interpolate". Without effect where positions are computed or biases on scores.
    """
    config = copy.deepcopy(model.config)
    own = config.to_dict()
    config.max_position_embeddings = length + family.special_positions(own)
    longer = type(model)._from_config(config, dtype=torch.float32)
    state = dict(model.state_dict())
    for table in (family.positions, family.decoder_positions):
        name = next((key for key in state if table and (key == table or key.endswith(f".{table}"))), None)
        if name is None:
            continue
        if family.computes_positions:
            state[name] = longer.state_dict()[name]
        else:
            state[name] = _resized(state[name], length, family.special_rows(own), how)
    longer.load_state_dict(state)
    finished: nn.Module = longer.eval()
    return finished


def _resized(table: Tensor, length: int, special: int, how: str) -> Tensor:
    resize = TilePositions if how == "repeat" else InterpolatePositions
    return torch.from_numpy(resize(length, special).apply(Array(table.numpy(), "F32")).data.copy())
