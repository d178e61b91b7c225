"""The dense control: a stock model of transformers, of the same sizes, seed and tokenizer as the others.

Nothing is converted to it. It is an effconv repo, so that the same commands train and measure it.
"""

from __future__ import annotations

from typing import Any

from ...convert.families.grammar import DECODER, SCORE_BIAS
from ...convert.families.registry import FAMILIES
from ...convert.recipe import Recipe
from ...convert.repo.modelcode import StockCode
from ...convert.target import (
    EVERY_TENSOR_READ,
    PADDING_CHANGES_NOTHING,
    RUNS_AT_FULL_LENGTH,
    SAME_TOKENS,
    SAVED_AGAIN_EQUAL,
    Context,
    Scratch,
    Target,
)
from .options import DenseOptions


def _config(context: Context) -> dict[str, Any]:
    return {"max_position_embeddings": context.options.max_length + context.family.special_positions(context.config)}


DENSE = Target(
    name="dense",
    summary="softmax attention, the stock model of transformers: a control",
    command="new dense",
    # Stock models that AutoModel does not load are left out: T5's encoder.
    only=tuple(name for name, family in FAMILIES.items() if not any(head.stock_auto for head in family.heads)),
    can=(DECODER, SCORE_BIAS),
    causal=True,
    recipe=Recipe("mlm", train="all", end_to_end=1.0),
    options=DenseOptions,
    code=StockCode(),
    config=_config,
    weights=lambda context: (),
    rules=lambda context: (),
    checks=(PADDING_CHANGES_NOTHING, SAVED_AGAIN_EQUAL, EVERY_TENSOR_READ, RUNS_AT_FULL_LENGTH, SAME_TOKENS),
    scratch=Scratch(),
)
