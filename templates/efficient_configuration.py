# SPDX-License-Identifier: Apache-2.0
"""The options of how an efficient encoder is run, whatever its attention; none of them belongs to what was trained."""

from __future__ import annotations

from typing import Any

FP32_PRECISIONS = ("ieee", "tf32", "bf16")


class EfficientConfigMixin:
    """Goes before a stock config class in the bases.

    Args:
        unpad_inputs: leave out of the layers what comes after the last token that the attention mask shows, where that
            saves enough. Real tokens get the same; rows that were left out are zero.
        mkldnn_fp32_precision: what `torch.backends.mkldnn.matmul.fp32_precision` is while the layers run: "ieee",
            "tf32" or "bf16", which is faster on some CPUs and, on those that multiply in that format, less exact; None
            leaves it as it is.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    def __init__(self, unpad_inputs: bool = True, mkldnn_fp32_precision: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unpad_inputs = unpad_inputs
        self.mkldnn_fp32_precision = mkldnn_fp32_precision
        self.validate_running()

    def validate_running(self) -> None:
        """Check these options; the model calls this again, as from_pretrained sets overrides late."""
        faults = []
        if type(self.unpad_inputs) is not bool:
            faults.append(f"unpad_inputs is {self.unpad_inputs!r}: give true or false")
        if self.mkldnn_fp32_precision not in (None, *FP32_PRECISIONS):
            faults.append(
                f"mkldnn_fp32_precision is {self.mkldnn_fp32_precision!r}: give one of {', '.join(FP32_PRECISIONS)}, "
                "or null to leave torch's setting as it is"
            )
        if faults:
            raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
