"""The benchmark that trains the published systems: its texts and tables, and nightly each of its chains."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import polarity, recipes
from tiny import WORDS


def write_texts(folder):
    """Thirty articles of WikiText and a speech, of words that a tokenizer can be trained on."""
    sentences = [
        " ".join(WORDS[(i * 5 + j * j) % len(WORDS)] for j in range(9)).capitalize() + " ." for i in range(600)
    ]
    articles = [f" = Title {i} = \n\n = = Part = = \n\n" + " ".join(sentences[i * 20 : i * 20 + 20]) for i in range(30)]
    (folder / "wiki.txt").write_text("\n\n".join(articles), encoding="utf-8")
    (folder / "speech.txt").write_text("\n".join(reversed(sentences)), encoding="utf-8")
    return [folder / "wiki.txt", folder / "speech.txt"]


def test_articles_begin_at_headings_of_the_first_level(tmp_path):
    wiki, speech = write_texts(tmp_path)
    found = recipes.documents_of(wiki)
    assert [text.splitlines()[0] for text in found] == [f" = Title {i} = " for i in range(30)]
    assert all(" = = Part = = " in text for text in found)
    assert recipes.documents_of(speech) == [speech.read_text(encoding="utf-8")]


def test_pairs_are_compared_with_chance():
    assert recipes.pairs({"nsp_accuracy": 0.6, "texts": 400}, "nsp") == "0.600 of 400: +4.0 standard errors of 0.025"
    assert recipes.pairs({}, "") == "–"


def test_tensors_are_compared_with_and_without_the_encoders_prefix(tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    kept, moved = np.ones(3, np.float32), np.zeros(2, np.float32)
    save_file({"layer.a": kept, "layer.b": moved}, tmp_path / "before" / "model.safetensors")
    after = {"bert.layer.a": kept, "bert.layer.b": moved + 1, "classifier.weight": moved}
    save_file(after, tmp_path / "after" / "model.safetensors")
    assert polarity.compared(tmp_path / "before", tmp_path / "after") == (1, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_chain_runs(name, tmp_path, capfd):
    recipes.main(
        [*map(str, write_texts(tmp_path)), "--only", name, "--scale", "0.01", "--folder", str(tmp_path / "run")]
    )
    said = capfd.readouterr().out
    for model in recipes.RECIPES[name].models:
        assert said.count(f"| {model} |") == len(recipes.RECIPES[name].stages)
