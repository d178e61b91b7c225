"""The checks of Linformer on a loaded repo."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ...convert.verify import family_checks
from ...convert.verify.checks import attentions_of, compare_with_source, worst_of
from ...convert.verify.loaded import Loaded, difference


def equal_to_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """Up to proj_dim tokens nothing is projected: the outputs are the source's."""
    return compare_with_source(loaded, int(loaded.config.proj_dim))


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Beyond proj_dim tokens, where the matrices are used."""
    return family_checks.every_tensor_read(loaded, loaded.config.proj_dim + 1)


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random q, k, v, against softmax(q (E k)ᵀ / √d) (F v) in float64.

    A text of fewer tokens than the matrices have gets them resampled: each token takes the share of the stored
    positions that it stands for.
    """
    attention = attentions_of(loaded.model())[0]
    config = loaded.config
    stored = {name: value.detach().double().numpy() for name, value in attention.named_parameters()}
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    lengths = sorted(
        {min(config.proj_dim + extra, config.projection_length) for extra in (1, 70)} | {config.projection_length}
    )
    found = []
    for tokens in lengths:
        q, k, v = (torch.randn((1, heads, tokens, width), generator=generator) for _ in range(3))
        with torch.no_grad():
            got = attention(q, k, v, None)
        matrices = []
        for name in ("key_projection", "value_projection"):
            values = stored.get(name, stored["key_projection"])
            bias = stored.get(f"{name}_bias", stored.get("key_projection_bias"))
            fixed = config.mask_mode == "published"
            matrices.append((values[..., :tokens] if fixed else resampled(values, tokens), bias if fixed else None))
        wanted = _attention(q.double().numpy(), k.double().numpy(), v.double().numpy(), matrices, config)
        found.append(difference(got, torch.from_numpy(wanted).float()))
    return worst_of(found), {"tokens": lengths}


def resampled(matrix: np.ndarray, tokens: int) -> np.ndarray:
    """(..., rows, positions) to (..., rows, tokens): first and last column kept, the others by overlap of intervals."""
    positions = matrix.shape[-1]
    if tokens == positions:
        return matrix
    scale = (positions - 2) / (tokens - 2)
    overlap = np.zeros((positions - 2, tokens - 2))
    for token in range(tokens - 2):
        left, right = token * scale, (token + 1) * scale
        for position in range(int(left), min(math.ceil(right), positions - 2)):
            overlap[position, token] = max(min(right, position + 1) - max(left, position), 0.0)
    return np.concatenate([matrix[..., :1], matrix[..., 1:-1] @ overlap, matrix[..., -1:]], axis=-1)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, matrices: list[Any], config: Any) -> np.ndarray:
    (keys, key_bias), (values, value_bias) = matrices
    scale = math.sqrt(q.shape[-1])
    logit_bias = 0.0
    if config.projection_weighting == "salience":
        scores = np.einsum("bhtd,bhd->bht", k, q.mean(2)) / scale
        scores = np.clip(scores - scores.mean(-1, keepdims=True), -4.0, 4.0)
        weight = np.exp(0.7 * scores)[..., None, :]
        share = np.abs(keys) / np.abs(keys).sum(-1, keepdims=True)
        norm = (share * weight).sum(-1)
        logit_bias = np.log((share * np.exp(scores)[..., None, :]).sum(-1))
        logit_bias = logit_bias - (share * weight * scores[..., None, :]).sum(-1) / norm - np.log((share**2).sum(-1))
        logit_bias = logit_bias[:, :, None, :]
        other = np.abs(values) / np.abs(values).sum(-1, keepdims=True)
        keys, values = keys * weight / norm[..., None], values * weight / (other * weight).sum(-1)[..., None]
    rows = keys @ k + (0.0 if key_bias is None else key_bias[..., None])
    logits = q @ np.swapaxes(rows, -1, -2) / scale + logit_bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: np.ndarray = weights @ (values @ v + (0.0 if value_bias is None else value_bias[..., None]))
    return mixed
