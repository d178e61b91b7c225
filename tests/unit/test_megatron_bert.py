"""Megatron-BERT: the stock cross-attention of transformers 5 is refused, a decoder without it is not."""

from __future__ import annotations

import pytest

from effconv.convert.errors import UnsupportedError
from effconv.convert.families.megatron_bert import MEGATRON_BERT


def test_cross_attention_is_refused():
    with pytest.raises(UnsupportedError, match="as long as the text") as refused:
        MEGATRON_BERT.read_config({"is_decoder": True, "add_cross_attention": True})
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("fields", [{}, {"is_decoder": True}, {"is_decoder": True, "add_cross_attention": False}])
def test_all_else_is_taken_as_it_is(fields):
    assert MEGATRON_BERT.read_config(fields) == fields
