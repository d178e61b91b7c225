"""Architectures that effconv does not convert although people ask for them: why, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

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
