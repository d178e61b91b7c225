"""The encoders of T5 and mT5: no position table, one bias for relative positions in all layers, scores unscaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .code import FamilyCode
from .grammar import Condition, Config, Family, Head, Weight, linear, number, numbered, when
from .parts import DM, V, body

ATTENTION = "layer.0.SelfAttention"
BIAS = f"encoder.block.0.{ATTENTION}.relative_attention_bias.weight"
DECODER = "part of the decoder: only the encoder is converted"
LENGTH = 512  # tokens of pre-training, for configs without n_positions: the encoder takes any number


def attention_width(config: Config) -> int:
    """Channels of all heads together, which need not be those of a state."""
    return number(config, "num_heads") * number(config, "d_kv")


def gated(config: Config) -> bool:
    """Whether the feed-forward has a gate."""
    return bool(config.get("is_gated_act", str(config.get("feed_forward_proj")).startswith("gated-")))


def not_gated(config: Config) -> bool:
    return not gated(config)


def rms_norm(name: str) -> Weight:
    """A norm that neither centres nor shifts."""
    return Weight(f"{name}.weight", (DM,), "ones")


def feed_forward(names: tuple[str, ...], condition: Condition) -> tuple[Weight, ...]:
    path = "layer.1.DenseReluDense"
    return when(condition, (w for name in names for w in linear(f"{path}.{name}", DM, "d_ff", bias=False)))


def reader(feed_forward_proj: str) -> Callable[[Config], Config]:
    """`Family.read_config`: old configs leave out what their class has a default for.

    The encoder alone is no encoder-decoder model. Its embeddings are one tensor, whatever `tie_word_embeddings` says:
    that is of the decoder's head.
    """
    defaults = {
        "d_kv": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": feed_forward_proj,
    }

    def read(config: Config) -> Config:
        stated = {name: value for name, value in config.items() if name != "n_positions"}
        usual = {**defaults, "max_position_embeddings": config.get("n_positions") or LENGTH}
        missing = {name: value for name, value in usual.items() if name not in stated}
        return {**stated, **missing, "is_encoder_decoder": False, "tie_word_embeddings": True}

    return read


def whole_classes(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{suffix}" for suffix in ("ForConditionalGeneration", "Model", "WithLMHeadModel"))


T5_CODE = FamilyCode(
    module="t5",
    model_type="t5",
    class_prefix="T5Encoder",
    config_fields=("t5_configuration", "T5EncoderFields"),
    stock_config="T5Config",
    stock_parts=("T5Attention",),
    layers_path="encoder.block",
    attention_path=ATTENTION,
    projections=("q", "k", "v"),
    attention_lines=body(
        """
        scaled = False

        def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
            return self.o(context)
        """
    ),
    model_lines=body(
        """
        def globals_module(self) -> Module:
            return self.encoder

        def embed(
            self,
            input_ids: Tensor | None,
            inputs_embeds: Tensor | None,
            token_type_ids: Tensor | None,
            position_ids: Tensor | None,
        ) -> Tensor:
            return self.normalize(self.shared(input_ids) if inputs_embeds is None else inputs_embeds)

        def normalize(self, rows: Tensor) -> Tensor:
            return self.encoder.dropout(rows)

        def final(self, x: Tensor) -> Tensor:
            return self.encoder.dropout(self.encoder.final_layer_norm(x))

        def bias_by_distance(self) -> Tensor:
            table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
            buckets, reach = self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
            distances = torch.arange(-reach, reach + 1, device=table.weight.device)
            return table(T5Attention._relative_position_bucket(distances, True, buckets, reach)).T

        def run(self, layer: Module, x: Tensor, mask: Tensor | tuple | None, *_: Tensor | None) -> Tensor:
            return layer(x, mask, self.attention_bias())[0]  # no head mask in between, in either version
        """
    ),
    score_bias=True,
)


T5 = Family(
    name="t5",
    prefix="transformer",
    code=T5_CODE,
    embeddings=(
        Weight("shared.weight", (V, DM)),
        Weight(BIAS, ("relative_attention_num_buckets", "num_heads")),
    ),
    layer=(
        *(weight for name in "qkv" for weight in linear(f"{ATTENTION}.{name}", DM, attention_width, bias=False)),
        *linear(f"{ATTENTION}.o", attention_width, DM, bias=False),
        rms_norm("layer.0.layer_norm"),
        *feed_forward(("wi_0", "wi_1"), gated),
        *feed_forward(("wi",), not_gated),
        *linear("layer.1.DenseReluDense.wo", "d_ff", DM, bias=False),
        rms_norm("layer.1.layer_norm"),
    ),
    final=(rms_norm("encoder.final_layer_norm"),),
    pooler=(),
    heads=(Head("Model", "AutoModel", stock_auto="AutoModelForTextEncoding"),),
    default_head="Model",
    special_tokens={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
    stand_ins={"bos": "</s>", "mask": "<extra_id_0>"},
    tokenizer="T5Tokenizer",
    buffers=(),
    words="shared.weight",
    positions="",
    token_types=(),
    global_embeddings="encoder.global_embeddings.weight",
    layer_paths=lambda config: numbered("encoder.block", config, "num_layers"),
    feed_forward="layer.1.DenseReluDense",
    hidden_size=DM,
    inner_size="d_ff",
    num_heads="num_heads",
    head_size="d_kv",
    output_projection=f"{ATTENTION}.o",
    tied={"encoder.embed_tokens.weight": "shared.weight"},
    same={"encoder.embed_tokens.weight": "shared.weight"},
    read_config=reader("relu"),
    wholes=whole_classes("T5"),
    left_behind={"decoder.": DECODER, "lm_head.": DECODER},
    score_bias=BIAS,
)


MT5 = replace(
    T5,
    name="mt5",
    code=replace(
        T5_CODE,
        module="mt5",
        model_type="mt5",
        class_prefix="MT5Encoder",
        stock_config="MT5Config",
        stock_parts=("MT5Attention",),
        model_lines=tuple(line.replace("T5Attention", "MT5Attention") for line in T5_CODE.model_lines),
    ),
    stand_ins={"bos": "</s>", "mask": "▁<extra_id_0>"},  # a piece of its vocabulary, not an added token
    read_config=reader("gated-gelu"),
    wholes=whole_classes("MT5"),
)
