"""X-MOD: its config says which adapters there are, and the language of a text that comes without one."""

from __future__ import annotations

import pytest

from effconv.convert.errors import BadInputError
from effconv.convert.families.grammar import shape_of
from effconv.convert.families.xmod import XMOD

CONFIG = {"hidden_size": 24, "num_hidden_layers": 3, "languages": ["sw_KE", "qu_PE"], "default_language": "qu_PE"}


def test_each_layer_has_the_adapters_of_each_language():
    config = {**CONFIG, "adapter_reduction_factor": 3}
    shapes = {weight.name: shape_of(weight, config) for weight in XMOD.further(config)}
    assert len(shapes) == 3 * 2 * 4
    assert shapes["encoder.layer.2.output.adapter_modules.sw_KE.dense1.weight"] == (8, 24)
    assert shapes["encoder.layer.0.output.adapter_modules.qu_PE.dense2.weight"] == (24, 8)
    assert shapes["encoder.layer.0.output.adapter_modules.qu_PE.dense2.bias"] == (24,)


def test_a_config_with_a_default_language_is_taken_as_it_is():
    assert XMOD.read_config(CONFIG) == CONFIG


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"default_language": None}, "default_language is None"),
        ({"default_language": "fr_XX"}, "default_language is 'fr_XX'"),
        ({"languages": "sw_KE"}, "languages must be"),
        ({"languages": []}, "languages must be"),
        ({"languages": [3]}, "languages must be"),
    ],
)
def test_a_config_that_leaves_the_language_open_is_refused(fields, words):
    with pytest.raises(BadInputError, match=words) as refused:
        XMOD.read_config({**CONFIG, **fields})
    assert refused.value.hint
    assert "sw_KE" in refused.value.hint or "default" not in words
