"""The options of a conversion of BiGS. Nothing heavy is imported here: the command line reads its flags from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...convert.errors import UsageError
from ...convert.options import option


@dataclass(frozen=True, slots=True)
class BiGSOptions:
    """Options of a BiGS conversion."""

    max_length: int | None = option(None, "Maximum input length in tokens. [default: the source's]", flag="--max-len")
    positions: Literal["repeat", "interpolate"] = option(
        "repeat", "How position embeddings are extended to a new length."
    )
    layer_gelu: Literal["tanh", "erf"] | None = option(
        None,
        "GELU variant: tanh as in JAX, erf for weights trained with the published PyTorch port. "
        "[default: the source's, else tanh]",
    )
    mask_mode: Literal["pooler", "inert"] | None = option(
        None,
        "How padding is treated. inert: padding changes no output of real tokens. pooler: as in the published code. "
        "[default: the source's, else pooler]",
    )

    def __post_init__(self) -> None:
        """Raises UsageError for invalid values."""
        if self.max_length is not None and not 1 <= self.max_length <= 1 << 20:
            raise UsageError(
                f"--max-len must be an integer from 1 to 1,048,576, got {self.max_length}",
                where="--max-len",
                hint="give a number such as 1024",
            )
        for name, value, choices in (
            ("--positions", self.positions, ("repeat", "interpolate")),
            ("--layer-gelu", self.layer_gelu, ("tanh", "erf", None)),
            ("--mask-mode", self.mask_mode, ("pooler", "inert", None)),
        ):
            if value not in choices:
                raise UsageError(
                    f"unknown value {value!r}", where=name, hint="use one of " + ", ".join(filter(None, choices))
                )
