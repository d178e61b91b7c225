"""How long the LSG attention layer takes on a GPU, in each of its forms and beside other layers: 12 heads of width 64.

All layers get the same q, k and v in bfloat16. Times are medians of many runs with a cold L2 cache, each begun by the
CPU, so that what starting kernels costs is counted; `graph_ms` is the forward replayed as a CUDA graph, without that.
Products are those that the pattern asks for: 2 of (rows, keys) by d forward, 5 more backward, without what a form
wastes. The layers of Longformer and BigBird contain their projections, which the others do not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.lsg import CONFIG, HEADS, WIDTH, _published_layer
from effconv.templates import lsg_attention as lsg
from effconv.templates import lsg_kernel_flex as flex
from effconv.templates.lsg_configuration import ATTENTION_FORMS
from effconv.templates.lsg_kernel_cpu import sparse_starts

SHAPES = [(1, length) for length in (1024, 2048, 4096, 8192, 16384, 32768, 65536)] + [(8, 1024), (8, 4096)]
SHORTEST = 2 * CONFIG.block_size + 1  # up to two blocks attention is full, in every form
GRAPHS_UP_TO = 1 << 15  # tokens of a batch: beyond, starting kernels costs nothing beside running them
DTYPE = torch.bfloat16
SDPA, FLEX_ALONE, PUBLISHED = "flash SDPA", "FlexAttention alone", "published LSG"
LONGFORMER, BIGBIRD = "Longformer", "BigBird"
GPU_FORMS = ("flex", "triton")
Form = Callable[[Tensor, Tensor, Tensor], Any]


def run(device: str, shapes: Sequence[tuple[int, int]], published: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yields an entry for each shape and layer as it is measured.

    Args:
        device: "cuda", or "cpu" as a trial.
        shapes: (batch, tokens) of each table.
        published: the published LSG layer's file, where it is at hand; see effconv.bench.lsg.
    """
    for batch, length in shapes:
        torch.manual_seed(0)
        for name, make in layers(batch, length, device, published).items():
            entry: dict[str, Any] = {"layer": name, "batch": batch, "tokens": length}
            try:
                form = make()
                for backward in (False, True):
                    way = "train" if backward else "forward"
                    took, peak = measured(form, batch, length, backward, device)
                    work = products(batch, length, name == SDPA) * (3.5 if backward else 1)
                    entry |= {f"{way}_ms": took, f"{way}_peak_mb": peak, f"{way}_tflops": work / took / 1e9}
                if (
                    device == "cuda"
                    and batch * length <= GRAPHS_UP_TO
                    and name in (SDPA, *map(lsg_name, ATTENTION_FORMS))
                ):
                    entry["graph_ms"] = replayed(form, batch, length)
            except Exception as error:
                entry["error"] = reason(error)
            yield entry


def limits(device: str) -> tuple[float, float]:
    """FLOP/s of a product of large matrices and bytes/s of a copy (read and written)."""
    size, count = (8192, 1 << 30) if device == "cuda" else (256, 1 << 20)
    a, b = torch.randn((2, size, size), dtype=DTYPE, device=device)
    source, target = torch.empty((2, count), dtype=torch.uint8, device=device)
    product, copying = (milliseconds(x, device) for x in (lambda: a @ b, lambda: target.copy_(source)))
    return 2 * size**3 / product * 1e3, 2 * source.numel() / copying * 1e3


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """The median of many runs, each with a cold L2 cache; on a CPU of three."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=20, rep=60, return_mode="median"))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def reason(error: Exception) -> str:
    """Why a layer did not run, for a cell of a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def measured(form: Form, batch: int, length: int, backward: bool, device: str) -> tuple[float, float | None]:
    """Milliseconds, and peak MB beyond the inputs; None where nothing counts them."""
    inputs = qkv(batch, length, device, backward)

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
        return milliseconds(once, device), peak / 2**20


def replayed(form: Form, batch: int, length: int) -> float:
    """Milliseconds of a forward as a CUDA graph, the L2 cache as the run before left it."""
    inputs = qkv(batch, length, "cuda")
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            form(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            form(*inputs)
    return milliseconds(graph.replay, "cuda")


def qkv(batch: int, length: int, device: str, gradients: bool = False) -> list[Tensor]:
    """Random q, k, v (b, 12, 1 + length, 64), the global first, as a model lays them out."""
    shape = (batch, CONFIG.num_global_tokens + length, HEADS, WIDTH)
    return [torch.randn(shape, dtype=DTYPE, device=device).transpose(1, 2).requires_grad_(gradients) for _ in range(3)]


def layers(batch: int, length: int, device: str, published: Path | None = None) -> dict[str, Callable[[], Form]]:
    """What makes each layer, as a function of q, k and v."""
    forms = [form for form in forms_on(device) if form != "triton"]  # which is what "auto" takes
    found: dict[str, Callable[[], Form]] = {lsg_name(form): partial(lsg_form, asked(form)) for form in forms}
    if device == "cuda":
        found[FLEX_ALONE] = partial(flex_alone, batch, length, device)
    found[SDPA] = lambda: sdpa
    found[LONGFORMER] = partial(longformer, batch, length, device)
    found[BIGBIRD] = partial(bigbird, batch, length, device)
    if published is not None:
        found[PUBLISHED] = partial(published_form, published, batch, length, device)
    return found


def forms_on(device: str) -> list[str]:
    """The forms that run there; on a CPU the others would be the one for CPUs."""
    return [form for form in ATTENTION_FORMS if device == "cuda" or form not in GPU_FORMS]


def lsg_name(form: str) -> str:
    return f"LSG, {form}"


def asked(form: str) -> Any:
    """The layer's config with that form."""
    config = copy.copy(CONFIG)
    config.attention_form = form
    return config


def lsg_form(config: Any) -> Form:
    layer = lsg.LSGAttention(config, 0).eval()
    return lambda q, k, v: layer(q, k, v, None)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention; on a GPU by flash attention, and by nothing else."""
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def flex_alone(batch: int, length: int, device: str) -> Form:
    """FlexAttention over the same keys, its mask and the list of keys made beforehand: its kernel and nothing else.

    Tokens' rows only: no choice of sparse keys, no rows of globals. A gradient goes to q, and to k and v as a list.
    """
    config = asked("flex")
    q, k, v = qkv(batch, length, device)
    sparse_keys, _sparse_values, sparse_visible = lsg.select_sparse(q, k, v, None, config, 0, lsg.sparse_tokens)
    seen = flex.visible_keys(None, sparse_visible, batch, 1, length, q.device)
    intervals = flex.seen_by(length, sparse_keys.shape[2], config, False, q.device)
    mask = flex.block_mask(length, config.block_size, intervals, seen, False)
    kernel = flex.kernel_for(q)
    entries = sparse_keys.shape[2]

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (torch.cat([x[:, :, 1:], x[:, :, 1 : 1 + entries], x[:, :, :1]], dim=2) for x in (k, v))
        return kernel(q[:, :, 1:], keys, values, block_mask=mask)

    return form


def products(batch: int, length: int, dense: bool) -> int:
    """FLOPs of the two products of a forward, all heads; a multiplication and an addition are two."""
    seen = (CONFIG.num_global_tokens + length) ** 2 if dense else pairs(length, CONFIG)
    return 4 * WIDTH * HEADS * batch * seen


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


def longformer(batch: int, length: int, device: str) -> Form:
    """Longformer's self-attention with a window of 512 and the first token global, of hidden states made of q."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(attention_window=[512], attention_probs_dropout_prob=0.0)
    layer = LongformerSelfAttention(config, 0).to(device, DTYPE).eval()
    mask = torch.zeros((batch, length), dtype=DTYPE, device=device)
    mask[:, 0] = 1
    kinds = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": True}
    return _of_hidden(layer, length, lambda hidden: layer(hidden, attention_mask=mask, **kinds)[0])


def bigbird(batch: int, length: int, device: str) -> Form:
    """BigBird's block-sparse self-attention as its checkpoints have it, of hidden states made of q."""
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    config = BigBirdConfig(max_position_embeddings=length, attention_probs_dropout_prob=0.0)
    layer = BigBirdBlockSparseAttention(config, seed=0).to(device, DTYPE).eval()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones((batch, length), dtype=DTYPE, device=device), config.block_size
    )
    return _of_hidden(layer, length, lambda hidden: layer(hidden, band, rows, columns, blocked, blocked)[0])


def _of_hidden(layer: nn.Module, length: int, call: Callable[[Tensor], Tensor]) -> Form:
    layer.requires_grad_(False)

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return call(q[:, :, -length:].transpose(1, 2).flatten(2))

    return form


def published_form(path: Path, batch: int, length: int, device: str) -> Form:
    """The layer of the published package, without the global token, which it takes as a token."""
    layer = _published_layer(path).to(device)
    mask = torch.zeros(batch, 1, 1, length, dtype=DTYPE, device=device)
    return lambda q, k, v: layer(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], mask)
