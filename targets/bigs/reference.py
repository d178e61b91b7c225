"""BiGS in float64 numpy, from the formula (arXiv 2212.10544): what the models in torch and JAX are held against.

Tensors go by their canonical names (`bigs.NAMES`), in torch's shapes. Axes: b batch, l positions, d channels, h heads
of a convolution, n its modes. Slow and plain: kernels are summed mode by mode, phases are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Params = Mapping[str, np.ndarray]
F64 = np.ndarray


def forward(
    params: Params,
    config: Mapping[str, Any],
    head: str,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    token_type_ids: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
) -> dict[str, F64]:
    """Every output by name, as the emitted models name them.

    Args:
        params: canonical name to array, torch's shapes; any float type.
        config: of the repo, with every field of `bigs.DEFAULTS`.
        head: suffix of the class, "Model" for the base.
        input_ids: (b, l), or (b, c, l) for multiple choice; the other inputs likewise.
        attention_mask: nonzero for real tokens; all are by default.
        token_type_ids: zeros by default.
        position_ids: 0, 1, ... by default.
    """
    choices = input_ids.shape[1] if head == "ForMultipleChoice" else 0
    if choices:
        rows = (input_ids, attention_mask, token_type_ids, position_ids)
        flat = (None if value is None else value.reshape(-1, value.shape[-1]) for value in rows)
        input_ids, attention_mask, token_type_ids, position_ids = flat  # type: ignore[assignment]
    model = _Model(params, config)
    states = model.states(input_ids, attention_mask, token_type_ids, position_ids)
    last = states[-1]
    found = {f"hidden_states.{i}": state for i, state in enumerate(states)} | {"last_hidden_state": last}
    pooled = model.pooled(last, attention_mask) if "pooler.dense.weight" in params else None
    if head in ("ForMaskedLM", "ForPreTraining"):
        found["prediction_logits" if head == "ForPreTraining" else "logits"] = model.predictions(last)
    if head in ("ForNextSentencePrediction", "ForPreTraining"):
        name = "seq_relationship_logits" if head == "ForPreTraining" else "logits"
        found[name] = model.linear("cls.seq_relationship", _needed(pooled))
    if head in ("ForSequenceClassification", "ForMultipleChoice"):
        scores = model.linear("classifier", _needed(pooled))
        found["logits"] = scores.reshape(-1, choices) if choices else scores
    if head == "ForTokenClassification":
        found["logits"] = model.linear("classifier", last)
    if head == "ForQuestionAnswering":
        scores = model.linear("qa_outputs", last)
        found["start_logits"], found["end_logits"] = scores[..., 0], scores[..., 1]
    if head == "Model" and pooled is not None:
        found["pooler_output"] = pooled
    return found


def kernel(a_re: F64, a_im: F64, c: F64, log_step: F64, length: int) -> F64:
    """K[l] = Re sum_n C_n (exp(step A_n) - 1) / A_n exp(l step A_n): (h, l), h = 1 without heads."""
    modes = a_re.shape[-1]
    a = np.minimum(a_re, -1e-4).reshape(-1, modes) + 1j * a_im.reshape(-1, modes)
    step = np.exp(log_step).reshape(-1, 1)
    c = c.reshape(-1, modes, 2)
    weight = (c[..., 0] + 1j * c[..., 1]) * np.expm1(step * a) / a
    taps = np.zeros((a.shape[0], length))
    for n in range(modes):
        taps += (weight[:, n : n + 1] * np.exp(np.arange(length) * (step * a[:, n : n + 1]))).real
    return taps


def convolve(stream: F64, taps: F64, skip: F64, *, backward: bool) -> F64:
    """y[l] = sum_j K[j] u[l - j] + D u[l], or u[l + j] where `backward`: (b, l, d)."""
    length, width = stream.shape[1:]
    if backward:
        return convolve(stream[:, ::-1], taps, skip, backward=False)[:, ::-1]
    per_head = width // taps.shape[0]
    spectrum = np.repeat(np.fft.rfft(taps, n=2 * length), per_head, axis=0).T[None]  # 1 f d
    found = np.fft.irfft(np.fft.rfft(stream, n=2 * length, axis=1) * spectrum, n=2 * length, axis=1)[:, :length]
    result: F64 = found + np.repeat(skip.reshape(-1), per_head) * stream
    return result


class _Model:
    def __init__(self, params: Params, config: Mapping[str, Any]) -> None:
        self.params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
        self.config = config
        self.inert = config["mask_mode"] == "inert"
        self.gelu = GELU[config["layer_gelu"]]

    def linear(self, name: str, x: F64) -> F64:
        return x @ self.params[f"{name}.weight"].T + self.params[f"{name}.bias"]

    def norm(self, name: str, x: F64) -> F64:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        result: F64 = centred / scale * self.params[f"{name}.weight"] + self.params[f"{name}.bias"]
        return result

    def states(
        self, ids: np.ndarray, mask: np.ndarray | None, types: np.ndarray | None, positions: np.ndarray | None
    ) -> list[F64]:
        tables = {
            name: self.params[f"embeddings.{name}_embeddings.weight"] for name in ("word", "token_type", "position")
        }
        positions = np.arange(ids.shape[1])[None] if positions is None else positions
        x = tables["word"][ids] + tables["token_type"][np.zeros_like(ids) if types is None else types]
        states = [self.norm("embeddings.LayerNorm", x + tables["position"][positions])]
        real = np.asarray(mask, dtype=np.float64)[..., None] if self.inert and mask is not None else None
        for i in range(self.config["num_hidden_layers"]):
            name, x = f"encoder.layer.{i}", states[-1]
            if self.config["pre_norm"]:
                states.append(x + self.mix(name, self.norm(f"{name}.LayerNorm", x), real))
            else:
                states.append(self.norm(f"{name}.LayerNorm", x + self.mix(name, x, real)))
        return states

    def mix(self, name: str, x: F64, real: F64 | None) -> F64:
        streams = {}
        for way, direction in (("fs4", "forward"), ("bs4", "backward")):
            stream = self.gelu(self.linear(f"{name}.du_{direction}", x))
            stream = stream if real is None else stream * real
            part = {key: self.params[f"{name}.{way}.kernel.{key}"] for key in ("A_re", "A_im", "C", "log_step")}
            taps = kernel(part["A_re"], part["A_im"], part["C"], part["log_step"], x.shape[1])
            skip = self.params[f"{name}.{way}.D"]
            streams[direction] = convolve(stream, taps, skip, backward=direction == "backward")
        context = self.linear(f"{name}.duc_forward", streams["forward"])
        context = context * self.linear(f"{name}.duc_backward", streams["backward"])
        gate = self.gelu(self.linear(f"{name}.dol", context)) * self.gelu(self.linear(f"{name}.dv", x))
        return self.linear(f"{name}.do", gate)

    def pooled(self, x: F64, mask: np.ndarray | None) -> F64:
        if mask is not None and (self.inert or self.config["pooler_type"] == "non_padding_mean"):
            weights = np.asarray(mask, dtype=np.float64)[..., None]
            mean = (x * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        else:
            mean = x.mean(axis=1)
        result: F64 = np.tanh(self.linear("pooler.dense", mean))
        return result

    def predictions(self, x: F64) -> F64:
        x = ACTIVATIONS[self.config["hidden_act"]](self.linear("cls.predictions.transform.dense", x))
        words = self.params.get("cls.predictions.decoder.weight")
        words = self.params["embeddings.word_embeddings.weight"] if words is None else words
        return self.norm("cls.predictions.transform.LayerNorm", x) @ words.T + self.params["cls.predictions.bias"]


def _erf(x: F64) -> F64:
    result: F64 = np.vectorize(math.erf, otypes=[np.float64])(x)
    return result


def _gelu_tanh(x: F64) -> F64:
    result: F64 = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def _gelu_erf(x: F64) -> F64:
    result: F64 = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return result


GELU: Mapping[str, Callable[[F64], F64]] = {"tanh": _gelu_tanh, "erf": _gelu_erf}
ACTIVATIONS: Mapping[str, Callable[[F64], F64]] = {
    "gelu": _gelu_erf,
    "gelu_new": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def _needed(pooled: F64 | None) -> F64:
    if pooled is None:
        raise ValueError("the head pools, and the weights have no pooler")
    return pooled
