"""ALBERT: one stored layer stands for several."""

from __future__ import annotations

from .code import FamilyCode
from .grammar import LABELS, Config, Family, Head, Weight, linear, norm, number, numbered
from .parts import BRACKETED, CHOICE, CLASSIFIER, INNER, QA_OUTPUTS, WORDS, E, H, V, body, embeddings

ALBERT_PREDICTIONS = (
    Weight("predictions.bias", (V,), "zeros"),
    *norm("predictions.LayerNorm", E),
    *linear("predictions.dense", H, E),
)


ALBERT_TIED = {"predictions.decoder.weight": WORDS, "predictions.decoder.bias": "predictions.bias"}


def albert_layers(config: Config) -> list[str]:
    """Groups of layers; a layer of a group is run several times."""
    groups = numbered("encoder.albert_layer_groups", {"num_hidden_groups": 1, **config}, "num_hidden_groups")
    return [
        path
        for group in groups
        for path in numbered(f"{group}.albert_layers", {"inner_group_num": 1, **config}, "inner_group_num")
    ]


def albert_runs(config: Config) -> list[str]:
    """The groups in the order of the config's layers."""
    layers, runs = albert_layers(config), number(config, "num_hidden_layers", most=10_000)
    groups = number({"num_hidden_groups": 1, **config}, "num_hidden_groups")
    size = len(layers) // groups
    return [path for run in range(runs) for path in layers[run * groups // runs * size :][:size]]


ALBERT = Family(
    name="albert",
    types_in_globals=True,
    prefix="albert",
    code=FamilyCode(
        module="albert",
        model_type="albert",
        class_prefix="Albert",
        layers_path="",
        attention_path="attention",
        attention_lines=body(
            """
            def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
                return self.LayerNorm(hidden_states + self.output_dropout(self.dense(context)))
            """
        ),
        model_lines=body(
            """
            projects_padding = True

            def layer_lists(self) -> list[ModuleList]:
                return [group.albert_layers for group in self.encoder.albert_layer_groups]

            def order(self) -> list[Module]:
                groups, runs = self.encoder.albert_layer_groups, self.config.num_hidden_layers
                chosen = (groups[int(run / (runs / len(groups)))] for run in range(runs))  # rounded as in stock
                return [layer for group in chosen for layer in group.albert_layers]

            def project(self, x: Tensor) -> Tensor:
                return self.encoder.embedding_hidden_mapping_in(x)

            def pool(self, x: Tensor) -> Tensor | None:
                return None if self.pooler is None else self.pooler_activation(self.pooler(x[:, 0]))
            """
        ),
    ),
    embeddings=(*embeddings(E), *linear("encoder.embedding_hidden_mapping_in", E, H)),
    layer=(
        *norm("full_layer_layer_norm", H),
        *(weight for name in ("query", "key", "value", "dense") for weight in linear(f"attention.{name}", H, H)),
        *norm("attention.LayerNorm", H),
        *linear("ffn", H, INNER),
        *linear("ffn_output", INNER, H),
    ),
    pooler=linear("pooler", H, H),
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head(
            "ForPreTraining",
            "AutoModelForPreTraining",
            (*ALBERT_PREDICTIONS, *linear("sop_classifier.classifier", H, LABELS)),
            True,
            ALBERT_TIED,
        ),
        Head("ForMaskedLM", "AutoModelForMaskedLM", ALBERT_PREDICTIONS, False, ALBERT_TIED),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER, True),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForPreTraining",
    special_tokens={**BRACKETED, "bos": "[CLS]", "pad": "<pad>"},
    layer_paths=albert_layers,
    output_projection="attention.dense",
    run_order=albert_runs,
    feed_forward="",
)
