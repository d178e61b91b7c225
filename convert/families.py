"""One entry a family. To add one: where its tensors sit, its heads, and what its code does differently from BERT's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from textwrap import dedent

from .errors import BadInputError, UnsupportedError, UsageError
from .family import LABELS, Config, Family, Head, Size, Weight, is_set, linear, norm, number, numbered, when
from .modelcode import LSG_CODE, EncoderCode, FamilyCode
from .refusals import REFUSED, require_stock_code

# The config's own field names, as they stand in shapes.
H, V, E, INNER = "hidden_size", "vocab_size", "embedding_size", "intermediate_size"
D, FFN = "dim", "hidden_dim"  # DistilBERT's hidden and inner size
DM = "d_model"  # BART's hidden size


def body(text: str) -> tuple[str, ...]:
    """The lines of a rendered class's body, from an indented text; it may name `Tensor`, `Module` and `ModuleList`."""
    return tuple(dedent(text).strip().splitlines())


def tables(width: str, *, types: bool = True) -> tuple[Weight, ...]:
    """Word, position and (where a family has them) type embeddings."""
    return (
        Weight("embeddings.word_embeddings.weight", (V, width)),
        Weight("embeddings.position_embeddings.weight", ("max_position_embeddings", width)),
        *((Weight("embeddings.token_type_embeddings.weight", ("type_vocab_size", width)),) if types else ()),
    )


def embeddings(width: str, *, types: bool = True) -> tuple[Weight, ...]:
    """The tables, and the norm of their sum."""
    return (*tables(width, types=types), *norm("embeddings.LayerNorm", width))


def projections(path: str) -> tuple[Weight, ...]:
    """Query, key, value and output projection of a stock attention block of BERT."""
    names = ("self.query", "self.key", "self.value", "output.dense")
    return tuple(weight for name in names for weight in linear(f"{path}.{name}", H, H))


def attention(path: str) -> tuple[Weight, ...]:
    """A stock attention block of BERT: the projections, and the norm after them."""
    return (*projections(path), *norm(f"{path}.output.LayerNorm", H))


def pre_norm_attention(path: str) -> tuple[Weight, ...]:
    """The same with the norm before the projections."""
    return (*projections(path), *norm(f"{path}.self_attn_layer_norm", H))


BERT_LAYER = (
    *attention("attention"),
    *when(is_set("add_cross_attention"), attention("crossattention")),
    *linear("intermediate.dense", H, INNER),
    *linear("output.dense", INNER, H),
    *norm("output.LayerNorm", H),
)
POOLER = linear("pooler.dense", H, H)
CLASSIFIER = linear("classifier", H, LABELS)
CLASSIFIER_WITH_DENSE = (*linear("classifier.dense", H, H), *linear("classifier.out_proj", H, LABELS))
QA_OUTPUTS = linear("qa_outputs", H, LABELS)
CHOICE = linear("classifier", H, 1)
WORDS = "embeddings.word_embeddings.weight"
BRACKETED = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}
ANGLED = {"bos": "<s>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "pad": "<pad>"}

BERT_PREDICTIONS = (
    *linear("cls.predictions.transform.dense", H, H),
    *norm("cls.predictions.transform.LayerNorm", H),
    Weight("cls.predictions.bias", (V,), "zeros"),
)
BERT_TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}
BERT_NSP = linear("cls.seq_relationship", H, 2)

BERT = Family(
    name="bert",
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

LM_HEAD = (
    *linear("lm_head.dense", H, H),
    *norm("lm_head.layer_norm", H),
    Weight("lm_head.bias", (V,), "zeros"),
)
LM_HEAD_TIED = {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "lm_head.bias"}

ROBERTA = Family(
    name="roberta",
    prefix="roberta",
    code=FamilyCode(module="roberta", model_type="roberta", class_prefix="Roberta", special_positions=2),
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
    code=FamilyCode(module="camembert", model_type="camembert", class_prefix="Camembert", special_positions=2),
)
XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    code=FamilyCode(module="xlm_roberta", model_type="xlm-roberta", class_prefix="XLMRoberta", special_positions=2),
)
DATA2VEC_TEXT = replace(
    ROBERTA,
    name="data2vec-text",
    prefix="data2vec_text",
    code=FamilyCode(
        module="data2vec_text", model_type="data2vec-text", class_prefix="Data2VecText", special_positions=2
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
        special_positions=2,
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
    heads=tuple(replace(head, suffix="ForCausalLM") if head.suffix == "LMHeadModel" else head for head in BERT.heads),
    tokenizer="BertTokenizer",
)

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


def bart_attention(name: str) -> tuple[Weight, ...]:
    """A stock attention block of BART's kind: projections, output, norm."""
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        *(weight for part in projections for weight in linear(f"{name}.{part}", DM, DM)),
        *norm(f"{name}_layer_norm", DM),
    )


def bart_feed_forward(inner: str) -> tuple[Weight, ...]:
    return (*linear("fc1", DM, inner), *linear("fc2", inner, DM), *norm("final_layer_norm", DM))


def bart_embeddings(rows: Size, init: str = "normal", *, embedding_norm: bool, last_norm: bool) -> tuple[Weight, ...]:
    """Word embeddings, and what encoder and decoder each have around their layers."""
    return (
        Weight("shared.weight", (V, DM)),
        *(
            weight
            for part in ("encoder", "decoder")
            for weight in (
                Weight(f"{part}.embed_positions.weight", (rows, DM), init, computed=init == "sinusoids"),
                *(norm(f"{part}.layernorm_embedding", DM) if embedding_norm else ()),
                *(norm(f"{part}.layer_norm", DM) if last_norm else ()),
            )
        ),
    )


def two_more_positions(config: Config) -> int:
    """Rows of BART's position tables: the first two belong to no token, and the config does not count them."""
    return number(config, "max_position_embeddings") + 2


def bart_labels(config: Config) -> int:
    """BART's config has three labels where it names none."""
    return number({LABELS: 3, **config}, LABELS)


def generation_heads(classifier: tuple[Weight, ...]) -> tuple[Head, ...]:
    """The heads of BART and mBART; the classifiers read the decoder."""
    return (
        Head("Model", "AutoModel"),
        Head(
            "ForConditionalGeneration",
            "AutoModelForSeq2SeqLM",
            (Weight("final_logits_bias", (1, V), "zeros", computed=True),),
            tied={"lm_head.weight": "shared.weight"},
        ),
        Head(
            "ForCausalLM",
            "AutoModelForCausalLM",
            tied={"lm_head.weight": "decoder.embed_tokens.weight"},
        ),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", classifier),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", linear("qa_outputs", DM, 2)),
    )


def bart_classifier(labels: Size) -> tuple[Weight, ...]:
    return (
        *linear("classification_head.dense", DM, DM),
        *linear("classification_head.out_proj", DM, labels),
    )


BART_CODE = FamilyCode(
    module="bart",
    model_type="bart",
    class_prefix="Bart",
    layers_path="layers",
    attention_path="self_attn",
    projections=("q_proj", "k_proj", "v_proj"),
    attention_lines=body(
        """
        def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
            return self.out_proj(context)
        """
    ),
    encoder=EncoderCode(),
    decoder_heads=("ForCausalLM",),
)
BART = Family(
    name="bart",
    prefix="model",
    code=BART_CODE,
    embeddings=bart_embeddings(two_more_positions, embedding_norm=True, last_norm=False),
    layer=(*bart_attention("self_attn"), *bart_feed_forward("encoder_ffn_dim")),
    pooler=(),
    heads=generation_heads(bart_classifier(bart_labels)),
    default_head="ForConditionalGeneration",
    special_tokens=ANGLED,
    buffers=("encoder.version", "decoder.version"),
    words="shared.weight",
    positions="encoder.embed_positions.weight",
    token_types=(),
    global_embeddings="encoder.global_embeddings.weight",
    layer_paths=lambda config: numbered("encoder.layers", config, "encoder_layers"),
    hidden_size=DM,
    inner_size="encoder_ffn_dim",
    num_heads="encoder_attention_heads",
    output_projection="self_attn.out_proj",
    feed_forward="",
    decoder_layer=(
        *bart_attention("self_attn"),
        *bart_attention("encoder_attn"),
        *bart_feed_forward("decoder_ffn_dim"),
    ),
    decoder_layer_paths=lambda config: numbered("decoder.layers", config, "decoder_layers"),
    decoder_positions="decoder.embed_positions.weight",
    uncounted_positions=2,
    tied={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
)
MBART = replace(  # BARThez too, whose config says mbart
    BART,
    name="mbart",
    code=replace(
        BART_CODE, module="mbart", model_type="mbart", class_prefix="MBart", encoder=EncoderCode(last_norm=True)
    ),
    embeddings=bart_embeddings(two_more_positions, embedding_norm=True, last_norm=True),
    heads=generation_heads(bart_classifier(LABELS)),
)
PEGASUS = replace(
    BART,
    name="pegasus",
    code=replace(
        BART_CODE,
        module="pegasus",
        model_type="pegasus",
        class_prefix="Pegasus",
        encoder=EncoderCode(
            words="self.embed_tokens(input_ids) * self.embed_scale",
            places="self.embed_positions(words.shape[:2], first)",
            embedding_norm=False,
            last_norm=True,
        ),
    ),
    embeddings=bart_embeddings("max_position_embeddings", "sinusoids", embedding_norm=False, last_norm=True),
    heads=generation_heads(())[:3],  # it has no classifiers
    special_tokens={"eos": "</s>", "mask": "<mask_2>", "pad": "<pad>"},
    uncounted_positions=0,
)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(BERT, ROBERTA, CAMEMBERT, XLM_ROBERTA, ELECTRA, DISTILBERT, ALBERT),
        *(XLM_ROBERTA_XL, DATA2VEC_TEXT, ERNIE),
        *(BART, MBART, PEGASUS),
    )
}

# Families whose model is one encoder: what replaces attention alone takes them all.
ENCODERS = (
    *("bert", "roberta", "camembert", "xlm-roberta", "electra", "distilbert", "albert"),
    *("xlm-roberta-xl", "data2vec-text", "ernie"),
)
# Families with an encoder and a decoder that is left as it is.
ENCODER_DECODERS = ("bart", "mbart", "pegasus")


def family_of(
    config: Config,
    supported: Iterable[str] | None = None,
    *,
    again: str = "",
    brought: Family | None = None,
    own_code: bool = False,
) -> Family:
    """The family of a checkpoint from its config's model_type.

    Args:
        supported: names of families; all where None.
        again: the target whose own repos are taken, as the family that they were made from.
        brought: a family that only the target reads, whose `read_config` knows what its configs can say.
        own_code: whether a source with modeling code of its own is taken for what its model_type says.

    Raises:
        UnsupportedError: with the reason, and the families that are supported or what to use instead.
        BadInputError: the config contradicts itself.
    """
    from .converted import converted  # here, for it reads FAMILIES

    names = sorted(FAMILIES if supported is None else supported)
    before = converted(config)
    if before is not None and before.target != again:
        mend = "; effconv lsg upgrades and resizes it as it is" if before.target == LSG_CODE.name else ""
        raise UnsupportedError(
            f"the source was converted before: it is {before.target} already",
            where="config.json",
            hint=f"convert the dense checkpoint that it was made from{mend}",
        )
    model_type = before.family if before else config.get("model_type")
    if brought is not None:
        if model_type in brought.model_types:
            return brought
        names = sorted({*names, *brought.model_types} - {brought.name})
    if model_type not in names:
        reason, instead = REFUSED.get(str(model_type), ("", ""))
        raise UnsupportedError(
            (f"{model_type} is not supported: {reason}" if reason else f"the family {model_type!r} is not supported")
            if model_type
            else "config.json names no model_type",
            where="config.json: model_type",
            hint=(f"instead: {instead}; " if instead else "") + "supported: " + ", ".join(names),
        )
    if before is None and not own_code:
        require_stock_code(config)
    if (config.get("position_embedding_type") or "absolute") != "absolute":
        raise UnsupportedError(
            f"relative positions ({config['position_embedding_type']}) are not supported",
            where="config.json: position_embedding_type",
            hint="use a checkpoint with absolute positions",
        )
    if config.get("add_cross_attention") and not config.get("is_decoder"):
        raise BadInputError(
            "the config has cross-attention but is no decoder, which no model can be built from",
            where="config.json: add_cross_attention",
            hint="set is_decoder to true, or add_cross_attention to false and drop its tensors",
        )
    return FAMILIES[str(model_type)]


def asked_config(config: Config, family: Family, head: Head, architecture: str | None) -> Config:
    """The config for the head that was asked for: a causal one is a decoder's, in which no token sees a later one.

    Args:
        architecture: as it was asked for; None where the head is the source's own, which then stays what it is.

    Raises:
        UsageError: a head that reads whole texts was asked for, of a decoder that has another head.
    """
    if architecture is None or family.code.encoder:  # a decoder beside an encoder is causal in any case
        return config
    if head.causal:
        return {**config, "is_decoder": True}
    if config.get("is_decoder") and head.suffix != "Model" and head != head_of(config, family)[0]:
        raise UsageError(
            f"the source is a decoder, whose tokens see no later ones, and {head.suffix} reads whole texts",
            where="--architecture, config.json: is_decoder",
            hint="set is_decoder to false in config.json to let all tokens see each other, or name the class in "
            "config.json: architectures to keep it causal",
        )
    return config


def head_of(config: Config, family: Family, architecture: str | None = None) -> tuple[Head, str | None]:
    """The head to emit, and the source's own class name where it is not one of the family's.

    `architecture` may be a suffix (ForMaskedLM) or a class name (BertForMaskedLM, LSGBertForMaskedLM).
    """
    if architecture is not None:
        return family.head_asked_for(architecture), None
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        return family.head(family.default_head), None
    suffix = family.suffix_of(named[0])
    if any(head.suffix == suffix for head in family.heads):
        return family.head(suffix), None
    return family.head("Model"), named[0]
