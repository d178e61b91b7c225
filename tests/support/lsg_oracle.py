"""LSG attention written as slowly and plainly as the text that defines it: one row, one head at a time, in float64.

Shares no code with the emitted files. A row's keys are gathered as a list, so a key that is seen twice counts twice.
"""

from __future__ import annotations

import math

import torch


def oracle(q, k, v, mask, config, causal=False, layer_index=0):
    """Context (b, h, g + t, d) in float64; config has the LSG fields."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, rows, _ = q.shape
    if mask is None:
        mask = torch.ones(batch, rows, dtype=torch.bool)
    context = torch.zeros_like(q)
    for b in range(batch):
        for a in range(heads):
            context[b, a] = one_head(q[b, a], k[b, a], v[b, a], mask[b], config, a, heads, causal, layer_index)
    return context


def one_head(q, k, v, mask, config, head, heads, causal, layer_index):
    g, block = config.num_global_tokens, config.block_size
    length = len(q) - g
    padded = math.ceil(length / block) * block
    extra = torch.zeros(padded - length, q.shape[1], dtype=q.dtype)
    tokens = [(key, value, bool(seen)) for key, value, seen in zip(k[g:], v[g:], mask[g:], strict=True)]
    global_keys = [(k[i], v[i], bool(mask[i])) for i in range(g)]
    out = []
    for i in range(g):
        published = causal and config.causal_globals == "published"
        out.append(q[i] if published else softmax_row(q[i], global_keys + ([] if causal else tokens)))
    if length <= 2 * block:
        for i in range(length):
            out.append(softmax_row(q[g + i], global_keys + (tokens[: i + 1] if causal else tokens)))
        return torch.stack(out)
    tokens += [(zero, zero, False) for zero in extra]
    listed, entries, size = [], 0, config.sparse_block_size
    if config.sparsity_type != "none" and size > 0 and config.sparsity_factor > 0:
        listed = sparse_list(q[g], tokens, config, head, heads, layer_index)
        entries = block // config.sparsity_factor
    for t in range(length):
        i = t // block
        seen = list(global_keys)
        if listed:
            seen += between(listed, (i - 1) * entries - size, (i - 1) * entries)
            if not causal:
                start = (i + 2) * entries if entries > 1 else i
                seen += between(listed, start, start + size)
        seen += between(tokens, (i - 1) * block, t + 1 if causal else (i + 2) * block)
        out.append(softmax_row(q[g + t], seen))
    return torch.stack(out)


def between(entries, start, stop):
    return [entries[j] for j in range(start, stop) if 0 <= j < len(entries)]


def softmax_row(query, entries):
    seen = [(key, value) for key, value, visible in entries if visible]
    if not seen:
        return torch.full_like(query, math.nan)  # nothing to see: any finite answer will do
    scores = torch.stack([query @ key for key, _ in seen]) / math.sqrt(len(query))
    return torch.softmax(scores, 0) @ torch.stack([value for _, value in seen])


def sparse_list(first_query, tokens, config, head, heads, layer_index):
    factor, block = config.sparsity_factor, config.block_size
    chunk = min(block, config.sparse_block_size)
    if factor == 1:
        return tokens
    kind = config.sparsity_type
    if kind == "lsh" and factor == config.sparse_block_size:
        kind = "bos_pooling"
    listed = []
    if kind == "norm":
        for group in groups(tokens, chunk):
            ranked = sorted(group, key=lambda entry: entry[0].norm().item() if entry[2] else 0.0)
            listed += ranked[-(chunk // factor) :]
    elif kind == "pooling":
        for group in groups(tokens, factor):
            seen = [(key, value) for key, value, visible in group if visible]
            if seen:
                key, value = (sum(x) / len(seen) for x in zip(*seen, strict=True))
                listed.append((key, value, True))
            else:
                listed.append((*group[0][:2], False))
    elif kind == "stride":
        listed = tokens[head % factor :: factor]
    elif kind == "block_stride":
        run = block // factor
        for group in groups(tokens, block):
            listed += [group[(offset + head * run) % block] for offset in range(run)]
    elif kind == "bos_pooling":
        for group in groups(tokens, factor):
            visible = any(entry[2] for entry in group)
            if visible:
                scores = torch.stack([first_query @ key for key, _, _ in group]) / math.sqrt(len(first_query))
                hidden = torch.tensor([not entry[2] for entry in group])
                weights = torch.softmax(scores.masked_fill(hidden, -math.inf), 0)
            else:
                weights = torch.full((factor,), 1 / factor, dtype=first_query.dtype)
            listed.append(
                (
                    sum(w * key for w, (key, _, _) in zip(weights, group, strict=True)),
                    sum(w * value for w, (_, value, _) in zip(weights, group, strict=True)),
                    visible or config.bos_pooling_padding == "published",
                )
            )
    elif kind == "lsh":
        rounds = projections(config, heads, len(first_query), chunk, layer_index)
        for group in groups(tokens, chunk):
            listed += hashed(group, [projection[head] for projection in rounds], chunk // factor, chunk)
    return listed


def groups(entries, size):
    """Runs of `size` entries, the last one filled up with masked zeros."""
    zero = torch.zeros_like(entries[0][0])
    entries = entries + [(zero, zero, False)] * (-len(entries) % size)
    return [entries[i : i + size] for i in range(0, len(entries), size)]


def projections(config, heads, size, chunk, layer_index):
    """The projections (heads, d, buckets // 2) of every round, from the documented seed."""
    generator = torch.Generator().manual_seed(config.lsh_seed + layer_index)
    buckets = [chunk] * config.lsh_num_pre_rounds + [chunk // config.sparsity_factor]
    return [torch.randn(1, heads, 1, size, count // 2, generator=generator)[0, :, 0].double() for count in buckets]


def hashed(group, rounds, kept, chunk):
    """A chunk's entries hashed round after round into buckets of [sum of keys, sum of values, count]."""
    zero = torch.zeros_like(group[0][0])
    sums = [(key, value, 1) if visible else (zero, zero, 0) for key, value, visible in group]
    for number, projection in enumerate(rounds):
        count = chunk if number < len(rounds) - 1 else kept
        buckets = [(zero, zero, 0)] * count
        for key, value, tokens in sums:
            if tokens:
                scores = (key / key.norm()) @ projection
                index = int(torch.cat([scores, -scores]).argmax()) if len(scores) else 0
                at = buckets[index]
                buckets[index] = (at[0] + key, at[1] + value, at[2] + tokens)
        sums = buckets
    return [(key / max(tokens, 1), value / max(tokens, 1), tokens > 0) for key, value, tokens in sums]
