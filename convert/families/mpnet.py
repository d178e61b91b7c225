"""MPNet: BERT's layers under other names, with one bias for relative positions that all of them share."""

from __future__ import annotations

from .bert import LM_HEAD, LM_HEAD_TIED
from .code import FamilyCode
from .grammar import Family, Head, Weight, linear, norm
from .parts import ANGLED, CHOICE, CLASSIFIER, CLASSIFIER_WITH_DENSE, INNER, POOLER, QA_OUTPUTS, H, body, embeddings

MPNET = Family(
    name="mpnet",
    prefix="mpnet",
    code=FamilyCode(
        module="mpnet",
        model_type="mpnet",
        class_prefix="MPNet",
        special_positions=2,  # whatever pad_token_id says: the stock code has its own
        attention_path="attention.attn",
        projections=("q", "k", "v"),
        attention_lines=body(
            """
            def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
                return self.o(context)
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
                return self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds, position_ids=position_ids)

            def bias_by_distance(self) -> Tensor:
                table = self.encoder.relative_attention_bias  # of 32 buckets, the last one from distance 128 on
                distances = torch.arange(-128, 129, device=table.weight.device)
                return table(self.encoder.relative_position_bucket(distances)).T
            """
        ),
        score_bias=True,
    ),
    embeddings=(
        *embeddings(H, types=False),
        Weight("encoder.relative_attention_bias.weight", ("relative_attention_num_buckets", "num_attention_heads")),
    ),
    layer=(
        *(weight for name in "qkvo" for weight in linear(f"attention.attn.{name}", H, H)),
        *norm("attention.LayerNorm", H),
        *linear("intermediate.dense", H, INNER),
        *linear("output.dense", INNER, H),
        *norm("output.LayerNorm", H),
    ),
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForMaskedLM", "AutoModelForMaskedLM", LM_HEAD, False, LM_HEAD_TIED),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER_WITH_DENSE),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForMaskedLM",
    special_tokens=ANGLED,
    token_types=(),
    output_projection="attention.attn.o",
    score_bias="encoder.relative_attention_bias.weight",
)
