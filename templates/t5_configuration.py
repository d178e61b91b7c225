# SPDX-License-Identifier: Apache-2.0
"""The fields of a T5 encoder's config.

They are T5Config's. But nothing here inherits from T5Config: sentence-transformers loads the stock T5EncoderModel for
every config that does, whatever `auto_map` names, and the model's attention would silently be another one.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig


class T5EncoderFields(PretrainedConfig):
    """The fields of T5Config (and of MT5Config) that an encoder reads, and how many tokens it takes.

    Args:
        d_kv: channels of one attention head, whatever `d_model` and `num_heads` are.
        feed_forward_proj: the activation of the feed-forward, as "relu", or "gated-gelu" where it has a gate.
        max_position_embeddings: the most tokens of an input. The model has no position table.

    Raises:
        ValueError: `feed_forward_proj` cannot be read.
    """

    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
        "attention_dropout": "dropout_rate",
    }

    def __init__(
        self,
        vocab_size: int = 32128,
        d_model: int = 512,
        d_kv: int = 64,
        d_ff: int = 2048,
        num_layers: int = 6,
        num_heads: int = 8,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        dropout_rate: float = 0.1,
        layer_norm_epsilon: float = 1e-6,
        initializer_factor: float = 1.0,
        feed_forward_proj: str = "relu",
        max_position_embeddings: int = 512,
        pad_token_id: int | None = 0,
        eos_token_id: int | None = 1,
        tie_word_embeddings: bool = True,
        is_encoder_decoder: bool = False,
        is_decoder: bool = False,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> None:
        gate, _, activation = feed_forward_proj.rpartition("-")
        if gate not in ("", "gated"):
            raise ValueError(f"feed_forward_proj is {feed_forward_proj!r}: give an activation, or gated-ACTIVATION")
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.d_kv = d_kv
        self.d_ff = d_ff
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.relative_attention_num_buckets = relative_attention_num_buckets
        self.relative_attention_max_distance = relative_attention_max_distance
        self.dropout_rate = dropout_rate
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_factor = initializer_factor
        self.feed_forward_proj = feed_forward_proj
        self.max_position_embeddings = max_position_embeddings
        self.is_gated_act = gate == "gated"
        # In T5 "gated-gelu" is the approximation by tanh.
        self.dense_act_fn = "gelu_new" if feed_forward_proj == "gated-gelu" else activation
        super().__init__(pad_token_id=pad_token_id, eos_token_id=eos_token_id, **kwargs)
        # transformers 5 has no defaults of its own for these.
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.is_encoder_decoder = is_encoder_decoder
        self.is_decoder = is_decoder
        self.use_cache = use_cache
