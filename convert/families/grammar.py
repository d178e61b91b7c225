"""The grammar of a family: where its tensors sit, what shape they have, which heads it comes with.

Names here are canonical: without the base model's prefix (`bert.`), those of a layer relative to it, `weight` and
`bias` where old checkpoints say `gamma` and `beta`. Shapes are written in the config's own field names. A target never
describes a family again: it reads the entries in `families`. One file of a little over 400 lines: the parts of an entry
are read together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BadInputError, UnsupportedError, UsageError, did_you_mean
from .code import FamilyCode
from .flax_names import FlaxNames, is_flax

Config = Mapping[str, Any]
Condition = Callable[[Config], bool]
Size = str | int | Callable[[Config], int]  # of an axis: a field of the config, a number, or what gives one
LABELS = "num_labels"
CAUSAL_AUTO = "AutoModelForCausalLM"
# What a family may need of a target, and how a message says it.
SCORE_BIAS, DECODER = "score_bias", "decoder"
NEEDS: Mapping[str, str] = {
    SCORE_BIAS: "its attention adds a bias to the scores",
    DECODER: "it has a decoder beside its encoder",
}


def always(config: Config) -> bool:
    """The condition that every config meets."""
    return True


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the family: canonical name, shape in config fields, and how a new one starts.

    `init` is one of those of `ops.New`; `dtype` is set where it is not the other tensors'. `when` says of which
    configs a model has the tensor. One that is `computed` is never trained: where the source lacks it, or has it in
    another length, it is what `init` says (one of those of `ops.Computed`). `uncast` is why it keeps its type where the
    others are cast; "" for one that is cast with them. `std` names the emitted config's field with the deviation of a
    normal start, where that is not `initializer_range`.
    """

    name: str
    shape: tuple[Size, ...]
    init: str = "normal"
    dtype: str = ""
    when: Condition = always
    computed: bool = False
    uncast: str = ""
    std: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """A task class: the suffix of its name ("Model" for the base), its Auto class, and what it adds to the base.

    `tied` maps a parameter that is stored nowhere to the one it shares. `stock_auto` is the Auto class of the stock
    model, where that is another than the repo's.
    """

    suffix: str
    auto: str
    weights: tuple[Weight, ...] = ()
    pooler: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)
    stock_auto: str = ""

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token, so that no token may see a later one."""
        return self.auto == CAUSAL_AUTO


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture whose checkpoints effconv reads.

    Attributes:
        prefix: of the base model's tensors in a checkpoint with a head.
        embeddings, layer, final, pooler: tensors of the base model; `layer` once, relative to a layer's path; `final`
            comes after the last one.
        further: those of which a list in the config says what there is, with their full names.
        decoder_layer: likewise of a decoder beside the encoder.
        layer_paths: paths of the layers that have tensors of their own, from the config.
        decoder_layer_paths: of the decoder's.
        tied: parameters of the base model that are stored nowhere, and those they share.
        uncounted_positions: rows of a position table that no token uses and config.max_position_embeddings does not
            count (BART: 2).
        run_order: paths of the layers as they run, where one that is shared runs several times.
        feed_forward: path from a layer to what a gated feed-forward gets its gate in ("" for the layer itself).
        positions, decoder_positions: position tables; "" where there is none.
        hidden_size, inner_size, num_heads, head_size: what the config calls them; "" for a head_size that follows.
        output_projection: path from a layer to the dense layer that its heads' outputs are fed to.
        tokenizer: the class of its tokenizer, where it is not named as the family.
        tokenizer_as_stored: whether transformers 5 takes its tokenizer.json as it stands, whatever class is named.
        special_tokens: what its tokenizer calls them where the tokenizer's files do not say (they often do not).
        stand_ins: tokens of the vocabulary in the place of special tokens that its tokenizers have none for.
        token_types: embeddings whose first row every token gets unless other ids are given.
        buffers: what old checkpoints store although a model builds it anew.
        same: parameters that are one tensor with another whatever the config ties, and that other.
        model_types: of its configs, where they are not its name.
        read_config: the source's config with what it may leave out; raises BadInputError for one that cannot be.
        flax: how JAX checkpoints store it, where effconv reads them.
        needs: what a target must be able to do for it, of `NEEDS`, beyond what follows from the rest of the entry.
        score_bias: the table (buckets, heads) of the bias on scores, where the family has one.
        types_in_globals: whether token type 0 is part of every embedding, and so of LSG's global tokens too.
        wholes: classes of larger models of which this family is a part.
        left_behind: why tensors of the rest of them are dropped, by what their names begin with.
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
    final: tuple[Weight, ...] = ()
    buffers: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
    words: str = "embeddings.word_embeddings.weight"
    positions: str = "embeddings.position_embeddings.weight"
    token_types: tuple[str, ...] = ("embeddings.token_type_embeddings.weight",)
    global_embeddings: str = "embeddings.global_embeddings.weight"
    layer_paths: Callable[[Config], list[str]] = lambda config: numbered("encoder.layer", config, "num_hidden_layers")
    run_order: Callable[[Config], list[str]] | None = None
    feed_forward: str = "intermediate"
    hidden_size: str = "hidden_size"
    inner_size: str = "intermediate_size"
    num_heads: str = "num_attention_heads"
    head_size: str = ""
    output_projection: str = "attention.output.dense"
    further: Callable[[Config], Iterable[Weight]] = lambda config: ()
    tokenizer: str = ""
    tokenizer_as_stored: bool = False
    decoder_layer: tuple[Weight, ...] = ()
    decoder_layer_paths: Callable[[Config], list[str]] = lambda config: []
    decoder_positions: str = ""
    uncounted_positions: int = 0
    tied: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    model_types: tuple[str, ...] = ()
    read_config: Callable[[Config], Config] = lambda config: config
    flax: FlaxNames | None = None
    needs: frozenset[str] = frozenset()
    score_bias: str = ""
    types_in_globals: bool = False
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    wholes: tuple[str, ...] = ()
    left_behind: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        said = (bool(self.score_bias), self.code.score_bias, self.code.score_bias or SCORE_BIAS in self.needs)
        if len(set(said)) > 1:  # the code of a repo would leave the bias out
            raise ValueError(f"{self.name}: a bias on scores takes both `score_bias`, its table, and `code.score_bias`")

    @property
    def requirements(self) -> frozenset[str]:
        """Everything that a target must be able to do for it."""
        implied = {DECODER: self.code.encoder is not None, SCORE_BIAS: self.code.score_bias}
        return self.needs | {need for need, present in implied.items() if present}

    def canonical_name(self, stored: str) -> str | None:
        """The canonical name of a stored tensor of either side; None for a JAX name that no model has."""
        if self.flax and is_flax(stored):
            return self.flax.canonical(stored)
        name = stored.removeprefix(f"{self.prefix}.")
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    def flax_name(self, name: str, head: Head) -> str:
        """What a JAX checkpoint of the class calls a tensor: only a model with a head has the base's prefix."""
        assert self.flax is not None
        inside = head.suffix != "Model" and not self.is_head_weight(name)
        return f"{self.flax.prefix}/{self.flax.name(name)}" if inside else self.flax.name(name)

    @property
    def tokenizer_class(self) -> str:
        """The tokenizer of a source that names none."""
        return self.tokenizer or f"{self.code.class_prefix}Tokenizer"

    def special_positions(self, config: Config) -> int:
        """Rows of the position table that no token uses (RoBERTa: 2), counted in config.max_position_embeddings.

        Raises:
            BadInputError: they depend on the id of the padding token, and the config has none.
        """
        if not self.code.after_padding:
            return self.code.special_positions
        padding = config.get("pad_token_id", 1)  # what the config classes of these families have where it says nothing
        if type(padding) is not int or padding < 0:
            raise BadInputError(
                f"positions of {self.name} begin behind pad_token_id, which is {padding!r}",
                where="config.json: pad_token_id",
                hint="set it to the id of the padding token with which the model was trained",
            )
        return padding + 1

    def special_rows(self, config: Config) -> int:
        """Leading rows of a position table that no token uses, whether the config counts them or not."""
        return self.special_positions(config) + self.uncounted_positions

    def longest(self, config: Config) -> int:
        """How many tokens a model of this config takes.

        Raises:
            BadInputError: the config does not say it, or leaves no position for a token.
        """
        rows, special = number(config, "max_position_embeddings"), self.special_positions(config)
        if rows <= special:
            raise BadInputError(
                f"max_position_embeddings is {rows}, but the first {special} positions of {self.name} are no token's",
                where="config.json: max_position_embeddings, pad_token_id",
                hint="correct config.json, or download it again",
            )
        return rows - special

    @property
    def computes_positions(self) -> bool:
        """Whether positions are computed (sinusoids), not learned."""
        return any(weight.computed for weight in self.embeddings if weight.name == self.positions)

    def part(self, head: Head) -> str:
        """Path of the part of the base model that a class consists of; "" where it has the whole."""
        return "decoder" if head.suffix in self.code.decoder_heads else ""

    def position_tables(self, head: Head) -> list[str]:
        """The position tables that a class has."""
        tables = (self.positions, self.decoder_positions)
        return [name for name in tables if name and name.startswith(self.part(head))]

    def tied_weights(self, head: Head) -> dict[str, str]:
        """Parameters of a class that are stored nowhere, and those they share."""
        return {**({} if self.part(head) else self.tied), **head.tied}

    def head(self, suffix: str) -> Head:
        """The head of that suffix.

        Raises:
            UnsupportedError: with the heads there are.
        """
        for head in self.heads:
            if head.suffix == suffix:
                return head
        raise UnsupportedError(
            f"{self.name} has no head {suffix!r}", where="config.json: architectures", hint=self._heads_there_are()
        )

    def head_asked_for(self, architecture: str, target: str = "") -> Head:
        """The head that `--architecture` names, by its suffix (ForMaskedLM) or a class (BertForMaskedLM).

        Args:
            target: whose classes are understood too (LSGBertForMaskedLM).

        Raises:
            UsageError: with the heads there are.
        """
        suffix = self.suffix_of(architecture, target)
        if all(head.suffix != suffix for head in self.heads):
            causal = [head.suffix for head in self.heads if head.causal]
            if "causal" in suffix.lower() and causal:  # whose name may be nothing like it, such as LMHeadModel
                meant = f". Its causal head is {causal[0]}"
            else:
                meant = did_you_mean(suffix, [head.suffix for head in self.heads])
            raise UsageError(
                f"{self.name} has no head {suffix!r}{meant}",
                where="--architecture",
                hint=self._heads_there_are(),
            )
        return self.head(suffix)

    def suffix_of(self, name: str, target: str = "") -> str:
        """The suffix of a class of this family, of its twin in another framework, or of the target's; else the name."""
        before, _, suffix = name.rpartition(self.code.class_prefix)
        return suffix if before.lower() in ("", "tf", "flax", target) else name

    def _heads_there_are(self) -> str:
        return "use one of " + ", ".join(head.suffix for head in self.heads)

    def head_width(self, config: Config) -> int:
        """Channels of one attention head.

        Raises:
            BadInputError: the heads do not divide the hidden size.
        """
        if self.head_size:
            return number(config, self.head_size)
        hidden, heads = number(config, self.hidden_size), number(config, self.num_heads)
        if hidden % heads:
            raise BadInputError(
                f"{self.hidden_size} must be a multiple of {self.num_heads}, got {hidden} and {heads}",
                where="config.json",
                hint="correct config.json, or download it again",
            )
        return hidden // heads

    def class_name(self, head: Head) -> str:
        """The stock transformers class, such as BertForMaskedLM."""
        return self.code.class_prefix + head.suffix

    def stock_auto(self, auto: str) -> str:
        """The Auto class that loads the stock model of the head whose repos are loaded by `auto`."""
        return next((head.stock_auto for head in self.heads if head.auto == auto and head.stock_auto), auto)

    def why_left_behind(self, name: str) -> str:
        """Why a tensor is dropped that belongs to the rest of a larger model; "" for any other."""
        return next((why for start, why in self.left_behind.items() if name.startswith(start)), "")

    def is_head_weight(self, name: str) -> bool:
        return any(name in head.tied or any(name == weight.name for weight in head.weights) for head in self.heads)

    def base_weights(self, config: Config, part: str = "") -> list[Weight]:
        """Embeddings and all layers, in order, with their full names; of one part of the model only, if asked for.

        A part has tensors of its own where the whole model shares one.
        """
        stacks = (
            (self.layer_paths(config), self.layer),
            (self.decoder_layer_paths(config), self.decoder_layer),
        )
        shared = {weight.name: weight for weight in self.embeddings}
        weights = [
            *self.embeddings,
            *(replace(shared[name], name=alias) for alias, name in self.tied.items() if part),
            *(
                replace(weight, name=f"{path}.{weight.name}")
                for paths, layer in stacks
                for path in paths
                for weight in layer
            ),
            *(self.final if not part else ()),
            *self.further(config),
        ]
        inside = f"{part}." if part else ""
        return [weight for weight in weights if weight.when(config) and weight.name.startswith(inside)]

    def run_paths(self, config: Config) -> list[str]:
        """Paths of the layers in the order in which they run."""
        return (self.run_order or self.layer_paths)(config)

    def head_weights(self, head: Head) -> list[Weight]:
        """What the class may store beyond embeddings and layers."""
        return [*(self.pooler if head.pooler else ()), *head.weights]

    def weights(self, config: Config, head: Head) -> list[Weight]:
        """Every tensor that the class stores."""
        own = (weight for weight in self.head_weights(head) if weight.when(config))
        return [*self.base_weights(config, self.part(head)), *own]


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
        what = f"{name} must be a positive integer of at most {most:,}, got {value!r}"
        what = f"config.json has no {name}" if value is None else what
        raise BadInputError(what, where="config.json", hint="correct config.json, or download it again")
    return value


def shape_of(weight: Weight, config: Config) -> tuple[int, ...]:
    return tuple(
        size if isinstance(size, int) else number(config, size) if isinstance(size, str) else size(config)
        for size in weight.shape
    )


def numbered(path: str, config: Config, field: str) -> list[str]:
    """`path.0`, `path.1`, ...: as many as the config's field says."""
    return [f"{path}.{i}" for i in range(number(config, field, most=10_000))]


def linear(name: str, inputs: Size, outputs: Size, *, bias: bool = True) -> tuple[Weight, ...]:
    """Weight (outputs, inputs) and bias (outputs,) of a dense layer."""
    weight = Weight(f"{name}.weight", (outputs, inputs))
    return (weight, Weight(f"{name}.bias", (outputs,), "zeros")) if bias else (weight,)


def norm(name: str, size: Size) -> tuple[Weight, ...]:
    return Weight(f"{name}.weight", (size,), "ones"), Weight(f"{name}.bias", (size,), "zeros")


def when(condition: Condition, weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """The weights, for models whose config meets the condition."""
    return tuple(replace(weight, when=condition) for weight in weights)


def is_set(field: str, default: bool = False) -> Condition:
    """The condition that the config sets the field; `default` is what its absence means."""
    return lambda config: bool(config.get(field, default))
