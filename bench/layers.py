"""Linear attention layers against SDPA and plain forms of themselves: 12 heads of 64, float32, one thread, forward.

`python -m effconv.bench.layers` prints CPU milliseconds and ratios from one run.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..templates.lambda_attention import LambdaMix, position_term
from ..templates.linformer_attention import LinformerMix
from ..templates.transnormer_attention import linear_attention
from .timing import interleaved, median, ratio

HEADS, WIDTH, LENGTH = 12, 64, 4096


def main() -> None:
    """Prints one line a form and one a ratio."""
    torch.manual_seed(0)
    with torch.inference_mode():
        times = interleaved(forms())
    print(f"layers at {LENGTH:,} tokens, {HEADS} heads of {WIDTH}, float32, CPU ms of one thread (median of 7)")
    for name in times:
        print(f"  {name:44s} {median(times, name):8.1f}")
    for what, slow, fast, least in (
        ("Linformer k = 256, as converted, against SDPA", "SDPA", "Linformer k = 256, as converted", "10"),
        ("Linformer k = 256, dense E, against SDPA", "SDPA", "Linformer k = 256, trained (dense) E", "10"),
        ("TransNormer products against SDPA", "SDPA", "TransNormer products", "40"),
        ("Lambda position term against depthwise conv", "depthwise convolution", "Lambda position term", "5"),
        ("Lambda layer against SDPA", "SDPA", "Lambda layer", "–"),
    ):
        middle, low, high = ratio(times, slow, fast)
        print(f"  {what:48s} {middle:5.1f} x ({low:.1f} to {high:.1f}), bar {least}")


def forms() -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random q, k, v (1, 12, 4096, 64), as a model lays them out."""
    q, k, v = torch.randn(3, 1, LENGTH, HEADS, WIDTH).transpose(2, 3)
    shape = {"num_attention_heads": HEADS, "hidden_size": HEADS * WIDTH}
    linformer = LinformerMix(SimpleNamespace(**shape, proj_dim=256, projection_length=LENGTH, sharing="kv"), 0).eval()
    trained = LinformerMix(SimpleNamespace(**shape, proj_dim=256, projection_length=LENGTH, sharing="kv"), 0).eval()
    trained.key_projection.data.add_(torch.randn_like(trained.key_projection) * 1e-3)
    lam = LambdaMix(SimpleNamespace(**shape, key_depth=16, local_context_size=15), 0).eval()
    assert lam.local_weight is not None
    assert lam.local_bias is not None
    local_weight, local_bias = lam.local_weight, lam.local_bias
    kernel = torch.randn(HEADS * WIDTH, 1, 15)
    features_q, features_k = F.elu(q) + 1, F.elu(k) + 1

    def depthwise() -> Tensor:
        # The least that such a form does: one weight an offset, no query in it.
        return F.conv1d(v.transpose(2, 3).flatten(1, 2), kernel, padding=7, groups=HEADS * WIDTH)

    return {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v),
        "Linformer k = 256, as converted": lambda: linformer(q, k, v, None),
        "Linformer k = 256, trained (dense) E": lambda: trained(q, k, v, None),
        "TransNormer products": lambda: linear_attention(features_q, features_k, v),
        "Lambda layer": lambda: lam(q, k, v, None),
        "Lambda position term": lambda: position_term(q, v, None, local_weight, local_bias),
        "depthwise convolution": depthwise,
    }


if __name__ == "__main__":
    main()
