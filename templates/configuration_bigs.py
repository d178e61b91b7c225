# SPDX-License-Identifier: Apache-2.0
"""Configuration of BiGS, a bidirectional gated state-space encoder without attention (arXiv 2212.10544)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

CHOICES = {
    "scaling": ("hippo", "lin", "inv"),
    "pooler_type": ("non_padding_mean", "mean"),
    "layer_gelu": ("tanh", "erf"),
    "mask_mode": ("pooler", "inert"),
}


class BiGSConfig(PretrainedConfig):
    """Sizes and options under the names that published BiGS checkpoints use, and three of this code.

    Args:
        num_ssm: modes of a state-space model.
        num_ssm_heads: state-space models a direction and layer, each for a block of channels; None for one without a
            head axis, as most published models are.
        pre_norm: normalise before the mixing of a layer, else after the residual sum.
        scaling: how the frequencies of a new model start: "hippo", "lin" or "inv".
        pooler_type: "non_padding_mean" (over the attention mask) or "mean" (over every position).
        hidden_act: of the masked-LM head; the layers have `layer_gelu`.
        layer_gelu: "tanh", as the published JAX model has, or "erf", for weights trained with the published torch port.
        mask_mode: "pooler": the attention mask touches the pooler only, as published, and padding flows through the
            layers. "inert": padding changes no real token's output.
        decode: a decoding mode of the published code; not supported, must be false.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    model_type = "bigs-encoder"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 24,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        position_embedding_type: str = "absolute",
        num_ssm: int = 64,
        num_ssm_heads: int | None = None,
        pre_norm: bool = True,
        scaling: str = "hippo",
        pooler_type: str = "non_padding_mean",
        classifier_dropout: float | None = None,
        decode: bool = False,
        tie_word_embeddings: bool = True,
        layer_gelu: str = "tanh",
        mask_mode: str = "pooler",
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings  # transformers 5 has no default of its own
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.num_ssm = num_ssm
        self.num_ssm_heads = num_ssm_heads
        self.pre_norm = pre_norm
        self.scaling = scaling
        self.pooler_type = pooler_type
        self.classifier_dropout = classifier_dropout
        self.decode = decode
        self.layer_gelu = layer_gelu
        self.mask_mode = mask_mode
        check_config(self)


def check_config(config: Any) -> None:
    """Raise ValueError with every fault; the model calls this too, as from_pretrained sets overrides late."""
    faults = [
        f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}"
        for name, values in CHOICES.items()
        if getattr(config, name) not in values
    ]
    heads = config.num_ssm_heads
    if heads is not None and (type(heads) is not int or heads < 1 or config.hidden_size % heads):
        faults.append(f"num_ssm_heads must divide hidden_size {config.hidden_size}, got {heads!r}")
    if config.position_embedding_type != "absolute":
        faults.append(f"position_embedding_type must be 'absolute', got {config.position_embedding_type!r}")
    if config.decode:
        faults.append("decode must be false: BiGS is an encoder")
    if faults:
        raise ValueError("these BiGS options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
