# SPDX-License-Identifier: Apache-2.0
"""BiGS in JAX: an encoder of state-space convolutions and a gate, without attention (arXiv 2212.10544).

One file, over 400 lines, so that it can be used alone: it needs jax, flax and (for ids on the Hub) huggingface_hub. A
model is a config, a flax module and a tree of parameters under the names of the published checkpoints:

    model = BiGSForMaskedLM.from_pretrained(".")
    logits = model(input_ids, attention_mask)["logits"]
    grads = jax.grad(lambda params: loss(model.module.apply({"params": params}, input_ids)))(model.params)

Parameters keep the type that they are stored in and are applied in float32. `dtype=jnp.bfloat16` runs the dense layers
in that type; the convolutions stay in float32. As published, the attention mask touches the pooler only, unless
config.mask_mode is "inert".

Axes: b batch, l positions, d channels, h heads of a convolution, n its modes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, to_bytes
from jax import Array

WEIGHTS, INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
BASE = "s4_bert"  # where a task model keeps its encoder
LARGEST_REAL_PART = -1e-4  # of A: no mode may grow
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": nn.tanh,
}


@dataclass(frozen=True)
class BiGSConfig:
    """Sizes and options under the names of published configs; `others` keeps what a config.json says beside them.

    `layer_gelu` is "tanh", as published, or "erf"; `mask_mode` is "pooler", as published, or "inert": padding then
    changes no real token's output.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 24
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    num_ssm: int = 64
    num_ssm_heads: int | None = None
    pre_norm: bool = True
    scaling: str = "hippo"
    pooler_type: str = "non_padding_mean"
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True
    layer_gelu: str = "tanh"
    mask_mode: str = "pooler"
    num_labels: int = 2
    others: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BiGSConfig:
        """From the values of a config.json.

        Raises:
            ValueError: for options that have no meaning.
        """
        names = {item.name for item in dataclasses.fields(cls)} - {"others"}
        known = {name: value for name, value in values.items() if name in names}
        if isinstance(values.get("id2label"), dict) and values["id2label"]:
            known["num_labels"] = len(values["id2label"])
        config = cls(**known, others={name: value for name, value in values.items() if name not in names})
        choices = {
            "layer_gelu": ("tanh", "erf"),
            "mask_mode": ("pooler", "inert"),
            "pooler_type": ("non_padding_mean", "mean"),
            "scaling": ("hippo", "lin", "inv"),
            "hidden_act": tuple(ACTIVATIONS),
        }
        for name, allowed in choices.items():
            if getattr(config, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The values of a config.json."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "others"}
        if values["num_ssm_heads"] is None:
            del values["num_ssm_heads"]
        return {**self.others, **values}


def state_space_kernel(a_re: Array, a_im: Array, c: Array, log_step: Array, length: int) -> Array:
    """K[l] = Re sum_n C_n (exp(step A_n) - 1) / A_n exp((l step) A_n), float32 (h, l): the zero-order hold with B = 1.

    Args:
        a_re: (n,) or (h, n).
        a_im: likewise.
        c: real and imaginary part, (n, 2) or (h, n, 2).
        log_step: (1,) or (h, 1).
        length: taps.
    """
    modes = a_re.shape[-1]
    a = (jnp.minimum(a_re, LARGEST_REAL_PART) + 1j * a_im).reshape(-1, modes)
    c = c.reshape(-1, modes, 2)
    step = jnp.exp(log_step).reshape(-1, 1)
    weight = (c[..., 0] + 1j * c[..., 1]) * (jnp.exp(step * a) - 1.0) / a  # h n
    time = jnp.arange(length, dtype=jnp.float32) * step  # h l; the phase is rounded in this order, A comes after
    return (weight[:, None] * jnp.exp(time[:, :, None] * a[:, None, :])).sum(axis=-1).real


def convolve(stream: Array, taps: Array, skip: Array, *, backward: bool) -> Array:
    """y[l] = sum_j K[j] u[l - j] + D u[l], or u[l + j] where `backward`; float32 inside.

    Args:
        stream: (b, l, d).
        taps: (h, l), a head for each d / h neighbouring channels.
        skip: D, (h,).
        backward: against time: the conjugate spectrum, so that nothing is flipped.
    """
    length, width = stream.shape[1:]
    per_head = width // taps.shape[0]
    u = stream.astype(jnp.float32)
    spectrum = jnp.repeat(jnp.fft.rfft(taps, n=2 * length), per_head, axis=0).T[None]  # 1 f d
    spectrum = spectrum.conj() if backward else spectrum
    found = jnp.fft.irfft(jnp.fft.rfft(u, n=2 * length, axis=1) * spectrum, n=2 * length, axis=1)[:, :length]
    return (found + jnp.repeat(skip, per_head) * u).astype(stream.dtype)


def initial_frequencies(scaling: str, modes: int) -> np.ndarray:
    """A_im of a new model: S4D-Lin, S4D-Inv (arXiv 2206.11893, section 4) or HiPPO-LegS's own."""
    n = np.arange(modes)
    if scaling == "lin":
        return np.pi * n
    if scaling == "inv":
        return modes / np.pi * (modes / (2 * n + 1) - 1)
    root = np.sqrt(1 + 2 * n)
    lower = np.tril(root[:, None] * root[None, :], -1) / 2
    return np.linalg.eigvalsh(-1j * (lower.T - lower))


class StateSpace(nn.Module):
    """One direction's convolution."""

    config: BiGSConfig
    backward: bool

    @nn.compact
    def __call__(self, stream: Array) -> Array:
        config = self.config
        lead = () if config.num_ssm_heads is None else (config.num_ssm_heads,)
        shape = (*lead, config.num_ssm)
        frequencies = initial_frequencies(config.scaling, config.num_ssm)
        low, high = math.log(0.01), math.log(1.0)
        a_re = self.param("A_re", nn.initializers.constant(-0.5), shape)
        a_im = self.param("A_im", lambda key, shape: jnp.broadcast_to(jnp.float32(frequencies), shape), shape)
        c = self.param("C", nn.initializers.normal(0.5**0.5), (*shape, 2))
        skip = self.param("D", nn.initializers.ones, (*lead, 1))
        log_step = self.param(
            "log_step", lambda key, shape: jax.random.uniform(key, shape) * (high - low) + low, (*lead, 1)
        )
        taps = state_space_kernel(a_re, a_im, c, log_step, stream.shape[1])
        return convolve(stream, taps, skip.reshape(-1), backward=self.backward)


class Layer(nn.Module):
    """x + mix(LayerNorm(x)), or LayerNorm(x + mix(x)) without `pre_norm`."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, real: Array | None) -> Array:
        config = self.config
        norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="LayerNorm")
        if config.pre_norm:
            return x + self.mix(norm(x), real)
        return norm(x + self.mix(x, real))

    def mix(self, x: Array, real: Array | None) -> Array:
        config = self.config
        gelu = functools.partial(nn.gelu, approximate=config.layer_gelu == "tanh")
        forward = gelu(self.dense(config.hidden_size, "du_forward")(x))
        backward = gelu(self.dense(config.hidden_size, "du_backward")(x))
        if real is not None:  # what enters neither convolution is seen by no one
            forward, backward = forward * real, backward * real
        forward = StateSpace(config, backward=False, name="fs4")(forward)
        backward = StateSpace(config, backward=True, name="bs4")(backward)
        context = self.dense(config.hidden_size, "duc_forward")(forward)
        context = context * self.dense(config.hidden_size, "duc_backward")(backward)
        gate = gelu(self.dense(config.intermediate_size, "dol")(context))
        return self.dense(config.hidden_size, "do")(gate * gelu(self.dense(config.intermediate_size, "dv")(x)))

    def dense(self, features: int, name: str) -> nn.Dense:
        return _dense(self.config, features, self.dtype, name)


class Layers(nn.Module):
    """The layers, named by their numbers."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, real: Array | None) -> list[Array]:
        states = [x]
        for i in range(self.config.num_hidden_layers):
            states.append(Layer(self.config, self.dtype, name=str(i))(states[-1], real))
        return states


class Encoder(nn.Module):
    """The layers, under the path of the published models."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, real: Array | None) -> list[Array]:
        return Layers(self.config, self.dtype, name="layer")(x, real)


class Embeddings(nn.Module):
    """LayerNorm(word + token type + position), and dropout; and the table of words, for tied heads."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, input_ids: Array, token_type_ids: Array, position_ids: Array, deterministic: bool
    ) -> tuple[Array, Array]:
        config = self.config
        words = self.table(config.vocab_size, "word_embeddings")
        x = words(input_ids) + self.table(config.type_vocab_size, "token_type_embeddings")(token_type_ids)
        x = x + self.table(config.max_position_embeddings, "position_embeddings")(position_ids)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(x)
        return nn.Dropout(config.hidden_dropout_prob)(x, deterministic=deterministic), words.embedding

    def table(self, rows: int, name: str) -> nn.Embed:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Embed(rows, self.config.hidden_size, embedding_init=init, dtype=self.dtype, name=name)


class Pooler(nn.Module):
    """tanh(dense(mean over positions)); a row without any real token gives tanh(bias)."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        x = x.astype(jnp.float32)
        if self.config.pooler_type == "non_padding_mean" or self.config.mask_mode == "inert":
            weights = mask.astype(jnp.float32)[..., None]
            mean = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
        else:
            mean = x.mean(axis=1)
        return jnp.tanh(_dense(self.config, self.config.hidden_size, self.dtype, "dense")(mean))


class Base(nn.Module):
    """The encoder: states, pooled output (or None) and table of words."""

    config: BiGSConfig
    dtype: Any
    pools: bool

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
    ) -> tuple[list[Array], Array | None, Array]:
        return self.encode(input_ids, attention_mask, token_type_ids, position_ids, deterministic)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array | None,
        token_type_ids: Array | None,
        position_ids: Array | None,
        deterministic: bool,
    ) -> tuple[list[Array], Array | None, Array]:
        length = input_ids.shape[1]
        if position_ids is None and length > self.config.max_position_embeddings:
            raise ValueError(
                f"the input has {length} tokens, but this model takes at most {self.config.max_position_embeddings}"
            )
        positions = jnp.arange(length)[None] if position_ids is None else position_ids
        types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask != 0
        embed = Embeddings(self.config, self.dtype, name="embeddings")
        x, words = embed(input_ids, types, positions, deterministic)
        inert = self.config.mask_mode == "inert" and attention_mask is not None
        states = Encoder(self.config, self.dtype, name="encoder")(x, mask.astype(x.dtype)[..., None] if inert else None)
        pooled = Pooler(self.config, self.dtype, name="pooler")(states[-1], mask) if self.pools else None
        return states, pooled, words


class Transform(nn.Module):
    """LayerNorm(act(dense(x))) of the masked-LM head."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ACTIVATIONS[self.config.hidden_act](_dense(self.config, self.config.hidden_size, self.dtype, "dense")(x))
        return nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(x)


class Predictions(nn.Module):
    """Scores of all words, by the (tied) word embeddings."""

    config: BiGSConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, words: Array) -> Array:
        x = Transform(self.config, self.dtype, name="transform")(x)
        if self.config.tie_word_embeddings:
            scores = x @ words.T.astype(x.dtype)
        else:
            init = nn.initializers.normal(self.config.initializer_range)
            size = self.config.vocab_size
            scores = nn.Dense(size, use_bias=False, kernel_init=init, dtype=self.dtype, name="decoder")(x)
        return scores + self.param("bias", nn.initializers.zeros, (self.config.vocab_size,))


class Heads(nn.Module):
    """The pretraining heads: word scores and next-sentence scores, either None where not wanted."""

    config: BiGSConfig
    dtype: Any
    predicts: bool
    relates: bool

    @nn.compact
    def __call__(self, x: Array, pooled: Array | None, words: Array) -> tuple[Array | None, Array | None]:
        scores = Predictions(self.config, self.dtype, name="predictions")(x, words) if self.predicts else None
        relation = _dense(self.config, 2, self.dtype, "seq_relationship")(pooled) if self.relates else None
        return scores, relation


class TaskModule(nn.Module):
    """The base and a head; returns every output by name.

    Args:
        head: suffix of the class, "Model" for the base.
    """

    config: BiGSConfig
    head: str
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        config, head = self.config, self.head
        given = (input_ids, attention_mask, token_type_ids, position_ids)
        choices = input_ids.shape[1] if head == "ForMultipleChoice" else 0
        if choices:
            given = tuple(None if value is None else value.reshape(-1, value.shape[-1]) for value in given)
        base = Base(config, self.dtype, pools=head in POOLING, name=BASE)
        states, pooled, words = base(*given, deterministic)
        last = states[-1]
        drop = nn.Dropout(
            config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        )
        found: dict[str, Any] = {}
        if head in ("ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction"):
            predicts, relates = head != "ForNextSentencePrediction", head != "ForMaskedLM"
            scores, relation = Heads(config, self.dtype, predicts, relates, name="cls")(last, pooled, words)
            names = (
                ("prediction_logits", "seq_relationship_logits") if head == "ForPreTraining" else ("logits", "logits")
            )
            found |= {name: value for name, value in zip(names, (scores, relation), strict=True) if value is not None}
        elif head in ("ForSequenceClassification", "ForTokenClassification"):
            x = pooled if head in POOLING else last
            classify = _dense(config, config.num_labels, self.dtype, "classifier")
            found["logits"] = classify(drop(x, deterministic=deterministic))
        elif head == "ForMultipleChoice":
            scores = _dense(config, 1, self.dtype, "classifier")(drop(pooled, deterministic=deterministic))
            found["logits"] = scores.reshape(-1, choices)
        elif head == "ForQuestionAnswering":
            scores = _dense(config, 2, self.dtype, "qa_outputs")(last)
            found["start_logits"], found["end_logits"] = scores[..., 0], scores[..., 1]
        if output_hidden_states:
            found["hidden_states"] = tuple(states)
        return found


class BaseModule(Base):
    """The base alone, whose tree has no prefix; returns every output by name."""

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        states, pooled, _ = self.encode(input_ids, attention_mask, token_type_ids, position_ids, deterministic)
        found: dict[str, Any] = {"last_hidden_state": states[-1], "pooler_output": pooled}
        return found | ({"hidden_states": tuple(states)} if output_hidden_states else {})


POOLING = ("Model", "ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification", "ForMultipleChoice")


class _Pretrained:
    """A config, a module and its parameters.

    Args:
        config: a `BiGSConfig`.
        params: the tree of parameters; None draws one from `seed`.
        dtype: of the dense layers' arithmetic; float32 by default.
        seed: of a new model.
    """

    head: ClassVar[str]

    def __init__(
        self, config: BiGSConfig, params: Mapping[str, Any] | None = None, dtype: Any = None, seed: int = 0
    ) -> None:
        self.config = config
        is_base = self.head == "Model"
        self.module = BaseModule(config, dtype, pools=True) if is_base else TaskModule(config, self.head, dtype)
        self.params = self.init_params(seed) if params is None else params

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        """Every output by name, compiled once for all models of one config and inputs of one shape.

        Args:
            input_ids: (b, l), or (b, c, l) for multiple choice; the other inputs likewise.
            attention_mask: nonzero for real tokens; all are by default.
            token_type_ids: zeros by default.
            position_ids: 0, 1, ... by default.
            params: in place of the model's own.
            dropout_rng: a key turns dropout on.
            output_hidden_states: whether to return the states before and after every layer.
        """
        ids = jnp.asarray(input_ids)
        mask = jnp.ones_like(ids) if attention_mask is None else jnp.asarray(attention_mask)
        types = jnp.zeros_like(ids) if token_type_ids is None else jnp.asarray(token_type_ids)
        positions = None if position_ids is None else jnp.asarray(position_ids)
        params = self.params if params is None else params
        return _apply(self.module, params, dropout_rng, (ids, mask, types, positions), output_hidden_states)

    def init_params(self, seed: int) -> dict[str, Any]:
        """A new tree of parameters."""
        shape = (1, 1, 2) if self.head == "ForMultipleChoice" else (1, 2)
        ids = jnp.zeros(shape, dtype=jnp.int32)
        return self.module.init(jax.random.key(seed), ids, None, None, None)["params"]

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        dtype: Any = None,
        seed: int = 0,
        **overrides: Any,
    ) -> Any:
        """A model from a folder or a Hub id.

        Args:
            source: holds config.json and flax_model.msgpack, or its shards and their index.
            revision: branch, tag or commit of a Hub id.
            token: a Hub token.
            dtype: of the dense layers' arithmetic.
            seed: of parameters that the checkpoint lacks; they are named in a warning.
            overrides: fields of the config.

        Raises:
            FileNotFoundError: no config, or no weights.
            ValueError: tensors of another shape than the config says.
        """
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["config.json", "flax_model*"]
            folder = Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=patterns))
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = cls(BiGSConfig.from_dict({**values, **overrides}), {}, dtype)
        stored = dict(_leaves(_moved(read_tree(folder), cls.head == "Model")))
        expected = dict(_leaves(jax.eval_shape(lambda: model.init_params(seed))))
        odd = [f"{name}: shape {stored[name].shape}, expected {leaf.shape}" for name, leaf in expected.items()
               if name in stored and tuple(stored[name].shape) != tuple(leaf.shape)]  # fmt: skip
        if odd:
            raise ValueError("the tensors do not fit config.json:\n" + "\n".join(odd[:20]))
        missing, unused = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
        if missing:
            warnings.warn(f"not in the checkpoint, newly initialised: {', '.join(missing[:8])}", stacklevel=2)
            fresh = dict(_leaves(model.init_params(seed)))
            stored |= {name: fresh[name] for name in missing}
        if unused:
            warnings.warn(f"in the checkpoint, but not in {cls.__name__}: {', '.join(unused[:8])}", stacklevel=2)
        model.params = _tree({name: value for name, value in stored.items() if name in expected})
        return model

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes config.json, the weights (in shards of at most so many bytes) and this file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {**self.config.to_dict(), "architectures": [type(self).__name__], "model_type": "BiGS"}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if Path(__file__).resolve() != (folder / Path(__file__).name).resolve():
            shutil.copyfile(__file__, folder / Path(__file__).name)
        shards: list[dict[str, Any]] = [{}]
        for name, leaf in _leaves(self.params):
            if shards[-1] and sum(x.nbytes for x in shards[-1].values()) + leaf.nbytes > max_shard_bytes:
                shards.append({})
            shards[-1][name] = leaf
        for stale in folder.glob("flax_model*.msgpack*"):
            stale.unlink()
        if len(shards) == 1:
            (folder / WEIGHTS).write_bytes(to_bytes(_tree(shards[0])))
            return
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            file = f"flax_model-{number:05d}-of-{len(shards):05d}.msgpack"
            (folder / file).write_bytes(to_bytes(_tree(shard)))
            weight_map |= dict.fromkeys(shard, file)
        total = sum(leaf.nbytes for shard in shards for leaf in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@functools.partial(jax.jit, static_argnames=("module", "output_hidden_states"))
def _apply(
    module: nn.Module,
    params: Any,
    dropout_rng: Array | None,
    inputs: tuple[Array | None, ...],
    output_hidden_states: bool,
) -> dict[str, Any]:
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    return module.apply(
        {"params": wide},
        *inputs,
        deterministic=dropout_rng is None,
        output_hidden_states=output_hidden_states,
        rngs=None if dropout_rng is None else {"dropout": dropout_rng},
    )


class BiGSModel(_Pretrained):
    """The encoder: last_hidden_state (b, l, d) and pooler_output (b, d)."""

    head = "Model"


class BiGSForPreTraining(_Pretrained):
    """prediction_logits (b, l, vocabulary) and seq_relationship_logits (b, 2)."""

    head = "ForPreTraining"


class BiGSForMaskedLM(_Pretrained):
    """Word scores: logits (b, l, vocabulary)."""

    head = "ForMaskedLM"


class BiGSForNextSentencePrediction(_Pretrained):
    """Whether the second text follows the first: logits (b, 2)."""

    head = "ForNextSentencePrediction"


class BiGSForSequenceClassification(_Pretrained):
    """Scores of a text's labels: logits (b, labels)."""

    head = "ForSequenceClassification"


class BiGSForTokenClassification(_Pretrained):
    """Scores of tokens' labels: logits (b, l, labels)."""

    head = "ForTokenClassification"


class BiGSForQuestionAnswering(_Pretrained):
    """Where an answer starts and ends: start_logits and end_logits (b, l)."""

    head = "ForQuestionAnswering"


class BiGSForMultipleChoice(_Pretrained):
    """Scores of choices, from inputs (b, c, l): logits (b, c)."""

    head = "ForMultipleChoice"


def read_tree(folder: Path) -> dict[str, Any]:
    """The parameters of a folder, from one file or from shards."""
    if (folder / WEIGHTS).is_file():
        return msgpack_restore((folder / WEIGHTS).read_bytes())
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"neither {WEIGHTS} nor {INDEX} in {folder}")
    files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    found: dict[str, Any] = {}
    for file in files:
        if Path(file).name != file:
            raise ValueError(f"{INDEX} names {file!r}, which is not a file of this folder")
        found |= dict(_leaves(msgpack_restore((folder / file).read_bytes())))
    return _tree(found)


def _moved(tree: dict[str, Any], to_base: bool) -> dict[str, Any]:
    """A tree whose encoder stands where the class wants it, whichever class it was saved from."""
    if to_base:
        return tree.get(BASE, tree)
    if BASE in tree:
        return tree
    inner = {name: value for name, value in tree.items() if name in ("embeddings", "encoder", "pooler")}
    return {BASE: inner, **{name: value for name, value in tree.items() if name not in inner}}


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for name, value in leaves.items():
        *branches, last = name.split("/")
        branch = root
        for key in branches:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return root


def _dense(config: BiGSConfig, features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.normal(config.initializer_range), dtype=dtype, name=name)
