"""LSG attention with a bias on scores against dense attention with it: 12 heads of 64, on the CPU, in float32.

The dense forms are what a family with such a bias runs on (MPNet: products, the bias added, softmax, products), and
SDPA with the bias as its mask. LSG is what `effconv lsg` makes of MPNet: block 128, sparse block 128, factor 2,
"bos_pooling", one global token. Dense forms get the bias of all rows and keys ready-made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars import Section, faster
from benchmarks.lsg import CONFIG, HEADS, WIDTH
from effconv.bench.timing import clock_name, interleaved
from effconv.templates.lsg_score_bias import biased_attention, by_distance

REACH = 128  # the distance from which on MPNet's bias does not change
LSG, NORM, SDPA, PRODUCTS = "LSG, bos_pooling", "LSG, norm", "SDPA, the bias as its mask", "products, as MPNet's own"
LIMITS = {4096: {SDPA: 4.0}}


def sections(threads: int, rounds: int, lengths: Sequence[int] = (512, 4096)) -> Iterator[Section]:
    """Forward at every length."""
    for length in lengths:
        torch.manual_seed(0)
        q, k, v = torch.randn(3, 1, 1 + length, HEADS, WIDTH).transpose(2, 3).unbind(0)
        bias = torch.randn(HEADS, 2 * REACH + 2)
        places = torch.arange(length)
        whole = by_distance(bias, places, places)[None]  # with four dimensions, for which SDPA has its fast form
        tokens = [x[:, :, 1:] for x in (q, k, v)]
        forms = {
            LSG: partial(_lsg, "bos_pooling", q, k, v, bias),
            NORM: partial(_lsg, "norm", q, k, v, bias),
            SDPA: partial(F.scaled_dot_product_attention, *tokens, attn_mask=whole),
            PRODUCTS: partial(products, *tokens, whole),
        }
        with torch.inference_mode():
            times = interleaved(forms, rounds, threads)
        bars = [
            bar
            for name, limit in LIMITS.get(length, {}).items()
            for bar in faster(f"LSG layer with a bias against {name}, {length:,}", times, name, LSG, limit)
        ]
        bars += faster(f"LSG layer with a bias against {PRODUCTS}, {length:,}", times, PRODUCTS, LSG, 1.0)
        title = f"LSG layer with a bias on scores at {length:,} tokens, float32, forward, {clock_name(threads)} ms"
        yield Section(title, times, bars)


def products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Dense attention in four steps, which keeps a matrix of all rows and keys."""
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    scores += bias
    return torch.softmax(scores, -1) @ v


def _lsg(kind: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    config = SimpleNamespace(**{**vars(CONFIG), "sparsity_type": kind, "sparsity_factor": 2})
    return biased_attention(q, k, v, None, bias, config)
