"""Names of activation functions that a config.json may give, as transformers 4.57 and 5 know them (`ACT2FN`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadInputError, did_you_mean

FIELDS = ("hidden_act", "activation", "activation_function", "feed_forward_proj")  # the last: T5's
GATED = "gated-"
ACTIVATIONS = frozenset({
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2", "relu6", "sigmoid",
    "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
})  # fmt: skip


def require_activation(config: Mapping[str, Any]) -> None:
    """Raises BadInputError for an activation function that transformers does not know: such a model cannot be built."""
    for name in FIELDS:
        value = config.get(name)
        if isinstance(value, str) and value.removeprefix(GATED) not in ACTIVATIONS:
            close = did_you_mean(value, ACTIVATIONS)
            raise BadInputError(
                f"{name} is {value!r}, an activation function that transformers does not know{close}",
                where=f"config.json: {name}",
                hint="use one of " + ", ".join(sorted(ACTIVATIONS)),
            )
