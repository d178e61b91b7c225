"""Folders that sentence-transformers cannot load, or loads into something else: refused by name, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adapt_text import documents
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import BadInputError, EffconvError, UnsupportedError
from effconv.embed import ChunkEncoder
from tiny import save_tiny, save_tiny_sentence_encoder

torch.set_num_threads(1)
LSG = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loadable")
    save_tiny_sentence_encoder(folder / "source")
    (folder / "texts.txt").write_text("\n".join(documents(3, words=20)), encoding="utf-8")
    return folder


def without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def holding(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))


def dense_without_weights(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 8}')


def lacking(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in names)}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return damage


DAMAGES = {
    "tokenizer": (without("tokenizer.json", "vocab.txt"), BadInputError, "has no tokenizer"),
    "all of the tokenizer": (
        without("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
        BadInputError,
        "has no tokenizer",
    ),
    "pooling": (without("1_Pooling"), BadInputError, "are missing: the folder 1_Pooling"),
    "pooling's config": (without("1_Pooling/config.json"), BadInputError, "missing: the folder 1_Pooling"),
    "dense layer": (dense_without_weights, BadInputError, "missing: 3_Dense/model.safetensors"),
    "weights": (without("model.safetensors"), BadInputError, "no readable weights"),
    "cut weights": (cut, BadInputError, "model.safetensors"),
    "some weights": (
        lacking("layer.1.attention.self.key"), BadInputError, r"lack 2 tensors of the model, such as .*self\.key\.bias",
    ),
    "pointer": (
        holding("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), BadInputError, "Git LFS",
    ),
    "no config": (without("config.json"), BadInputError, "no config.json"),
    "config": (holding("config.json", b"{broken"), BadInputError, "config.json is not readable JSON"),
    "config of another model": (wider, BadInputError, "cannot load the model"),
    "unknown model": (holding("config.json", b'{"model_type": "nobodys"}'), BadInputError, "cannot load the model"),
    "no modules": (holding("modules.json", b"[]"), BadInputError, "names no modules"),
    "modules": (holding("modules.json", b"[{]"), BadInputError, "modules.json is not readable JSON"),
    "export": (holding("effconv-export.json", b"{}"), BadInputError, "an export of effconv"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(name, made, tmp_path):
    damage, error, says = DAMAGES[name]
    folder = Path(shutil.copytree(made / "source", tmp_path / "model"))
    damage(folder)
    for run in (
        lambda: effconv.embed(folder, data=made / "texts.txt", output=tmp_path / "out.npy"),
        lambda: effconv.pieces(folder, data=made / "texts.txt", output=tmp_path / "out"),
        lambda: ChunkEncoder(folder),
    ):
        with pytest.raises(error, match=says) as caught:
            run()
        assert caught.value.where
        assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_a_pooler_embeds(made, tmp_path):
    folder = Path(shutil.copytree(made / "source", tmp_path / "model"))
    lacking("pooler")(folder)
    np.testing.assert_array_equal(ChunkEncoder(folder).encode("the of"), ChunkEncoder(made / "source").encode("the of"))


@pytest.mark.parametrize("name", ["pooling", "pooling's config", "dense layer"])
def test_modules_without_their_files_are_not_converted(name, made, tmp_path):
    damage, _, says = DAMAGES[name]
    folder = Path(shutil.copytree(made / "source", tmp_path / "model"))
    damage(folder)
    with pytest.raises(BadInputError, match=says):
        effconv.convert(folder, "lsg", **LSG, output=tmp_path / "lsg")
    assert not (tmp_path / "lsg").exists()


def test_normalisation_needs_no_files(made, tmp_path):
    assert not (made / "source" / "2_Normalize").exists()
    effconv.embed(made / "source", data=made / "texts.txt", output=tmp_path / "out.npy")
    np.testing.assert_allclose(np.linalg.norm(np.load(tmp_path / "out.npy"), axis=-1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def masked(made) -> Path:
    save_tiny(made / "plain")
    effconv.convert(made / "plain", "lsg", **LSG, output=made / "masked")
    return made / "masked"


def test_a_pooling_that_nobody_chose_is_said(masked, made, tmp_path):
    words = ["embed", str(masked), "--data", str(made / "texts.txt"), "-o", str(tmp_path / "out.npy")]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert "note: no modules.json: mean pooling of the last states" in " ".join(run.output.split())
    chosen = effconv.embed(made / "source", data=made / "texts.txt", output=tmp_path / "other.npy")
    assert chosen.record["notes"] == []


def test_pieces_need_a_sentence_encoder(masked, made, tmp_path):
    with pytest.raises(UnsupportedError, match=r"no modules\.json"):
        effconv.pieces(masked, data=made / "texts.txt", output=tmp_path / "out")


@pytest.mark.parametrize("command", ["embed", "pieces"])
def test_a_hub_id_is_not_a_folder(command, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EffconvError, match="no such folder") as caught:
        getattr(effconv, command)("sentence-transformers/all-MiniLM-L6-v2", data=made / "texts.txt")
    assert "hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-MiniLM-L6-v2" in caught.value.hint
    assert "that effconv made" not in caught.value.hint
