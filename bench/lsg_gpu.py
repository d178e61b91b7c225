"""The LSG attention layer on a GPU against SDPA, FlexAttention, Longformer and BigBird: 12 heads of width 64, bfloat16.

`python -m effconv.bench.lsg_gpu [LENGTH ...]`: a Markdown table of forward, and forward and backward, batch 1. Products
are those that the pattern asks for: 2 of (rows, keys) by d forward, 5 more backward, without what a form wastes. The
roofline is that of this GPU, measured in the same run: the rate of a large matrix product and that of a copy.
FlexAttention sees the same keys, laid out as tokens, sparse list and globals. The layers of Longformer and BigBird
contain their projections, which the others do not. Needs CUDA and Triton.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..templates import lsg_attention as lsg
from ..templates.lsg_kernel_triton import can_run, triton_attention
from .lsg import CONFIG, HEADS, WIDTH

LENGTHS = [1024, 4096, 16384, 65536]
DTYPE = torch.bfloat16
FLASH = "SDPA, flash"
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Prints the GPU, its measured limits, and one table a length."""
    parser = argparse.ArgumentParser(prog="python -m effconv.bench.lsg_gpu")
    parser.add_argument("lengths", nargs="*", type=int, default=LENGTHS)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("this measurement needs an NVIDIA GPU: torch.cuda.is_available() is False here")
    probe = torch.empty((1, HEADS, 1, WIDTH), dtype=DTYPE, device="cuda")
    if not can_run(probe):
        raise SystemExit("this measurement needs Triton and a GPU of compute capability 8.0 or later")
    rate, bandwidth = limits()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}: "
        f"{rate / 1e12:.0f} TFLOP/s, {bandwidth / 1e9:.0f} GB/s"
    )
    for length in given.lengths:
        measure(length, rate, bandwidth)


def limits() -> tuple[float, float]:
    """FLOP/s of a product of large matrices and bytes/s of a copy (read and written)."""
    a, b = torch.randn((2, 8192, 8192), dtype=DTYPE, device="cuda")
    source, target = torch.empty((2, 1 << 30), dtype=torch.uint8, device="cuda")
    product, copy = milliseconds(lambda: a @ b), milliseconds(lambda: target.copy_(source))
    return 2 * 8192**3 / product * 1e3, 2 * source.numel() / copy * 1e3


def milliseconds(run: Callable[[], Any]) -> float:
    """The median of many runs, each with a cold L2 cache."""
    from triton.testing import do_bench

    return do_bench(run, return_mode="median")


def measure(length: int, rate: float, bandwidth: float) -> None:
    """Prints the table of one length."""
    torch.manual_seed(0)
    print(f"\n{length:,} tokens\n\n| | forward ms | TFLOP/s | of the roofline | peak MB |", end="")
    print(" forward and backward ms | TFLOP/s | of the roofline | peak MB |\n|---|" + "---|" * 8)
    for name, form in forms(length, "cuda").items():
        dense = name == FLASH
        cells = []
        for backward in (False, True):
            work = products(length, dense) * (3.5 if backward else 1)
            least = max(work / rate, traffic(length, dense, backward) / bandwidth) * 1e3
            try:
                time, peak = run(form, length, backward)
            except torch.OutOfMemoryError:
                cells += ["out of memory", "", "", ""]
                continue
            cells += [f"{time:.3f}", f"{work / time / 1e9:.1f}", f"{least / time:.0%}", f"{peak / 2**20:.0f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def run(form: Form, length: int, backward: bool) -> tuple[float, int]:
    """Milliseconds, and peak bytes beyond the inputs."""
    inputs = qkv(length, "cuda", backward)

    def once() -> None:
        context = form(*inputs)
        if backward:
            torch.autograd.grad(context, inputs, context.detach(), allow_unused=True)

    with torch.set_grad_enabled(backward):
        once()  # compiled now
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        torch.cuda.synchronize()
        return milliseconds(once), torch.cuda.max_memory_allocated() - before


def qkv(length: int, device: str, gradients: bool = False) -> list[Tensor]:
    """Random q, k, v (1, 12, 1 + length, 64), the global first, as a model lays them out."""
    shape = (1, CONFIG.num_global_tokens + length, HEADS, WIDTH)
    return [torch.randn(shape, dtype=DTYPE, device=device).transpose(1, 2).requires_grad_(gradients) for _ in range(3)]


def forms(length: int, device: str) -> dict[str, Form]:
    """Each form as a function of q, k and v."""
    listed = sparse_list(*qkv(length, device)) if length > 2 * CONFIG.block_size else None
    return {
        "LSG, Triton": lambda q, k, v: triton_attention(q, k, v, None, sparse_list(q, k, v), CONFIG, False, 0.0),
        "its kernel alone, the sparse list given": lambda q, k, v: triton_attention(
            q, k, v, None, listed, CONFIG, False, 0.0
        ),
        "LSG, plain torch": lambda q, k, v: lsg.plain_attention(
            q, k, v, None, sparse_list(q, k, v), CONFIG, False, 0.0
        ),
        "FlexAttention, the same pattern": flex_form(length, device),
        FLASH: flash,
        "Longformer layer, window of 512": longformer(length, device),
        "BigBird layer, blocks of 64": bigbird(length, device),
    }


def sparse_list(q: Tensor, k: Tensor, v: Tensor) -> lsg.Sparse:
    return lsg.select_sparse(q, k, v, None, CONFIG, 0, lsg.sparse_tokens)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def flex_form(length: int, device: str) -> Form:
    """FlexAttention over the tokens, the sparse list and the globals."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    first, entries = CONFIG.num_global_tokens, length // CONFIG.sparsity_factor
    mask = create_block_mask(pattern(length, CONFIG), None, None, length + first, length + entries + first, device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, _ = sparse_list(q, k, v)
        q, k, v = (
            torch.cat([x[:, :, first:], *between, x[:, :, :first]], dim=2)
            for x, between in ((q, []), (k, [keys]), (v, [values]))
        )
        return compiled(q, k, v, block_mask=mask)

    return run


def pattern(length: int, config: Any) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """LSG attention as a mask function: rows are tokens, then globals; keys tokens, sparse list, then globals.

    For whole blocks of tokens and all keys visible.
    """
    block, step, size = config.block_size, config.block_size // config.sparsity_factor, config.sparse_block_size
    left, right = lsg.sparse_starts(size, step, causal=False)
    entries = length // config.sparsity_factor

    def sees(_: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        own, entry = row // block, key - length
        local = (key < length) & (key // block >= own - 1) & (key // block <= own + 1)
        before = (entry >= left + own * step) & (entry < left + own * step + size)
        after = (entry >= right + own * step) & (entry < right + own * step + size)
        listed = (entry >= 0) & (entry < entries)
        of_token = local | (listed & (before | after)) | (entry >= entries)
        return torch.where(row < length, of_token, ~listed)

    return sees


def products(length: int, dense: bool) -> int:
    """FLOPs of the two products of a forward, all heads; a multiplication and an addition are two."""
    return 4 * WIDTH * HEADS * (dense_pairs(length) if dense else pairs(length, CONFIG))


def dense_pairs(length: int) -> int:
    return (CONFIG.num_global_tokens + length) ** 2


def pairs(length: int, config: Any) -> int:
    """How many keys all rows of a head see together, for whole blocks of tokens."""
    first, block = config.num_global_tokens, config.block_size
    step, size, blocks = block // config.sparsity_factor, config.sparse_block_size, length // block
    entries = length // config.sparsity_factor
    seen = 0
    for i in range(blocks):
        seen += first + (min(i + 2, blocks) - max(i - 1, 0)) * block
        for start in lsg.sparse_starts(size, step, causal=False):
            seen += max(0, min(start + i * step + size, entries) - max(start + i * step, 0))
    return seen * block + first * (first + length)


def traffic(length: int, dense: bool, backward: bool) -> int:
    """Least bytes to and from memory: every tensor that comes in or goes out, once."""
    rows = CONFIG.num_global_tokens + length
    lists = 0 if dense else length // CONFIG.sparsity_factor
    forward = 4 * rows + 2 * lists  # q, k, v, context; the list's keys and values
    return HEADS * WIDTH * DTYPE.itemsize * (forward + (8 * rows + 4 * lists if backward else 0))


def longformer(length: int, device: str) -> Form:
    """Longformer's self-attention with a window of 512 and the first token global, of hidden states made of q."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(attention_window=[512], attention_probs_dropout_prob=0.0)
    layer = LongformerSelfAttention(config, 0).to(device, DTYPE).eval()
    mask = torch.zeros((1, length), dtype=DTYPE, device=device)
    mask[:, 0] = 1
    kinds = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": True}
    return _of_hidden(layer, length, lambda hidden: layer(hidden, attention_mask=mask, **kinds)[0])


def bigbird(length: int, device: str) -> Form:
    """BigBird's block-sparse self-attention as its checkpoints have it, of hidden states made of q."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(max_position_embeddings=length, attention_probs_dropout_prob=0.0)
    layer = BigBirdBlockSparseAttention(config, seed=0).to(device, DTYPE).eval()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones((1, length), dtype=DTYPE, device=device), config.block_size
    )
    return _of_hidden(layer, length, lambda hidden: layer(hidden, band, rows, columns, blocked, blocked)[0])


def _of_hidden(layer: nn.Module, length: int, run: Callable[[Tensor], Tensor]) -> Form:
    layer.requires_grad_(False)

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(q[:, :, -length:].transpose(1, 2).flatten(2))

    return form


if __name__ == "__main__":
    main()
