"""Megatron-BERT: BERT with norms before attention and feed-forward, and one more after the last layer."""

from __future__ import annotations

from dataclasses import replace

from .bert import BERT, CAUSAL_LM_HEADS
from .code import FamilyCode
from .grammar import is_set, linear, norm, when
from .parts import INNER, H, body, projections, tables

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
    tokenizer="BertTokenizer",
)
