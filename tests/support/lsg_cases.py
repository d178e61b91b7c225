"""Inputs and options of LSG attention, and its comparison with the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import strategies as st
from lsg_oracle import oracle

from effconv.templates import lsg_attention as lsg
from effconv.templates.lsg_configuration import lsg_faults

DEFAULTS = {
    "adaptive": True,
    "block_size": 4,
    "sparse_block_size": 4,
    "sparsity_factor": 2,
    "sparsity_type": "norm",
    "num_global_tokens": 1,
    "mask_first_token": False,
    "pool_with_global": True,
    "lsh_num_pre_rounds": 1,
    "lsh_seed": 0,
    "causal_globals": "globals",
    "bos_pooling_padding": "masked",
    "attention_form": "auto",
}


def options(**changes):
    config = SimpleNamespace(**{**DEFAULTS, **changes})
    assert not lsg_faults(config)
    return config


def qkv(config, length, batch=2, heads=4, size=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, config.num_global_tokens + length, size)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def mask_of(config, lengths, length):
    """Right padding; global tokens are always visible."""
    tokens = torch.arange(length) < torch.tensor(lengths)[:, None]
    return torch.cat([torch.ones(len(lengths), config.num_global_tokens, dtype=torch.bool), tokens], dim=1)


def assert_equals_oracle(q, k, v, mask, config, causal=False, tolerance=1e-9):
    actual = lsg.lsg_attention(q, k, v, mask, config, causal=causal).double()
    expected = oracle(q, k, v, mask, config, causal=causal)
    defined = ~expected.isnan()
    assert actual.isfinite().all()
    torch.testing.assert_close(actual[defined], expected[defined], rtol=0, atol=tolerance)


@st.composite
def cases(draw, sparsity_type):
    block = draw(st.integers(1, 8))
    factor = draw(st.sampled_from([f for f in range(1, block + 1) if block % f == 0]))
    sparse = draw(st.integers(0, 12))
    if sparsity_type in ("norm", "lsh"):
        sparse = min(block, sparse) // factor * factor if sparse < block else sparse
    config = options(
        block_size=block,
        sparse_block_size=sparse,
        sparsity_factor=factor,
        sparsity_type=sparsity_type,
        num_global_tokens=draw(st.integers(0, 3)),
        lsh_num_pre_rounds=draw(st.integers(0, 2)),
        lsh_seed=draw(st.integers(0, 9)),
        causal_globals=draw(st.sampled_from(["globals", "published"])),
        bos_pooling_padding=draw(st.sampled_from(["masked", "published"])),
    )
    length = draw(st.integers(1, 6 * block))
    mask = None
    if draw(st.booleans()):
        mask = torch.tensor(draw(st.lists(st.booleans(), min_size=2 * length, max_size=2 * length))).reshape(2, length)
        mask = torch.cat([torch.ones(2, config.num_global_tokens, dtype=torch.bool), mask], dim=1)
    return config, length, mask, draw(st.booleans()), draw(st.integers(0, 99)), draw(st.sampled_from([1, 2]))
