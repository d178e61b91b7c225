"""Options of `effconv export`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..convert.options import option

DANGER = "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of `effconv export`."""

    onnx: bool = option(False, "Write onnx/model.onnx: the default without --torch.")
    int8: bool = option(False, "Also write onnx/model_qint8.onnx, with 8-bit weights, for CPUs.")
    fp16: bool = option(False, "Also write onnx/model_fp16.onnx, with 16-bit weights and operations, for GPUs.")
    torch: bool = option(False, "Write model.pt2, a program of torch.export.")
    output: Path | None = option(None, "Output folder. [default: REPO-export]", short="-o")
    overwrite: bool = option(False, "Replace a non-empty output folder, after the new one is complete.")
    trust_remote_code: bool = option(
        False, "Allow Python code that came with the source (tokenizer, modules) to run.", panel=DANGER
    )

    def __post_init__(self) -> None:
        """The smaller forms are made from the ONNX graph."""
        object.__setattr__(self, "onnx", self.onnx or self.int8 or self.fp16 or not self.torch)
