"""Options of the Linformer target."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

from ...convert.options import MAX_LENGTH_HELP, option, require_sound

Init = Literal["segment", "mean", "strided", "gaussian", "truncated-normal", "xavier"]
PUBLISHED = "For weights of published Linformers"


@dataclass(frozen=True, slots=True)
class LinformerOptions:
    """What `effconv linformer` takes beside the common options."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
    proj_dim: int = option(256, "Rows of E and F: keys a token sees. Up to that many tokens attention is exact.")
    sharing: Literal["heads", "kv", "layers", "none"] = option(
        "kv", "heads: E and F a layer; kv: E = F; layers: one for all; none: E and F a head."
    )
    init: Init = option("segment", "How E and F start: averages of neighbours that favour one, plain means, or random.")
    weighting: Literal["none", "salience"] = option("none", "Let rows weigh tokens by how much queries ask for them.")
    mask_mode: Literal["masked", "published"] = option(
        "masked", "published: fixed E and F, padded rows zeroed and not masked.", panel=PUBLISHED
    )
    projection_bias: bool = option(False, "Give E and F biases (published mode).", panel=PUBLISHED)

    def __post_init__(self) -> None:
        """Raises UsageError with every option that makes no sense."""
        from ...templates.linformer_configuration import linformer_faults

        faults = linformer_faults(
            SimpleNamespace(
                proj_dim=self.proj_dim,
                projection_length=self.max_length,
                sharing=self.sharing,
                mask_mode=self.mask_mode,
                projection_bias=self.projection_bias,
                projection_weighting=self.weighting,
            )
        )
        if self.init not in Init.__args__:  # type: ignore[attr-defined]
            faults.append(f"init is {self.init!r}: give one of {', '.join(Init.__args__)}")  # type: ignore[attr-defined]
        require_sound("linformer", faults)
