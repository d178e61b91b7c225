"""Options of the Linformer target."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

from ...convert.options import MAX_LENGTH_HELP, option, require_sound

Init = Literal["segment", "mean", "strided", "gaussian", "truncated-normal", "xavier"]
NAMES = {"projection_length": "max_length", "projection_weighting": "weighting"}  # in the config
PUBLISHED = "Compatibility with published Linformer weights"


@dataclass(frozen=True, slots=True)
class LinformerOptions:
    """Options of `effconv linformer`, in addition to the common ones."""

    max_length: int = option(4096, MAX_LENGTH_HELP, flag="--max-len")
    proj_dim: int = option(256, "Number of projected keys and values per head. Inputs up to this length are exact.")
    sharing: Literal["heads", "kv", "layers", "none"] = option(
        "kv",
        "Which parts share the two projections: E turns the keys of all tokens into --proj-dim keys, F the values. "
        "heads: E and F per layer. kv: E = F per layer. layers: one for all layers. none: E and F per head.",
    )
    init: Init = option(
        "segment",
        "Initial projections E and F. segment: weighted means of neighbours. mean: plain means. strided: single "
        "tokens. gaussian, truncated-normal, xavier: random.",
    )
    weighting: Literal["none", "salience"] = option(
        "none", "Weight tokens by how much the queries attend to them (salience)."
    )
    mask_mode: Literal["masked", "published"] = option(
        "masked", "published: fixed projections E and F, with padding set to zero instead of masked.", panel=PUBLISHED
    )
    projection_bias: bool = option(
        False, "Add biases to the projections E and F (only with --mask-mode published).", panel=PUBLISHED
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every invalid option."""
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
        if self.max_length < 1:
            faults = [f"max_length must be a positive integer, got {self.max_length}"]
        if self.init not in Init.__args__:  # type: ignore[attr-defined]
            faults.append(f"init must be one of {', '.join(Init.__args__)}, got {self.init!r}")  # type: ignore[attr-defined]
        require_sound("linformer", faults, self, NAMES)
