"""LSG attention with a bias on scores: its forms against each other and the dense float64 form, and the repos."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from checkpoints import convert, read

import effconv
from effconv.convert.families.registry import FAMILIES
from effconv.convert.repo.emit import code_files
from effconv.lsgify.oracle import dense_attention
from effconv.lsgify.target import LSG
from effconv.templates import lsg_score_bias
from effconv.templates.lsg_score_bias import biased_attention, by_distance, reach_of
from tiny import save_tiny

BIAS_FILES = {"lsg_score_bias.py", "lsg_kernel_cpu_bias.py"}
KINDS = ["norm", "pooling", "stride", "block_stride", "bos_pooling", "lsh", "none"]


def config(**fields):
    usual = {
        **{"num_global_tokens": 1, "block_size": 8, "sparse_block_size": 8, "sparsity_factor": 2},
        **{"sparsity_type": "norm", "adaptive": True, "attention_form": "auto", "bos_pooling_padding": "masked"},
        **{"lsh_num_pre_rounds": 1, "lsh_seed": 3, "is_decoder": False, "causal_globals": "globals"},
    }
    return SimpleNamespace(**usual | fields)


def inputs(settings, tokens, reach, dtype=torch.float32, heads=3):
    torch.manual_seed(0)
    rows = settings.num_global_tokens + tokens
    q, k, v = (torch.randn(2, heads, rows, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    bias = torch.randn(heads, 2 * reach + 2, dtype=dtype, requires_grad=True)
    mask = torch.ones(2, rows, dtype=torch.bool)
    mask[1, -5:] = False
    return q, k, v, mask, bias


def results(form, settings, q, k, v, mask, bias):
    """The context of what is visible, and the gradients of q, k, v and the bias."""
    settings.attention_form = form
    context = biased_attention(q, k, v, mask, bias, settings) * mask[:, None, :, None]
    total = (context * torch.linspace(-1, 1, context.numel()).view(context.shape)).sum()
    return context.detach(), *torch.autograd.grad(total, (q, k, v, bias))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reach", [5, 30], ids=["sparse keys far away", "sparse keys by their distance"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_are_the_formula(kind, reach, threads, one_thread):
    torch.set_num_threads(threads)
    for fields, tokens in (({}, 13), ({}, 37), ({"num_global_tokens": 3}, 24), ({"num_global_tokens": 0}, 33)):
        settings = config(sparsity_type=kind, **fields)
        given = inputs(settings, tokens, reach)
        cpu, plain = (results(form, settings, *given) for form in ("auto", "plain"))
        for one, other in zip(cpu, plain, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        if tokens > 16:
            q, k, v, mask, bias = (x.detach() for x in given)
            wanted = dense_attention(q, k, v, mask, settings, bias) * mask[:, None, :, None]
            torch.testing.assert_close(cpu[0].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("reach", "tokens"), [(3, 11), (9, 11), (3, 4)])
def test_gradients_are_those_of_finite_differences(reach, tokens):
    settings = config(block_size=4, sparse_block_size=4)
    q, k, v, mask, bias = inputs(settings, tokens, reach, torch.float64, heads=2)

    def context(*given):
        return biased_attention(*given[:3], mask, given[3], settings)[:1]

    assert torch.autograd.gradcheck(context, (q, k, v, bias), fast_mode=True)


def test_of_two_blocks_it_is_full_attention_with_the_bias_of_every_distance():
    settings = config(num_global_tokens=0)
    q, k, v, _, bias = inputs(settings, 16, 4)
    places = torch.arange(16)
    added = torch.stack([bias[:, (key - row).clamp(-4, 4) + 4] for row in places for key in places], 1)
    scores = q @ k.transpose(-1, -2) / 8**0.5 + added.unflatten(1, (16, 16))
    torch.testing.assert_close(biased_attention(q, k, v, None, bias, settings), scores.softmax(-1) @ v)
    assert reach_of(bias) == 4
    assert torch.equal(by_distance(bias, places[:1], places)[:, 0, 5:], bias[:, 8:9].expand(-1, 11))


@pytest.mark.parametrize("form", ["flex", "triton"])
def test_a_form_that_cannot_add_the_bias_gives_way_and_says_so(form, monkeypatch):
    said = []
    monkeypatch.setattr(lsg_score_bias.logger, "warning_once", said.append)
    monkeypatch.setattr(lsg_score_bias, "form_of", lambda config, q: form)
    settings = config(attention_form=form)
    q, k, v, mask, bias = (x.detach() for x in inputs(settings, 30, 5))
    got = biased_attention(q, k, v, mask, bias, settings)
    wanted = dense_attention(q, k, v, mask, settings, bias).float()
    torch.testing.assert_close(got * mask[:, None, :, None], wanted * mask[:, None, :, None], atol=1e-5, rtol=1e-5)
    assert form in said[0]


def test_only_families_with_a_bias_get_its_code():
    for name in LSG.families:
        family = FAMILIES[name]
        files = code_files(LSG, family, family.head(family.default_head)).keys()
        assert BIAS_FILES & files == (BIAS_FILES if family.score_bias else set()), name


def test_globals_get_the_least_that_any_distance_gets(tmp_path):
    source = save_tiny(tmp_path / "source", "mpnet", "ForMaskedLM")
    result = convert(source, tmp_path / "out", max_length=200)
    assert result.manifest["options"]["sparsity_type"] == "bos_pooling"
    old, new = read(source), read(tmp_path / "out")
    table = old["mpnet.encoder.relative_attention_bias.weight"]
    assert torch.equal(new["mpnet.embeddings.global_bias.weight"], table.min(0, keepdim=True).values)
    assert torch.equal(new["mpnet.encoder.relative_attention_bias.weight"], table)
    again = convert(tmp_path / "out", tmp_path / "longer", max_length=300)
    assert "derive" not in {row.action for row in again.plan.rows if "bias" in (row.target or "")}


def test_a_sentence_encoder_with_a_bias_keeps_its_embedding(tmp_path):
    from tiny import save_tiny_sentence_encoder

    source = save_tiny_sentence_encoder(tmp_path / "source", "mpnet")
    result = effconv.convert(source, "lsg", output=tmp_path / "out", max_length=200, block_size=16)
    passed = {check.name: check.passed for check in result.measured}
    assert all(passed[name] for name in ("same_embedding", "equal_to_source", "equal_to_formula", "every_tensor_read"))
