"""RemBERT: narrow embeddings of tokens, and wide ones of its own for the predictions."""

from __future__ import annotations

from .bert import BERT_LAYER
from .code import FamilyCode
from .grammar import Family, Head, Weight, linear, norm
from .parts import BRACKETED, CHOICE, CLASSIFIER, POOLER, QA_OUTPUTS, H, V, body, embeddings

NARROW, WIDE = "input_embedding_size", "output_embedding_size"


REMBERT_PREDICTIONS = (
    *linear("cls.predictions.dense", H, WIDE),
    *norm("cls.predictions.LayerNorm", WIDE),
    Weight("cls.predictions.decoder.weight", (V, WIDE)),
    Weight("cls.predictions.decoder.bias", (V,), "zeros"),
)


REMBERT = Family(
    name="rembert",
    types_in_globals=True,
    prefix="rembert",
    code=FamilyCode(
        module="rembert",
        model_type="rembert",
        class_prefix="RemBert",
        model_lines=body(
            """
            def project(self, x: Tensor) -> Tensor:
                return self.encoder.embedding_hidden_mapping_in(x)
            """
        ),
    ),
    embeddings=(*embeddings(NARROW), *linear("encoder.embedding_hidden_mapping_in", NARROW, H)),
    layer=BERT_LAYER,
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForMaskedLM", "AutoModelForMaskedLM", REMBERT_PREDICTIONS),
        Head("ForCausalLM", "AutoModelForCausalLM", REMBERT_PREDICTIONS),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER, True),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForMaskedLM",
    special_tokens={**BRACKETED, "bos": "[CLS]", "pad": "<pad>"},
)
