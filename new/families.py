"""The config of a new stock model by family: its fields beside the sizes, and what the sizes are called.

Fields are those of the config classes and of the checkpoint that each family is named after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..convert.families.grammar import Config


@dataclass(frozen=True, slots=True)
class Start:
    """What a config of the family says.

    Attributes:
        fields: with their values, but for sizes.
        layers, hidden, heads, inner: fields that state a size; several where encoder and decoder each have one.
        embedding: the field of the width of the embeddings, where that is another.
        embedding_width: its value for a hidden size, where none is asked for.
        length: the field of the longest input.
        padding: whether the stock embeddings keep the row of the padding token at zero.
        std: the standard deviation of a tensor with this name, where it is not `initializer_range`.
    """

    fields: Mapping[str, Any]
    layers: tuple[str, ...] = ("num_hidden_layers",)
    hidden: str = "hidden_size"
    heads: tuple[str, ...] = ("num_attention_heads",)
    inner: tuple[str, ...] = ("intermediate_size",)
    embedding: str = ""
    embedding_width: Callable[[int], int] = lambda hidden: hidden
    length: str = "max_position_embeddings"
    std: Callable[[str, Config], float | None] = lambda name, config: None
    padding: bool = True


_COMMON = {
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    "tie_word_embeddings": True,
}  # fmt: skip
_BERT = {**_COMMON, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}
_ANGLED = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_ROBERTA = {**_COMMON, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **_ANGLED}
_BART = {
    "activation_function": "gelu", "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0,
    "init_std": 0.02, "is_encoder_decoder": True, "scale_embedding": False, "tie_word_embeddings": True, **_ANGLED,
    "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0, "d_kv": 64,
}  # fmt: skip


def _sides(name: str) -> tuple[str, ...]:
    return f"encoder_{name}", f"decoder_{name}"


def _t5_std(name: str, config: Config) -> float | None:
    """T5 draws each matrix by its width, since its scores are not scaled (arXiv 1910.10683; T5PreTrainedModel)."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    by_name = {
        "shared": 1.0,
        "q": (width * config["d_kv"]) ** -0.5,
        **dict.fromkeys(("k", "v", "wi", "wi_0", "wi_1", "relative_attention_bias"), width**-0.5),
        "o": inner**-0.5,
        "wo": config["d_ff"] ** -0.5,
        "global_embeddings": 1.0,  # as words, which it takes the place of
    }
    return by_name.get(name.removesuffix(".weight").rpartition(".")[2])


def _bart(**fields: Any) -> Start:
    return Start(
        {**_BART, **fields},
        layers=_sides("layers"),
        hidden="d_model",
        heads=_sides("attention_heads"),
        inner=_sides("ffn_dim"),
    )


def _t5(**fields: Any) -> Start:
    return Start(
        {**_T5, **fields},
        layers=("num_layers",),
        hidden="d_model",
        heads=("num_heads",),
        inner=("d_ff",),
        length="n_positions",
        std=_t5_std,
        padding=False,
    )


STARTS: Mapping[str, Start] = {
    "bert": Start(_BERT),
    "roberta": Start(_ROBERTA),
    "camembert": Start(_ROBERTA),
    "xlm-roberta": Start(_ROBERTA),
    "xlm-roberta-xl": Start(_ROBERTA),
    "roberta-prelayernorm": Start(_ROBERTA),
    "data2vec-text": Start(_ROBERTA),
    "ernie": Start({**_BERT, "task_type_vocab_size": 3, "use_task_id": False}),
    "electra": Start(
        {**_BERT, "summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        embedding="embedding_size",
    ),
    "distilbert": Start(
        {
            "activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "qa_dropout": 0.1,
            "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "initializer_range": 0.02, "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
        layers=("n_layers",),
        hidden="dim",
        heads=("n_heads",),
        inner=("hidden_dim",),
    ),
    "albert": Start(
        {
            **_BERT, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "classifier_dropout_prob": 0.1, "num_hidden_groups": 1, "inner_group_num": 1, "bos_token_id": 2,
            "eos_token_id": 3,
        },
        embedding="embedding_size",
        embedding_width=lambda hidden: min(hidden, 128),
    ),
    "megatron-bert": Start(_BERT),
    "rembert": Start(
        {
            **_BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout_prob": 0.1,
            "output_embedding_size": 1664, "bos_token_id": 312, "eos_token_id": 313, "tie_word_embeddings": False,
        },
        embedding="input_embedding_size",
        embedding_width=lambda hidden: min(hidden, 256),
    ),
    "xmod": Start(
        {
            **_ROBERTA, "pre_norm": False, "adapter_reduction_factor": 2, "adapter_layer_norm": False,
            "adapter_reuse_layer_norm": True, "ln_before_adapter": True, "languages": ["en_XX"],
            "default_language": "en_XX",
        },
    ),
    "mpnet": Start(
        {**_COMMON, "relative_attention_num_buckets": 32, "layer_norm_eps": 1e-12, **_ANGLED},
    ),
    "bart": _bart(),
    "mbart": _bart(forced_eos_token_id=2),
    "pegasus": _bart(pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1),
    "t5": _t5(feed_forward_proj="relu"),
    "mt5": _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bigs": Start({}, heads=(), padding=False),
}  # fmt: skip
