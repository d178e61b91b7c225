"""Options of the Lambda target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from ...convert.options import CALIBRATE_HELP, MAX_LENGTH_HELP, option, require_sound
from ...convert.text import one_or_several

# With the published 1, the position term of a new layer is 28 times its content term (local context 15), so that for
# thousands of steps nothing is learned from words outside the local context: docs/reference/published-recipes.md.
POSITION_STD = 0.02


@dataclass(frozen=True, slots=True)
class LambdaOptions:
    """Options of `effconv lambda`, in addition to the common ones."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
    local_context: int = option(15, "Window of the local term in tokens: odd, or 0 for none.")
    key_depth: int = option(
        16,
        "Landmarks per head: keys that summarise the text. More landmarks are closer to full attention, and slower.",
    )
    intra_depth: int = option(1, "Multiplies the number of landmarks (--key-depth).")
    groups: Literal["heads", "1"] = option(
        "heads",
        "A λ is a matrix that summarises a text, and that every query is multiplied with. heads: one per head, fitted. "
        "1: one for all heads, as in the published layer, which needs training.",
    )
    num_lambda_queries: int | None = option(
        None, "Queries per token that share the λ (--groups 1): a divisor of the hidden size. [default: the heads]"
    )
    position_std: float | None = option(
        None,
        "Standard deviation of new position tables (--groups 1). The published layer starts with 1, which drowns what "
        f"the rest of the text says. [default: {POSITION_STD}]",
    )
    calibrate: tuple[Path, ...] = option((), CALIBRATE_HELP)

    def __post_init__(self) -> None:
        """Raises UsageError with every invalid option."""
        from ...templates.lambda_configuration import lambda_faults

        object.__setattr__(self, "calibrate", tuple(Path(path) for path in one_or_several(self.calibrate)))
        faults = lambda_faults(
            SimpleNamespace(
                key_depth=self.key_depth, intra_depth=self.intra_depth, local_context_size=self.local_context
            )
        )
        if self.groups not in ("heads", "1"):
            faults.append(f"groups must be heads or 1, got {self.groups!r}")
        if self.groups == "1" and self.calibrate:
            faults.append("--calibrate applies only with --groups heads: the published layer is not fitted")
        if self.num_lambda_queries is not None and self.groups != "1":
            faults.append("num_lambda_queries applies only with --groups 1: else a head has one query")
        if self.num_lambda_queries is not None and self.num_lambda_queries < 1:
            faults.append(f"num_lambda_queries must be a positive integer, got {self.num_lambda_queries}")
        if self.position_std is not None and self.groups != "1":
            faults.append("--position-std applies only with --groups 1")
        if self.position_std is not None and not 0 <= self.position_std < math.inf:
            faults.append(f"position_std must be a number of at least 0, got {self.position_std}")
        if self.max_length < 1:
            faults.append(f"max_length must be a positive integer, got {self.max_length}")
        require_sound("lambda", faults, self, {"local_context_size": "local_context"})
