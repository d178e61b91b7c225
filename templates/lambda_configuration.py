# SPDX-License-Identifier: Apache-2.0
"""The options of the converted Lambda attention, added to a stock config."""

from __future__ import annotations

from typing import Any


class LambdaConfigMixin:
    """Goes before a stock config class in the bases.

    Args:
        key_depth: landmarks a head; each gives one content lambda.
        intra_depth: multiplies the landmarks.
        local_context_size: positions around a token that the local term reads; odd, 0 for no local term.
        output_lambda_params: whether `attentions` of the outputs are λ (b, h, c, v) a layer, by default None.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    def __init__(
        self,
        key_depth: int = 16,
        intra_depth: int = 1,
        local_context_size: int = 15,
        output_lambda_params: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs["use_cache"] = False
        super().__init__(**kwargs)
        self.key_depth = key_depth
        self.intra_depth = intra_depth
        self.local_context_size = local_context_size
        self.output_lambda_params = output_lambda_params
        faults = lambda_faults(self)
        if faults:
            raise ValueError("these Lambda options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def lambda_faults(config: Any) -> list[str]:
    """What is wrong with the Lambda fields of a config, one sentence each, with what to do."""
    faults = []
    for name, least in (("key_depth", 1), ("intra_depth", 1), ("local_context_size", 0)):
        value = getattr(config, name)
        if type(value) is not int or value < least:
            faults.append(f"{name} must be an integer of at least {least}, got {value!r}")
    size = config.local_context_size
    if type(size) is int and size > 0 and size % 2 == 0:
        faults.append(f"local_context_size must be odd, or 0 for no local term, got {size}")
    return faults
