"""Folders that are not simply a checkpoint: runs of Trainer, adapters, Routers, pruned models. Each says what to do."""

from __future__ import annotations

import json

import pytest
from checkpoints import convert, edit_config

import effconv
from effconv.convert.errors import BadInputError, UnsupportedError
from effconv.convert.io.source import resolve
from tiny import save_tiny, save_tiny_sentence_encoder


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def run_of_trainer(folder):
    for steps in (90, 1000, 200):
        save_tiny(folder / f"checkpoint-{steps}")
        write(folder / f"checkpoint-{steps}" / "trainer_state.json", {"best_model_checkpoint": "/there/checkpoint-200"})
    return folder


def test_a_run_of_trainer_points_to_its_newest_and_its_best_checkpoint(tmp_path):
    run = run_of_trainer(tmp_path / "run")
    with pytest.raises(BadInputError, match="output folder of a training") as caught:
        resolve(run)
    assert caught.value.hint == (
        f"give the newest checkpoint: {run / 'checkpoint-1000'}, or the best one: {run / 'checkpoint-200'}"
    )
    (run / "config.json").write_bytes((run / "checkpoint-90" / "config.json").read_bytes())  # no weights yet
    with pytest.raises(BadInputError, match="no readable weights") as caught:
        effconv.inspect(run)
    assert "checkpoint-1000" in caught.value.hint


@pytest.mark.parametrize(
    "state", ["{", '{"best_model_checkpoint": null}', '{"best_model_checkpoint": "x/checkpoint-7"}']
)
def test_the_state_of_a_run_only_adds_to_the_hint(state, tmp_path):
    run = run_of_trainer(tmp_path / "run")
    (run / "checkpoint-1000" / "trainer_state.json").write_text(state)
    with pytest.raises(BadInputError) as caught:
        resolve(run)
    assert caught.value.hint == f"give the newest checkpoint: {run / 'checkpoint-1000'}"


def test_folders_with_a_config_are_named(tmp_path):
    save_tiny(tmp_path / "models" / "encoder")
    with pytest.raises(BadInputError) as caught:
        resolve(tmp_path / "models")
    assert str(tmp_path / "models" / "encoder") in caught.value.hint


def test_folders_of_modules_are_not_named_as_models(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    (source / "config.json").unlink()
    with pytest.raises(BadInputError, match=r"no config\.json") as caught:
        resolve(source)
    assert "1_Pooling" not in caught.value.hint
    write(source / "broken" / "config.json", None)
    (source / "broken" / "config.json").write_text("{")
    write(source / "0_Transformer" / "config.json", {"model_type": "bert"})
    with pytest.raises(BadInputError) as caught:
        resolve(source)
    assert caught.value.hint == f"give one of the folders that have one: {source / '0_Transformer'}"


def test_an_adapter_beside_a_model_in_a_folder_of_its_own_is_refused_too(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    write(source / "modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    (source / "0_Transformer").mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != "modules.json":
            path.rename(source / "0_Transformer" / path.name)
    resolve(source)
    write(source / "0_Transformer" / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(UnsupportedError, match="adapter") as caught:
        resolve(source)
    assert "merge_and_unload" in caught.value.hint


@pytest.mark.parametrize(("kind", "settings"), [("Router", "router_config.json"), ("Asym", "config.json")])
def test_a_router_names_the_encoders_to_convert(kind, settings, tmp_path):
    write(
        tmp_path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"sentence_transformers.models.{kind}"}]
    )
    types = {
        "query_0_Transformer": "x.Transformer",
        "query_1_Pooling": "x.Pooling",
        "doc_0_Transformer": "x.Transformer",
    }
    write(tmp_path / settings, {"types": types, "structure": {}})
    for name in types:
        if "Transformer" in name:
            save_tiny(tmp_path / name)
        else:
            write(tmp_path / name / "config.json", {})
    with pytest.raises(UnsupportedError, match="Router of sentence-transformers with 2 encoders") as caught:
        resolve(tmp_path)
    assert str(tmp_path / "query_0_Transformer") in caught.value.hint
    assert "Pooling" not in caught.value.hint


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_pruned_heads_are_refused_by_name(family, tmp_path):
    source = save_tiny(tmp_path / "source", family)
    edit_config(source, pruned_heads={"1": [0, 2]})
    with pytest.raises(UnsupportedError, match="heads of the model were pruned"):
        convert(source, tmp_path / "out")
    assert "pruned" in effconv.inspect(source).why_not
    edit_config(source, pruned_heads={})
    convert(source, tmp_path / "out")
