"""What LSG promises, measured on a loaded repo. Each check returns the largest difference found, and details."""

from __future__ import annotations

from typing import Any

import torch

from ..convert.checks import compare_with_source, mixes_of, worst_of
from ..convert.loaded import Loaded, difference
from .oracle import dense_attention


def equal_to_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Without global tokens and up to two blocks, attention is full: the outputs are the source's."""
    longest = 2 * loaded.config.block_size
    return compare_with_source(loaded, longest, num_global_tokens=0, pool_with_global=False, mask_first_token=False)


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random q, k, v over more than two blocks, against the dense float64 form."""
    model = loaded.model()
    mixes = mixes_of(model)
    config = loaded.config
    heads, globals_ = config.num_attention_heads, config.num_global_tokens
    width = config.hidden_size // heads
    generator = torch.Generator().manual_seed(0)
    found, lengths = [], []
    for blocks in (3, 5):
        tokens = blocks * config.block_size - (config.block_size // 3 if config.adaptive else 0)
        q, k, v = (torch.randn((2, heads, globals_ + tokens, width), generator=generator) for _ in range(3))
        mask = torch.ones((2, globals_ + tokens), dtype=torch.bool)
        mask[1, -tokens // 3 :] = False
        with torch.no_grad():
            got = mixes[0](q, k, v, mask)
        wanted = dense_attention(q, k, v, mask, config).float()
        found.append(difference(got.transpose(1, 2), wanted.transpose(1, 2), mask))
        lengths.append(tokens)
    return worst_of(found), {"tokens": lengths}
