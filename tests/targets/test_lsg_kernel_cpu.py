"""The CPU kernel of the emitted LSG attention on its own: gradients, dropout, dtypes, registration, memory."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from lsg_cases import mask_of, options, qkv
from torch.utils.checkpoint import checkpoint

from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_cpu as kernel

torch.set_num_threads(1)


def attend(inputs, config, mask=None, causal=False, dropout=0.0, form=kernel.cpu_attention):
    sparse = lsg.select_sparse(*inputs, mask, config, 0, lsg.sparse_tokens) if lsg.uses_sparse_keys(config) else None
    return form(*inputs, mask, sparse, config, causal, dropout)


@pytest.mark.nightly
@pytest.mark.parametrize(("causal", "at_once", "lengths"), [(False, 1, [7, 5]), (True, 3, [7]), (False, 3, [7])])
def test_gradients_with_dropout_are_those_of_finite_differences(causal, at_once, lengths):
    config = options(block_size=2, sparse_block_size=3, num_global_tokens=3, sparsity_type="stride")
    inputs = [x.requires_grad_() for x in qkv(config, 7, batch=len(lengths), heads=2, size=2)]
    mask = mask_of(config, lengths, 7)
    seed = torch.tensor(5)

    def run(q, k, v):
        sparse = lsg.select_sparse(q, k, v, mask, config, 0, lsg.sparse_tokens)
        return kernel.attention_op(q, k, v, mask, *sparse, seed, 3, 2, 3, 1, causal, 0.4, at_once)

    assert torch.autograd.gradcheck(run, inputs)


def test_dropout_has_the_share_and_the_scale_it_should():
    config = options(block_size=8, sparse_block_size=8)
    q, k, _ = qkv(config, 31, batch=1, size=32, dtype=torch.float32)
    same, spread = torch.zeros_like(q), torch.eye(32).expand_as(q)  # each value in a place of its own
    whole = attend([same, k, spread], config)
    torch.manual_seed(0)
    mean = torch.stack([attend([same, k, spread], config, dropout=0.25) for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, whole, rtol=0, atol=0.02)
    assert torch.equal(attend([same, k, spread], config, dropout=1.0), torch.zeros_like(q))


def test_checkpointing_draws_the_same_dropout_again():
    config = options()
    inputs = [x.requires_grad_() for x in qkv(config, 30)]
    torch.manual_seed(3)
    plain = attend(inputs, config, dropout=0.3)
    torch.manual_seed(3)
    again = checkpoint(lambda *x: attend(x, config, dropout=0.3), *inputs, use_reentrant=False)
    assert torch.equal(plain, again)
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (plain, again)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_follow_float64_in_every_dtype(dtype, native, monkeypatch):
    monkeypatch.setattr(kernel, "multiplies_bfloat16", lambda: native)
    config = options(block_size=8, sparse_block_size=8, num_global_tokens=2)
    # A group's choice of keys is not continuous: strides choose alike in every dtype.
    config.sparsity_type = "stride"
    inputs = qkv(config, 61, dtype=dtype)
    mask = mask_of(config, [61, 40], 61)
    weight = qkv(config, 61, seed=1)[0]
    found = []
    for x in (inputs, [x.double() for x in inputs]):
        x = [y.detach().requires_grad_() for y in x]
        context = attend(x, config, mask, form=kernel.cpu_attention if x[0].dtype == dtype else lsg.plain_attention)
        assert context.dtype == x[0].dtype
        found.append([context, *torch.autograd.grad((context.double() * weight * mask[:, None, :, None]).sum(), x)])
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 8e-2 if native else 3e-2}[dtype]
    for got, wanted in zip(*found, strict=True):
        got, wanted = (x.double() * mask[:, None, :, None] for x in (got, wanted))
        assert (got - wanted).abs().max() <= tolerance * max(1.0, float(wanted.detach().abs().max()))


@pytest.mark.parametrize("scale", [1, 4])
def test_bfloat16_products_round_about_as_attention_in_plain_torch_does(scale, monkeypatch):
    monkeypatch.setattr(kernel, "multiplies_bfloat16", lambda: True)
    config = options(block_size=160, sparse_block_size=0, sparsity_type="none")  # one block sees all
    q, k, v = qkv(config, 160, size=32, dtype=torch.float32)
    q, k, v = ((scale * q).bfloat16(), k.bfloat16(), v.bfloat16())
    scores = q @ k.transpose(2, 3) / 32**0.5
    plain = scores.float().softmax(-1).bfloat16() @ v
    exact = (q.double() @ k.double().transpose(2, 3) / 32**0.5).softmax(-1) @ v.double()
    ours, theirs = (
        float((context.double() - exact).norm() / exact.norm()) for context in (attend([q, k, v], config), plain)
    )
    assert ours <= 1.5 * theirs
    assert ours < (1e-2 if scale == 1 else 2e-2)


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_heads_at_once_threads_and_strides_of_the_inputs_change_nothing(at_once, threads):
    config = options(num_global_tokens=2)
    q, k, v = qkv(config, 30, heads=5)
    sparse = lsg.select_sparse(q, k, v, None, config, 0, lsg.sparse_tokens)
    as_model = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    tail = (None, *sparse, None, 2, 4, 4, 2, False, 0.0)
    expected = lsg.plain_attention(*as_model, None, sparse, config, False, 0.0)
    torch.set_num_threads(threads)
    try:
        for inputs in ((q, k, v), as_model):
            found = kernel.attention_op(*inputs, *tail, at_once)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(1)


def test_two_copies_of_the_file_live_side_by_side():
    config = options()
    inputs = [x.requires_grad_() for x in qkv(config, 30)]
    expected = torch.autograd.grad(attend(inputs, config).sum(), inputs)
    copies = []
    for name in ("first_repo.lsg_kernel_cpu", "second_repo.lsg_kernel_cpu", "second_repo.lsg_kernel_cpu"):
        spec = importlib.util.spec_from_file_location(name, kernel.__file__)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # the third is a reload, as after an update of the repo
        copies.append(module)
    for module in (copies[0], copies[2], kernel):
        found = torch.autograd.grad(attend(inputs, config, form=module.cpu_attention).sum(), inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_import_and_use_leave_the_process_as_it_was():
    config = options()
    before = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )
    attend(qkv(config, 30), config)
    assert before == (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


def test_the_operators_pass_the_checks_of_torch():
    config = options()
    q, k, v = (x.requires_grad_() for x in qkv(config, 20, batch=1))
    sparse = lsg.select_sparse(q, k, v, None, config, 0, lsg.sparse_tokens)
    torch.library.opcheck(
        kernel.attention_op, (q, k, v, None, *(x.detach() for x in sparse), None, 1, 4, 4, 2, False, 0.0, 2)
    )
