"""The checks of LSG on a loaded repo. Each returns the largest difference and details."""

from __future__ import annotations

from typing import Any

import torch

from ..convert.families.registry import FAMILIES
from ..convert.verify import family_checks, sentence_checks
from ..convert.verify.checks import attentions_of, compare_with_source, worst_of
from ..convert.verify.loaded import Loaded, difference
from .oracle import dense_attention

NO_GLOBALS: dict[str, Any] = {"num_global_tokens": 0, "pool_with_global": False, "mask_first_token": False}


def equal_to_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Without global tokens and up to two blocks, attention is full: the outputs are the source's."""
    return compare_with_source(loaded, 2 * loaded.config.block_size, **NO_GLOBALS)


def stock_attention_equals_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Without global tokens, with plain attention in the place of LSG's."""
    return family_checks.stock_attention_equals_source(loaded, **NO_GLOBALS)


def same_embedding(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Without global tokens, as a sentence encoder."""
    return sentence_checks.same_embedding(loaded, **NO_GLOBALS)


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Beyond two blocks, where sparse keys are used."""
    none = not loaded.config.num_global_tokens
    exempt = {"global_embeddings.weight": "used only with global tokens, which this config has none of"} if none else {}
    blocks = 3 if loaded.config.adaptive else 4
    return family_checks.every_tensor_read(loaded, blocks * loaded.config.block_size, exempt)


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random q, k, v over more than two blocks, against the dense float64 form."""
    model = loaded.model()
    attentions = attentions_of(model)
    config = loaded.config
    heads, globals_ = config.num_attention_heads, config.num_global_tokens
    width = FAMILIES[loaded.manifest["family"]].head_width(config.to_dict())
    generator = torch.Generator().manual_seed(0)
    bias = _some_bias(model.base_model, generator)
    found, lengths = [], []
    for blocks in (3, 5):
        tokens = blocks * config.block_size - (config.block_size // 3 if config.adaptive else 0)
        q, k, v = (torch.randn((2, heads, globals_ + tokens, width), generator=generator) for _ in range(3))
        mask = torch.ones((2, globals_ + tokens), dtype=torch.bool)
        mask[1, -tokens // 3 :] = False
        with torch.no_grad():
            got = attentions[0](q, k, v, mask, **({} if bias is None else {"bias": bias}))
        wanted = dense_attention(q, k, v, mask, config, bias).float()
        found.append(difference(got.transpose(1, 2), wanted.transpose(1, 2), mask))
        lengths.append(tokens)
    return worst_of(found), {"tokens": lengths}


def _some_bias(base: Any, generator: torch.Generator) -> torch.Tensor | None:
    """Random numbers in the shape of the bias that the model's layers add to scores; None where they add none."""
    if not hasattr(base, "attention_bias"):
        return None
    return torch.randn(base.attention_bias().shape, generator=generator)
