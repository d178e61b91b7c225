"""What LSG promises, measured on a loaded repo. Each check returns the largest difference found, and details."""

from __future__ import annotations

from typing import Any

import torch

from ..convert.checks import count_calls, mixes_of, pad_id, random_ids, worst_of
from ..convert.loaded import Loaded, difference, outputs
from .oracle import dense_attention


def equal_to_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Without global tokens and up to two blocks, attention is full: the outputs are the source's, on every head it has.

    A source without any complete head is compared by its last hidden states.
    """
    longest = min(2 * loaded.config.block_size, loaded.max_length, int(loaded.manifest["source_max_length"]))
    dense_form = {"num_global_tokens": 0, "pool_with_global": False, "mask_first_token": False}
    ids = random_ids(loaded, 3, longest)
    mask = torch.ones_like(ids)
    for row, real in enumerate((longest, max(longest // 2, 1), min(3, longest))):
        mask[row, real:] = 0
        ids[row, real:] = pad_id(loaded)
    heads: dict[str, float] = {}
    for auto in loaded.autos or ["AutoModel"]:
        dense = loaded.source_model(auto)
        emitted = loaded.model(auto, **dense_form) if loaded.autos else loaded.base(**dense_form)
        calls = count_calls(emitted)
        found = [
            difference(got[name], value, mask.bool() if visible is mask else torch.ones_like(mask).bool())
            for visible in (mask, None)
            for got in [outputs(emitted, auto, ids, visible)]
            for name, value in outputs(dense, auto, ids, visible).items()
            if loaded.autos or name == "last_hidden_state"
        ]
        if not calls:
            raise AssertionError("the emitted attention was never called: the model is still the dense one")
        heads[auto] = worst_of(found)
    return worst_of(heads.values()), {"heads": heads, "tokens": longest}


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
        tokens = blocks * config.block_size - config.block_size // 3
        q, k, v = (torch.randn((2, heads, globals_ + tokens, width), generator=generator) for _ in range(3))
        mask = torch.ones((2, globals_ + tokens), dtype=torch.bool)
        mask[1, -tokens // 3 :] = False
        with torch.no_grad():
            got = mixes[0](q, k, v, mask)
        wanted = dense_attention(q, k, v, mask, config).float()
        found.append(difference(got.transpose(1, 2), wanted.transpose(1, 2), mask))
        lengths.append(tokens)
    return worst_of(found), {"tokens": lengths}
