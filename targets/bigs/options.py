"""The options of a conversion of BiGS. Nothing heavy is imported here: the command line reads its flags from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...convert.errors import UsageError
from ...convert.options import option


@dataclass(frozen=True, slots=True)
class BiGSOptions:
    """What a conversion of BiGS takes."""

    max_length: int | None = option(None, "Tokens that the result takes. [default: the source's]", flag="--max-len")
    positions: Literal["repeat", "interpolate"] = option("repeat", "How a longer position table is filled.")
    layer_gelu: Literal["tanh", "erf"] | None = option(
        None,
        "GELU of the layers: tanh as in JAX, erf for weights trained with the published torch port. "
        "[default: the source's, else tanh]",
    )
    mask_mode: Literal["pooler", "inert"] | None = option(
        None,
        "inert: padding changes no real token's output; pooler: as published. [default: the source's, else pooler]",
    )

    def __post_init__(self) -> None:
        """Raises UsageError for values that mean nothing."""
        if self.max_length is not None and not 1 <= self.max_length <= 1 << 20:
            raise UsageError(f"a length of {self.max_length} tokens", where="--max-len", hint="give 1 to 1048576")
        for name, value, choices in (
            ("--positions", self.positions, ("repeat", "interpolate")),
            ("--layer-gelu", self.layer_gelu, ("tanh", "erf", None)),
            ("--mask-mode", self.mask_mode, ("pooler", "inert", None)),
        ):
            if value not in choices:
                raise UsageError(
                    f"unknown value {value!r}", where=name, hint="one of " + ", ".join(filter(None, choices))
                )
