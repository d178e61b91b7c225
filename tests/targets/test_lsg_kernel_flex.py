"""The FlexAttention form of the emitted LSG attention: its mask and tiles against the oracle, and the call itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from lsg_cases import assert_equals_oracle, cases, mask_of, options, qkv
from lsg_oracle import oracle
from torch.nn.attention import flex_attention as stock

from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_flex as kernel
from effconv.templates.lsg_configuration import SPARSITY_TYPES

pytestmark = pytest.mark.xdist_group("flex")


@pytest.fixture
def flex(monkeypatch):
    """Attention beyond two blocks runs in this form, as it would on a GPU."""
    monkeypatch.setattr(lsg, "form_of", lambda config, q: "flex")


def shown_by(mask, batch, heads):
    """What a mask shows, row by row and key by key: bool (b, h, rows, keys)."""
    rows, keys = mask.seq_lengths
    places = (torch.arange(size) for size in (batch, heads, rows, keys))
    b, h, row, key = torch.meshgrid(*places, indexing="ij")
    return mask.mask_mod(b, h, row, key)


def listed(count, order):
    """The tiles of keys that each tile of rows names, as bool (rows, keys)."""
    named = torch.zeros(order.shape[2:], dtype=torch.bool)
    for row, number in enumerate(count[0, 0].tolist()):
        named[row, order[0, 0, row, :number].long()] = True
    return named


def in_tiles(shown, reduce, outside):
    """`reduce` over the tiles of the mask, over batch and heads; a tile at the end is filled up."""
    size = kernel.TILE
    rows, keys = shown.shape[2:]
    shown = torch.nn.functional.pad(shown, (0, -keys % size, 0, -rows % size), value=outside)
    if reduce is torch.all and -keys % size:
        shown[..., -size:] = False
    shown = shown.unflatten(3, (-1, size)).unflatten(2, (-1, size)).transpose(3, 4).flatten(4)
    return reduce(reduce(shown.flatten(0, 1), 0), -1)


def dense(q, k, v, block_mask):
    """FlexAttention by its definition; the tiles may not leave out what the mask shows, nor show what it hides."""
    shown = shown_by(block_mask, len(q), q.shape[1])
    partial = listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert not (partial & full).any()
    assert (partial | full)[in_tiles(shown, torch.any, False)].all()
    assert in_tiles(shown, torch.all, True)[full].all()
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~shown, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)
def test_mask_and_tiles_are_those_of_the_oracle_for_any_shape(sparsity_type, flex, monkeypatch):
    monkeypatch.setattr(kernel, "kernel_for", lambda q: dense)
    monkeypatch.setattr(kernel, "TILE", 4)

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(cases(sparsity_type))
    def check(case):
        config, length, mask, causal, seed, _ = case
        assert_equals_oracle(*qkv(config, length, heads=3, size=3, seed=seed), mask, config, causal)

    check()


@pytest.mark.parametrize("causal", [False, True])
def test_tiles_follow_a_key_that_one_text_hides_and_a_last_tile_of_one_row(causal, flex, monkeypatch):
    monkeypatch.setattr(kernel, "kernel_for", lambda q: dense)
    monkeypatch.setattr(kernel, "TILE", 4)
    config = options(block_size=8, num_global_tokens=0, sparsity_type="none")
    mask = mask_of(config, [33, 33], 33)
    mask[1, 10] = False
    assert_equals_oracle(*qkv(config, 33), mask, config, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_context_and_gradients_are_those_of_the_oracle(causal, flex, monkeypatch):
    """By torch's form for debugging. It has gradients on a CPU too, but refuses to give them."""
    monkeypatch.setattr(stock, "_validate_device", lambda *_: None)
    config = options(num_global_tokens=2)
    inputs, mask = [x.requires_grad_() for x in qkv(config, 21)], mask_of(config, [21, 14], 21)
    context, expected = (
        lsg.lsg_attention(*inputs, mask, config, causal=causal),
        oracle(*inputs, mask, config, causal=causal),
    )
    torch.testing.assert_close(context, expected, rtol=0, atol=1e-9)
    weight = torch.randn(context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (torch.autograd.grad((x * weight).sum(), inputs) for x in (context, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_rows_that_see_nothing_are_zero(flex):
    config = options(num_global_tokens=0, sparsity_type="stride")
    context = lsg.lsg_attention(*qkv(config, 21), mask_of(config, [21, 0], 21), config)
    assert context.isfinite().all()
    assert not context[1].any()


@pytest.mark.parametrize("causal", [False, True])
def test_with_whole_blocks_tiles_are_those_that_torch_finds(causal):
    config = options(block_size=128, sparse_block_size=128, sparsity_factor=2)
    length, entries = 8 * 128, 4 * 128
    visible = torch.ones(1, 1, length + entries + 1, dtype=torch.bool)
    intervals = kernel.seen_by(length, entries, config, causal, visible.device)
    mask = kernel.block_mask(length, 128, intervals, visible, causal)
    found = stock.create_block_mask(mask.mask_mod, None, None, length, length + entries + 1, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        ours, theirs = (listed(getattr(x, f"{kind}_num_blocks"), getattr(x, f"{kind}_indices")) for x in (mask, found))
        assert torch.equal(ours, theirs), kind
    assert found.full_kv_num_blocks.sum() > 0


def test_the_tiles_to_compute_grow_with_the_length_and_no_faster():
    config, counts = options(block_size=128, sparse_block_size=128), []
    for length in (4096, 16384):
        entries = length // config.sparsity_factor
        visible = torch.ones(1, 1, length + entries + 1, dtype=torch.bool)
        intervals = kernel.seen_by(length, entries, config, False, visible.device)
        mask = kernel.block_mask(length, 128, intervals, visible, False)
        counts.append(int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()))
    assert counts[1] <= 4.2 * counts[0]


def test_small_heads_are_refused_by_name_where_a_kernel_is_compiled():
    """As found on a GPU: torch raises "NYI: embedding dimension ... must be at least 16" out of its compiler."""
    q = torch.empty(1, 2, 21, 8, device="meta")
    with pytest.raises(ValueError, match="cannot run: heads have size 8, and FlexAttention takes 16 and more"):
        kernel.flex_rows(q, q, q, None, None, options(), False, 0.0)
    assert kernel.obstacle(torch.empty(1, 2, 21, 16, device="meta"), 0.0) == ""


def test_dropout_and_an_older_torch_are_refused_by_name(flex, monkeypatch):
    config = options()
    with pytest.raises(ValueError, match=r"not support attention dropout, which is 0\.1: set it to 0"):
        lsg.lsg_attention(*qkv(config, 21), None, config, dropout=0.1)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(ValueError, match=r"attention_form is 'flex', which cannot run: torch 2\.5\.1\+cu124 is older"):
        lsg.lsg_attention(*qkv(config, 21), None, config)
