"""Families that count positions from behind the padding token: any id of it, in every target."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints import convert, read

import effconv
from effconv.convert.errors import BadInputError
from effconv.convert.families.registry import FAMILIES
from effconv.targets.registry import TARGETS
from tiny import save_tiny

COUNTED = [name for name, family in FAMILIES.items() if family.code.after_padding]
PAD = 5
FIELDS = {"pad_token_id": PAD, "max_position_embeddings": 64 + PAD + 1}
SMALL = {"lsg": {"block_size": 16}, "linformer": {"proj_dim": 16}, "transnormer": {"block_size": 16}}


def table(folder) -> torch.Tensor:
    (found,) = (value for name, value in read(folder).items() if name.endswith("position_embeddings.weight"))
    return found


@pytest.mark.parametrize("family", COUNTED)
def test_token_64_gets_the_position_of_token_0(family, tmp_path):
    source = save_tiny(tmp_path / "source", family, "Model", **FIELDS)
    result = convert(source, tmp_path / "out", max_length=200)
    old, new = table(source), table(tmp_path / "out")
    assert len(new) == 200 + PAD + 1
    assert torch.equal(new[: 64 + PAD + 1], old)
    assert torch.equal(new[PAD + 1 + 64], old[PAD + 1])
    assert result.manifest["source_max_length"] == 64


@pytest.mark.parametrize(
    "target",
    [
        "lsg",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name, target in TARGETS.items()
            if "roberta" in target.families and name != "lsg"
        ),
    ],
)
def test_every_check_passes(target, tmp_path):
    source = save_tiny(tmp_path / "source", "roberta", "ForMaskedLM", **FIELDS)
    result = effconv.convert(source, target, output=tmp_path / "out", max_length=200, **SMALL.get(target, {}))
    named = {check.name: check.passed for check in result.measured}
    assert named["runs_at_full_length"] is True
    assert named["stock_attention_equals_source"] is True


@pytest.mark.parametrize(("fields", "said"), [({"pad_token_id": None}, "pad_token_id"), ({"pad_token_id": 70}, "71")])
def test_a_padding_id_that_leaves_no_position_is_refused(fields, said, tmp_path):
    source = save_tiny(tmp_path / "source", "roberta", "Model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(BadInputError) as caught:
        convert(source, tmp_path / "out")
    assert "pad_token_id" in caught.value.where
    assert said in str(caught.value)
