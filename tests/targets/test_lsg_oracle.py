"""The dense form that `equal_to_formula` compares a repo with, against the one that is written row by row.

Sparse windows may begin or end within a chunk: with blocks of 96 and 128 sparse keys, a window has one and a third of a
block's 48. Then the order of a chunk's keys decides which of them are seen.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lsg_cases import DEFAULTS, cases, mask_of, options, qkv
from lsg_oracle import oracle

import effconv
from effconv.lsgify.oracle import dense_attention
from effconv.templates.lsg_configuration import SPARSITY_TYPES
from tiny import save_tiny

torch.set_num_threads(1)


def compare(config, q, k, v, mask, causal):
    found = dense_attention(q, k, v, mask, SimpleNamespace(**vars(config), is_decoder=causal))
    expected = oracle(q, k, v, mask, config, causal=causal)
    defined = mask[:, None, :, None] & ~expected.isnan()
    torch.testing.assert_close(found[defined.expand_as(found)], expected[defined.expand_as(found)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", SPARSITY_TYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_both_say_the_same(kind, data):
    config, length, mask, causal, seed, _ = data.draw(cases(kind))
    assume(length > 2 * config.block_size)
    q, k, v = qkv(config, length, batch=2, seed=seed)
    mask = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask
    assume(mask[:, config.num_global_tokens :].any(1).all())
    compare(config, q, k, v, mask, causal)


@pytest.mark.parametrize(("block", "sparse"), [(12, 16), (20, 16), (24, 16), (6, 16), (5, 12)])
def test_windows_that_cut_chunks(block, sparse):
    factor = 1 if block == 5 else 2
    config = options(**{**DEFAULTS, "block_size": block, "sparse_block_size": sparse, "sparsity_factor": factor})
    q, k, v = qkv(config, 5 * block)
    compare(config, q, k, v, mask_of(config, [5 * block, 3 * block + 1], 5 * block), False)


def test_a_model_with_such_windows_is_converted(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "Model", 64)
    shape = {"max_length": 128, "block_size": 12, "sparse_block_size": 16}
    result = effconv.convert(source, "lsg", output=tmp_path / "repo", **shape)
    assert result.output.is_dir()
