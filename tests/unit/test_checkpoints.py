"""What a run to resume says of settings that differ: options and values as they are given, never hashes or dicts."""

from __future__ import annotations

import pytest

from effconv.adapt.checkpoints import Checkpoints
from effconv.adapt.options import AdaptOptions
from effconv.convert.errors import BadInputError
from effconv.finetune.options import FinetuneOptions

BEFORE = {
    "data": ["a.txt"],
    "learning_rate": None,
    "whole_words": False,
    "repo": "12ab",
    "recipe": {"objective": "hidden", "learning_rate": 1e-4},
    "text": {"sha256": "34cd"},
}


def refusal(tmp_path, options=AdaptOptions, **now):
    """What a run with other settings says."""
    first = Checkpoints(tmp_path / "run", BEFORE, options)
    first.begin(resume=False, overwrite=True)
    (tmp_path / "run" / "step-000001").mkdir()
    with pytest.raises(BadInputError) as caught:
        Checkpoints(tmp_path / "run", {**BEFORE, **now}, options).begin(resume=True, overwrite=False)
    return [line.strip() for line in caught.value.what.splitlines()[1:]]


def test_options_are_named_with_their_values(tmp_path):
    now = {"learning_rate": 1e-3, "recipe": {"objective": "hidden", "learning_rate": 1e-3}, "whole_words": True}
    assert refusal(tmp_path, **now) == [
        "--learning-rate: started with the default, now 0.001",
        "--whole-words: started with no, now yes",
    ]
    assert refusal(tmp_path, FinetuneOptions, learning_rate=1e-3) == ["--lr: started with the default, now 0.001"]


def test_other_data_another_repo_and_other_defaults_are_said_in_words(tmp_path):
    assert refusal(tmp_path, text={"sha256": "56ef"})[0].startswith("the data are others")
    assert refusal(tmp_path, data=["b.txt"], text={"sha256": "56ef"}) == ["--data: started with a.txt, now b.txt"]
    assert refusal(tmp_path, repo="78ab") == ["the repo to train is another one, or its files changed"]
    recipe = {"objective": "hidden", "learning_rate": 2e-4}
    assert refusal(tmp_path, recipe=recipe) == ["--learning-rate: the default was 0.0001, now it is 0.0002"]
