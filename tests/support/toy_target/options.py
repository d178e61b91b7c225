"""Options of the uniform target."""

from __future__ import annotations

from dataclasses import dataclass

from effconv.convert.options import MAX_LENGTH_HELP, option


@dataclass(frozen=True, slots=True)
class UniformOptions:
    """What `effconv uniform` takes in addition to the common options."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
