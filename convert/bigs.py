"""BiGS between JAX and torch, and to another length: names, shapes, plan and configs of both sides.

A tensor has one canonical name, the torch one without the base model's prefix. `NAMES` pairs it with the JAX name and
the operation between the two, which is its own inverse; everything else here follows from that table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .bigs_options import BiGSOptions
from .checkpoint import Checkpoint, Tensor
from .dtypes import FLOATS, SIZES
from .dtypes import NAMES as DTYPE_NAMES
from .errors import BadInputError, UnsupportedError, UsageError, listing
from .families import (
    BERT_NSP,
    BERT_PREDICTIONS,
    BERT_TIED,
    BRACKETED,
    CHOICE,
    CLASSIFIER,
    INNER,
    POOLER,
    H,
    V,
    embeddings,
)
from .family import Config, Family, Head, Weight, linear, norm, number, shape_of, when
from .flax_msgpack import tree_order
from .formats import FLAX, SAFETENSORS
from .modelcode import FamilyCode, StandaloneCode, auto_map
from .ops import Copy, InterpolatePositions, New, Op, TilePositions, Transpose
from .options import Settings
from .plan import Plan, Row, check_floats
from .reader import open_checkpoint
from .source import Source
from .target import PADDING_CHANGES_NOTHING, SAVED_AGAIN_EQUAL, Check, Context, Target
from .tokenizer import special_tokens

MODEL_TYPES = ("BiGS", "bigs-encoder")  # as published, and ours
JAX_PREFIX, TORCH_PREFIX = "s4_bert", "bigs"
MODES, HEADS = "num_ssm", "num_ssm_heads"
DENSE = {
    "dv": (H, INNER), "du_forward": (H, H), "du_backward": (H, H), "duc_forward": (H, H), "duc_backward": (H, H),
    "dol": (H, INNER), "do": (INNER, H),
}  # fmt: skip
# What a published config leaves out, and the fields of one that the emitted config keeps.
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 24, "intermediate_size": 3072, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2, "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute", "num_ssm": 64, "pre_norm": True,
    "pooler_type": "non_padding_mean", "classifier_dropout": None, "decode": False, "tie_word_embeddings": True,
    "layer_gelu": "tanh", "mask_mode": "pooler",
}  # fmt: skip
CARRIED_FIELDS = (
    "num_ssm_heads", "scaling", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "bos_token_id",
    "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
)  # fmt: skip
TORCH_CODE = StandaloneCode(
    model_type=MODEL_TYPES[1],
    module="modeling_bigs",
    config="configuration_bigs.BiGSConfig",
    files=("bigs_ssm.py", "configuration_bigs.py", "modeling_bigs.py"),
)
JAX_CODE = StandaloneCode(
    model_type=MODEL_TYPES[0],
    module="modeling_bigs_jax",
    config="modeling_bigs_jax.BiGSConfig",
    files=("modeling_bigs_jax.py",),
    auto=False,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor on both sides, `{i}` for the layer; `op` leads from either to the other."""

    jax: str
    torch: str
    op: Op = Copy()


def _dense(jax: str, torch: str) -> tuple[Pair, Pair]:
    return Pair(f"{jax}/kernel", f"{torch}.weight", Transpose()), Pair(f"{jax}/bias", f"{torch}.bias")


def _norm(jax: str, torch: str) -> tuple[Pair, Pair]:
    return Pair(f"{jax}/scale", f"{torch}.weight"), Pair(f"{jax}/bias", f"{torch}.bias")


NAMES: tuple[Pair, ...] = (
    *(
        Pair(f"embeddings/{name}_embeddings/embedding", f"embeddings.{name}_embeddings.weight")
        for name in ("word", "position", "token_type")
    ),
    *_norm("embeddings/LayerNorm", "embeddings.LayerNorm"),
    *_norm("encoder/layer/{i}/LayerNorm", "encoder.layer.{i}.LayerNorm"),
    *(pair for name in DENSE for pair in _dense(f"encoder/layer/{{i}}/{name}", f"encoder.layer.{{i}}.{name}")),
    *(
        Pair(f"encoder/layer/{{i}}/{way}/{name}", f"encoder.layer.{{i}}.{way}.kernel.{name}")
        for way in ("fs4", "bs4")
        for name in ("A_re", "A_im", "C", "log_step")
    ),
    *(Pair(f"encoder/layer/{{i}}/{way}/D", f"encoder.layer.{{i}}.{way}.D") for way in ("fs4", "bs4")),
    *_dense("pooler/dense", "pooler.dense"),
    *_dense("cls/predictions/transform/dense", "cls.predictions.transform.dense"),
    *_norm("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm"),
    Pair("cls/predictions/bias", "cls.predictions.bias"),
    Pair("cls/predictions/decoder/kernel", "cls.predictions.decoder.weight", Transpose()),
    *_dense("cls/seq_relationship", "cls.seq_relationship"),
    *_dense("classifier", "classifier"),
    *_dense("qa_outputs", "qa_outputs"),
)
BY_JAX = {pair.jax: pair for pair in NAMES}
BY_TORCH = {pair.torch: pair for pair in NAMES}


def canonical_name(stored: str) -> str | None:
    """The canonical name of a stored tensor of either side; None for a JAX name that no BiGS model has."""
    if "/" not in stored:
        return stored.removeprefix(f"{TORCH_PREFIX}.")
    pattern, layer = _pattern(stored.removeprefix(f"{JAX_PREFIX}/"), "/")
    pair = BY_JAX.get(pattern)
    return pair.torch.replace("{i}", layer) if pair else None


def jax_name(canonical: str) -> str:
    """The JAX name of a canonical one, without the base model's prefix."""
    pattern, layer = _pattern(canonical, ".")
    return BY_TORCH[pattern].jax.replace("{i}", layer)


def operation(canonical: str) -> Op:
    """What a tensor goes through from one side to the other, in both directions."""
    pair = BY_TORCH.get(_pattern(canonical, ".")[0])
    return pair.op if pair else Copy()


def _pattern(name: str, separator: str) -> tuple[str, str]:
    """A name with `{i}` for its layer, and the layer."""
    start = f"encoder{separator}layer{separator}"
    found = re.fullmatch(rf"{re.escape(start)}(0|[1-9][0-9]{{0,4}}){re.escape(separator)}(.+)", name, re.ASCII)
    return (f"{start}{{i}}{separator}{found[2]}", found[1]) if found else (name, "")


def is_multi_head(config: Config) -> bool:
    """The condition that the convolutions' tensors have an axis of heads."""
    return config.get(HEADS) is not None


def _convolution(way: str, heads: tuple[str, ...]) -> tuple[Weight, ...]:
    return (
        Weight(f"{way}.D", (*heads, 1), "ones"),
        Weight(f"{way}.kernel.A_re", (*heads, MODES)),
        Weight(f"{way}.kernel.A_im", (*heads, MODES)),
        Weight(f"{way}.kernel.C", (*heads, MODES, 2)),
        Weight(f"{way}.kernel.log_step", (*heads, 1)),
    )


BIGS = Family(
    name="bigs",
    prefix=TORCH_PREFIX,
    code=FamilyCode(module="bigs", model_type=MODEL_TYPES[1], class_prefix="BiGS"),
    embeddings=embeddings(H),
    layer=(
        *norm("LayerNorm", H),
        *(weight for name, sizes in DENSE.items() for weight in linear(name, *sizes)),
        *(
            weight
            for way in ("fs4", "bs4")
            for weight in (
                *when(lambda config: not is_multi_head(config), _convolution(way, ())),
                *when(is_multi_head, _convolution(way, (HEADS,))),
            )
        ),
    ),
    pooler=POOLER,
    heads=(
        Head("Model", "AutoModel", pooler=True),
        Head("ForPreTraining", "AutoModelForPreTraining", BERT_PREDICTIONS + BERT_NSP, True, BERT_TIED),
        Head("ForMaskedLM", "AutoModelForMaskedLM", BERT_PREDICTIONS, False, BERT_TIED),
        Head("ForNextSentencePrediction", "AutoModelForNextSentencePrediction", BERT_NSP, True),
        Head("ForSequenceClassification", "AutoModelForSequenceClassification", CLASSIFIER, True),
        Head("ForMultipleChoice", "AutoModelForMultipleChoice", CHOICE, True),
        Head("ForTokenClassification", "AutoModelForTokenClassification", CLASSIFIER),
        Head("ForQuestionAnswering", "AutoModelForQuestionAnswering", linear("qa_outputs", H, 2)),
    ),
    default_head="ForMaskedLM",
    special_tokens=BRACKETED,
    tokenizer="BertTokenizer",
)


def to_torch_config(context: Context) -> dict[str, Any]:
    """config.json of a torch repo."""
    heads = {head.suffix: head.auto for head in BIGS.heads}
    return {
        **_config(context),
        "model_type": TORCH_CODE.model_type,
        "auto_map": auto_map(BIGS.code, TORCH_CODE, heads),
        # Whatever the weights are stored in, they are applied in float32, as the published model does: its logits
        # shift by .1 and more otherwise. A user may still ask for another dtype at loading.
        "dtype": "float32",
    }


def to_jax_config(context: Context) -> dict[str, Any]:
    """config.json of a JAX repo, under the published model_type: no Auto class takes it for something else."""
    return {**_config(context), "model_type": MODEL_TYPES[0]}


def _config(context: Context) -> dict[str, Any]:
    source, options = context.config, context.options
    return {
        **{key: source[key] for key in (*DEFAULTS, *CARRIED_FIELDS) if key in source},
        "max_position_embeddings": options.max_length,
        "layer_gelu": options.layer_gelu,
        "mask_mode": options.mask_mode,
        "architectures": [f"BiGS{context.head.suffix}"],
    }


@dataclass(frozen=True, slots=True)
class Side:
    """How one framework names tensors and which head's tensors a file of it may hold beyond its class's own."""

    name: str
    carries: bool

    def emitted(self, canonical: str, head: Head, *, prefixed: bool, in_head: bool) -> str:
        if self.name == "torch":
            return canonical if in_head or not prefixed else f"{TORCH_PREFIX}.{canonical}"
        name = jax_name(canonical)
        return name if in_head or head.suffix == "Model" else f"{JAX_PREFIX}/{name}"


TORCH_SIDE, JAX_SIDE = Side("torch", carries=True), Side("jax", carries=False)


def make_bigs_plan(
    checkpoint: Checkpoint, context: Context, side: Side, *, target: str, dtype: str | None = None
) -> Plan:
    """Matches every stored tensor with every tensor of the emitted model.

    Raises:
        BadInputError: unmatched, missing or misshapen tensors, all of them listed.
    """
    return _Planner(checkpoint, context, side, target, dtype).plan()


class _Planner:
    def __init__(self, checkpoint: Checkpoint, context: Context, side: Side, target: str, dtype: str | None) -> None:
        self.checkpoint, self.context, self.side, self.target, self.dtype = checkpoint, context, side, target, dtype
        self.family, self.head = context.family, context.head
        self.tied = bool(context.emitted["tie_word_embeddings"])
        self.faults: list[str] = []
        self.rows: list[Row] = []
        self.stored: dict[str, Tensor] = {}
        for tensor in checkpoint.tensors.values():
            name = canonical_name(tensor.name)
            if name is None:
                self.faults.append(f"{tensor.name}: unknown to BiGS")
            elif name in self.stored:
                self.faults.append(f"{name}: stored twice, as {self.stored[name].name} and {tensor.name}")
            else:
                self.stored[name] = tensor
        self.in_heads = {weight.name for head in self.family.heads for weight in head.weights} | set(BERT_TIED)
        self.prefixed = self.head.suffix != "Model" or bool(self.stored.keys() & self.in_heads)

    def plan(self) -> Plan:
        used = set()
        for weight in self._wanted():
            used.add(weight.name)
            self._make(weight)
        for name, tensor in self.stored.items():
            if name not in used:
                self._leave(name, tensor)
        if self.faults:
            raise BadInputError(
                f"the checkpoint does not fit BiGS{self.head.suffix}:\n{listing(self.faults)}",
                where=self.checkpoint.source.where(),
                hint="check config.json against the weights",
            )
        return Plan(self.target, self.family.name, f"BiGS{self.head.suffix}", tuple(self._ordered()))

    def _wanted(self) -> Iterator[Weight]:
        yield from self.family.weights(self.context.emitted, self.head)
        if not self.tied and "cls.predictions.decoder.weight" in self.head.tied:
            yield Weight("cls.predictions.decoder.weight", (V, H))

    def _make(self, weight: Weight) -> None:
        shape = shape_of(weight, self.context.emitted)
        tensor = self.stored.get(weight.name)
        if tensor is None:
            if any(weight.name == base.name for base in self.family.base_weights(self.context.emitted)):
                self.faults.append(f"{weight.name}: missing")
                return
            dtype = self.dtype or self._main_dtype()
            size = operation(weight.name).shape(shape) if self.side is JAX_SIDE else shape
            std = float(self.context.emitted["initializer_range"])
            op = New(weight.name, size, weight.init, std, self.context.seed, dtype)
            why = f"the source has none; train it ({weight.init})"
            self.rows.append(Row("new", (), self._emitted(weight.name), size, dtype, op, why))
            return
        length = number(self.context.emitted, "max_position_embeddings")
        if weight.name == self.family.positions and len(tensor.shape) == 2 and tensor.shape[0] != length:
            resize = TilePositions if self.context.options.positions == "repeat" else InterpolatePositions
            self._add(weight.name, tensor, resize(length), shape)
        else:
            self._add(weight.name, tensor, self._crossing(weight.name, tensor), shape)

    def _crossing(self, name: str, tensor: Tensor) -> Op:
        """The table's operation where the tensor changes sides, else a copy."""
        return operation(name) if ("/" in tensor.name) != (self.side is JAX_SIDE) else Copy()

    def _add(self, name: str, tensor: Tensor, op: Op, shape: tuple[int, ...], why: str = "") -> None:
        """A row from `tensor` to the canonical `name`; `shape` is the torch one."""
        try:
            made = op.shape(tensor.shape)
            wanted = operation(name).shape(shape) if self.side is JAX_SIDE else shape
        except ValueError as error:
            self.faults.append(f"{tensor.name}: {error}")
            return
        if made != wanted:
            self.faults.append(f"{tensor.name}: makes {made}, where the config says {wanted}")
            return
        emitted, dtype, action = self._emitted(name), tensor.dtype, op.action
        if self.dtype and dtype in FLOATS and dtype != self.dtype:
            if ".fs4." in name or ".bs4." in name:
                why = f"{why}; kept in {dtype}: the phases of a convolution do not survive less".lstrip("; ")
            else:
                why = f"{why}; {dtype} to {self.dtype}".lstrip("; ")
                dtype, action = self.dtype, "derive"
        if action == "copy" and tensor.name != emitted:
            action = "rename"
        self.rows.append(Row(action, (tensor.name,), emitted, made, dtype, op, why))

    def _leave(self, name: str, tensor: Tensor) -> None:
        """A stored tensor that the emitted class does not have."""
        drop, equals = "", None
        others = [
            head.suffix
            for head in self.family.heads
            if name in head.tied or any(weight.name == name for weight in self.family.head_weights(head))
        ]
        if name in self.family.buffers:
            drop = "a buffer, built anew when the model loads"
        elif name == "cls.predictions.decoder.bias" and "cls.predictions.bias" in self.stored:
            drop, equals = "the same tensor as cls.predictions.bias, stored once", "cls.predictions.bias"
        elif name == "cls.predictions.decoder.weight" and self.tied:
            drop, equals = f"tied to {self.family.words}, stored once", self.family.words
        elif not others:
            self.faults.append(f"{tensor.name}: unknown to BiGS")
            return
        elif not self.side.carries:
            drop = f"BiGS{self.head.suffix} has none in JAX (it belongs to {', '.join(others)})"
        if equals and ("/" in self.stored[equals].name) != ("/" in tensor.name):
            equals = None
        if drop:
            twin = self.stored[equals].name if equals else None
            self.rows.append(Row("drop", (tensor.name,), None, tensor.shape, tensor.dtype, Copy(), drop, twin))
            return
        op = self._crossing(name, tensor)
        try:
            shape = op.shape(tensor.shape)
        except ValueError as error:
            self.faults.append(f"{tensor.name}: {error}")
            return
        self._add(name, tensor, op, shape, f"not in BiGS{self.head.suffix}: kept for {', '.join(others)}")

    def _emitted(self, name: str) -> str:
        in_head = name in self.in_heads
        return self.side.emitted(name, self.head, prefixed=self.prefixed, in_head=in_head)

    def _main_dtype(self) -> str:
        words = self.stored.get(self.family.words)
        return words.dtype if words and words.dtype in FLOATS else "F32"

    def _ordered(self) -> list[Row]:
        """Rows in the order of the source, as far as the form allows: wide types first, or a tree in one walk.

        Tensors that were neighbours are then copied in one go, and the way there and back gives the file it began with.
        """
        order = {name: i for i, name in enumerate(self.checkpoint.tensors)}
        rows = sorted(self.rows, key=lambda row: order.get(row.sources[0], -1) if row.sources else len(order))
        if self.side is JAX_SIDE:
            tree = {name: i for i, name in enumerate(tree_order([row.target for row in rows if row.target]))}
            return sorted(rows, key=lambda row: tree.get(row.target or "", len(tree)))
        return sorted(rows, key=lambda row: -SIZES[row.dtype])


def prepare_bigs(
    source: Source, target: Target, options: BiGSOptions, settings: Settings, remote: bool
) -> tuple[Checkpoint, Context, Plan]:
    """Opens and plans a source; the context's options have no value left open."""
    if source.config.get("model_type") not in target.model_types:
        raise UnsupportedError(
            f"no BiGS model: its model_type is {source.config.get('model_type')!r}",
            where="config.json: model_type",
            hint="this command takes " + " and ".join(target.model_types),
        )
    config = {**DEFAULTS, **source.config}
    check_bigs_config(config)
    options = replace(
        options,
        max_length=options.max_length or number(config, "max_position_embeddings"),
        layer_gelu=options.layer_gelu or config["layer_gelu"],
        mask_mode=options.mask_mode or config["mask_mode"],
    )
    if options.positions != "repeat" and options.max_length == config["max_position_embeddings"]:
        raise UsageError(
            f"the source takes {options.max_length} tokens, as the result: no position table is {options.positions}d",
            where="--positions",
            hint="leave it out, or give another --max-len",
        )
    checkpoint = open_checkpoint(source, allow_pickle=settings.allow_pickle, remote=remote, formats=target.formats)
    check_floats(checkpoint.tensors.values())
    head = _head(config, checkpoint, settings.architecture)
    tokens = special_tokens(source, BIGS.special_tokens)
    context = Context(BIGS, head, config, options, tokens, settings.seed, config, BIGS, head)
    context = replace(context, emitted=target.config(context))
    dtype = DTYPE_NAMES[settings.dtype] if settings.dtype else None
    side = JAX_SIDE if target.form is FLAX else TORCH_SIDE
    return checkpoint, context, make_bigs_plan(checkpoint, context, side, target=target.name, dtype=dtype)


def _head(config: Config, checkpoint: Checkpoint, architecture: str | None) -> Head:
    """The head asked for, else the config's, else the richest whose tensors are all there."""
    if architecture is not None:
        return BIGS.head_asked_for(architecture)
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return BIGS.head(named[0].rpartition("BiGS")[2])
    stored = {canonical_name(name) for name in checkpoint.tensors}
    fitting = [head for head in BIGS.heads if {weight.name for weight in head.weights} <= stored]
    return max(fitting, key=lambda head: (len(head.weights), head.suffix == BIGS.default_head))


def check_bigs_config(config: Config) -> None:
    """Raises BadInputError with every field that no BiGS encoder has so."""
    choices = {
        "layer_gelu": ("tanh", "erf"), "mask_mode": ("pooler", "inert"), "pooler_type": ("non_padding_mean", "mean"),
        "position_embedding_type": ("absolute",), "decode": (False,), "pre_norm": (True, False),
        "tie_word_embeddings": (True, False),
    }  # fmt: skip
    faults = [
        f"{name}: {config[name]!r} is none of {', '.join(map(str, values))}"
        for name, values in choices.items()
        if not any(config[name] is value or config[name] == value for value in values)
    ]
    if config.get(HEADS) is not None and number(config, H) % number(config, HEADS):
        faults.append(f"{HEADS}: {config[HEADS]} does not divide hidden_size {config[H]}")
    if faults:
        raise BadInputError(
            f"the config cannot be that of a BiGS encoder:\n{listing(faults)}",
            where="config.json",
            hint="check it against the published models' configs",
        )


def _padding(manifest: Mapping[str, Any]) -> str:
    return "" if manifest["options"]["mask_mode"] == "inert" else "padding flows through the layers, as published"


def _cast(manifest: Mapping[str, Any]) -> str:
    return "the weights were cast" if manifest["settings"]["dtype"] else ""


CHECKS = "effconv.convert.bigs_checks"
EQUAL_TO_SOURCE = Check(
    "equal_to_source",
    f"{CHECKS}:equal_to_source",
    "the outputs of the source's weights, by a float64 form of the published formula",
    5e-5,
    _cast,
)
TORCH_EQUALS_FORMULA = Check(
    "equal_to_formula",
    f"{CHECKS}:torch_equals_formula",
    "the model gives the outputs of a float64 form of the published formula",
    5e-5,
)
FRAMEWORKS_AGREE = Check(
    "jax_and_torch_agree",
    f"{CHECKS}:frameworks_agree",
    "the same weights give the same outputs in JAX and in torch (in a float64 form of the formula without JAX)",
    5e-5,
)


def _target(name: str, says: str, ending: str, **fields: Any) -> Target:
    return Target(
        name=name,
        says=says,
        families=(BIGS.name,),
        emits=BIGS,
        options=BiGSOptions,
        ending=ending,
        weights=lambda context: (),
        rules=lambda context: (),
        prepare=prepare_bigs,
        model_types=MODEL_TYPES,
        **fields,
    )


_TORCH: Mapping[str, Any] = {
    "config": to_torch_config,
    "form": SAFETENSORS,
    "code": TORCH_CODE,
    "checks": (
        EQUAL_TO_SOURCE,
        TORCH_EQUALS_FORMULA,
        FRAMEWORKS_AGREE,
        PADDING_CHANGES_NOTHING.limited(_padding),
        SAVED_AGAIN_EQUAL,
    ),
}
JAX2TORCH = _target("jax2torch", "BiGS (arXiv 2212.10544) from JAX to torch", "torch", formats=("msgpack",), **_TORCH)
RESIZED = _target("bigs", "BiGS (arXiv 2212.10544), torch to torch, to another length", "torch", **_TORCH)
TORCH2JAX = _target(
    "torch2jax",
    "BiGS (arXiv 2212.10544) from torch to JAX",
    "jax",
    config=to_jax_config,
    form=FLAX,
    code=JAX_CODE,
    checks=(EQUAL_TO_SOURCE, FRAMEWORKS_AGREE),
)
