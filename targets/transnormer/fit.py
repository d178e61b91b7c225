"""Weights of a TransNormer fitted to a dense teacher: closed forms on a sample of text, no gradient step.

Layer after layer, the converted model so far is run beside its teacher, and the next layer is fitted on what it will
really receive:

1. Linear layers get features. A head's score is written in its canonical coordinates,
   q·k / √d = q̄·k / √d + Σ_i σ_i a_i(q) b_i(k)
   with a, b white (the SVD of C_q^½ C_k^½). φ = 1 + elu is an exponential where its argument is negative, so the d
   feature pairs exp(± β √σ_i a_i) · exp(± β √σ_i b_i), i ≤ d/2, add up to Σ_i 2 cosh(...): large where query and key
   agree. The part that all queries share, γ q̄·k / √d, goes into every key feature. All of it is linear in q and k
   and folds into W_q and W_k.
2. W_v loses its mean (it would dominate the norm; the output bias gives it back) and every head is divided by its mean
   denominator, so that no head rules the norm that all share.
3. W_o is the least-squares map from the layer's output to what the teacher's attention adds: first one factor a channel
   and a bias, then a ridge step from there on the remaining error.

Everything is computed in float32 and solved in float64, from real tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...convert.errors import BadInputError
from ...convert.families.grammar import number
from ...convert.options import Progress
from ...convert.target import Calibration, Context
from ...convert.windows import windows
from ...templates.transnormer_attention import LINEAR_ACTIVATIONS, TransNormerAttention
from ..teacher import (
    AttentionRun,
    AttentionSite,
    Counter,
    Entry,
    TextSample,
    attention_sites,
    entry_of,
    fixed_threads,
    load_teacher,
    run_layer,
)
from ..text_batches import CalibrationText, read_text

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
WINDOWS = {128: 128, 512: 32}  # calibration texts by length, as many as the text has


@dataclass(frozen=True, slots=True)
class Features:
    """How the features of a linear layer are made; the defaults won on WikiText-2 valid with MiniLM."""

    sharpness: float = 2.5  # β
    salience: float = 0.75  # γ
    query_shift: float = 1.0  # subtracted before φ: further left, φ is more of an exponential
    key_shift: float = 3.0


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """New weights of one layer by module ("query", "key", "value", "output": (weight, bias)), float32.

    explained: the share of the teacher's attention output (variance, after its output projection) that the layer gives.
    """

    weights: dict[str, tuple[Tensor, Tensor]]
    explained: float


@fixed_threads()
def calibrate_transnormer(context: Context, folder: Path, progress: Progress) -> Calibration:
    """New weights of every layer's projections, fitted on the options' calibration text."""
    family, config = context.family, context.config
    model, tokenizer = load_teacher(folder, context.config)
    text = read_text(context.options.calibrate, tokenizer, model.config.vocab_size)
    samples = _samples(text, family.longest(config), context.seed)
    stored = family.layer_paths(config)
    emitted = SimpleNamespace(
        hidden_size=number(config, family.hidden_size),
        num_attention_heads=number(config, family.num_heads),
        **{name: value for name, value in context.emitted.items() if name in TRANSNORMER_FIELDS},
    )
    attentions = {path: TransNormerAttention(emitted, index).eval() for index, path in enumerate(stored)}
    runs = family.run_paths(config)
    sites = {site.name: site for site in attention_sites(model, family, config)}
    fitted = fit_transnormer(
        model,
        [model.get_submodule(path) for path in runs],
        [sites[path] for path in runs],
        [attentions[path] for path in runs],
        [not attentions[path].diag for path in runs],
        samples,
        activation=LINEAR_ACTIVATIONS["1+elu"] if context.options.variant == "t2" else None,
        progress=lambda step, done, total: progress("calibrate", done, total),
    )
    projections = (f"{family.code.attention_path}.{name}" for name in family.code.projections)
    names = dict(zip(("query", "key", "value", "output"), (*projections, family.output_projection), strict=True))
    values = {
        f"{path}.{names[module]}.{kind}": tensor.numpy()
        for path, layer in dict(zip(runs, fitted, strict=True)).items()
        for module, pair in layer.weights.items()
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
    }
    record = {
        **text.record,
        "tokens_used": sum(sample.input_ids.numel() for sample in samples),
        "lengths": sorted({sample.input_ids.shape[1] for sample in samples}),
        "explained": [round(layer.explained, 4) for layer in fitted],
        "findings": text.findings,
    }
    return Calibration(values, record)


TRANSNORMER_FIELDS = (
    "variant", "block_size", "diag_layers", "attention_norm", "linear_activation", "mask_mode", "position_encoding",
    "is_decoder",
)  # fmt: skip


def _samples(text: CalibrationText, reach: int, seed: int) -> list[TextSample]:
    """Windows of several lengths, chosen by seed, with the special tokens around each."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(text.tokens, dtype=torch.long)
    samples, windows_of = [], dict.fromkeys((min(length, reach) for length in WINDOWS), 0)
    for length, most in WINDOWS.items():
        windows_of[min(length, reach)] += most
    for length, most in windows_of.items():
        body = length - len(text.prefix) - len(text.suffix)
        available = len(tokens) // body if body > 0 else 0
        if available:
            chosen = torch.randperm(available, generator=generator)[:most].sort().values.tolist()
            starts = [i * body for i in chosen]
            samples.append(TextSample(windows(tokens, starts, length, text.prefix, text.suffix)))
    used = sum(sample.input_ids.numel() for sample in samples)
    if used < 1024:
        raise BadInputError(
            f"the calibration text has {len(tokens)} tokens, too few to fit {reach} positions",
            where="--calibrate",
            hint="give a text of several thousand words",
        )
    return samples


@torch.no_grad()
def fit_transnormer(
    teacher: nn.Module,
    layers: Sequence[nn.Module],
    sites: Sequence[AttentionSite],
    attentions: Sequence[Attention],
    linear: Sequence[bool],
    samples: Sequence[TextSample],
    *,
    activation: Callable[[Tensor], Tensor] | None,
    features: Features | None = None,
    ridge: float = 3.0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[FittedLayer]:
    """Fit every layer of a TransNormer to its teacher.

    Args:
        teacher: the stock base model in eval mode; it is left as it was.
        layers: its layers in the order they run. A module that occurs more than once (ALBERT) gets one fit for all its
            occurrences, on the teacher's own hidden states (there is no sequence of fits when the weights are shared).
        sites: their attentions.
        attentions: for every layer the converted attention, (q, k, v, mask) -> y, as it runs in the emitted model.
        linear: for every layer whether it is NormAttention (its q, k, v may be refitted) or DiagAttention.
        samples: calibration text.
        activation: φ of the linear layers where features are to be made (1 + elu), None to keep q, k, v as they are
            (T1).
        features: how features are made.
        ridge: relative to each channel's own variance.
        batch_size: texts run at once.
        progress: called with each step.

    Returns one FittedLayer per layer; shared layers return the same object. The same inputs give the same bits on one
    machine and torch version.
    """
    features = features or Features()
    batches = [
        TextSample(s.input_ids[i : i + batch_size], None if s.mask is None else s.mask[i : i + batch_size])
        for s in samples
        for i in range(0, len(s.input_ids), batch_size)
    ]
    report = Counter(progress, len(batches) * (1 + len(layers)))
    starts = [entry_of(teacher, layers[0], batch, report) for batch in batches]
    teacher_states = [start.hidden for start in starts]
    student_states = list(teacher_states)
    shared = len({id(layer) for layer in layers}) < len(layers)
    collected: dict[int, _Observations] = {}
    order: list[int] = []
    fitted: dict[int, FittedLayer] = {}
    for index, layer in enumerate(layers):
        key = id(layer) if shared else index
        order.append(key)
        seen = collected.setdefault(key, _Observations(layer, sites[index], attentions[index], linear[index]))
        for i, (batch, start) in enumerate(zip(batches, starts, strict=True)):
            teacher_states[i], run = run_layer(layer, sites[index], teacher_states[i], start)
            target = run.attended
            if not shared:
                _, run = run_layer(layer, sites[index], student_states[i], start)
            seen.add(run, target, batch.mask)
            report.step(f"layer {index + 1} of {len(layers)}")
        if shared:
            continue
        fitted[key] = _fit(seen, activation, features, ridge)
        for i, start in enumerate(starts):
            student_states[i] = seen.advance(i, student_states[i], start, fitted[key])
        del collected[key]
    for key, seen in collected.items():
        fitted[key] = _fit(seen, activation, features, ridge)
    return [fitted[key] for key in order]


class _Observations:
    """q, k, v that the student computes, and the teacher's attention output, batch after batch."""

    def __init__(self, layer: nn.Module, site: AttentionSite, attention: Attention, linear: bool) -> None:
        self.layer, self.site, self.attention, self.linear = layer, site, attention, linear
        self.qkv: list[tuple[Tensor, ...]] = []
        self.targets: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.outputs: list[Tensor] = []

    def add(self, run: AttentionRun, target: Tensor, mask: Tensor | None) -> None:
        self.qkv.append(run.by_head()[:3])
        self.targets.append(target)
        self.masks.append(mask)

    def real(self, parts: Sequence[Tensor]) -> Tensor:
        """(b, t, ...) parts to one (tokens, ...)."""
        pairs = zip(parts, self.masks, strict=True)
        return torch.cat([x.flatten(0, 1) if mask is None else x[mask] for x, mask in pairs]).float()

    def by_head(self, which: int) -> Tensor:
        """Samples of q (0), k (1) or v (2) as (h, tokens, d)."""
        return self.real([x[which].transpose(1, 2) for x in self.qkv]).transpose(0, 1)

    def advance(self, i: int, hidden: Tensor, start: Entry, fit: FittedLayer) -> Tensor:
        return run_layer(self.layer, self.site, hidden, start, F.linear(self.outputs[i], *fit.weights["output"]))[0]


def _fit(
    seen: _Observations,
    activation: Callable[[Tensor], Tensor] | None,
    features: Features,
    ridge: float,
) -> FittedLayer:
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    inputs = seen.qkv
    if seen.linear and activation is not None:
        maps = _feature_maps(seen.by_head(0), seen.by_head(1), features)
        maps.append(_value_map(seen, maps, activation))
        for name, (scale, shift) in zip(("query", "key", "value"), maps, strict=True):
            weights[name] = _folded(getattr(seen.site, name), scale, shift)
        to_query, to_key, to_value = maps
        inputs = [(_apply(to_query, q), _apply(to_key, k), _apply(to_value, v)) for q, k, v in seen.qkv]
    mixed = (seen.attention(q, k, v, mask) for (q, k, v), mask in zip(inputs, seen.masks, strict=True))
    seen.outputs = [y.transpose(1, 2).flatten(2) for y in mixed]
    x, target = seen.real(seen.outputs), seen.real(seen.targets)
    weights["output"], explained = _output_projection(x, target, seen.site.output, ridge)
    return FittedLayer(weights, explained)


def _feature_maps(q: Tensor, k: Tensor, features: Features) -> list[tuple[Tensor, Tensor]]:
    """q, k (h, tokens, d) -> for each (h, d, d) and (h, d): x -> scale x + shift gives what φ is applied to."""
    d = q.shape[-1]
    q, k = q.double(), k.double()
    mean_q, mean_k = q.mean(1), k.mean(1)
    (root_q, inverse_q), (root_k, inverse_k) = (_roots(x - x.mean(1, keepdim=True)) for x in (q, k))
    left, sigma, right = torch.linalg.svd(root_q @ root_k)
    pairs = d // 2
    strength = features.sharpness * (sigma[:, :pairs] / math.sqrt(d)).sqrt().unsqueeze(-1)
    a = strength * (left.mT @ inverse_q)[:, :pairs]
    b = strength * (right @ inverse_k)[:, :pairs]
    rest = a.new_zeros(a.shape[0], d - 2 * pairs, d)  # an odd width leaves one constant feature
    scale_q = torch.cat([a, -a, rest], 1)
    scale_k = torch.cat([b, -b, rest], 1) + features.salience * mean_q.unsqueeze(1) / math.sqrt(d)
    shift_q = -(scale_q @ mean_q.unsqueeze(-1)).squeeze(-1) - features.query_shift
    shift_k = -(scale_k @ mean_k.unsqueeze(-1)).squeeze(-1) - features.key_shift
    return [(scale_q.float(), shift_q.float()), (scale_k.float(), shift_k.float())]


def _roots(centred: Tensor) -> tuple[Tensor, Tensor]:
    """C^½ and C^-½ of centred samples (h, tokens, d); directions without variance are damped."""
    values, vectors = torch.linalg.eigh(centred.mT @ centred / centred.shape[1])
    roots = values.clamp(min=1e-6 * values.max()).sqrt().unsqueeze(1)
    return (vectors * roots) @ vectors.mT, (vectors / roots) @ vectors.mT


def _value_map(
    seen: _Observations, maps: list[tuple[Tensor, Tensor]], activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """V -> (v - mean) / the head's mean denominator φ(q)·mean φ(k)."""
    q, k = (activation(_apply(m, seen.by_head(i).unsqueeze(0)))[0] for i, m in enumerate(maps))
    denominators = (q * k.mean(1, keepdim=True)).sum(-1).mean(1)  # h
    mean = seen.by_head(2).mean(1)
    h, d = mean.shape
    scale = torch.eye(d).expand(h, d, d) / denominators.view(h, 1, 1)
    return scale, -mean / denominators.unsqueeze(-1)


def _apply(affine: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """X (b, h, t, d) -> scale x + shift, head by head."""
    scale, shift = affine
    return x.float() @ scale.mT + shift.unsqueeze(1)


def _folded(linear: Any, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of x -> scale linear(x) + shift; scale (h, d, d), shift (h, d)."""
    h, d, _ = scale.shape
    weight = linear.weight.double().unflatten(0, (h, d))
    folded = (scale.double() @ weight).flatten(0, 1)
    bias = shift.double()
    if linear.bias is not None:
        bias = bias + (scale.double() @ linear.bias.double().view(h, d, 1)).squeeze(-1)
    return folded.float(), bias.flatten().float()


def _output_projection(x: Tensor, target: Tensor, output: Any, ridge: float) -> tuple[tuple[Tensor, Tensor], float]:
    """Least squares from x to output(target), (tokens, w) each: a factor a channel, then a ridge step from there."""
    weight = output.weight.double()
    bias = weight.new_zeros(weight.shape[0]) if output.bias is None else output.bias.double()
    x, target = x.double(), target.double()
    mean_x, mean_y = x.mean(0), target.mean(0)
    x, target = x - mean_x, target - mean_y
    factor = (target * x).sum(0) / x.square().sum(0).clamp(min=1e-12)
    error = (target - factor * x) @ weight.T
    gram = x.T @ x
    damping = torch.diag(ridge * gram.diagonal() + 1e-9 * gram.diagonal().mean().clamp(min=1e-12))
    step = torch.linalg.solve(gram + damping, x.T @ error).T
    fitted = weight * factor + step
    left = error - x @ step.T
    explained = 1.0 - left.square().sum() / (target @ weight.T).square().sum().clamp(min=1e-12)
    return (fitted.float(), (bias + weight @ mean_y - fitted @ mean_x).float()), explained.item()
