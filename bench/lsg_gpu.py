"""The LSG attention layer on a GPU, in each of its forms, against SDPA, Longformer and BigBird: 12 heads of width 64.

`python -m effconv.bench.lsg_gpu [LENGTH ...]`: Markdown tables for batch 1 in bfloat16. First, how far each form is
from the plain one in float64, context and gradients; then, for every length, forward, and forward and backward. A form
is asked for by the field of the config, `attention_form`; one that cannot run here is a row that says why. Products are
those that the pattern asks for: 2 of (rows, keys) by d forward, 5 more backward, without what a form wastes. The
roofline is that of this GPU, measured in the same run: the rate of a large matrix product and that of a copy. The
layers of Longformer and BigBird contain their projections, which the others do not.

Needs CUDA. `--device cpu` is a trial of the command itself: its figures say nothing of a GPU, and the forms that only a
GPU runs are left out.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.lsg import CONFIG, HEADS, WIDTH

from ..templates import lsg_attention as lsg
from ..templates.lsg_configuration import ATTENTION_FORMS
from ..templates.lsg_kernel_cpu import sparse_starts

LENGTHS = [1024, 4096, 16384, 65536]
SHORTEST = 2 * CONFIG.block_size + 1  # up to two blocks attention is full, in every form
DTYPE = torch.bfloat16
SDPA = "SDPA"
GPU_FORMS = ("flex", "triton")
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Prints the device, its measured limits, the differences from float64, and one table a length."""
    parser = argparse.ArgumentParser(prog="python -m effconv.bench.lsg_gpu")
    parser.add_argument("lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this measurement needs an NVIDIA GPU: torch.cuda.is_available() is False here")
    if min(given.lengths) < SHORTEST:
        raise SystemExit(f"give lengths from {SHORTEST} tokens on: shorter inputs get full attention in every form")
    rate, bandwidth = limits(given.device)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "a CPU, as a trial"
    print(
        f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}: "
        f"{rate / 1e12:.3g} TFLOP/s, {bandwidth / 1e9:.3g} GB/s"
    )
    print_differences(given.device)
    for length in given.lengths:
        measure(length, rate, bandwidth, given.device)


def limits(device: str) -> tuple[float, float]:
    """FLOP/s of a product of large matrices and bytes/s of a copy (read and written)."""
    size, count = (8192, 1 << 30) if device == "cuda" else (256, 1 << 20)
    a, b = torch.randn((2, size, size), dtype=DTYPE, device=device)
    source, target = torch.empty((2, count), dtype=torch.uint8, device=device)
    product, copying = (milliseconds(x, device) for x in (lambda: a @ b, lambda: target.copy_(source)))
    return 2 * size**3 / product * 1e3, 2 * source.numel() / copying * 1e3


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """The median of many runs, each with a cold L2 cache; on a CPU of three."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, return_mode="median"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def print_differences(device: str) -> None:
    """How far the forms are from plain attention in float64: max |a - b| / max(1, max |b|), of all rows.

    Over whole blocks and a part of one. Sparse keys are chosen once, so that no near tie is decided in two ways.
    """
    length = 8 * CONFIG.block_size + CONFIG.block_size // 3
    torch.manual_seed(0)
    inputs = qkv(length, device, True)
    with torch.no_grad():
        chosen = sparse_list(*inputs)
    wanted = context_and_gradients(asked("plain"), [x.detach().double().requires_grad_() for x in inputs], chosen)
    print(f"\n{length:,} tokens, from float64\n\n| attention_form | context | dq | dk | dv |\n|---|---|---|---|---|")
    for form in measured(device):
        try:
            found = context_and_gradients(asked(form), inputs, chosen)
            cells = [f"{difference(x, y):.1e}" for x, y in zip(found, wanted, strict=True)]
        except (ValueError, RuntimeError) as error:
            cells = [reason(error), "", "", ""]
        print(f"| {form} | {' | '.join(cells)} |", flush=True)


def reason(error: Exception) -> str:
    """Why a form did not run, for a cell of a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".replace("|", "/")


def context_and_gradients(config: Any, inputs: Sequence[Tensor], chosen: lsg.Sparse) -> list[Tensor]:
    keys, values, visible = chosen
    chosen = keys.to(inputs[0].dtype), values.to(inputs[0].dtype), visible
    q, k, v = inputs
    context = lsg.lsg_attention(q, k, v, None, config, sparse_list=lambda *_: chosen)
    weight = torch.randn(context.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = weight.to(context)
    return [context.detach(), *torch.autograd.grad(context, list(inputs), weight)]


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def measured(device: str) -> list[str]:
    """The forms that run there, if anything is installed for them; on a CPU the others would be the one for CPUs."""
    return [form for form in ATTENTION_FORMS if device == "cuda" or form not in GPU_FORMS]


def asked(form: str) -> Any:
    """The layer's config with that form."""
    config = copy.copy(CONFIG)
    config.attention_form = form
    return config


def measure(length: int, rate: float, bandwidth: float, device: str) -> None:
    """Prints the table of one length."""
    torch.manual_seed(0)
    print(f"\n{length:,} tokens\n\n| | forward ms | TFLOP/s | of the roofline | peak MB |", end="")
    print(" forward and backward ms | TFLOP/s | of the roofline | peak MB |\n|---|" + "---|" * 8)
    for name, form in forms(length, device).items():
        dense = name == SDPA
        cells = []
        for backward in (False, True):
            work = products(length, dense) * (3.5 if backward else 1)
            least = max(work / rate, traffic(length, dense, backward) / bandwidth) * 1e3
            try:
                took, peak = run(form, length, backward, device)
            except (ValueError, RuntimeError) as error:
                cells += [reason(error), "", "", ""]
                continue
            memory = "" if peak is None else f"{peak / 2**20:.0f}"
            cells += [f"{took:.3f}", f"{work / took / 1e9:.1f}", f"{least / took:.0%}", memory]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def run(form: Form, length: int, backward: bool, device: str) -> tuple[float, int | None]:
    """Milliseconds, and peak bytes beyond the inputs; None where nothing counts them."""
    inputs = qkv(length, device, backward)

    def once() -> None:
        context = form(*inputs)
        if backward:
            torch.autograd.grad(context, inputs, context.detach(), allow_unused=True)

    with torch.set_grad_enabled(backward):
        once()  # compiled now
        if device == "cpu":
            return milliseconds(once, device), None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before  # now: to time it takes memory too
        return milliseconds(once, device), peak


def qkv(length: int, device: str, gradients: bool = False) -> list[Tensor]:
    """Random q, k, v (1, 12, 1 + length, 64), the global first, as a model lays them out."""
    shape = (1, CONFIG.num_global_tokens + length, HEADS, WIDTH)
    return [torch.randn(shape, dtype=DTYPE, device=device).transpose(1, 2).requires_grad_(gradients) for _ in range(3)]


def forms(length: int, device: str) -> dict[str, Form]:
    """Each form of the layer, and what it is compared with, as a function of q, k and v."""
    return {
        **{f"LSG, attention_form={form}": lsg_form(asked(form)) for form in measured(device)},
        SDPA: sdpa,
        "Longformer layer, window of 512": longformer(length, device),
        "BigBird layer, blocks of 64": bigbird(length, device),
    }


def lsg_form(config: Any) -> Form:
    layer = lsg.LSGAttention(config, 0).eval()
    return lambda q, k, v: layer(q, k, v, None)


def sparse_list(q: Tensor, k: Tensor, v: Tensor) -> lsg.Sparse:
    return lsg.select_sparse(q, k, v, None, CONFIG, 0, lsg.sparse_tokens)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention; on a GPU by flash attention, and by nothing else."""
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


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
        for start in sparse_starts(size, step, causal=False):
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
