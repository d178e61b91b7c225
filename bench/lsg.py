"""The LSG attention layer against SDPA, its floor and the published layer: 12 heads of width 64, float32, one thread.

`python -m effconv.bench.lsg [--published FILE] [LENGTH ...]`: FILE is attention_layers/lsg_self_attention.py of the
published package (`pip download lsg-converter==0.1.9 --no-deps`, unzipped). Its layer attaches no sparse keys at factor
2, so all LSG forms are run at factor 4. CPU milliseconds and ratios from one run; peak memory of a forward, each in a
fresh process, on Linux.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..templates.lsg_attention import LSGMix
from .timing import interleaved, median, ratio

HEADS, WIDTH, BLOCK, FACTOR = 12, 64, 128, 4
CONFIG = SimpleNamespace(
    block_size=BLOCK, sparse_block_size=BLOCK, sparsity_factor=FACTOR, sparsity_type="norm", num_global_tokens=1,
    adaptive=True, is_decoder=False, causal_globals="globals", bos_pooling_padding="masked", lsh_num_pre_rounds=1,
    lsh_seed=0, attention_probs_dropout_prob=0.0, num_attention_heads=HEADS, hidden_size=HEADS * WIDTH,
)  # fmt: skip
SDPA, LSG, PUBLISHED, FLOOR = "SDPA", "LSG layer", "published LSG layer", "floor: products and softmax alone"
BARS = {  # least ratio of (form, length, backward), the LSG layer being 1
    (SDPA, 1024, False): 1.3,
    (SDPA, 4096, False): 5.0,
    (PUBLISHED, 4096, False): 4.0,
    (PUBLISHED, 16384, False): 3.5,
    (PUBLISHED, 4096, True): 2.5,
}


def main(arguments: list[str] | None = None) -> None:
    """Prints one block a length."""
    parser = argparse.ArgumentParser(prog="python -m effconv.bench.lsg")
    parser.add_argument("lengths", nargs="*", type=int, default=[1024, 4096])
    parser.add_argument("--published", help="lsg_self_attention.py of the published package")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", metavar="FORM", help=argparse.SUPPRESS)  # one forward, for its peak memory
    given = parser.parse_args(arguments)
    if given.memory:
        print(_peak_of(given.memory, given.lengths[0], given.published))
        return
    for length in given.lengths:
        for backward in (False, True):
            _times(length, backward, given.published, given.rounds)
        _memory(length, given.published)


def _times(length: int, backward: bool, published: str | None, rounds: int) -> None:
    torch.manual_seed(0)
    calls = forms(length, published)
    if backward:
        calls.pop(FLOOR)
        calls = {name: _with_backward(form) for name, form in calls.items()}
    inputs = [x.requires_grad_(backward) for x in _qkv(length)]
    with torch.set_grad_enabled(backward):
        times = interleaved({name: lambda form=form: form(*inputs) for name, form in calls.items()}, rounds)
    what = "forward and backward" if backward else "forward"
    print(f"LSG layer, {length:,} tokens, {what}, CPU ms of one thread (median of {rounds})")
    for name in times:
        print(f"  {name:36s} {median(times, name):9.1f}", end="")
        if name == LSG:
            print()
            continue
        middle, low, high = ratio(times, name, LSG)
        bar = BARS.get((name, length, backward))
        print(f"  {middle:5.2f} x the LSG layer ({low:.2f} to {high:.2f})" + (f", bar {bar}" if bar else ""))


def _with_backward(form: Callable[..., Tensor]) -> Callable[..., None]:
    def run(*inputs: Tensor) -> None:
        torch.autograd.grad(form(*inputs).sum(), inputs)

    return run


def _memory(length: int, published: str | None) -> None:
    names = [SDPA, LSG] + ([PUBLISHED] if published else [])
    peaks = {}
    for name in names:
        command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--memory", name, str(length)]
        run = subprocess.run(
            command + (["--published", published] if published else []), capture_output=True, text=True, check=True
        )
        peaks[name] = int(run.stdout)
    print(f"LSG layer, {length:,} tokens, peak memory of a forward over its inputs")
    for name, peak in peaks.items():
        print(f"  {name:36s} {peak / 1024:9.1f} MB  {peaks[LSG] / peak:5.2f} of it is the LSG layer's")


def _peak_of(name: str, length: int, published: str | None) -> int:
    """Peak KB of one forward beyond what the process and the inputs take, after a short forward as a warm-up."""
    torch.set_num_threads(1)
    form = forms(length, published)[name]
    with torch.inference_mode():
        form(*_qkv(7 * BLOCK))
        inputs = _qkv(length)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = _resident("VmHWM")
        form(*inputs)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _qkv(length: int) -> list[Tensor]:
    """Random q, k, v (1, 12, 1 + length, 64), the global first, as a model lays them out."""
    return list(torch.randn(3, 1, 1 + length, HEADS, WIDTH).transpose(2, 3).unbind(0))


def forms(length: int, published: str | None = None) -> dict[str, Callable[..., Any]]:
    """Each form as a function of q, k and v."""
    lsg = LSGMix(CONFIG, 0).eval()
    found: dict[str, Callable[..., Any]] = {
        SDPA: F.scaled_dot_product_attention,
        LSG: lambda q, k, v: lsg(q, k, v, None),
        FLOOR: _floor(length),
    }
    if published:
        layer = _published_layer(published)
        # Token 0 is this layer's global: it gets the tokens alone.
        mask = torch.zeros(1, 1, 1, length)
        found[PUBLISHED] = lambda q, k, v: layer(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], mask[..., : q.shape[2] - 1])
    return found


def _floor(length: int) -> Callable[..., None]:
    """The products and the softmax that the formula asks for, one head and block at a time, out of the cache."""
    keys = 1 + 3 * BLOCK + 2 * BLOCK
    q, window = torch.randn(1, BLOCK, WIDTH), torch.randn(1, keys, WIDTH)
    scores, context = torch.empty(1, BLOCK, keys), torch.empty(1, BLOCK, WIDTH)

    def run(*_: Tensor) -> None:
        for _ in range(HEADS * length // BLOCK):
            torch.bmm(q, window.transpose(1, 2), out=scores)
            torch.softmax(scores, -1, out=scores)
            torch.bmm(scores, window, out=context)

    return run


def _published_layer(path: str) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("published_lsg", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file: give lsg_self_attention.py of the published package")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LSGSelfAttention(
        CONFIG, block_size=BLOCK, sparsity_factor=FACTOR, sparsity_type="norm", attention_dropout_prob=0.0
    ).eval()


if __name__ == "__main__":
    main()
