"""What Lambda promises, measured on a loaded repo."""

from __future__ import annotations

from typing import Any

import torch

from .checks import mixes_of, worst_of
from .loaded import Loaded, difference


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random q, k, v, long and short, against its formula written out in float64.

    y[n] = Σ_c (A_c·q_n + a_c) Σ_m softmax_m(w_c·k_m) v_m + Σ_j (M_j·q_n + m_j) v[n + j − ⌊r/2⌋], over real tokens m.
    """
    mix = mixes_of(loaded.model())[0]
    parameters = {name: value.detach().double() for name, value in mix.named_parameters()}
    heads, _, width = parameters["landmarks"].shape
    generator = torch.Generator().manual_seed(0)
    found, lengths = [], (9, 70, 700)
    for tokens in lengths:
        q, k, v = (torch.randn((2, heads, tokens, width), generator=generator) for _ in range(3))
        mask = torch.ones((2, tokens), dtype=torch.bool)
        mask[1, -tokens // 3 :] = False
        with torch.no_grad():
            got = mix(q, k, v, mask)
        q64, k64, v64 = q.double(), k.double(), v.double() * mask[:, None, :, None]
        scores = torch.einsum("hcd,bhtd->bhct", parameters["landmarks"], k64)
        weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        lambdas = torch.einsum("bhct,bhtd->bhcd", weights, v64)
        query = torch.einsum("bhtd,hcd->bhtc", q64, parameters["content_weight"])
        wanted = torch.einsum("bhtc,bhcd->bhtd", query + parameters["content_bias"][:, None], lambdas)
        local = parameters.get("local_weight")
        for offset in range(0 if local is None else local.shape[1]):
            shift = offset - local.shape[1] // 2
            rows = torch.arange(tokens) + shift
            inside = (rows >= 0) & (rows < tokens)
            near = v64[:, :, rows.clamp(0, tokens - 1)] * inside[:, None]
            factor = torch.einsum("bhtd,hd->bht", q64, local[:, offset]) + parameters["local_bias"][:, offset, None]
            wanted = wanted + factor[..., None] * near
        found.append(difference(got.transpose(1, 2), wanted.float().transpose(1, 2), mask))
    return worst_of(found), {"tokens": list(lengths)}
