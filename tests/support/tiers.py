"""The tiers of tests: quick (tests/unit), every change (`make test`), nightly (every combination).

Tests in tests/unit start no process and verify no conversion. `@pytest.mark.slow` takes a single test out of the quick
tier. `@pytest.mark.nightly` leaves a test, and `daily` the further values of a parameter, to `make nightly`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def daily(values: Iterable[Any], *, of: Iterable[Any]) -> list[Any]:
    """Parameters that run with every change, and the others of a list, in its order, which run nightly."""
    kept = list(values)
    return [
        value
        if value in kept
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.nightly)
        for value in of
    ]
