"""Recorded cases of published layers: parameters, inputs and outputs by case, a safetensors and a JSON file a target.

See the README beside the recordings; the folder here holds some of them, a checkout with all of them reads those.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from places import SHARED, TESTS
from safetensors.torch import load_file
from torch import Tensor

COPY = TESTS / "goldens"
FULL = SHARED / "goldens"
TOLERANCE = 2e-5


def recorded_cases(target: str, name: str) -> list[dict[str, Any]]:
    """Options and shapes of every case, by the name of its files."""
    return json.loads(_file(target, f"{name}.json").read_text(encoding="utf-8"))["cases"]


def recorded_tensors(target: str, name: str, case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of a case, and its parameters."""
    found = {
        key.removeprefix(f"{case}/"): value
        for key, value in _tensors(_file(target, f"{name}.safetensors")).items()
        if key.startswith(f"{case}/")
    }
    return found, {key.removeprefix("param/"): value for key, value in found.items() if key.startswith("param/")}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Max |a - b| <= tolerance * max(1, max |b|), of finite tensors of one shape."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= tolerance * max(1.0, expected.abs().max().item()), difference


def _file(target: str, name: str) -> Path:
    full = FULL / target / name
    return full if full.is_file() else COPY / target / name


@cache
def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)
