"""One entry a family: where its tensors sit, what shape they have, which heads it comes with.

Names here are canonical: without the base model's prefix (`bert.`), `{i}` for the layer, `weight` and `bias` where old
checkpoints say `gamma` and `beta`. Shapes are written in the config's own field names. A target never describes a family
again: it reads these entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadInputError, UnsupportedError
from .modelcode import BERT_CODE, ROBERTA_CODE, FamilyCode

Config = Mapping[str, Any]
H, V, INNER, LABELS = "hidden_size", "vocab_size", "intermediate_size", "num_labels"


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the family: canonical name, shape in config fields, and how a new one starts.

    `init` is normal (N(0, initializer_range)), zeros or ones.
    """

    name: str
    shape: tuple[str | int, ...]
    init: str = "normal"


@dataclass(frozen=True, slots=True)
class Head:
    """A task class: the suffix of its name ("Model" for the base), its Auto class, and what it adds to the base.

    `tied` maps a parameter that is stored nowhere to the one it shares.
    """

    suffix: str
    auto: str
    weights: tuple[Weight, ...] = ()
    pooler: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture whose checkpoints effconv reads.

    Attributes:
        prefix: of the base model's tensors in a checkpoint with a head.
        embeddings, layer, pooler: tensors of the base model; `layer` once, with `{i}`.
        special_tokens: what its tokenizer calls them where the tokenizer's files do not say (they often do not).
        buffers: what old checkpoints store although a model builds it anew.
    """

    name: str
    prefix: str
    code: FamilyCode
    embeddings: tuple[Weight, ...]
    layer: tuple[Weight, ...]
    pooler: tuple[Weight, ...]
    heads: tuple[Head, ...]
    default_head: str
    special_tokens: Mapping[str, str]
    buffers: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
    words: str = "embeddings.word_embeddings.weight"
    positions: str = "embeddings.position_embeddings.weight"
    token_types: str | None = "embeddings.token_type_embeddings.weight"
    global_embeddings: str = "embeddings.global_embeddings.weight"

    @property
    def special_positions(self) -> int:
        """Rows of the position table that no token uses (RoBERTa: 2), counted in config.max_position_embeddings."""
        return self.code.special_positions

    def head(self, suffix: str) -> Head:
        """The head of that suffix.

        Raises:
            UnsupportedError: with the heads there are.
        """
        for head in self.heads:
            if head.suffix == suffix:
                return head
        raise UnsupportedError(
            f"{self.name} has no head {suffix!r}",
            where="--architecture",
            hint="one of " + ", ".join(head.suffix for head in self.heads),
        )

    def class_name(self, head: Head) -> str:
        """The stock transformers class, such as BertForMaskedLM."""
        return self.code.class_prefix + head.suffix

    def is_head_weight(self, name: str) -> bool:
        return any(weight.name == name for head in self.heads for weight in head.weights) or any(
            name in head.tied for head in self.heads
        )

    def base_weights(self, config: Config) -> list[Weight]:
        """Embeddings and all layers, in order, `{i}` filled in."""
        layers = range(number(config, "num_hidden_layers", most=10_000))
        return [
            *self.embeddings,
            *(Weight(weight.name.format(i=i), weight.shape, weight.init) for i in layers for weight in self.layer),
        ]

    def head_weights(self, head: Head) -> list[Weight]:
        """What the class stores beyond embeddings and layers."""
        return [*(self.pooler if head.pooler else ()), *head.weights]

    def weights(self, config: Config, head: Head) -> list[Weight]:
        """Every tensor that the class stores."""
        return [*self.base_weights(config), *self.head_weights(head)]


def number(config: Config, name: str, most: int = 1 << 31) -> int:
    """A size from the config.

    Args:
        most: what is larger is no size: a hostile config shall not make us count to it.

    Raises:
        BadInputError: where it is missing or no positive integer.
    """
    value = config.get(name)
    if name == LABELS:
        labels = config.get("id2label")
        value = len(labels) if isinstance(labels, dict) and labels else 2 if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise BadInputError(f"{name} is {value!r}, not a size", where="config.json", hint="fetch the file again")
    return value


def shape_of(weight: Weight, config: Config) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else number(config, size) for size in weight.shape)


def linear(name: str, inputs: str | int, outputs: str | int, *, bias: bool = True) -> tuple[Weight, ...]:
    """weight (outputs, inputs) and bias (outputs,) of a dense layer."""
    weight = Weight(f"{name}.weight", (outputs, inputs))
    return (weight, Weight(f"{name}.bias", (outputs,), "zeros")) if bias else (weight,)


def norm(name: str, size: str | int) -> tuple[Weight, ...]:
    return Weight(f"{name}.weight", (size,), "ones"), Weight(f"{name}.bias", (size,), "zeros")


BERT_EMBEDDINGS = (
    Weight("embeddings.word_embeddings.weight", (V, H)),
    Weight("embeddings.position_embeddings.weight", ("max_position_embeddings", H)),
    Weight("embeddings.token_type_embeddings.weight", ("type_vocab_size", H)),
    *norm("embeddings.LayerNorm", H),
)
BERT_LAYER = (
    *linear("encoder.layer.{i}.attention.self.query", H, H),
    *linear("encoder.layer.{i}.attention.self.key", H, H),
    *linear("encoder.layer.{i}.attention.self.value", H, H),
    *linear("encoder.layer.{i}.attention.output.dense", H, H),
    *norm("encoder.layer.{i}.attention.output.LayerNorm", H),
    *linear("encoder.layer.{i}.intermediate.dense", H, INNER),
    *linear("encoder.layer.{i}.output.dense", INNER, H),
    *norm("encoder.layer.{i}.output.LayerNorm", H),
)
BERT_POOLER = linear("pooler.dense", H, H)
BERT_PREDICTIONS = (
    *linear("cls.predictions.transform.dense", H, H),
    *norm("cls.predictions.transform.LayerNorm", H),
    Weight("cls.predictions.bias", (V,), "zeros"),
)
BERT_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
BERT_NSP = linear("cls.seq_relationship", H, 2)
CLASSIFIER = linear("classifier", H, LABELS)
QA_OUTPUTS = linear("qa_outputs", H, 2)
CHOICE = linear("classifier", H, 1)

BERT = Family(
    name="bert",
    prefix="bert",
    code=BERT_CODE,
    embeddings=BERT_EMBEDDINGS,
    layer=BERT_LAYER,
    pooler=BERT_POOLER,
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
    special_tokens={"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"},
)

ROBERTA_LM_HEAD = (
    *linear("lm_head.dense", H, H),
    *norm("lm_head.layer_norm", H),
    Weight("lm_head.bias", (V,), "zeros"),
)
ROBERTA_TIED = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
ROBERTA_CLASSIFIER = (*linear("classifier.dense", H, H), *linear("classifier.out_proj", H, LABELS))

ROBERTA = Family(
    name="roberta",
    prefix="roberta",
    code=ROBERTA_CODE,
    embeddings=BERT_EMBEDDINGS,
    layer=BERT_LAYER,
    pooler=BERT_POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForMaskedLM", "AutoModelForMaskedLM", ROBERTA_LM_HEAD, False, ROBERTA_TIED),
        Head("ForCausalLM", "AutoModelForCausalLM", ROBERTA_LM_HEAD, False, ROBERTA_TIED),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", ROBERTA_CLASSIFIER),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", QA_OUTPUTS),
    ),
    default_head="ForMaskedLM",
    special_tokens={"bos": "<s>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "pad": "<pad>"},
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (BERT, ROBERTA)}


def family_of(config: Config, supported: Iterable[str] | None = None) -> Family:
    """The family of a checkpoint from its config's model_type.

    Raises:
        UnsupportedError: with the families that are supported.
    """
    names = sorted(FAMILIES if supported is None else supported)
    model_type = config.get("model_type")
    if model_type not in names:
        raise UnsupportedError(
            f"the family {model_type!r} is not supported" if model_type else "config.json names no model_type",
            where="config.json: model_type",
            hint="supported: " + ", ".join(names),
        )
    if (config.get("position_embedding_type") or "absolute") != "absolute":
        raise UnsupportedError(
            f"relative positions ({config['position_embedding_type']}) are not supported",
            where="config.json: position_embedding_type",
            hint="use a checkpoint with absolute positions",
        )
    if config.get("add_cross_attention"):
        raise UnsupportedError(
            "decoders with cross-attention are not supported",
            where="config.json: add_cross_attention",
            hint="convert the encoder",
        )
    return FAMILIES[str(model_type)]


def head_of(config: Config, family: Family, architecture: str | None = None) -> tuple[Head, str | None]:
    """The head to emit, and the source's own class name where it is not one of the family's.

    `architecture` may be a suffix (ForMaskedLM) or a class name (BertForMaskedLM, LSGBertForMaskedLM).
    """
    if architecture is not None:
        return family.head(architecture.rpartition(family.code.class_prefix)[2]), None
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return family.head(family.default_head), None
    suffix = named[0].rpartition(family.code.class_prefix)[2]
    if any(head.suffix == suffix for head in family.heads):
        return family.head(suffix), None
    return family.head("Model"), named[0]
