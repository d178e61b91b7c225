"""8-bit dense layers on x86-64 CPUs, for a model that is loaded: `effconv.int8(model)`.

Contract: every `nn.Linear` is replaced in place by one with signed 8-bit weights, a scale a row. Inputs are quantised
as they come, with a scale and an offset a token, so that other texts of a batch change nothing. Everything else, also
attention, stays in float32.

The products are oneDNN's on plain 8-bit tensors, which torch.compile uses too. torch.ao.quantization and quantised
tensors (torch.qint8) are deprecated. torchao's dynamic layers multiply without these products unless compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .convert.errors import UnsupportedError

LARGEST = 127  # of a signed 8-bit weight
LEAST = 1e-30  # scale of a row or an input that is zero


def int8(model: Any) -> Any:
    """Replaces the dense layers of a float32 model on the CPU by 8-bit ones, in place; returns the model, in eval mode.

    Raises:
        UnsupportedError: the model is not in float32 on the CPU, or torch has no 8-bit products for this processor.
    """
    require_int8()
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise UnsupportedError(
                f"8-bit dense layers need a float32 model on the CPU, got {parameter.dtype} on {parameter.device}",
                where=name,
                hint="load the model with dtype=torch.float32 and without a device",
            )
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:  # a subclass does something else
                setattr(parent, name, Int8Linear(child))
    return model.eval()


def require_int8() -> None:
    """Raises UnsupportedError where torch has no 8-bit products for the processor."""
    if "x86" not in torch.backends.quantized.supported_engines or not torch.backends.mkldnn.is_available():
        raise UnsupportedError(
            "torch has no 8-bit dense layers for this processor",
            where="int8",
            hint="use float32, or an x86-64 processor. The 8-bit ONNX graph of effconv export runs elsewhere too",
        )


class Int8Linear(nn.Module):
    """A dense layer with 8-bit weights. It infers only, and its weights cannot be saved."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        weight = dense.weight.detach()
        self._scales = (weight.abs().amax(dim=1) / LARGEST).clamp_(min=LEAST)
        rows = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(rows, None)
        self._zeros = torch.zeros(self.out_features, dtype=torch.long)
        bias = weight.new_zeros(self.out_features) if dense.bias is None else dense.bias.detach()
        self._offsets = torch.stack([rows.sum(dim=1) * self._scales, bias])
        # Without VNNI the processor adds two products in 16 bits: inputs of 7 bits cannot overflow them.
        self._levels = 255 if torch.cpu._is_vnni_supported() else 127
        # Code that asks for the type or shape of a weight (T5's does) finds them. Nothing can be computed with it.
        self.weight = torch.empty(weight.shape, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """X (..., in) float32 → (..., out) float32."""
        shape = (*x.shape[:-1], self.out_features)
        if x.numel() == 0:
            return x.new_empty(shape)
        rows = x.reshape(-1, self.in_features)
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
        scales = ((high - low) / self._levels).clamp_(min=LEAST)
        inverse = 1 / scales
        # round((x - low) / scale): the values are positive, so that the conversion, which cuts, rounds.
        levels = torch.addcmul(0.5 - low * inverse, rows, inverse).to(torch.uint8)
        products = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 0, self._packed, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        # W x + b = scale · W levels + low · (sum of each row of W) + b.
        found = torch.mm(torch.cat([low, torch.ones_like(low)], dim=1), self._offsets)
        return found.addcmul_(products, scales).view(shape)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, *_: Any) -> None:
        raise UnsupportedError(
            "a model with 8-bit dense layers cannot be saved",
            where="int8",
            hint="save the float32 model, and call effconv.int8 after loading it",
        )
