"""Run LSG attention and an emitted model on tensors of a device that is not there, and print what came of it.

    python device_worker.py REPO

A CPU build of torch has no device "cuda" to pretend with: indexing, among others, fails. It lets Python register a
device of its own, though, here "pretended", and that is for the whole process: hence a worker. Under FakeTensorMode an
operator on it computes shapes, dtypes and devices only, and one that mixes it with the CPU raises, as on a GPU. The
result is one JSON object {case: "as wanted" or the error}, on the last line of stdout.
"""

from __future__ import annotations

import json
import sys
import traceback

import pytest
import torch
from lsg_cases import mask_of, options
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoConfig, AutoModel

from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_flex as flex
from effconv.templates.lsg_configuration import SPARSITY_TYPES

DEVICE, LENGTH = "pretended", 45


def prepare():
    _setup_privateuseone_for_python_backend(DEVICE)
    # Only so that autocast can be switched off there; it cannot be on.
    getattr(torch, DEVICE).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


def expect(tensor, dtype):
    assert (tensor.device.type, tensor.dtype) == (DEVICE, dtype), (tensor.device, tensor.dtype)


def run_attention(form="auto", masked=True, causal=False, dtype=torch.float32, dropout=0.0, **changes):
    """Forward and backward beyond two blocks."""
    config = options(attention_form=form, block_size=8, sparse_block_size=8, **changes)
    shape = (2, 4, config.num_global_tokens + LENGTH, 16)
    inputs = [torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for _ in "qkv"]
    mask = mask_of(config, [LENGTH, 30], LENGTH).to(DEVICE) if masked else None
    ran = []
    stock = lsg.plain_attention
    lsg.plain_attention = lambda *x: (ran.append("plain"), stock(*x))[1]
    try:
        context = lsg.lsg_attention(*inputs, mask, config, causal=causal, dropout=dropout)
    finally:
        lsg.plain_attention = stock
    expect(context, dtype)
    context.float().square().mean().backward()
    for x in inputs:
        expect(x.grad, dtype)
    assert ran == ([] if form == "flex" else ["plain"]), ran


def run_flex():
    """What the form hands to FlexAttention lies on the device; the kernel itself needs a real one."""

    def kernel(q, k, v, block_mask):
        parts = (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.q_num_blocks, block_mask.full_q_indices)
        assert {x.device.type for x in (q, k, v, *parts)} == {DEVICE}
        row = torch.arange(q.shape[2], device=DEVICE)
        expect(block_mask.mask_mod(row[:1], row[:1], row[:, None], row), torch.bool)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    stock, flex.kernel_for = flex.kernel_for, lambda q: kernel
    try:
        for causal in (False, True):
            run_attention("flex", causal=causal)
    finally:
        flex.kernel_for = stock


def run_triton():
    """A form that was asked for and cannot run is an error, not another form."""
    with pytest.raises(ValueError, match="attention_form is 'triton', which cannot run: "):
        run_attention("triton")


def moved(model, dtype):
    """The model on the device; `to` does not move fake parameters."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, torch.nn.Parameter(parameter.detach().to(DEVICE, dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(DEVICE))
    return model


def run_model(repo, dtype):
    """A step of training of an emitted model, with a mask; unpadding would read values, which there are none of."""
    config = AutoConfig.from_pretrained(repo, trust_remote_code=True, unpad_inputs=False)
    model = moved(AutoModel.from_config(config, trust_remote_code=True).train(), dtype)
    ids = torch.ones(2, LENGTH, dtype=torch.long, device=DEVICE)
    states = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    expect(states, dtype)
    states.sum().backward()
    expect(model.embeddings.global_embeddings.weight.grad, dtype)


def run_mixed():
    """The worker's own eyes: a tensor of the CPU among the others is seen."""
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=DEVICE) + torch.ones(2)


def cases(repo):
    found = {
        "mixed devices": run_mixed,
        "flex": run_flex,
        "triton": run_triton,
        "plain": lambda: run_attention("plain"),
    }
    for name in SPARSITY_TYPES:
        changes = {"sparsity_type": name}
        found[name] = lambda changes=changes: run_attention(dropout=0.1, **changes)
        found[f"{name}, causal, no mask"] = lambda changes=changes: run_attention(causal=True, masked=False, **changes)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found[f"lsh, {dtype}"] = lambda dtype=dtype: run_attention(dtype=dtype, sparsity_type="lsh")
        found[f"model, {dtype}"] = lambda dtype=dtype: run_model(repo, dtype)
    return found


def main() -> None:
    prepare()
    results = {}
    for name, run in cases(sys.argv[1]).items():
        try:
            with FakeTensorMode():
                run()
            results[name] = "as wanted"
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
