"""BiGS against the naive form of its formula: convolution and layer, of the published size, forward, CPU.

`python -m effconv.bench.bigs` prints CPU milliseconds of one thread and ratios from one run. The naive form is the
formula as it stands: kernels built at each call, FFTs along the axis of positions, flips; no caching.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..templates.bigs_ssm import S4D, convolve_both, plain_convolution
from ..templates.configuration_bigs import BiGSConfig
from ..templates.modeling_bigs import BiGSLayer, BiGSPreTrainedModel
from .timing import interleaved, median, ratio

LENGTH, WIDTH, INNER, MODES = 4096, 1024, 3072, 64


def main() -> None:
    """Prints one line a form and one a ratio."""
    torch.manual_seed(0)
    with torch.inference_mode():
        times = interleaved(forms())
    print(f"BiGS at {LENGTH:,} tokens, {WIDTH} channels, {MODES} modes, CPU ms of one thread (median of 7)")
    for name in times:
        print(f"  {name:52s} {median(times, name):8.1f}")
    for what, slow, fast, least in (
        ("convolution, both directions", "naive convolution", "convolution", "6"),
        ("convolution, naive form on (b, d, l)", "naive convolution, positions last", "convolution", "6"),
        ("layer, float32", "naive layer", "layer", "1.2"),
        ("layer, bfloat16 dense layers", "naive layer", "layer, bfloat16 dense", "2.5"),
    ):
        middle, low, high = ratio(times, slow, fast)
        print(f"  {what:52s} {middle:5.2f} x ({low:.2f} to {high:.2f}), bar {least}")


def forms() -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random states (1, 4096, 1024)."""
    config = BiGSConfig(hidden_size=WIDTH, intermediate_size=INNER, num_ssm=MODES, num_hidden_layers=1)
    layer = BiGSLayer(config).eval()
    start = BiGSPreTrainedModel(config)
    layer.apply(start._init_weights)
    half = copy.deepcopy(layer).bfloat16()
    for part in ("fs4", "bs4"):
        setattr(half, part, copy.deepcopy(getattr(layer, part)))  # as from_pretrained(dtype=torch.bfloat16) leaves them
    x = torch.randn(1, LENGTH, WIDTH)
    one, other = torch.randn(2, 1, LENGTH, WIDTH)
    return {
        "naive convolution": lambda: (naive(layer.fs4, one), naive(layer.bs4, other.flip(1)).flip(1)),
        "naive convolution, positions last": lambda: (
            plain_convolution(one, layer.fs4.filter(LENGTH), backward=False),
            plain_convolution(other.flip(1), layer.bs4.filter(LENGTH), backward=False).flip(1),
        ),
        "convolution": lambda: convolve_both(layer.fs4, layer.bs4, one, other),
        "naive layer": lambda: naive_layer(layer, x),
        "layer": lambda: layer(x),
        "layer, bfloat16 dense": lambda: half(x.bfloat16()),
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


if __name__ == "__main__":
    main()
