"""Megatron-BERT: BERT with norms before attention and feed-forward, and one more after the last layer."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedError
from .bert import BERT, CAUSAL_LM_HEADS
from .code import FamilyCode
from .grammar import Config, is_set, linear, norm, when
from .parts import INNER, H, body, projections, tables


def without_cross_attention(config: Config) -> Config:
    """The config. The stock cross-attention of transformers 5 reshapes keys to the number of queries."""
    if config.get("add_cross_attention"):
        raise UnsupportedError(
            "megatron-bert with cross-attention is not supported: transformers 5 runs it only on encoder states that "
            "are as long as the text",
            where="config.json: add_cross_attention",
            hint="use a bert checkpoint, or set add_cross_attention to false and remove its tensors",
        )
    return config


MEGATRON_BERT = replace(
    BERT,
    name="megatron-bert",
    code=FamilyCode(
        module="megatron_bert",
        model_type="megatron-bert",
        class_prefix="MegatronBert",
        model_lines=body(
            """
            def normalize(self, rows: Tensor) -> Tensor:
                return self.embeddings.dropout(rows)

            def final(self, x: Tensor) -> Tensor:
                return self.encoder.ln(x)
            """
        ),
    ),
    embeddings=tables(H),
    layer=(
        *projections("attention"),
        *norm("attention.ln", H),
        *when(is_set("add_cross_attention"), (*projections("crossattention"), *norm("crossattention.ln", H))),
        *norm("ln", H),
        *linear("intermediate.dense", H, INNER),
        *linear("output.dense", INNER, H),
    ),
    final=norm("encoder.ln", H),
    heads=CAUSAL_LM_HEADS,
    read_config=without_cross_attention,
    tokenizer="BertTokenizer",
)
