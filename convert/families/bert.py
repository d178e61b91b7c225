"""BERT, and the families that differ from it in names, in the order of norms or in a further table."""

from __future__ import annotations

from dataclasses import replace

from .code import FamilyCode
from .grammar import Family, Head, Weight, is_set, linear, norm, when
from .parts import (
    ANGLED,
    BRACKETED,
    CHOICE,
    CLASSIFIER,
    CLASSIFIER_WITH_DENSE,
    INNER,
    POOLER,
    QA_OUTPUTS,
    WORDS,
    H,
    V,
    attention,
    body,
    embeddings,
    pre_norm_attention,
    projections,
    tables,
)

BERT_LAYER = (
    *attention("attention"),
    *when(is_set("add_cross_attention"), attention("crossattention")),
    *linear("intermediate.dense", H, INNER),
    *linear("output.dense", INNER, H),
    *norm("output.LayerNorm", H),
)


BERT_PREDICTIONS = (
    *linear("cls.predictions.transform.dense", H, H),
    *norm("cls.predictions.transform.LayerNorm", H),
    Weight("cls.predictions.bias", (V,), "zeros"),
)


BERT_TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}


BERT_NSP = linear("cls.seq_relationship", H, 2)


BERT = Family(
    name="bert",
    types_in_globals=True,
    prefix="bert",
    code=FamilyCode(module="bert", model_type="bert", class_prefix="Bert"),
    embeddings=embeddings(H),
    layer=BERT_LAYER,
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForPreTraining", "AutoModelForPreTraining", BERT_PREDICTIONS + BERT_NSP, True, BERT_TIED),
        Head("ForMaskedLM", "AutoModelForMaskedLM", BERT_PREDICTIONS, False, BERT_TIED),
        Head("LMHeadModel", "AutoModelForCausalLM", BERT_PREDICTIONS, False, BERT_TIED),
        Head("ForNextSentencePrediction", "AutoModelForNextSentencePrediction", BERT_NSP, True),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER, True),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForPreTraining",
    special_tokens=BRACKETED,
)


# BERT's in families that call the decoder's class as all others do.
CAUSAL_LM_HEADS = tuple(
    replace(head, suffix="ForCausalLM") if head.suffix == "LMHeadModel" else head for head in BERT.heads
)


LM_HEAD = (
    *linear("lm_head.dense", H, H),
    *norm("lm_head.layer_norm", H),
    Weight("lm_head.bias", (V,), "zeros"),
)


LM_HEAD_TIED = {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"}


ROBERTA = Family(
    name="roberta",
    prefix="roberta",
    code=FamilyCode(module="roberta", model_type="roberta", class_prefix="Roberta", after_padding=True),
    embeddings=embeddings(H),
    layer=BERT_LAYER,
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForMaskedLM", "AutoModelForMaskedLM", LM_HEAD, False, LM_HEAD_TIED),
        Head("ForCausalLM", "AutoModelForCausalLM", LM_HEAD, False, LM_HEAD_TIED),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER_WITH_DENSE),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForMaskedLM",
    special_tokens=ANGLED,
)


CAMEMBERT = replace(
    ROBERTA,
    name="camembert",
    code=FamilyCode(module="camembert", model_type="camembert", class_prefix="Camembert", after_padding=True),
)


XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    code=FamilyCode(module="xlm_roberta", model_type="xlm-roberta", class_prefix="XLMRoberta", after_padding=True),
)


DATA2VEC_TEXT = replace(
    ROBERTA,
    name="data2vec-text",
    prefix="data2vec_text",
    code=FamilyCode(
        module="data2vec_text", model_type="data2vec-text", class_prefix="Data2VecText", after_padding=True
    ),
    tokenizer="RobertaTokenizer",
)


# Norms stand before attention and feed-forward, and one more after the last layer; the embeddings have none.
XLM_ROBERTA_XL = replace(
    ROBERTA,
    name="xlm-roberta-xl",
    code=FamilyCode(
        module="xlm_roberta_xl",
        model_type="xlm-roberta-xl",
        class_prefix="XLMRobertaXL",
        after_padding=True,
        model_lines=body(
            """
            def normalize(self, rows: Tensor) -> Tensor:
                return self.embeddings.dropout(rows)

            def final(self, x: Tensor) -> Tensor:
                return self.encoder.LayerNorm(x)
            """
        ),
    ),
    embeddings=tables(H),
    layer=(
        *pre_norm_attention("attention"),
        *when(is_set("add_cross_attention"), pre_norm_attention("crossattention")),
        *linear("intermediate.dense", H, INNER),
        *linear("output.dense", INNER, H),
        *norm("LayerNorm", H),
    ),
    final=norm("encoder.LayerNorm", H),
    tokenizer="XLMRobertaTokenizer",
    tokenizer_as_stored=True,
)


# Norms stand before attention and feed-forward, and one more after the last layer; the embeddings keep theirs.
ROBERTA_PRELAYERNORM = replace(
    ROBERTA,
    name="roberta-prelayernorm",
    prefix="roberta_prelayernorm",
    code=FamilyCode(
        module="roberta_prelayernorm",
        model_type="roberta-prelayernorm",
        class_prefix="RobertaPreLayerNorm",
        after_padding=True,
        model_lines=body(
            """
            def final(self, x: Tensor) -> Tensor:
                return self.LayerNorm(x)
            """
        ),
    ),
    layer=(
        *projections("attention"),
        *norm("attention.LayerNorm", H),
        *when(is_set("add_cross_attention"), (*projections("crossattention"), *norm("crossattention.LayerNorm", H))),
        *norm("intermediate.LayerNorm", H),
        *linear("intermediate.dense", H, INNER),
        *linear("output.dense", INNER, H),
    ),
    final=norm("LayerNorm", H),
    tokenizer="RobertaTokenizer",
)


TASK_TYPES = "embeddings.task_type_embeddings.weight"


ERNIE = replace(
    BERT,
    name="ernie",
    prefix="ernie",
    code=FamilyCode(
        module="ernie",
        model_type="ernie",
        class_prefix="Ernie",
        model_lines=('embedding_inputs = ("task_type_ids",)',),
    ),
    embeddings=(
        *tables(H),
        *when(is_set("use_task_id"), (Weight(TASK_TYPES, ("task_type_vocab_size", H)),)),
        *norm("embeddings.LayerNorm", H),
    ),
    token_types=(*BERT.token_types, TASK_TYPES),
    heads=CAUSAL_LM_HEADS,
    tokenizer="BertTokenizer",
)
