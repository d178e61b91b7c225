"""The forms that an exported graph holds give what the repo's code gives: every option, length and padding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from lsg_cases import cases, mask_of, options, qkv

from effconv.export.forms import bigs
from effconv.export.forms.linear import LambdaForm, LinformerForm, TransNormerForm
from effconv.export.forms.lsg import LSGForm, Shared
from effconv.templates import lsg_attention as lsg
from effconv.templates.bigs_ssm import S4D, convolve_both
from effconv.templates.lambda_attention import LambdaAttention
from effconv.templates.linformer_attention import LinformerAttention
from effconv.templates.lsg_score_bias import BiasedLSGAttention, biased_attention
from effconv.templates.transnormer_attention import NORMS, TransNormerAttention

torch.set_num_threads(1)
EXPORTED = ("none", "norm", "pooling", "stride", "block_stride", "bos_pooling")
PADDED = (29, 20, 5, 1)


def heads_of(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for _ in range(3)]


def assert_same(got, wanted, mask, tolerance=2e-5):
    real = mask[:, None, :, None]
    assert torch.isfinite(got[mask[:, None].expand(got.shape[:3])]).all()
    torch.testing.assert_close(got * real, wanted * real, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sparsity_type", EXPORTED)
def test_lsg_is_the_repos(sparsity_type):
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases(sparsity_type))
    def check(case):
        config, length, mask, causal, seed, batch = case
        if config.bos_pooling_padding == "published":  # then the model adds the padding, not the attention
            length = max(1, length // config.block_size) * config.block_size
            mask = None
        config = SimpleNamespace(**vars(config), is_decoder=causal)
        q, k, v = qkv(config, length, batch, seed=seed)
        mask = torch.ones((batch, q.shape[2]), dtype=torch.bool) if mask is None else mask[:batch, : q.shape[2]]
        wanted = lsg.lsg_attention(q, k, v, mask, config, causal=causal)
        got = LSGForm(SimpleNamespace(config=config), Shared())(q, k, v, mask)
        sees = mask[:, None, :, None].expand_as(got) & (mask.sum(1) > 0)[:, None, None, None]
        torch.testing.assert_close(got[sees], wanted[sees], rtol=0, atol=1e-9)

    check()


@pytest.mark.parametrize("sparsity_type", EXPORTED)
@pytest.mark.parametrize("sizes", [(8, 8, 2), (8, 4, 2), (4, 6, 4), (8, 8, 8), (8, 8, 1)])
def test_lsg_with_a_bias_is_the_repos(sparsity_type, sizes):
    block, sparse, factor = sizes
    if sparsity_type == "norm" and min(block, sparse) % factor:
        pytest.skip("chunks that the factor does not divide are refused")
    config = options(
        sparsity_type=sparsity_type, block_size=block, sparse_block_size=sparse, sparsity_factor=factor,
        attention_form="plain",
    )  # fmt: skip
    for reach in (3, 16):
        bias = torch.randn(4, 2 * reach + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(reach))
        for lengths in ((3, 1), (2 * block, 5), (2 * block + 1, 2 * block), (53, 20)):
            q, k, v = qkv(config, max(lengths))
            mask = mask_of(config, lengths, max(lengths))
            wanted = biased_attention(q, k, v, mask, bias, config)
            form = LSGForm(BiasedLSGAttention(config, 0), Shared())
            assert_same(form(q, k, v, mask, bias), wanted, mask, 1e-9 if factor == 1 else 1e-6)


@pytest.mark.parametrize("local", [0, 1, 7])
def test_lambda_is_the_repos(local):
    config = SimpleNamespace(hidden_size=32, num_attention_heads=4, key_depth=5, local_context_size=local)
    mix = LambdaAttention(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.normal_()
    for lengths in (PADDED, (1,), (7, 7), (130, 3)):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        q, k, v = heads_of(len(lengths), 4, max(lengths), 8)
        with torch.no_grad():
            assert_same(LambdaForm(mix)(q, k, v, mask), mix(q, k, v, mask), mask)


@pytest.mark.parametrize("mask_mode", ["masked", "published"])
@pytest.mark.parametrize("variant", ["t1", "t2"])
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("diag", [False, True])
@pytest.mark.parametrize(("norm", "positions"), [(NORMS[0], "none"), (NORMS[2], "lrpe"), (NORMS[3], "rotary")])
def test_transnormer_is_the_repos(mask_mode, variant, is_decoder, diag, norm, positions):
    config = SimpleNamespace(
        hidden_size=32, num_attention_heads=4, variant=variant, diag_layers=[0] if diag else [], block_size=8,
        mask_mode=mask_mode, is_decoder=is_decoder, attention_norm=norm, position_encoding=positions,
    )  # fmt: skip
    mix = TransNormerAttention(config)
    for lengths in (PADDED, (1,), (8, 8), (130, 3)):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        q, k, v = heads_of(len(lengths), 4, max(lengths), 8)
        with torch.no_grad():
            assert_same(TransNormerForm(mix)(q, k, v, mask), mix(q, k, v, mask), mask, 1e-4)


@pytest.mark.parametrize("mask_mode", ["masked", "published"])
@pytest.mark.parametrize("sharing", ["heads", "kv", "layers", "none"])
@pytest.mark.parametrize("weighting", ["none", "salience"])
def test_linformer_is_the_repos(mask_mode, sharing, weighting):
    config = SimpleNamespace(
        num_attention_heads=4, num_hidden_layers=2, proj_dim=8, projection_length=40, sharing=sharing,
        mask_mode=mask_mode, projection_bias=mask_mode == "published", projection_weighting=weighting,
    )  # fmt: skip
    mix = LinformerAttention(config)
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.add_(0.02 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)))
    for lengths in ((40, 20, 8, 9, 7, 1), (1,), (8,), (9,), (39, 40)):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        q, k, v = heads_of(len(lengths), 4, max(lengths), 8)
        with torch.no_grad():
            assert_same(LinformerForm(mix)(q, k, v, mask), mix(q, k, v, mask), mask, 1e-4)


def test_linformer_reads_texts_with_holes():
    config = SimpleNamespace(
        num_attention_heads=4, num_hidden_layers=2, proj_dim=8, projection_length=40, sharing="kv",
        mask_mode="masked", projection_bias=False, projection_weighting="none",
    )  # fmt: skip
    mix = LinformerAttention(config)
    mask = torch.rand(3, 37, generator=torch.Generator().manual_seed(1)) < 0.6
    q, k, v = heads_of(3, 4, 37, 8)
    with torch.no_grad():
        assert_same(LinformerForm(mix)(q, k, v, mask), mix(q, k, v, mask), mask)


@pytest.mark.parametrize("heads", [None, 4])
def test_bigs_convolves_as_the_repo(heads):
    torch.manual_seed(1)
    pair = [S4D(6, heads), S4D(6, heads)]
    for part in pair:
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter)
        torch.nn.init.uniform_(part.kernel.log_step, -4, -1)
        torch.nn.init.uniform_(part.kernel.A_re, -1, -0.1)
    for part in pair:
        bigs.store_taps(part, 130)
    for length in (1, 2, 37, 130):
        streams = [torch.randn(2, length, 16) for _ in range(2)]
        with torch.no_grad():
            for got, wanted in zip(bigs.convolve_both(*pair, *streams), convolve_both(*pair, *streams), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
