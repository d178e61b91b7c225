"""Options of the Lambda target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from ...convert.options import CALIBRATE_HELP, MAX_LENGTH_HELP, option, require_sound
from ...convert.text import one_or_several


@dataclass(frozen=True, slots=True)
class LambdaOptions:
    """What `effconv lambda` takes beside the common options."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
    local_context: int = option(15, "Positions around a token that the local term reads; odd, 0 for none.")
    key_depth: int = option(16, "Landmarks a head: more is closer to the source, and slower.")
    intra_depth: int = option(1, "Multiplies the landmarks.")
    groups: Literal["heads", "1"] = option(
        "heads", "heads: a λ a head, fitted; 1: the published layer, one λ for all heads, to be trained."
    )
    calibrate: tuple[Path, ...] = option((), CALIBRATE_HELP)

    def __post_init__(self) -> None:
        """Raises UsageError with every option that makes no sense."""
        from ...templates.lambda_configuration import lambda_faults

        object.__setattr__(self, "calibrate", tuple(Path(path) for path in one_or_several(self.calibrate)))
        faults = lambda_faults(
            SimpleNamespace(
                key_depth=self.key_depth, intra_depth=self.intra_depth, local_context_size=self.local_context
            )
        )
        if self.groups not in ("heads", "1"):
            faults.append(f"groups is {self.groups!r}: give heads or 1")
        if self.groups == "1" and self.calibrate:
            faults.append("calibrate is for groups=heads: the published layer is not fitted but trained")
        if self.max_length < 1:
            faults.append(f"max_length is {self.max_length}: give a positive number of tokens")
        require_sound("lambda", faults)
