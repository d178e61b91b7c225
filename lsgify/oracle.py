"""LSG attention from its definition, in float64: every row against every key, all but the allowed ones masked.

Quadratic, for checking only. It shares no code with the emitted kernels: windows are index sets here, not views.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, config: Any, bias: Tensor | None = None) -> Tensor:
    """LSG attention over more than two blocks; of a decoder (`config.is_decoder`) no row sees a later token.

    Args:
        q, k, v: (b, h, g + t, d), the g global tokens first.
        mask: bool (b, g + t), True for what may be attended to.
        config: with the fields of an LSG config.
        bias: added to the scores of tokens, (h, 2 R + 2): column R + D for a key at distance D, the last for a global.

    Returns:
        Context (b, h, g + t, d), float64.
    """
    q, k, v = q.double(), k.double(), v.double()
    places = torch.arange(q.shape[2]).double()[None, None, :, None].expand(len(q), q.shape[1], -1, 1)
    if bias is not None:  # each key brings its position along as a further channel of its value
        v = torch.cat([v, places - config.num_global_tokens], dim=-1)
    globals_, block = config.num_global_tokens, config.block_size
    tokens = q.shape[2] - globals_
    padding = -tokens % block
    k_tokens, v_tokens = (torch.nn.functional.pad(x[:, :, globals_:], (0, 0, 0, padding)) for x in (k, v))
    seen = torch.nn.functional.pad(mask[:, globals_:], (0, padding))[:, None].expand(-1, q.shape[1], -1)
    keys, values, visible = (
        [k[:, :, :globals_], k_tokens],
        [v[:, :, :globals_], v_tokens],
        [
            mask[:, None, :globals_].expand(-1, q.shape[1], -1),
            seen,
        ],
    )
    causal = bool(getattr(config, "is_decoder", False))
    row, key = torch.arange(tokens)[:, None], torch.arange(tokens + padding)[None, :]
    near = (row // block - key // block).abs() <= 1
    allowed = [torch.ones(tokens, globals_, dtype=torch.bool), near & (key <= row) if causal else near]
    if config.sparsity_type != "none" and config.sparse_block_size > 0 and config.sparsity_factor > 0:
        sparse = _sparse(q[:, :, globals_], k_tokens, v_tokens, seen, config)
        for part, extra in zip((keys, values, visible), sparse, strict=True):
            part.append(extra)
        allowed.append(_sparse_window(tokens, sparse[0].shape[2], config, causal))
    rows = torch.cat(allowed, dim=1)
    # Global rows see globals and tokens, never the sparse keys, which summarise tokens; in a decoder, globals only.
    top = torch.ones(globals_, rows.shape[1], dtype=torch.bool)
    top[:, globals_ + (0 if causal else tokens + padding) :] = False
    all_keys, all_visible, all_values = torch.cat(keys, 2), torch.cat(visible, 2), torch.cat(values, 2)
    scores = q @ all_keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        all_values, stands = all_values[..., :-1], all_values[..., -1]
        scores[:, :, globals_:] += _bias(bias.double(), tokens, globals_, stands)
    scores = scores.masked_fill(~(torch.cat([top, rows]) & all_visible[:, :, None, :]), -math.inf)
    context = torch.softmax(scores, -1).nan_to_num(0.0) @ all_values
    if causal and config.causal_globals == "published":
        context[:, :, :globals_] = q[:, :, :globals_]
    return context


def _bias(bias: Tensor, tokens: int, globals_: int, stands: Tensor) -> Tensor:
    """What the rows of tokens get for keys (b, h, tokens, keys) that stand at the positions (b, h, keys)."""
    reach = bias.shape[1] // 2 - 1
    distance = (stands[:, :, None] - torch.arange(tokens)[:, None]).round().long().clamp(-reach, reach) + reach
    distance[..., :globals_] = 2 * reach + 1
    head = torch.arange(len(bias))[:, None, None]
    return bias[head, distance]


def _sparse_window(tokens: int, entries: int, config: Any, causal: bool) -> Tensor:
    """Which entries (tokens, entries) of the sparse list each token sees: those just outside its local window."""
    step, size = config.block_size // config.sparsity_factor, config.sparse_block_size
    block = torch.arange(tokens)[:, None] // config.block_size
    entry = torch.arange(entries)[None, :]
    first = block if step == 1 else (block + 2) * step
    left = (entry >= (block - 1) * step - size) & (entry < (block - 1) * step)
    right = (entry >= first) & (entry < first + size)
    seen: Tensor = left if causal else left | right
    return seen


def _sparse(first: Tensor, k: Tensor, v: Tensor, seen: Tensor, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The sparse list of every head: keys, values (b, h, s, d) and whether each may be seen (b, h, s)."""
    factor, kind, block = config.sparsity_factor, config.sparsity_type, config.block_size
    heads, tokens = k.shape[1], k.shape[2]
    if factor == 1:
        return k, v, seen
    if kind == "lsh" and factor == config.sparse_block_size:
        kind = "bos_pooling"
    if kind in ("norm", "lsh"):  # chunks that do not divide the block
        short = -tokens % min(block, config.sparse_block_size)
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, short)) for x in (k, v))
        seen, tokens = torch.nn.functional.pad(seen, (0, short)), tokens + short
    if kind == "lsh":
        return _hashed(k, v, seen, config)
    if kind in ("norm", "stride", "block_stride"):
        if kind == "norm":
            size = min(block, config.sparse_block_size)
            lengths = (k.norm(dim=-1) * seen).unflatten(2, (-1, size))
            best = lengths.argsort(dim=-1, descending=True, stable=True)[..., : size // factor]
            best = best.flip(-1)  # the largest last: a window may begin or end within a chunk
            index = (best + torch.arange(tokens // size)[:, None] * size).flatten(2)
        elif kind == "stride":
            index = torch.stack([torch.arange(tokens // factor) * factor + head % factor for head in range(heads)])
        else:
            run = block // factor
            offsets = torch.stack([(torch.arange(run) + head * run) % block for head in range(heads)])
            index = (torch.arange(tokens // block)[None, :, None] * block + offsets[:, None]).flatten(1)
        index = index.expand(len(k), heads, -1)
        keys, values = (x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (k, v))
        return keys, values, seen.gather(2, index)
    shown = seen.unflatten(2, (-1, factor))
    if kind == "pooling":
        weights = shown.double() / shown.double().sum(-1, keepdim=True).clamp(min=1)
        visible = shown.any(-1)
    else:
        scores = (k @ first[..., None])[..., 0].unflatten(2, (-1, factor)) / math.sqrt(k.shape[-1])
        hidden = ~shown & shown.any(-1, keepdim=True)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        weights = torch.where(shown.any(-1, keepdim=True), weights, torch.full_like(weights, 1 / factor))
        visible = shown.any(-1) | (config.bos_pooling_padding == "published")
    mean_k, mean_v = ((x.unflatten(2, (-1, factor)) * weights[..., None]).sum(3) for x in (k, v))
    return mean_k, mean_v, visible


def _hashed(k: Tensor, v: Tensor, seen: Tensor, config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Means of keys that fall into one bucket of their chunk, after the rounds of layer 0's seeded projections."""
    size = min(config.block_size, config.sparse_block_size)
    generator = torch.Generator().manual_seed(config.lsh_seed)
    sizes = [size] * config.lsh_num_pre_rounds + [size // config.sparsity_factor]
    sums_k, sums_v = ((x * seen[..., None]).unflatten(2, (-1, size)) for x in (k, v))
    counts = seen.double().unflatten(2, (-1, size))
    for buckets in sizes:
        projection = torch.randn(1, k.shape[1], 1, k.shape[-1], buckets // 2, generator=generator).double()
        turned = torch.nn.functional.normalize(sums_k, dim=-1) @ projection
        bucket = torch.cat([turned, -turned], -1).argmax(-1) if buckets > 1 else torch.zeros_like(counts).long()
        member = torch.nn.functional.one_hot(bucket, buckets).double().transpose(-1, -2)  # (b, h, chunk, bucket, entry)
        sums_k, sums_v, counts = member @ sums_k, member @ sums_v, (member @ counts[..., None])[..., 0]
    divisor = counts.clamp(min=1)[..., None]
    return (sums_k / divisor).flatten(2, 3), (sums_v / divisor).flatten(2, 3), (counts > 0).flatten(2)
