"""The checks of TransNormer on a loaded repo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...convert.families.registry import FAMILIES
from ...convert.verify import family_checks, sentence_checks
from ...convert.verify.checks import attentions_of, worst_of
from ...convert.verify.loaded import Loaded, difference
from .target import fitted_names

FEATURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "1+elu": lambda x: 1 + F.elu(x),
    "elu": F.elu,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Over more than one block."""
    return family_checks.every_tensor_read(loaded, loaded.config.block_size + 7)


def stock_attention_equals_source(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """With the source's own tensors where others were fitted to its attention."""
    return family_checks.stock_attention_equals_source(loaded, fitted_tensors(loaded))


def same_embedding(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """As a sentence encoder, with the source's own tensors likewise."""

    def put_back(emitted: nn.Module, dense: nn.Module) -> None:
        family_checks.put_back_attention(loaded, emitted, dense, fitted_tensors(loaded))

    return sentence_checks.same_embedding(loaded, put_back)


def fitted_tensors(loaded: Loaded) -> list[str]:
    """Names, in the base model, of the source's tensors that the target fits anew."""
    family, config = FAMILIES[loaded.manifest["family"]], loaded.config
    return fitted_names(family, config.to_dict(), config.diag_layers, config.variant)


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer of each kind on random q, k, v, against its formula with whole matrices of scores, in float64."""
    config = loaded.config
    attentions = attentions_of(loaded.model())
    chosen = {bool(attentions[index].diag): index for index in reversed(range(len(attentions)))}
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    found, lengths = [], (5, config.block_size + 7, 5 * config.block_size - 3)
    for in_blocks, index in chosen.items():
        for tokens in lengths:
            q, k, v = (torch.randn((2, heads, tokens, width), generator=generator) for _ in range(3))
            mask = torch.ones((2, tokens), dtype=torch.bool)
            mask[1, -tokens // 3 :] = False
            with torch.no_grad():
                got = attentions[index](q, k, v, mask)
                wanted = _formula(q.double(), k.double(), v.double(), mask, config, attentions[index], in_blocks)
            found.append(difference(got.transpose(1, 2), wanted.float().transpose(1, 2), mask))
    return worst_of(found), {"tokens": list(lengths), "layers": sorted(chosen.values())}


def _formula(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, config: Any, attention: nn.Module, in_blocks: bool
) -> Tensor:
    tokens, width = q.shape[2:]
    state = {name: value.double() for name, value in attention.state_dict().items()}
    at = torch.arange(tokens)
    softmax = config.variant == "t2"
    seen = mask[:, None, None, :].expand(-1, 1, tokens, -1)
    if config.mask_mode == "published":
        seen = torch.ones_like(seen)
    if getattr(config, "is_decoder", False):
        seen = seen & (at[:, None] >= at[None, :])
    if in_blocks:
        seen = seen & (at[:, None] // config.block_size == at[None, :] // config.block_size)
        q, k = (_rotated(x, at % config.block_size, state) for x in (q, k))
        scores = q @ k.transpose(-1, -2) / math.sqrt(width)
        if softmax and config.mask_mode == "published":  # the zeros that fill the last block are keys
            filled = (-tokens) % config.block_size * (at // config.block_size == tokens // config.block_size)
            weights = scores.exp() * seen
            weights = weights / (weights.sum(-1, keepdim=True) + filled[:, None])
        elif softmax:
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)
        else:
            weights = F.relu(scores) * seen
    else:
        name = config.linear_activation or ("1+elu" if softmax else "elu")
        q, k = (_rotated(FEATURES[name](x), at, state) for x in (q, k))
        weights = (q @ k.transpose(-1, -2)) * seen
    y = weights @ v
    return y if in_blocks and softmax else _normed(y, config.attention_norm, state)


def _rotated(x: Tensor, at: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A reflection, then a rotation of each pair of channels, as complex numbers."""
    if "lrpe.theta" not in state:
        return x
    if "lrpe.v" in state:
        v = state["lrpe.v"]
        x = x - 2 * (x @ v)[..., None] * v
    turn = torch.polar(torch.ones(()).double(), at[:, None] * state["lrpe.theta"].flatten())
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


def _normed(y: Tensor, kind: str, state: dict[str, Tensor]) -> Tensor:
    """A norm over all channels of a token."""
    heads = y.shape[1]
    x = y.transpose(1, 2).flatten(2)
    if kind == "layernorm":
        x = F.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-5)
    else:
        x_hat = x / (x.norm(dim=-1, keepdim=True) / math.sqrt(x.shape[-1]) + 1e-8)
        x_hat = x_hat * state.get("norm.scale", torch.ones(()).double())
        x = x_hat * torch.sigmoid(state["norm.gate"] * x) if "norm.gate" in state else x_hat
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
