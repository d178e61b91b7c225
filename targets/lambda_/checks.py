"""The checks of Lambda on a loaded repo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...convert.verify import family_checks, sentence_checks
from ...convert.verify.checks import attentions_of, padded_ids, worst_of
from ...convert.verify.loaded import Loaded, difference, outputs


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """Any length uses all tensors."""
    return family_checks.every_tensor_read(loaded, 64)


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random q, k, v, long and short, against its formula written out in float64.

    y[n] = Σ_c (A_c·q_n + a_c) Σ_m softmax_m(w_c·k_m) v_m + Σ_j (M_j·q_n + m_j) v[n + j − ⌊r/2⌋], over real tokens m.
    """
    attention = attentions_of(loaded.model())[0]
    parameters = {name: value.detach().double() for name, value in attention.named_parameters()}
    heads, _, width = parameters["landmarks"].shape
    generator = torch.Generator().manual_seed(0)
    found, lengths = [], (9, 70, 700)
    for tokens in lengths:
        q, k, v = (torch.randn((2, heads, tokens, width), generator=generator) for _ in range(3))
        mask = torch.ones((2, tokens), dtype=torch.bool)
        mask[1, -tokens // 3 :] = False
        with torch.no_grad():
            got = attention(q, k, v, mask)
        q64, k64, v64 = q.double(), k.double(), v.double() * mask[:, None, :, None]
        scores = torch.einsum("hcd,bhtd->bhct", parameters["landmarks"], k64)
        weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        lambdas = torch.einsum("bhct,bhtd->bhcd", weights, v64)
        query = torch.einsum("bhtd,hcd->bhtc", q64, parameters["content_weight"])
        wanted = torch.einsum("bhtc,bhcd->bhtd", query + parameters["content_bias"][:, None], lambdas)
        local = parameters.get("local_weight")
        if local is not None:
            wanted = wanted + _near(q64, v64, local, parameters["local_bias"])
        found.append(difference(got.transpose(1, 2), wanted.float().transpose(1, 2), mask))
    return worst_of(found), {"tokens": list(lengths)}


def _near(q: Tensor, v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The local term: sum over offsets j of (q[t] · weight[h, j] + bias[h, j]) v[t + j − ⌊r/2⌋]."""
    total, rows = torch.zeros_like(v), torch.arange(v.shape[2])
    for offset in range(weight.shape[1]):
        at = rows + offset - weight.shape[1] // 2
        inside = (at >= 0) & (at < len(rows))
        factor = torch.einsum("bhtd,hd->bht", q, weight[:, offset]) + bias[:, offset, None]
        total = total + factor[..., None] * v[:, :, at.clamp(0, len(rows) - 1)] * inside[:, None]
    return total


class _SourceAttention(nn.Module):
    """A source's self-attention in the place of a published lambda layer, which takes states and mask (b, t)."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        blocked = None
        if mask is not None:
            blocked = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None, :]
        return self.stock(x, blocked)[0], x.new_zeros(())  # the second is λ, of which this has none


def published_stock_attention(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """With the source's own self-attention in every layer, the outputs that both models have are the source's."""
    longest = min(64, loaded.max_length, int(loaded.manifest["source_max_length"]))
    ids, mask = padded_ids(loaded, (longest, max(longest // 2, 1)))
    found = []
    for auto, names in _shared_outputs(loaded).items():
        dense, emitted = loaded.source_model(auto), loaded.base() if auto == "AutoModel" else loaded.model()
        _put_back(emitted, dense)
        for visible in (mask, None):
            got, wanted = (outputs(model, auto, ids, visible) for model in (emitted, dense))
            real = mask.bool() if visible is mask else None
            found += [difference(got[ours], wanted[theirs], real) for theirs, ours in names.items()]
    return worst_of(found), {"heads": sorted(_shared_outputs(loaded)), "tokens": longest}


def _shared_outputs(loaded: Loaded) -> dict[str, dict[str, str]]:
    """By the source's Auto class, its outputs whose tensors the repo has from it, and what the repo calls them."""
    new = " ".join(loaded.manifest["new"])
    pooled = {} if "pooler." in new or not loaded.autos else {"pooler_output": "pooler_output"}
    shared = {"AutoModel": {"last_hidden_state": "last_hidden_state", **pooled}}
    if "ForPreTraining" in loaded.manifest["architecture"]:
        if "predictions." not in new:
            shared["AutoModelForMaskedLM"] = {"logits": "prediction_logits"}
        if "seq_relationship." not in new and loaded.manifest["architecture"].endswith("NSP"):
            shared["AutoModelForNextSentencePrediction"] = {"logits": "pair_logits"}
    return shared


def published_same_embedding(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """As a sentence encoder, with the source's own self-attention."""
    return sentence_checks.same_embedding(loaded, _put_back)


def _put_back(emitted: Any, dense: Any) -> None:
    ours, theirs = emitted.base_model.encoder.layer, dense.base_model.encoder.layer
    for layer, stock in zip(ours, theirs, strict=True):
        layer.lambdalayer.self = _SourceAttention(stock.attention.self)


def published_equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first published layer on random states, in eval mode, against equations 1 to 3 of the paper in float64.

    y[n,h] = q[n,h] · (λc + λp[n]), λc[k,v] = Σ_u Σ_n K[u,k,n] V[u,v,n],
    λp[k,v,n] = Σ_u,j W[k,u,j] V[u,v,n + j − ⌊r/2⌋].
    """
    model = loaded.model()
    layer = next(module for name, module in model.named_modules() if name.endswith("encoder.layer.0.lambdalayer.self"))
    config = loaded.config
    state = {name: value.detach().double() for name, value in layer.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    # Global positions reach as far as their table; a short text keeps it from being the whole of it.
    found, lengths = [], sorted({min(tokens, config.max_position_embeddings) for tokens in (9, 70)})
    for tokens in lengths:
        x = torch.randn((1, tokens, config.hidden_size), generator=generator)
        with torch.no_grad():
            got, _ = layer(x, None)
        q, k, v = (x[0].double() @ state[f"{name}.weight"][..., 0].T for name in ("query", "key", "value"))
        for name, value in (("norm_q", q), ("norm_v", v)):
            value.sub_(state[f"{name}.running_mean"]).div_((state[f"{name}.running_var"] + 1e-5).sqrt())
            value.mul_(state[f"{name}.weight"]).add_(state[f"{name}.bias"])
        q = q.unflatten(-1, (config.num_lambda_queries, config.key_depth))
        k = k.softmax(0).unflatten(-1, (config.key_depth, config.intra_depth))
        v = v.unflatten(-1, (-1, config.intra_depth))
        wanted = torch.einsum("nhk,kv->nhv", q, torch.einsum("mku,mvu->kv", k, v))
        if "rel_pos_embed" in state:
            table = state["rel_pos_embed"][:, :, 0]
            for offset in range(table.shape[-1]):
                rows = torch.arange(tokens) + offset - table.shape[-1] // 2
                inside = (rows >= 0) & (rows < tokens)
                near = v[rows.clamp(0, tokens - 1)] * inside[:, None, None]
                wanted += torch.einsum("nhk,ku,nvu->nhv", q, table[..., offset], near)
        else:
            wanted += torch.einsum("nhk,nuk,nvu->nhv", q, state["pos_diagonal"][:tokens], v)
        found.append(difference(got[0], wanted.flatten(1).float()))
    return worst_of(found), {"tokens": list(lengths)}
