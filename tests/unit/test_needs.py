"""What a family needs and what a target can do decide together which target takes which family."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import effconv
from effconv.convert.errors import UnsupportedError
from effconv.convert.families.bert import BERT
from effconv.convert.families.grammar import DECODER, NEEDS, SCORE_BIAS
from effconv.convert.families.mpnet import MPNET
from effconv.convert.families.registry import FAMILIES, families_for
from effconv.targets.registry import TARGETS
from tiny import save_tiny

# MPNet under another name.
BIASED = replace(MPNET, name="biased", code=replace(MPNET.code, model_type="biased"))
CANNOT = [name for name, target in TARGETS.items() if not target.only and SCORE_BIAS not in target.can]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source whose scores have a bias."""
    monkeypatch.setitem(FAMILIES, "biased", BIASED)
    source = save_tiny(tmp_path / "source", "mpnet", "Model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "biased"}))
    return source


@pytest.mark.parametrize("target", CANNOT)
def test_a_target_refuses_by_name_what_it_cannot_do(target, source):
    assert "biased" not in TARGETS[target].families
    with pytest.raises(UnsupportedError, match=f"biased: {NEEDS[SCORE_BIAS]}"):
        effconv.plan(source, target, max_length=512)


def test_a_target_that_can_do_it_takes_it(source):
    assert "biased" in TARGETS["lsg"].families
    assert effconv.plan(source, "lsg", max_length=512).family == "biased"


def test_a_bias_needs_a_table_and_the_code_that_adds_it():
    for half in ({"score_bias": "table"}, {"code": replace(BERT.code, score_bias=True)}):
        with pytest.raises(ValueError, match="score_bias"):
            replace(BERT, **half)
    with pytest.raises(ValueError, match="score_bias"):
        replace(BERT, needs=frozenset({SCORE_BIAS}))


def test_a_decoder_beside_the_encoder_is_a_need():
    with_decoder = {name for name, family in FAMILIES.items() if family.code.encoder and family.decoder_layer}
    assert {"bart", "mbart", "pegasus"} <= with_decoder == set(families_for({DECODER})) - set(families_for(()))
    assert "bart" not in TARGETS["linformer"].families
