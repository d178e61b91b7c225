"""Linear attention layers against SDPA and plain forms of themselves: 12 heads of 64, float32, forward, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars import Section, faster
from effconv.bench.timing import clock_name, interleaved
from effconv.templates.lambda_attention import LambdaAttention, position_term
from effconv.templates.linformer_attention import LinformerAttention
from effconv.templates.transnormer_attention import linear_attention

HEADS, WIDTH = 12, 64
SDPA, LINFORMER, DENSE = "SDPA", "Linformer k = 256, as converted", "Linformer k = 256, trained (dense) E"
TRANSNORMER, LAMBDA = "TransNormer products", "Lambda layer"
POSITION, DEPTHWISE = "Lambda position term", "depthwise convolution"


def sections(threads: int, rounds: int, length: int) -> Iterator[Section]:
    """The layers at one length."""
    torch.manual_seed(0)
    with torch.inference_mode():
        times = interleaved(forms(length), rounds, threads)
    at = f"{length:,}"
    yield Section(
        f"Layers at {at} tokens, {HEADS} heads of {WIDTH}, float32, forward, {clock_name(threads)} ms",
        times,
        [
            *faster(f"Linformer k = 256 layer against SDPA, {at}", times, SDPA, LINFORMER, 10),
            *faster(f"Linformer with trained (dense) matrices against SDPA, {at}", times, SDPA, DENSE, 10),
            *faster(f"TransNormer products against SDPA, {at}", times, SDPA, TRANSNORMER, 40),
            *faster(f"Lambda position term against a depthwise convolution, {at}", times, DEPTHWISE, POSITION, 5),
        ],
    )


def forms(length: int) -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random q, k, v (1, 12, t, 64), as a model lays them out."""
    q, k, v = torch.randn(3, 1, length, HEADS, WIDTH).transpose(2, 3)
    shape = {"num_attention_heads": HEADS, "hidden_size": HEADS * WIDTH}
    linformer = LinformerAttention(
        SimpleNamespace(**shape, proj_dim=256, projection_length=length, sharing="kv"), 0
    ).eval()
    trained: Any = LinformerAttention(
        SimpleNamespace(**shape, proj_dim=256, projection_length=length, sharing="kv"), 0
    ).eval()
    trained.key_projection.data.add_(torch.randn_like(trained.key_projection) * 1e-3)
    lam = LambdaAttention(SimpleNamespace(**shape, key_depth=16, local_context_size=15), 0).eval()
    assert lam.local_weight is not None
    assert lam.local_bias is not None
    local_weight, local_bias = lam.local_weight, lam.local_bias
    kernel = torch.randn(HEADS * WIDTH, 1, 15)
    features_q, features_k = F.elu(q) + 1, F.elu(k) + 1

    def depthwise() -> Tensor:
        # The least that such a form does: one weight an offset, no query in it.
        return F.conv1d(v.transpose(2, 3).flatten(1, 2), kernel, padding=7, groups=HEADS * WIDTH)

    return {
        SDPA: lambda: F.scaled_dot_product_attention(q, k, v),
        LINFORMER: lambda: linformer(q, k, v, None),
        DENSE: lambda: trained(q, k, v, None),
        TRANSNORMER: lambda: linear_attention(features_q, features_k, v),
        LAMBDA: lambda: lam(q, k, v, None),
        POSITION: lambda: position_term(q, v, None, local_weight, local_bias),
        DEPTHWISE: depthwise,
    }
