"""What uniform attention promises, measured on a loaded repo."""

from __future__ import annotations

from typing import Any

import torch

from effconv.convert.families.registry import FAMILIES
from effconv.convert.verify import family_checks
from effconv.convert.verify.checks import attentions_of, worst_of
from effconv.convert.verify.loaded import Loaded, difference


def equal_to_formula(loaded: Loaded) -> tuple[float, dict[str, Any]]:
    """The first layer's attention on random values, with and without padding, against their mean in float64."""
    attention = attentions_of(loaded.model())[0]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 4, 50, 8), generator=generator) for _ in range(3))
    lengths = (50, 13)
    mask = torch.arange(50) < torch.tensor(lengths)[:, None]
    found = []
    for seen, counts in ((None, (50, 50)), (mask, lengths)):
        got = attention(q, k, v, seen)
        for item, count in enumerate(counts):
            wanted = v[item, :, :count].double().mean(1, keepdim=True).expand(-1, 50, -1)
            found.append(difference(got[item], wanted.float()))
    return worst_of(found), {"tokens": list(lengths)}


def every_tensor_read(loaded: Loaded) -> tuple[None, dict[str, Any]]:
    """All but the projections of queries and keys, which this attention does not use."""
    family = FAMILIES[loaded.manifest["family"]]
    why = "uniform attention uses the values only"
    names = [f"{name}.{kind}" for name in family.code.projections[:2] for kind in ("weight", "bias")]
    return family_checks.every_tensor_read(loaded, exempt=dict.fromkeys(names, why))
