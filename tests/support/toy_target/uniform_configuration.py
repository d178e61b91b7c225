# SPDX-License-Identifier: Apache-2.0
"""The configuration of uniform attention, which has no fields."""

from __future__ import annotations

from typing import Any


class UniformConfigMixin:
    """Goes before a stock config class in the bases."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs["use_cache"] = False
        super().__init__(**kwargs)
