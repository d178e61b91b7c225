"""The convolutions of BiGS as products with Toeplitz matrices: exact, for every length, without an FFT.

The taps of the longest input are computed when the graph is made, in the repo's own way, and stored in it: their phases
do not survive other roundings. An input of t tokens takes the first t of them. The matrix (t, t) makes time and memory
quadratic in the length, with a small factor: all channels of a head share it. Measured in onnxruntime on a CPU, that is
faster than its DFT up to 4,096 tokens.

Axes: b batch, l positions, d channels, h SSM heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TAPS = "taps_of_graph"


def store_taps(model: nn.Module, longest: int) -> None:
    """Gives every convolution of the model its taps (h, longest)."""
    module: Any
    for module in model.modules():
        if type(module).__name__ == "S4D":
            with torch.no_grad():
                module.register_buffer(TAPS, module.filter(longest), persistent=False)


def convolve_both(forward: Any, backward: Any, stream: Tensor, reverse_stream: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the place of the repo's function of that name: streams (b, l, d) to (b, l, d)."""
    taps, reverse_taps = getattr(forward, TAPS), getattr(backward, TAPS)
    # Row i of the transposed matrix is column i: what a token gives to those behind it is what those before it get.
    return applied(toeplitz(taps, stream), stream), applied(toeplitz(reverse_taps, stream).mT, reverse_stream)


def toeplitz(taps: Tensor, stream: Tensor) -> Tensor:
    """The matrices (h, l, l) with taps[i - j] at row i and column j, zero above the diagonal."""
    places = torch.arange(stream.shape[1])
    lag = places[:, None] - places
    chosen = taps.index_select(1, lag.clamp(min=0).flatten()).unflatten(1, lag.shape)
    return torch.where(lag >= 0, chosen, 0.0)


def applied(matrices: Tensor, stream: Tensor) -> Tensor:
    """The product with matrices (h, l, l) of each head's channels: (b, l, d)."""
    if matrices.shape[0] == 1:
        return matrices[0] @ stream
    parts = stream.unflatten(2, (matrices.shape[0], -1)).transpose(1, 2)  # b h l (d / h)
    return (matrices @ parts).transpose(1, 2).flatten(2)
