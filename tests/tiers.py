"""The tiers of tests: quick (the units), every change (`make test`), nightly (every combination).

A file of unit tests is named here: its tests start no process and verify no conversion. `@pytest.mark.slow` takes a
single test of it out of the quick tier. `@pytest.mark.nightly` leaves a test, and `daily` the further values of a
parameter, to `make nightly`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

QUICK = frozenset(
    {
        "test_declared.py",
        "test_docs.py",
        "test_dtypes.py",
        "test_execute.py",
        "test_needs.py",
        "test_lsg_attention.py",
        "test_plan.py",
        "test_public_api.py",
        "test_reader.py",
        "test_sources.py",
        "test_staging.py",
        "test_systems.py",
    }
)


def daily(values: Iterable[Any], *, of: Iterable[Any]) -> list[Any]:
    """Parameters that run with every change, and the others of a list, in its order, which run nightly."""
    kept = list(values)
    return [
        value
        if value in kept
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.nightly)
        for value in of
    ]
