"""The emitted LSG attention against a plain oracle, and the promises it makes on its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from lsg_cases import DEFAULTS, assert_equals_oracle, cases, mask_of, options, qkv
from torch.utils._python_dispatch import TorchDispatchMode

from effconv.templates import lsg_attention as lsg
from effconv.templates.lsg_configuration import SPARSITY_TYPES

torch.set_num_threads(1)


@pytest.fixture(autouse=True, params=["plain", "auto"])
def form(request, monkeypatch):
    """Every promise is kept by every form that runs on a CPU."""
    monkeypatch.setitem(DEFAULTS, "attention_form", request.param)
    return request.param


each_type = pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)


@each_type
def test_the_block_form_equals_the_oracle_for_any_shape(sparsity_type):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(cases(sparsity_type))
    def check(case):
        config, length, mask, causal, seed, threads = case
        torch.set_num_threads(threads)  # the kernel multiplies in another way on several
        assert_equals_oracle(*qkv(config, length, heads=3, size=3, seed=seed), mask, config, causal)

    try:
        check()
    finally:
        torch.set_num_threads(1)


@each_type
@pytest.mark.parametrize("causal", [False, True])
def test_the_block_form_equals_the_oracle_in_float32(sparsity_type, causal):
    config = options(sparsity_type=sparsity_type, block_size=8, sparse_block_size=8, num_global_tokens=2)
    mask = mask_of(config, [61, 40], 61)
    assert_equals_oracle(*qkv(config, 61, dtype=torch.float32), mask, config, causal, tolerance=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity_factor": 4, "sparse_block_size": 12},
        {"sparsity_factor": 4, "sparse_block_size": 8},
        {"block_size": 6, "sparsity_factor": 2, "sparse_block_size": 4},
        {"block_size": 12, "sparsity_factor": 4, "sparse_block_size": 8, "sparsity_type": "norm"},
        {"block_size": 6, "sparsity_factor": 2, "sparse_block_size": 1, "sparsity_type": "stride"},
        {"block_size": 6, "sparsity_factor": 3, "sparse_block_size": 30, "sparsity_type": "block_stride"},
        {"sparsity_factor": 1, "sparse_block_size": 7},
        {"sparsity_factor": 0},
        {"sparse_block_size": 0},
        {"block_size": 1, "sparsity_factor": 1, "sparse_block_size": 2},
        {"sparsity_type": "lsh", "sparsity_factor": 4, "sparse_block_size": 4},
        {"sparsity_type": "lsh", "sparsity_factor": 4, "sparse_block_size": 8},
    ],
    ids=str,
)
def test_unusual_windows_equal_the_oracle(changes):
    config = options(**changes)
    length = 5 * config.block_size + 1
    for causal in (False, True):
        assert_equals_oracle(*qkv(config, length), mask_of(config, [length, length - 7], length), config, causal)


@each_type
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [7, 8, 9, 30])
def test_padding_does_not_change_real_tokens(sparsity_type, causal, length):
    config = options(sparsity_type=sparsity_type)
    q, k, v = qkv(config, 45, seed=1)
    rows = config.num_global_tokens + length
    alone = lsg.lsg_attention(q[:, :, :rows], k[:, :, :rows], v[:, :, :rows], None, config, causal=causal)
    padded = lsg.lsg_attention(q, k, v, mask_of(config, [length, length], 45), config, causal=causal)
    torch.testing.assert_close(padded[:, :, :rows], alone, rtol=0, atol=1e-9)


@each_type
def test_batch_mates_do_not_change_a_sequence(sparsity_type):
    config = options(sparsity_type=sparsity_type)
    q, k, v = qkv(config, 30, batch=3)
    mask = mask_of(config, [30, 12, 23], 30)
    together = lsg.lsg_attention(q, k, v, mask, config)
    alone = [lsg.lsg_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], mask[i : i + 1], config) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)


@each_type
@pytest.mark.parametrize("length", [6, 30])
@pytest.mark.parametrize("causal_globals", ["globals", "published"])
def test_causal_rows_do_not_depend_on_later_tokens(sparsity_type, length, causal_globals):
    config = options(sparsity_type=sparsity_type, causal_globals=causal_globals, num_global_tokens=2)
    inputs = qkv(config, length)
    before = lsg.lsg_attention(*inputs, None, config, causal=True)
    for cut in range(1, length):
        changed = [x.clone() for x in inputs]
        for x in changed:
            x[:, :, 2 + cut :] = torch.randn_like(x[:, :, 2 + cut :])
        after = lsg.lsg_attention(*changed, None, config, causal=True)
        torch.testing.assert_close(after[:, :, : 2 + cut], before[:, :, : 2 + cut], rtol=0, atol=1e-9)


@each_type
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [7, 30])
def test_rows_that_see_nothing_are_finite(sparsity_type, dtype, length):
    config = options(sparsity_type=sparsity_type, num_global_tokens=0)
    inputs = [(8 * x).requires_grad_() for x in qkv(config, length, dtype=dtype)]
    for causal in (False, True):
        context = lsg.lsg_attention(*inputs, mask_of(config, [0, 11 % length], length), config, causal=causal)
        gradients = torch.autograd.grad(context.float().sum(), inputs)
        assert context.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


@each_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(sparsity_type, dtype):
    config = options(sparsity_type=sparsity_type, block_size=8, sparse_block_size=8)
    inputs, mask = qkv(config, 61, dtype=dtype), mask_of(config, [61, 40], 61)
    context = lsg.lsg_attention(*inputs, mask, config)
    expected = lsg.lsg_attention(*(x.float() for x in inputs), mask, config)
    assert context.dtype == dtype
    torch.testing.assert_close(context.float(), expected, rtol=0, atol=8e-2 if dtype == torch.bfloat16 else 1e-2)


@each_type
def test_autocast_gives_finite_numbers_near_float32(sparsity_type):
    config = options(sparsity_type=sparsity_type)
    inputs = qkv(config, 30, dtype=torch.float32)
    expected = lsg.lsg_attention(*inputs, None, config)
    with torch.autocast("cpu", torch.bfloat16):
        context = lsg.lsg_attention(*(x.bfloat16() for x in inputs), None, config)
    assert (context.float() - expected).abs().median() < 2e-2


@each_type
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(sparsity_type, causal):
    config = options(sparsity_type=sparsity_type, block_size=2, sparse_block_size=2)
    inputs = [x.requires_grad_() for x in qkv(config, 7, batch=1, heads=2, size=2)]
    mask = mask_of(config, [6], 7)
    assert torch.autograd.gradcheck(lambda q, k, v: lsg.lsg_attention(q, k, v, mask, config, causal=causal), inputs)


def test_hashing_repeats_and_differs_by_layer_and_seed():
    config, other = options(sparsity_type="lsh"), options(sparsity_type="lsh", lsh_seed=5)
    inputs = qkv(config, 30)
    first = lsg.lsg_attention(*inputs, None, config)
    torch.manual_seed(1)
    assert torch.equal(first, lsg.lsg_attention(*inputs, None, config))
    assert not torch.equal(first, lsg.lsg_attention(*inputs, None, config, layer_index=1))
    assert not torch.equal(first, lsg.lsg_attention(*inputs, None, other))


@each_type
def test_the_mask_of_the_caller_is_left_alone(sparsity_type):
    config = options(sparsity_type=sparsity_type)
    mask = mask_of(config, [30, 12], 30)
    kept = mask.clone()
    lsg.lsg_attention(*qkv(config, 30), mask, config)
    assert torch.equal(mask, kept)


def test_dropout_changes_weights_only_when_asked():
    config = options()
    inputs = qkv(config, 12, dtype=torch.float32)
    plain = lsg.lsg_attention(*inputs, None, config)
    dropped = [lsg.lsg_attention(*inputs, None, config, dropout=0.3) for _ in range(200)]
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(torch.stack(dropped).mean(0), plain, rtol=0, atol=0.35)


def test_without_adaptive_padding_other_lengths_are_refused():
    config = options(adaptive=False)
    assert lsg.lsg_attention(*qkv(config, 12), None, config).shape[2] == 13
    with pytest.raises(ValueError, match="must be a multiple of block_size 4"):
        lsg.lsg_attention(*qkv(config, 13), None, config)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@each_type
@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_the_length(sparsity_type, causal):
    config = options(sparsity_type=sparsity_type, block_size=8, sparse_block_size=8, num_global_tokens=2)
    sizes = []
    for length in (512, 2048):
        with LargestTensor() as seen:
            lsg.lsg_attention(*qkv(config, length, batch=1, heads=2, size=4), None, config, causal=causal)
        sizes.append(seen.largest)
    assert sizes[1] <= 4.2 * sizes[0]
    assert sizes[1] < 2048 * 2048 / 8
