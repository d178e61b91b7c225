"""DistilBERT."""

from __future__ import annotations

from .code import FamilyCode
from .grammar import LABELS, Family, Head, Weight, linear, norm, numbered
from .parts import BRACKETED, WORDS, V, body, embeddings

D, FFN = "dim", "hidden_dim"  # DistilBERT's hidden and inner size


DISTILBERT_PREDICTIONS = (
    *linear("vocab_transform", D, D),
    *norm("vocab_layer_norm", D),
    Weight("vocab_projector.bias", (V,), "zeros"),
)


DISTILBERT = Family(
    name="distilbert",
    prefix="distilbert",
    code=FamilyCode(
        module="distilbert",
        model_type="distilbert",
        class_prefix="DistilBert",
        layers_path="transformer.layer",
        attention_path="attention",
        projections=("q_lin", "k_lin", "v_lin"),
        attention_lines=body(
            """
            def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
                return self.out_lin(context)
            """
        ),
        model_lines=body(
            """
            def embed(
                self,
                input_ids: Tensor | None,
                inputs_embeds: Tensor | None,
                token_type_ids: Tensor | None,
                position_ids: Tensor | None,
            ) -> Tensor:
                if position_ids is None:
                    return self.embeddings(input_ids, inputs_embeds)
                stock = self.embeddings  # which takes no positions in transformers 4
                words = stock.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
                return stock.dropout(stock.LayerNorm(words + stock.position_embeddings(position_ids)))
            """
        ),
    ),
    embeddings=embeddings(D, types=False),
    layer=(
        *(weight for name in ("q_lin", "k_lin", "v_lin", "out_lin") for weight in linear(f"attention.{name}", D, D)),
        *norm("sa_layer_norm", D),
        *linear("ffn.lin1", D, FFN),
        *linear("ffn.lin2", FFN, D),
        *norm("output_layer_norm", D),
    ),
    pooler=(),
    heads=(
        Head("Model", "AutoModel"),
        Head("ForMaskedLM", "AutoModelForMaskedLM", DISTILBERT_PREDICTIONS, False, {"vocab_projector.weight": WORDS}),
        Head(
            "ForSequenceClassification",
            "AutoModelForSequenceClassification",
            (*linear("pre_classifier", D, D), *linear("classifier", D, LABELS)),
        ),
        Head(
            "ForMultipleChoice",
            "AutoModelForMultipleChoice",
            (*linear("pre_classifier", D, D), *linear("classifier", D, 1)),
        ),
        Head("ForTokenClassification", "AutoModelForTokenClassification", linear("classifier", D, LABELS)),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", linear("qa_outputs", D, 2)),
    ),
    default_head="ForMaskedLM",
    special_tokens=BRACKETED,
    token_types=(),
    layer_paths=lambda config: numbered("transformer.layer", config, "n_layers"),
    hidden_size=D,
    num_heads="n_heads",
    output_projection="attention.out_lin",
    feed_forward="ffn",
    inner_size=FFN,
)
