"""docs/how-to/recipes.md: its commands make the repos, and every recipe on it runs, on tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from environments import strangers_output
from places import ROOT, SUPPORT
from safetensors.torch import load_file
from typer.testing import CliRunner

from effconv.cli import app
from tiny import save_tiny, save_tiny_sentence_encoder

PAGE = (ROOT / "docs" / "how-to" / "recipes.md").read_text(encoding="utf-8")
WORKER = SUPPORT / "recipes_worker.py"
TINY = ["--no-verify", "--block-size", "16", "--sparse-block-size", "16"]
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, flags=re.M | re.S))
SAVED = {  # recipe: where it saves what it trained, and the repo that it began with
    "Sentence encoder": ("trained-encoder", "lsg-encoder"),
    "Cross-encoder": ("trained-cross-encoder", "lsg-cross-encoder"),
    "SPLADE": ("trained-splade", "lsg-bert"),
    "LoRA, and merging it": ("trained-lora", "lsg-classifier"),
    "A decoder behind a converted encoder": (),
    "Question answering with strides": (),
    "Long document classification": ("trained-classifier", "lsg-classifier"),
}

pytestmark = pytest.mark.xdist_group("recipes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which every recipe has run, on what the page's commands make of tiny sources with the names there."""
    folder = tmp_path_factory.mktemp("recipes")
    save_tiny_sentence_encoder(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    save_tiny(folder / "cross-encoder" / "ms-marco-MiniLM-L6-v2", "bert", "ForSequenceClassification", num_labels=1)
    save_tiny(folder / "bert-base-uncased")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in re.findall(r"^effconv (lsg .+)$", PAGE, flags=re.M):
            run = CliRunner().invoke(app, [*line.split(), *TINY])
            assert run.exit_code == 0, f"effconv {line}\n{run.output}\n{run.exception!r}"
    for name, code in RECIPES.items():
        script_of(folder, name).write_text(code, encoding="utf-8")
    strangers_output(WORKER, *(script_of(folder, name) for name in RECIPES), folder=folder)
    return folder


def script_of(folder: Path, name: str) -> Path:
    return folder / f"recipe{list(RECIPES).index(name)}.py"


def test_every_recipe_is_known():
    assert RECIPES.keys() == SAVED.keys()
    assert PAGE.count("```python") == len(RECIPES)


@pytest.mark.parametrize("name", SAVED)
def test_a_recipe_runs(name, folder):
    script = script_of(folder, name)
    assert script.with_suffix(".py.status").read_text() == "0", script.with_suffix(".py.log").read_text()[-3000:]


@pytest.mark.parametrize(("name", "trained", "repo"), [(name, *folders) for name, folders in SAVED.items() if folders])
def test_a_recipe_trains_and_saves_a_repo_with_its_code(name, trained, repo, folder):
    before, after = (load_file(folder / model / "model.safetensors") for model in (repo, trained))
    queries = [name for name in before.keys() & after.keys() if "query" in name]
    assert queries
    assert any((before[name] != after[name]).any() for name in queries), "nothing was trained"
    assert (folder / trained / "modeling_lsg_bert.py").exists()
