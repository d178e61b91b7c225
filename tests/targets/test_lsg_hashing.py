"""The "lsh" sparse keys: they repeat, and their statistics are those of cross-polytope hashing.

What is hashed is told by the values: with the unit vectors as values, a bucket's mean is 1 / count at its members.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lsg_oracle import hashed
from same_models import assert_same_outputs, assert_same_tensors
from transformers import AutoModel, BertTokenizerFast

import effconv
from effconv.templates.lsg_attention import LSGAttention, hashed_means
from tiny import save_tiny

torch.set_num_threads(1)
CHUNK = 16
DRAWS = 4000  # heads of one call: each has projections of its own
SIGMAS = 5


def members(keys, visible=None, factor=2, pre_rounds=0, seed=0, chunk=CHUNK):
    """Which tokens (b, h, buckets, t) each bucket of one chunk holds; keys are (b, h, t, d), t = d = chunk."""
    batch, heads, tokens, _ = keys.shape
    visible = torch.ones(batch, tokens, dtype=torch.bool) if visible is None else visible
    values = torch.eye(tokens, dtype=keys.dtype).expand(batch, heads, -1, -1)
    _, means, filled = hashed_means(keys, values, visible, chunk, factor, pre_rounds, seed)
    assert torch.equal(means.any(-1), filled)
    return means > 0


def keys_of(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def within(measured, expected, variance_of_one_draw, draws):
    """Whether a mean over draws is within SIGMAS standard errors of what it should be."""
    return abs(measured - expected) <= SIGMAS * math.sqrt(variance_of_one_draw / draws)


@pytest.mark.parametrize("pre_rounds", [0, 1, 3])
@pytest.mark.parametrize("factor", [2, 4, 16])
def test_counts_and_means_are_those_of_a_loop_over_tokens(pre_rounds, factor):
    keys, values = keys_of(1, 3, 3 * CHUNK, 6).double(), keys_of(1, 3, 3 * CHUNK, 6, seed=1).double()
    visible = torch.arange(3 * CHUNK)[None] < 2 * CHUNK + 5
    visible[0, 3] = False
    got = hashed_means(keys, values, visible, CHUNK, factor, pre_rounds, seed=7)
    generator = torch.Generator().manual_seed(7)
    buckets = [CHUNK] * pre_rounds + [CHUNK // factor]
    rounds = [torch.randn(3, 6, count // 2, generator=generator).double() for count in buckets]
    for head in range(3):
        tokens = list(zip(keys[0, head], values[0, head], visible[0].tolist(), strict=True))
        expected = []
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            expected += hashed(chunk, [projection[head] for projection in rounds], CHUNK // factor, CHUNK)
        for mine, plain in zip(got, zip(*expected, strict=True), strict=True):
            plain = torch.stack(plain) if isinstance(plain[0], torch.Tensor) else torch.tensor(plain)
            torch.testing.assert_close(mine[0, head], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pre_rounds", [0, 1, 3])
def test_every_visible_token_is_in_one_bucket_and_no_other_in_any(pre_rounds):
    visible = torch.rand(2, CHUNK, generator=torch.Generator().manual_seed(0)) < 0.7
    held = members(keys_of(2, 50, CHUNK, CHUNK), visible, pre_rounds=pre_rounds)
    assert torch.equal(held.sum(2), visible[:, None].expand(-1, 50, -1).long())


@pytest.mark.parametrize("pre_rounds", [0, 1, 3])
def test_the_means_weighted_by_their_counts_are_the_mean_of_the_chunk(pre_rounds):
    keys = keys_of(1, 50, CHUNK, CHUNK).double()
    counts = members(keys, pre_rounds=pre_rounds).sum(-1, keepdim=True)
    means, _, _ = hashed_means(keys, keys, torch.ones(1, CHUNK, dtype=torch.bool), CHUNK, 2, pre_rounds, 0)
    torch.testing.assert_close((means * counts).sum(2) / CHUNK, keys.mean(2), rtol=0, atol=1e-12)


def test_masked_keys_change_nothing():
    keys, visible = keys_of(1, 50, CHUNK, CHUNK), torch.arange(CHUNK)[None] < 11
    other = torch.where(visible[:, None, :, None], keys, 100.0)
    before, after = (hashed_means(x, x, visible, CHUNK, 2, 1, 0) for x in (keys, other))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("pre_rounds", [0, 2])
def test_a_bucket_is_as_likely_as_any_other(pre_rounds):
    """So that a bucket's sum, times the number of buckets, is an unbiased estimate of the chunk's."""
    key = keys_of(1, 1, CHUNK, CHUNK).expand(-1, DRAWS, -1, -1)
    held = members(key, pre_rounds=pre_rounds, factor=2).float()[0]  # draws, 8 buckets, 16 tokens
    share = 1 / held.shape[1]
    for bucket in held.mean(0):
        for frequency in bucket.tolist():
            assert within(frequency, share, share * (1 - share), DRAWS)


def test_the_sums_are_unbiased_over_seeds():
    keys, seeds, buckets = keys_of(1, 1, CHUNK, CHUNK), 500, CHUNK // 2
    held = torch.cat([members(keys, seed=seed)[0].float() for seed in range(seeds)])  # seeds, buckets, tokens
    totals = buckets * held @ keys[0, 0]  # each an estimate of the sum over the chunk: seeds, buckets, d
    error = (totals.mean(0) - keys[0, 0].sum(0)).abs()
    assert (error <= SIGMAS * totals.std(0) / math.sqrt(seeds)).all()
    assert not torch.equal(held[0], held[1])  # and a seed is a draw of its own


@pytest.mark.parametrize("angle", [0.2, 1.0, math.pi / 2, 2.5])
def test_two_buckets_hold_two_tokens_with_the_probability_of_their_angle(angle):
    """One hyperplane: 1 - angle / pi (Goemans and Williamson 1995; Charikar 2002)."""
    pair = torch.zeros(1, DRAWS, 2, 2)
    pair[..., 0, 0], pair[..., 1, 0], pair[..., 1, 1] = 1.0, math.cos(angle), math.sin(angle)
    keys = torch.nn.functional.pad(pair, (0, 2, 0, 2))  # four tokens of size four, two of them hidden
    held = members(keys, torch.tensor([[True, True, False, False]]), factor=2, chunk=4)
    together = held[0, :, :, :2].all(-1).any(-1).float().mean().item()
    expected = 1 - angle / math.pi
    assert within(together, expected, expected * (1 - expected), DRAWS)


@pytest.mark.parametrize(("factor", "cosine"), [(2, 0.9), (4, 0.5), (2, -0.5)])
def test_more_buckets_hold_two_tokens_as_often_as_in_a_plain_simulation(factor, cosine):
    buckets, size, generator = CHUNK // factor, CHUNK, np.random.default_rng(0)
    one, other = np.eye(size)[0], np.eye(size)[0] * cosine + np.eye(size)[1] * math.sqrt(1 - cosine**2)
    hits = 0
    for _ in range(DRAWS):
        projection = generator.standard_normal((size, buckets // 2))
        codes = [np.argmax(np.concatenate([u @ projection, -(u @ projection)])) for u in (one, other)]
        hits += codes[0] == codes[1]
    keys = torch.zeros(1, DRAWS, size, size)
    # The lengths must not matter: only the directions are hashed.
    keys[..., 0, :], keys[..., 1, :] = torch.from_numpy(3 * one), torch.from_numpy(0.1 * other)
    held = members(keys, torch.arange(size)[None] < 2, factor=factor)
    together, plain = held[0, :, :, :2].all(-1).any(-1).float().mean().item(), hits / DRAWS
    assert within(together, plain, 2 * plain * (1 - plain), DRAWS)  # two simulations: twice the variance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hashes_as_float32_does(dtype):
    keys, visible = keys_of(2, 50, CHUNK, CHUNK, dtype=dtype), torch.arange(CHUNK) < torch.tensor([[16], [9]])
    half = hashed_means(keys, keys, visible, CHUNK, 2, 2, 0)
    full = hashed_means(keys.float(), keys.float(), visible, CHUNK, 2, 2, 0)
    assert half[0].dtype == dtype
    assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(half, full, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        cast = hashed_means(keys.float(), keys.float(), visible, CHUNK, 2, 2, 0)
    assert all(torch.equal(x, y) for x, y in zip(cast, full, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_full_bucket_counts_beyond_what_half_precision_can(dtype):
    chunk = 4096  # bfloat16 counts to 256 by ones, float16 to 2048; and the sum of values passes 65504
    keys = torch.full((1, 1, chunk, 2), 20.0, dtype=dtype)
    means, values, filled = hashed_means(keys, keys, torch.ones(1, chunk, dtype=torch.bool), chunk, chunk // 2, 0, 0)
    assert filled.sum() == 1
    assert torch.equal(means[filled], keys[0, 0, :1])
    assert torch.equal(values[filled], keys[0, 0, :1])


def test_projections_do_not_depend_on_the_defaults_or_the_generator_of_the_process():
    keys, visible = keys_of(1, 4, CHUNK, CHUNK), torch.ones(1, CHUNK, dtype=torch.bool)
    expected = hashed_means(keys, keys, visible, CHUNK, 2, 1, 3)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # as somebody has "cuda" for a default
            other = hashed_means(keys, keys, visible, CHUNK, 2, 1, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(other, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # and nobody else's numbers change


def test_training_hashes_as_inference_does_until_the_seed_changes():
    config = SimpleNamespace(
        adaptive=True,
        block_size=4,
        sparse_block_size=4,
        sparsity_factor=2,
        sparsity_type="lsh",
        num_global_tokens=1,
        lsh_num_pre_rounds=1,
        lsh_seed=0,
        causal_globals="globals",
        bos_pooling_padding="masked",
        attention_form="auto",
        attention_probs_dropout_prob=0.0,
    )
    mix, inputs = LSGAttention(config, 0), [keys_of(1, 2, 31, 6, seed=seed) for seed in range(3)]
    first = mix.train()(*inputs, None)
    assert torch.equal(mix(*inputs, None), first)
    assert torch.equal(mix.eval()(*inputs, None), first)
    config.lsh_seed = 1
    assert not torch.equal(mix(*inputs, None), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_repeats_and_is_the_same_when_saved_and_loaded(dtype, tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "Model", 64)
    tokenizer = BertTokenizerFast.from_pretrained(source)
    dense = AutoModel.from_pretrained(source, dtype=dtype)
    options = {"block_size": 8, "sparse_block_size": 8, "sparsity_type": "lsh"}
    model = effconv.lsgify(dense, tokenizer, max_length=128, **options).eval()
    model.config.lsh_seed = 11
    ids = torch.randint(5, len(tokenizer), (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).last_hidden_state
        torch.rand(5)
        assert torch.equal(model(ids).last_hidden_state, before)
        model.save_pretrained(tmp_path / "saved")
        again = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True, dtype=dtype).eval()
        assert again.config.lsh_seed == 11
        assert_same_tensors(again, model)
        last_bits = 1e-6 if dtype == torch.float32 else 2**-7
        assert_same_outputs(again(ids).last_hidden_state, before, last_bits)
        again.config.lsh_seed = 12
        other = (again(ids).last_hidden_state - before).abs().max()
        assert other > 3 * last_bits * before.abs().max()
