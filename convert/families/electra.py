"""ELECTRA: generator and discriminator, whose embeddings may be narrower than the layers."""

from __future__ import annotations

from .bert import BERT_LAYER
from .code import FamilyCode
from .grammar import Config, Family, Head, Weight, is_set, linear, norm, when
from .parts import BRACKETED, CHOICE, CLASSIFIER, CLASSIFIER_WITH_DENSE, QA_OUTPUTS, WORDS, E, H, V, body, embeddings

ELECTRA_PREDICTIONS = (
    *norm("generator_predictions.LayerNorm", E),
    *linear("generator_predictions.dense", H, E),
    Weight("generator_lm_head.bias", (V,), "zeros"),
)


ELECTRA_TIED = {"generator_lm_head.weight": WORDS}


ELECTRA_DISCRIMINATOR = (
    *linear("discriminator_predictions.dense", H, H),
    *linear("discriminator_predictions.dense_prediction", H, 1),
)


def has_two_sizes(config: Config) -> bool:
    """Whether the embeddings are projected to the hidden size: between equal sizes there is no projection."""
    return config.get(E) != config.get(H)


ELECTRA = Family(
    name="electra",
    types_in_globals=True,
    prefix="electra",
    code=FamilyCode(
        module="electra",
        model_type="electra",
        class_prefix="Electra",
        model_lines=body(
            """
            def project(self, x: Tensor) -> Tensor:
                return self.embeddings_project(x) if hasattr(self, "embeddings_project") else x
            """
        ),
    ),
    embeddings=(*embeddings(E), *when(has_two_sizes, linear("embeddings_project", E, H))),
    layer=BERT_LAYER,
    pooler=(),
    heads=(
        Head("Model", "AutoModel"),
        Head("ForPreTraining", "AutoModelForPreTraining", ELECTRA_DISCRIMINATOR),
        Head("ForMaskedLM", "AutoModelForMaskedLM", ELECTRA_PREDICTIONS, False, ELECTRA_TIED),
        Head("ForCausalLM", "AutoModelForCausalLM", ELECTRA_PREDICTIONS, False, ELECTRA_TIED),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER_WITH_DENSE),
        Head(
            "ForMultipleChoice",
            "AutoModelForMultipleChoice",
            (*when(is_set("summary_use_proj", True), linear("sequence_summary.summary", H, H)), *CHOICE),
        ),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForPreTraining",
    special_tokens=BRACKETED,
)
