"""Unsupported architectures that users ask for: the reason, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ..options import Settings
    from ..target import Target

ROTARY = "it uses rotary position embeddings"
RELATIVE = "its attention adds a learned relative position bias"
DISENTANGLED = "its attention scores combine content and relative positions (disentangled attention)"
LONG = "its attention is already efficient"
USE_AS_IS = "use it as it is"
ENCODER_OF = "save its encoder and tokenizer as a separate checkpoint (model.encoder.save_pretrained) and convert that"
WRAPPER = "it wraps an encoder and a decoder of other architectures"

# model_type: (the reason, what to use instead)
REFUSED: Mapping[str, tuple[str, str]] = {
    "deberta": (DISENTANGLED, "a roberta or electra checkpoint of the same size"),
    "deberta-v2": (DISENTANGLED, "a roberta or electra checkpoint of the same size; xlm-roberta in place of mDeBERTa"),
    "modernbert": (
        f"{ROTARY}, and most of its layers already use local attention",
        f"{USE_AS_IS}: it takes 8,192 tokens",
    ),
    "eurobert": (ROTARY, f"{USE_AS_IS}: it takes 8,192 tokens"),
    "nomic_bert": (
        ROTARY,
        f"{USE_AS_IS}: dense models take 2,048 or 8,192 tokens, depending on the model. The mixture-of-experts model "
        "(nomic-embed-text-v2-moe) takes 512 tokens: choose a dense one for longer texts",
    ),
    "esm": (
        "its positions are rotary (ESM-2), and it rescales embeddings by the share of masked tokens",
        f"{USE_AS_IS}: ESM-2 has no position table, so it also runs on more than the 1,024 residues of its training",
    ),
    "longformer": (LONG, USE_AS_IS),
    "big_bird": (LONG, USE_AS_IS),
    "nystromformer": (LONG, USE_AS_IS),
    "wav2vec2-bert": ("it reads speech, not text", USE_AS_IS),
    "fnet": ("it has no attention", USE_AS_IS),
    "roformer": (ROTARY, "a bert checkpoint"),
    "xlnet": (DISENTANGLED, "a bert or roberta checkpoint"),
    "longt5": (LONG, f"{USE_AS_IS}: it takes 16,384 tokens"),
    "umt5": (f"{RELATIVE}, another one in each layer", "an mt5 checkpoint, whose layers share one"),
    "encoder-decoder": (WRAPPER, ENCODER_OF),
    "vision-encoder-decoder": (
        WRAPPER,
        "only text encoders are supported, and its text decoder can be saved and converted separately",
    ),
    "speech-encoder-decoder": (
        WRAPPER,
        "only text encoders are supported, and its text decoder can be saved and converted separately",
    ),
    "vision-text-dual-encoder": (WRAPPER, "save its text model (model.text_model.save_pretrained) and convert that"),
}


def own_modeling_code(config: Mapping[str, Any]) -> list[str]:
    """What config.json names as the model's own classes, sorted.

    A config class or a tokenizer of its own changes nothing of how the weights are used: the model is still stock.
    """
    named = config.get("auto_map")
    references = named.items() if isinstance(named, dict) else ()
    return sorted({str(reference) for auto, reference in references if "Model" in str(auto) and reference})


def require_stock_code(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for a source whose model is not transformers' own class of its model_type."""
    code = own_modeling_code(config)
    if code:
        raise UnsupportedError(
            f"the source has its own model code ({', '.join(code[:3])}), which may compute something other than the "
            f"{config.get('model_type')} of transformers",
            where="config.json: auto_map",
            hint="if the code computes the same, remove auto_map from config.json. Otherwise pass --trust-remote-code: "
            "the checks then run that code and compare",
        )


def compares_with_source(target: Target, options: object, settings: Settings) -> bool:
    """Whether the conversion ends with a comparison of the repo's outputs with the source's, which it must pass."""
    stated = {"options": asdict(options), "settings": asdict(settings)}  # type: ignore[call-overload]
    names = ("equal_to_source", "stock_attention_equals_source")
    checks = [check for check in target.checks if check.name in names]
    return settings.verify and any(not check.left_out(stated) for check in checks)
