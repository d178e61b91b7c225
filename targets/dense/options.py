"""Options of the dense control."""

from __future__ import annotations

from dataclasses import dataclass

from ...convert.options import MAX_LENGTH_HELP, option


@dataclass(frozen=True, slots=True)
class DenseOptions:
    """The one thing that a stock model leaves open beyond its config."""

    max_length: int = option(512, MAX_LENGTH_HELP, flag="--max-len")
