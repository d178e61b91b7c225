# SPDX-License-Identifier: Apache-2.0
"""The diagonal state-space convolutions of BiGS, both ways (arXiv 2212.10544, section 3; S4D: arXiv 2206.11893).

`state_space_kernel` makes the kernel from a layer's parameters, `convolve_both` applies two of them to two streams
(b, l, d) in one pass: forward in time, and backward without flipping anything. All of it is float32, whatever the type
of the streams: the phases of a kernel do not survive less.

Axes: b batch, l positions, d channels, h SSM heads (1 unless multi-head), n modes of an SSM, f frequencies, s streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_REAL_PART = -1e-4  # of A: no mode may grow
TILE_BYTES = 1 << 22  # of padded streams that are transformed at a time on a CPU: about what its caches hold
COPIED_CHANNELS = 32  # that are transposed at a time on a CPU
CACHED_LENGTHS = 8  # spectra that a layer keeps in eval mode
ACTIVATION_FORMS = {"tanh": "tanh", "erf": "none"}  # config.layer_gelu -> F.gelu(approximate=)


class S4DKernel(nn.Module):
    """The parameters of one direction's kernel; shapes (n,), (n,), (n, 2), (1,), with a leading h where multi-head."""

    def __init__(self, modes: int, heads: int | None) -> None:
        super().__init__()
        lead = () if heads is None else (heads,)
        self.A_re = nn.Parameter(torch.empty(*lead, modes))
        self.A_im = nn.Parameter(torch.empty(*lead, modes))
        self.C = nn.Parameter(torch.empty(*lead, modes, 2))
        self.log_step = nn.Parameter(torch.empty(*lead, 1))


class S4D(nn.Module):
    """One direction: a kernel shared by all channels of a head, and the skip connection D."""

    def __init__(self, modes: int, heads: int | None) -> None:
        super().__init__()
        self.kernel = S4DKernel(modes, heads)
        self.D = nn.Parameter(torch.empty(1) if heads is None else torch.empty(heads, 1))
        self._held: tuple[Tensor, dict[int, Tensor]] | None = None  # parameter values, and spectra made of them

    def filter(self, length: int) -> Tensor:
        """The kernel (h, l) with D on its first tap, so that the skip connection costs nothing of its own."""
        part = self.kernel
        taps = state_space_kernel(part.A_re, part.A_im, part.C, part.log_step, length)
        return torch.cat([taps[:, :1] + self.D.float().reshape(-1, 1), taps[:, 1:]], dim=1)

    def spectrum(self, half: int) -> Tensor:
        """The spectrum (h, half + 1) of the filter of `half` taps, kept for as long as no parameter's value changes.

        Values are compared, not version counters: `parameter.data.copy_()`, as moving averages use, leaves those alone.
        """
        values = torch.cat([parameter.detach().reshape(-1).float() for parameter in self.parameters()])
        if self._held is None or self._held[0].device != values.device or not torch.equal(self._held[0], values):
            self._held = (values, {})
        spectra = self._held[1]
        if half not in spectra:
            while len(spectra) >= CACHED_LENGTHS:
                spectra.pop(next(iter(spectra)))
            spectra[half] = torch.fft.rfft(self.filter(half), n=2 * half)
        return spectra[half]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


def state_space_kernel(a_re: Tensor, a_im: Tensor, c: Tensor, log_step: Tensor, length: int) -> Tensor:
    """K[l] = Re sum_n C_n (exp(step A_n) - 1) / A_n exp((l step) A_n), the zero-order hold of S4D with B = 1.

    The phase is rounded as the published JAX model rounds it, (l step) first and A after: the other order drifts away
    by 1e-4 and more at lengths of thousands.

    Args:
        a_re: real part of A before its bound, (n,) or (h, n).
        a_im: imaginary part of A, likewise.
        c: real and imaginary part of C, (n, 2) or (h, n, 2).
        log_step: (1,) or (h, 1).
        length: taps.

    Returns:
        float32 (h, l), h = 1 where the parameters have no heads.
    """
    modes = a_re.shape[-1]
    real = a_re.float().reshape(-1, modes).clamp(max=LARGEST_REAL_PART)  # h n
    imaginary = a_im.float().reshape(-1, modes)
    step = log_step.float().exp().reshape(-1, 1)  # h 1
    a = torch.complex(real, imaginary)
    c_n = torch.view_as_complex(c.float().reshape(-1, modes, 2).contiguous())
    weight = c_n * (torch.exp(step * a) - 1.0) / a  # h n
    time = torch.arange(length, dtype=torch.float32, device=real.device) * step  # h l
    decay = torch.exp(time[:, :, None] * real[:, None, :])  # h l n
    phase = time[:, :, None] * imaginary[:, None, :]
    # A sum, no matrix product: those may be rounded to fewer bits (TF32, autocast).
    return (decay * (weight.real[:, None] * phase.cos() - weight.imag[:, None] * phase.sin())).sum(dim=-1)


def plain_convolution(stream: Tensor, taps: Tensor, *, backward: bool) -> Tensor:
    """The formula as it stands: y[l] = sum_j taps[j] stream[l - j], or stream[l + j] where `backward`.

    Args:
        stream: (b, l, d).
        taps: float32 (h, l), a head for each d / h neighbouring channels.
        backward: against time.

    Returns:
        (b, l, d), in the stream's type.
    """
    length, width = stream.shape[1:]
    size = 2 * length
    spectrum = torch.fft.rfft(taps, n=size).repeat_interleave(width // taps.shape[0], dim=0)  # d f
    spectrum = spectrum.conj() if backward else spectrum
    found = torch.fft.irfft(torch.fft.rfft(stream.float().transpose(1, 2), n=size) * spectrum, n=size)
    return found[..., :length].transpose(1, 2).to(stream.dtype)


def convolve_both(forward: S4D, backward: S4D, stream: Tensor, reverse_stream: Tensor) -> tuple[Tensor, Tensor]:
    """`forward` applied to `stream` in time, `backward` to `reverse_stream` against it; both (b, l, d)."""
    length = stream.shape[1]
    learning = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (stream, reverse_stream, *forward.parameters(), *backward.parameters())
    )
    if torch.compiler.is_compiling():
        return (
            plain_convolution(stream, forward.filter(length), backward=False),
            plain_convolution(reverse_stream, backward.filter(length), backward=True),
        )
    with torch.autocast(stream.device.type, enabled=False):
        if learning:
            return _LongConvolution.apply(stream, reverse_stream, forward.filter(length), backward.filter(length))
        with torch.no_grad():
            half = fast_length(length)
            spectra = torch.stack([forward.spectrum(half), backward.spectrum(half).conj()])
            one, other = _filtered((stream, reverse_stream), spectra, half)
    return one, other


class _LongConvolution(torch.autograd.Function):
    """Both convolutions, keeping their inputs only: the backward pass transforms again, tile by tile."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, reverse: Tensor, taps: Tensor, reverse_taps: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(stream, reverse, taps, reverse_taps)
        half = fast_length(stream.shape[1])
        one, other = _filtered((stream, reverse), _spectra(taps, reverse_taps, half), half)
        return one, other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, reverse_grad: Tensor) -> tuple[Tensor | None, ...]:
        stream, reverse, taps, reverse_taps = ctx.saved_tensors
        half = fast_length(stream.shape[1])
        into_streams: Sequence[Tensor | None] = (None, None)
        into_taps: Sequence[Tensor | None] = (None, None)
        if any(ctx.needs_input_grad[:2]):
            # The transpose of a causal convolution is the anticausal one with the same taps.
            into_streams = _filtered((grad, reverse_grad), _spectra(taps, reverse_taps, half).conj(), half)
        if any(ctx.needs_input_grad[2:]):
            # sum over b, d and l of grad[l] stream[l - j], and of reverse_grad[l] reverse[l + j]
            found = _correlated((grad, reverse), (stream, reverse_grad), taps.shape[0], half)
            into_taps = found[..., : taps.shape[1]].unbind(0)
        return (*into_streams, *into_taps)


def _spectra(taps: Tensor, reverse_taps: Tensor, half: int) -> Tensor:
    """(s, h, f) of both directions; the conjugate runs against time."""
    forward, backward = torch.fft.rfft(torch.stack([taps, reverse_taps]), n=2 * half).unbind(0)
    return torch.stack([forward, backward.conj()])


def _filtered(streams: Sequence[Tensor], spectra: Tensor, half: int) -> list[Tensor]:
    """Streams (b, l, d) times spectra (s, h, f), transformed in tiles."""
    width = streams[0].shape[2]
    results = [torch.empty_like(stream, memory_format=torch.contiguous_format) for stream in streams]
    for rows, channels, frequencies in _tiles(streams, half):
        frequencies *= _of_channels(spectra, channels, width)
        found = torch.fft.irfft(frequencies, n=2 * half)
        for result, values in zip(results, found, strict=True):
            result[rows, :, channels] = values[..., : result.shape[1]].transpose(1, 2)
    return results


def _correlated(streams: Sequence[Tensor], others: Sequence[Tensor], heads: int, half: int) -> Tensor:
    """The sum over b, l and the d of a head of streams[l] others[l - j]: (s, h, 2 half) by lag j."""
    width = streams[0].shape[2]
    total = torch.zeros((len(streams), width, half + 1), dtype=torch.complex64, device=streams[0].device)
    for (_, channels, first), (_, _, second) in zip(_tiles(streams, half), _tiles(others, half), strict=True):
        total[:, channels] += (first * second.conj()).sum(dim=1)
    return torch.fft.irfft(total.unflatten(1, (heads, -1)).sum(dim=2), n=2 * half)


def _of_channels(spectra: Tensor, channels: slice, width: int) -> Tensor:
    """(s, 1, channels or 1, f) of the heads that the channels belong to."""
    heads = spectra.shape[1]
    if heads == 1:
        return spectra[:, None]
    indices = torch.arange(channels.start, channels.stop, device=spectra.device) // (width // heads)
    return spectra[:, indices][:, None]


def _tiles(streams: Sequence[Tensor], half: int) -> Any:
    """Yields (slice of b, slice of d, spectra (s, b, d, f) of that part); the last is the caller's to overwrite.

    On a CPU a part stays in the caches, which is worth a factor of two; elsewhere it is everything.
    """
    batch, length, width = streams[0].shape
    row_bytes = 4 * len(streams) * 2 * half
    channels, rows = width, batch
    if streams[0].device.type == "cpu":
        channels = min(width, max(16, TILE_BYTES // row_bytes))
        rows = min(batch, max(1, TILE_BYTES // (row_bytes * channels)))
    step = COPIED_CHANNELS if streams[0].device.type == "cpu" else width
    padded = torch.zeros((len(streams), rows, channels, 2 * half), device=streams[0].device)
    for row in range(0, batch, rows):
        for channel in range(0, width, channels):
            part = (slice(row, min(row + rows, batch)), slice(channel, min(channel + channels, width)))
            view = padded[:, : part[0].stop - row, : part[1].stop - channel]
            for target, stream in zip(view, streams, strict=True):
                for first in range(part[1].start, part[1].stop, step):
                    # Contiguous first: reading a column of a wide matrix misses the cache at every element.
                    few = stream[part[0], :, first : min(first + step, part[1].stop)].contiguous()
                    target[:, first - part[1].start :][:, : few.shape[2], :length] = few.transpose(1, 2)
            yield *part, torch.fft.rfft(view)


def fast_length(length: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least `length`: twice that many taps transform quickly and do not wrap."""
    best = 1 << max(length - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three << max(0, math.ceil(length / three) - 1).bit_length()
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def initial_frequencies(scaling: str, modes: int) -> list[float]:
    """A_im of a new model, by config.scaling: S4D-Lin, S4D-Inv (arXiv 2206.11893, section 4) or HiPPO-LegS's own."""
    if scaling == "lin":
        return [math.pi * n for n in range(modes)]
    if scaling == "inv":
        return [modes / math.pi * (modes / (2 * n + 1) - 1) for n in range(modes)]
    # The skew-symmetric part of the normal-plus-low-rank form of HiPPO-LegS; its eigenvalues are i times these.
    import numpy as np

    root = np.sqrt(1 + 2 * np.arange(modes))
    lower = np.tril(root[:, None] * root[None, :], -1) / 2
    return [float(value) for value in np.linalg.eigvalsh(-1j * (lower.T - lower))]
