"""The LSG attention layer against SDPA, its floor and the published layer: 12 heads of 64, on the CPU.

The published layer is a file that the user has: attention_layers/lsg_self_attention.py of the published package (`pip
download lsg-converter==0.1.9 --no-deps`, unzipped). It attaches no sparse keys at factor 2, so all LSG forms are run at
factor 4: block 128, sparse block 128, "norm", one global token.

`python -m benchmarks.lsg FORM LENGTH [FILE]` prints the peak memory of one forward in bytes, beyond what the process
and the inputs take: a fresh process for each.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars import Bar, Section
from effconv.bench import memory
from effconv.bench.timing import Spread, clock_name, interleaved, ratio
from effconv.convert.errors import UsageError
from effconv.templates.lsg_attention import LSGAttention
from effconv.templates.lsg_kernel_cpu import multiplies_bfloat16

HEADS, WIDTH, BLOCK, FACTOR = 12, 64, 128, 4
CONFIG = SimpleNamespace(
    block_size=BLOCK, sparse_block_size=BLOCK, sparsity_factor=FACTOR, sparsity_type="norm", num_global_tokens=1,
    adaptive=True, is_decoder=False, causal_globals="globals", bos_pooling_padding="masked", lsh_num_pre_rounds=1,
    lsh_seed=0, attention_form="auto", attention_probs_dropout_prob=0.0, num_attention_heads=HEADS,
    hidden_size=HEADS * WIDTH,
)  # fmt: skip
SDPA, LSG, PUBLISHED, FLOOR = "SDPA", "LSG layer", "published LSG layer", "floor: products and softmax alone"
LONG = 4096  # tokens from which on memory has a bar
DENSE_REACH = 8192  # tokens from which on SDPA would take most of the time, and has no bar
LIMITS: Mapping[tuple[str, int, bool], dict[str, Any]] = {  # of (form, length, with backward), in float32
    (PUBLISHED, 4096, False): {"limit": 4.0},
    (PUBLISHED, 16384, False): {"limit": 3.5},
    (PUBLISHED, 4096, True): {"limit": 2.5, "aim": 3.0},
    (SDPA, 1024, False): {"limit": 1.3},
    (SDPA, 4096, False): {"limit": 5.0},
    (FLOOR, 4096, False): {"limit": 1.6, "aim": 1.3, "at_most": True},
}
HALF_LIMITS: Mapping[tuple[str, int, bool], dict[str, Any]] = {  # in bfloat16, where the processor multiplies in it
    (FLOOR, 4096, False): {"limit": 1.3, "at_most": True},
}


def sections(
    threads: int, rounds: int, lengths: Sequence[int] = (1024, 4096, 16384), published: Path | None = None
) -> Iterator[Section]:
    """Forward in float32 at every length; training and bfloat16 up to where SDPA is run; then memory."""
    for length in lengths:
        yield _timed(length, False, torch.float32, threads, rounds, published)
        if length < DENSE_REACH:
            yield _timed(length, True, torch.float32, threads, rounds, published)
            yield _timed(length, False, torch.bfloat16, threads, rounds, published)
    if threads == 1 and memory.resident() is not None:  # it does not depend on threads
        for length in lengths:
            if length >= LONG:
                yield _memory(length, published)


def _timed(
    length: int, backward: bool, dtype: torch.dtype, threads: int, rounds: int, published: Path | None
) -> Section:
    torch.manual_seed(0)
    calls = forms(length, dtype, published)
    if backward:
        calls.pop(FLOOR)
        calls = {name: _with_backward(form) for name, form in calls.items()}
    if length >= DENSE_REACH:
        calls.pop(SDPA)
    inputs = [x.requires_grad_(backward) for x in _qkv(length, dtype)]
    with torch.set_grad_enabled(backward):
        times = interleaved({name: partial(form, *inputs) for name, form in calls.items()}, rounds, threads)
    what = "forward and backward" if backward else "forward"
    named = str(dtype).removeprefix("torch.")
    notes = [
        f"{name}: {ratio(values, times[LSG]).median:.2f} × the time of the LSG layer"
        for name, values in times.items()
        if name != LSG
    ]
    limits = LIMITS if dtype == torch.float32 else HALF_LIMITS if multiplies_bfloat16() else {}
    bars = _bars(times, length, backward, limits, "" if dtype == torch.float32 else f"{named}, ")
    title = f"LSG layer at {length:,} tokens, {named}, {what}, {clock_name(threads)} ms"
    return Section(title, times, bars, notes)


def _bars(
    times: Mapping[str, Sequence[float]],
    length: int,
    backward: bool,
    limits: Mapping[tuple[str, int, bool], dict[str, Any]] = LIMITS,
    dtype: str = "",
) -> list[Bar]:
    found = []
    for (name, tokens, trained), bar in limits.items():
        if (tokens, trained) != (length, backward):
            continue
        what = "LSG layer against its floor" if name == FLOOR else f"LSG layer against {_named(name)}"
        what += f", {dtype}{'forward + backward' if backward else 'forward'}, {length:,}"
        if name not in times:
            found.append(Bar(what, None, why="name the file with --published", **bar))
        else:  # how many times faster the layer is, or how many times its floor it takes
            slow, fast = (LSG, name) if name == FLOOR else (name, LSG)
            found.append(Bar(what, ratio(times[slow], times[fast]), **bar))
    return found


def _named(name: str) -> str:
    return "the published one" if name == PUBLISHED else name


def _with_backward(form: Callable[..., Tensor]) -> Callable[..., None]:
    def run(*inputs: Tensor) -> None:
        torch.autograd.grad(form(*inputs).sum(), inputs)

    return run


def _memory(length: int, published: Path | None) -> Section:
    peaks = {}
    for name in [SDPA, LSG] + ([PUBLISHED] if published else []):
        command = [sys.executable, "-m", "benchmarks.lsg", name, str(length)]
        run = subprocess.run(
            command + ([str(published)] if published else []), capture_output=True, text=True, check=True
        )
        peaks[name] = int(run.stdout)
    what = f"LSG layer, peak memory of the forward against the published one, {length:,}"
    if published:
        share = peaks[LSG] / peaks[PUBLISHED]
        bar = Bar(what, Spread.of([share]), 0.3, at_most=True)
    else:
        bar = Bar(what, None, 0.3, at_most=True, why="name the file with --published")
    times = {name: [peak / 1e6] for name, peak in peaks.items()}
    return Section(f"LSG layer at {length:,} tokens, peak memory of a forward over its inputs", times, [bar], unit="MB")


def peak_of(name: str, length: int, published: Path | None) -> int:
    """Peak bytes of one forward beyond what the process and the inputs take, after a short forward as a warm-up."""
    torch.set_num_threads(1)
    form = forms(length, torch.float32, published)[name]
    with torch.inference_mode():
        form(*_qkv(7 * BLOCK, torch.float32))
        inputs = _qkv(length, torch.float32)
        before = memory.begin()
        assert before is not None
        form(*inputs)
    return memory.peak() - before


def _qkv(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Random q, k, v (1, 12, 1 + length, 64), the global first, as a model lays them out."""
    return list(torch.randn(3, 1, 1 + length, HEADS, WIDTH).to(dtype).transpose(2, 3).unbind(0))


def forms(length: int, dtype: torch.dtype, published: Path | None = None) -> dict[str, Callable[..., Any]]:
    """Each form as a function of q, k and v."""
    lsg = LSGAttention(CONFIG, 0).eval()
    found: dict[str, Callable[..., Any]] = {
        SDPA: F.scaled_dot_product_attention,
        LSG: lambda q, k, v: lsg(q, k, v, None),
        FLOOR: _floor(length, dtype),
    }
    if published:
        layer = _published_layer(published)
        # Token 0 is this layer's global: it gets the tokens alone.
        mask = torch.zeros(1, 1, 1, length, dtype=dtype)
        found[PUBLISHED] = lambda q, k, v: layer(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], mask[..., : q.shape[2] - 1])
    return found


def _floor(length: int, dtype: torch.dtype) -> Callable[..., None]:
    """The products and the softmax that the formula asks for, one head and block at a time, out of the cache."""
    keys = 1 + 3 * BLOCK + 2 * BLOCK
    q, window = torch.randn(1, BLOCK, WIDTH).to(dtype), torch.randn(1, keys, WIDTH).to(dtype)
    scores, context = torch.empty(1, BLOCK, keys, dtype=dtype), torch.empty(1, BLOCK, WIDTH, dtype=dtype)

    def run(*inputs: Tensor) -> None:
        for _ in range(HEADS * length // BLOCK):
            torch.bmm(q, window.transpose(1, 2), out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, window, out=context)

    return run


def _published_layer(path: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("published_lsg", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(
            "no Python file", where=f"--published {path}", hint="give lsg_self_attention.py of the published package"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer: torch.nn.Module = module.LSGSelfAttention(
        CONFIG, block_size=BLOCK, sparsity_factor=FACTOR, sparsity_type="norm", attention_dropout_prob=0.0
    )
    return layer.eval()


if __name__ == "__main__":
    print(peak_of(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None))
