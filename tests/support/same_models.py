"""Models that must be one and the same: tensors bit for bit, outputs within a tolerance. Imports torch only.

A matrix library picks its kernel by the address of the weights, too, and another load or copy has others: the last bit
of an output depends on that. Where no tensor differs, an error of the loading or saving cannot hide in the tolerance.
"""

from __future__ import annotations

import torch

TOLERANCE = 1e-6  # of max(1, max |b|), as that of the check saved_again_equal


def assert_same_outputs(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Outputs of two loads or copies of the same tensors."""
    assert got.shape == wanted.shape
    assert got.isfinite().all()
    difference = (got.double() - wanted.double()).abs().max().item()
    assert difference <= tolerance * max(1.0, wanted.abs().max().item()), f"differs by {difference}"


def assert_same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Parameters and buffers, by name, type and bits."""
    left, right = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (one, other))
    assert left.keys() == right.keys()
    differing = [n for n in left if left[n].dtype != right[n].dtype or not torch.equal(left[n], right[n])]
    assert not differing, differing
