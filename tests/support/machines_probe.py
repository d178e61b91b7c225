"""What of this machine's arithmetic a setting changes: hashes of the bits that small operations give, by name.

A matrix library picks its kernels by the processor, by the number of threads and by where the operands lie. The bits
of a result depend on that, and so a setting that changes none of them proves nothing here.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bits_of(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def probe(offset: int) -> dict[str, str]:
    """The bits of each operation, by name.

    Args:
        offset: bytes modulo 64 at which the weights of products lie, as in a mapped file.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight, narrow = placed(draw(384, 384), offset), placed(draw(32, 32), offset)
    one, many, states = draw(1, 384), draw(512, 384), draw(2, 40, 32)
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with torch.no_grad():
        return {
            "linear, one row": bits_of(F.linear(one, weight), F.linear(states[:1, 0], narrow)),
            "linear, many rows": bits_of(F.linear(many, weight), F.linear(states, narrow)),
            "linear, bfloat16": bits_of(F.linear(many.bfloat16(), weight.bfloat16())),
            "batched product": bits_of(many.view(4, 128, 384) @ many.view(4, 128, 384).transpose(1, 2)),
            "softmax": bits_of(many.softmax(-1)),
            "gelu, tanh, exp": bits_of(F.gelu(many), many.tanh(), many.exp()),
            "layer norm": bits_of(F.layer_norm(many, (384,))),
            "sum": bits_of(draw(1 << 18).sum(), many.sum(0), many.mean(-1)),
            "attention": bits_of(F.scaled_dot_product_attention(*(x.view(4, 8, 16, 384) for x in (many, many, many)))),
            "convolution": bits_of(F.conv1d(many.T[None].contiguous(), weight[:, :, None])),
            "fft": bits_of(torch.view_as_real(torch.fft.rfft(many))),
            "encoder": bits_of(encoder(states)),
        }


def placed(tensor: Tensor, offset: int) -> Tensor:
    """A copy whose data begins at `offset` bytes after a multiple of 64."""
    size = tensor.numel() * tensor.element_size()
    raw = torch.zeros(size + 128, dtype=torch.uint8)
    begin = (offset - raw.data_ptr()) % 64
    copy = raw[begin : begin + size].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
