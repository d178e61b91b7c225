"""Architectures that effconv does not convert although people ask for them: why, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ..options import Settings
    from ..target import Target

ROTARY = "its positions are rotations of queries and keys"
RELATIVE = "its attention adds a learned bias for every distance between two tokens"
DISENTANGLED = "its attention scores mix contents with relative positions"
LONG = "its attention is efficient already"
USE_AS_IS = "use it as it is"
ENCODER_OF = (
    "save its encoder as a checkpoint of its own (model.encoder.save_pretrained, and the tokenizer), and convert that"
)
WRAPPER = "it wraps an encoder and a decoder of other architectures"

# model_type: (the reason, what to use instead)
REFUSED: Mapping[str, tuple[str, str]] = {
    "mpnet": (
        RELATIVE,
        "sentence-transformers/all-distilroberta-v1 or all-MiniLM-L12-v2 in place of all-mpnet-base-v2",
    ),
    "deberta": (DISENTANGLED, "a roberta or electra checkpoint of the same size"),
    "deberta-v2": (DISENTANGLED, "a roberta or electra checkpoint of the same size; xlm-roberta in place of mDeBERTa"),
    "modernbert": (
        f"{ROTARY}, and most of its layers attend locally already",
        f"{USE_AS_IS}: it takes 8,192 tokens",
    ),
    "eurobert": (ROTARY, f"{USE_AS_IS}: it takes 8,192 tokens"),
    "nomic_bert": (ROTARY, f"{USE_AS_IS}: it takes 8,192 tokens"),
    "longformer": (LONG, USE_AS_IS),
    "big_bird": (LONG, USE_AS_IS),
    "nystromformer": (LONG, USE_AS_IS),
    "megatron-bert": ("its norms come before attention and feed-forward", "a bert checkpoint"),
    "wav2vec2-bert": ("it reads speech, not text", USE_AS_IS),
    "fnet": ("it has no attention", USE_AS_IS),
    "roformer": (ROTARY, "a bert checkpoint"),
    "xlnet": (DISENTANGLED, "a bert or roberta checkpoint"),
    "t5": (RELATIVE, "long-t5, which takes 16,384 tokens"),
    "encoder-decoder": (WRAPPER, ENCODER_OF),
    "vision-encoder-decoder": (
        WRAPPER,
        "only text encoders are converted; its decoder can be saved and converted alone",
    ),
    "speech-encoder-decoder": (
        WRAPPER,
        "only text encoders are converted; its decoder can be saved and converted alone",
    ),
    "vision-text-dual-encoder": (WRAPPER, "save its text model (model.text_model.save_pretrained), and convert that"),
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
            f"the model has code of its own ({', '.join(code[:3])}), and may compute something else than a stock "
            f"{config.get('model_type')} with the same tensors",
            where="config.json: auto_map",
            hint="if it computes the same, remove auto_map from config.json; or pass --trust-remote-code, so that the "
            "checks run that code and compare",
        )


def compares_with_source(target: Target, options: object, settings: Settings) -> bool:
    """Whether the conversion ends with a comparison of the repo's outputs with the source's, which it must pass."""
    stated = {"options": asdict(options), "settings": asdict(settings)}  # type: ignore[call-overload]
    names = ("equal_to_source", "stock_attention_equals_source")
    checks = [check for check in target.checks if check.name in names]
    return settings.verify and any(not check.applies(stated) for check in checks)
