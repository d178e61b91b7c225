"""BiGS against the naive form of its formula: convolution and layer, of the published size, forward, on the CPU.

The naive form is the formula as it stands: kernels built at each call, FFTs along the axis of positions, flips; no
caching.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars import Section, faster
from effconv.bench.timing import clock_name, interleaved
from effconv.templates.bigs_ssm import S4D, convolve_both, plain_convolution
from effconv.templates.configuration_bigs import BiGSConfig
from effconv.templates.modeling_bigs import BiGSLayer, BiGSPreTrainedModel

WIDTH, INNER, MODES = 1024, 3072, 64
NAIVE, NAIVE_LAST, CONVOLUTION = "naive convolution", "naive convolution, positions last", "convolution"
NAIVE_LAYER, LAYER, HALF = "naive layer", "layer", "layer, bfloat16 dense"


def sections(threads: int, rounds: int, length: int) -> Iterator[Section]:
    """Convolution and layer at one length."""
    torch.manual_seed(0)
    with torch.inference_mode():
        times = interleaved(forms(length), rounds, threads)
    at = f"{length:,}"
    yield Section(
        f"BiGS at {at} tokens, {WIDTH:,} channels, {MODES} modes, forward, {clock_name(threads)} ms",
        times,
        [
            *faster(f"BiGS layer, float32, against its naive form, {at}", times, NAIVE_LAYER, LAYER, 1.2),
            *faster(
                f"BiGS layer, bfloat16 dense layers, against the naive form, {at}", times, NAIVE_LAYER, HALF, 2.5, aim=3
            ),
            *faster(f"BiGS convolution, both directions, against the naive form, {at}", times, NAIVE, CONVOLUTION, 6),
            *faster(f"the same against the naive form on (b, d, l), {at}", times, NAIVE_LAST, CONVOLUTION, 6),
        ],
    )


def forms(length: int) -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random states (1, t, 1024)."""
    config = BiGSConfig(hidden_size=WIDTH, intermediate_size=INNER, num_ssm=MODES, num_hidden_layers=1)
    layer = BiGSLayer(config).eval()
    start = BiGSPreTrainedModel(config)
    layer.apply(start._init_weights)
    half = copy.deepcopy(layer).bfloat16()
    for part in ("fs4", "bs4"):
        setattr(half, part, copy.deepcopy(getattr(layer, part)))  # as from_pretrained(dtype=torch.bfloat16) leaves them
    x = torch.randn(1, length, WIDTH)
    one, other = torch.randn(2, 1, length, WIDTH)
    return {
        NAIVE: lambda: (naive(layer.fs4, one), naive(layer.bs4, other.flip(1)).flip(1)),
        NAIVE_LAST: lambda: (
            plain_convolution(one, layer.fs4.filter(length), backward=False),
            plain_convolution(other.flip(1), layer.bs4.filter(length), backward=False).flip(1),
        ),
        CONVOLUTION: lambda: convolve_both(layer.fs4, layer.bs4, one, other),
        NAIVE_LAYER: lambda: naive_layer(layer, x),
        LAYER: lambda: layer(x),
        HALF: lambda: half(x.bfloat16()),
    }


def naive(direction: S4D, stream: Tensor) -> Tensor:
    """irfft(rfft(u, 2L) rfft(K, 2L)) + D u along the positions, K built anew in complex numbers."""
    part, length = direction.kernel, stream.shape[1]
    a = torch.complex(part.A_re.clamp(max=-1e-4), part.A_im)
    step = part.log_step.exp()
    weight = torch.view_as_complex(part.C) * ((step * a).exp() - 1) / a
    taps = (weight * torch.exp((torch.arange(length) * step)[:, None] * a)).sum(-1).real
    spectrum = torch.fft.rfft(taps, n=2 * length)[:, None]
    found = torch.fft.irfft(torch.fft.rfft(stream, n=2 * length, dim=1) * spectrum, n=2 * length, dim=1)
    return found[:, :length] + direction.D * stream


def naive_layer(layer: BiGSLayer, x: Tensor) -> Tensor:
    """The layer's formula as it stands."""
    h = layer.LayerNorm(x)
    v = F.gelu(layer.dv(h), approximate="tanh")
    forward = F.gelu(layer.du_forward(h), approximate="tanh")
    backward = F.gelu(layer.du_backward(h.flip(1)), approximate="tanh")
    forward, backward = naive(layer.fs4, forward), naive(layer.bs4, backward)
    context = layer.duc_forward(forward) * layer.duc_backward(backward).flip(1)
    return x + layer.do(F.gelu(layer.dol(context), approximate="tanh") * v)
