"""BART, mBART and Pegasus: encoder and decoder, of which the encoder is converted."""

from __future__ import annotations

from dataclasses import replace

from .code import EncoderCode, FamilyCode
from .grammar import LABELS, Config, Family, Head, Size, Weight, linear, norm, number, numbered
from .parts import ANGLED, DM, V, body


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
