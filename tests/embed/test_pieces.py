"""`PieceEncoder` and `effconv embed --pieces`: against plain loops over sentence-transformers, numpy and scipy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from adapt_text import documents
from piece_oracles import even, pieces_of, unit, whitened
from safetensors.numpy import load_file
from safetensors.torch import save_file

import effconv
from effconv.convert.errors import BadInputError, OutputError, UsageError
from effconv.convert.io.tensorfile import file_sha256
from effconv.embed import PieceEncoder, Whitening
from effconv.embed.even import even as even_of
from effconv.embed.pieces import fitted
from effconv.embed.whitening import Moments
from tiny import save_tiny_sentence_encoder

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_tiny_sentence_encoder(tmp_path_factory.mktemp("pieces") / "source")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return documents(12, words=60)


def test_moments_in_parts_are_those_of_the_whole():
    sample = np.random.default_rng(0).normal(size=(57, 8)) @ np.random.default_rng(1).normal(size=(8, 8)) + 1e3
    seen = Moments()
    for part in np.array_split(sample, 5):
        seen.add(torch.from_numpy(part))
    found = seen.whitening(0.1)
    np.testing.assert_allclose(found.mean, sample.mean(0), rtol=1e-6)
    rows = torch.from_numpy(sample - sample.mean(0))
    expected = whitened(rows.numpy(), rows.numpy(), 0.1)
    centred = Whitening(torch.zeros(8), found.matrix)
    np.testing.assert_allclose(centred(rows).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 40])
def test_an_even_vector_is_the_least_squares_solution(count):
    rows = unit(np.random.default_rng(count).normal(size=(count, 8)) + 0.5)
    found = even_of(torch.from_numpy(rows).float(), 0.1).numpy()
    np.testing.assert_allclose(found, even(rows, 0.1), atol=1e-5)
    # What it is for: the piece that is farthest from it is nearer than it is to the mean.
    assert (rows @ found).min() >= (rows @ unit(rows.mean(0))).min() - 1e-6
    np.testing.assert_allclose(even_of(torch.from_numpy(rows).float(), 1e5).numpy(), unit(rows.mean(0)), atol=1e-3)


def test_a_text_is_the_average_of_its_pieces(source, texts):
    encoder = PieceEncoder(source, piece_tokens=9)
    found = encoder.encode(texts)
    for text, rows in zip(texts, found, strict=True):
        expected = pieces_of(encoder.model, text, 9).mean(0, keepdims=True)
        np.testing.assert_allclose(rows, expected, **CLOSE)
    chunks = encoder.encode(texts[0], chunk_tokens=25)
    assert len(chunks) == len(encoder.chunks(texts[0], 25)) > 1
    assert encoder.encode("").shape == (1, chunks.shape[1])


def test_the_whitening_of_a_collection_is_that_of_the_formula(source, texts):
    encoder = PieceEncoder(source, piece_tokens=9)
    found = encoder.fit_encode(texts)
    pieces = [pieces_of(encoder.model, text, 9) for text in texts]
    sample = np.concatenate(pieces)
    assert encoder.seen.count == len(sample) > sample.shape[1]
    expected = np.array([even(whitened(sample, rows)) for rows in pieces])
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-3)
    query = unit(encoder.model.encode(["a short query"]))
    np.testing.assert_allclose(encoder.encode_query(["a short query"]), whitened(sample, query), atol=1e-3)
    assert encoder.encode_query("a short query").shape == (sample.shape[1],)
    again = PieceEncoder(source, piece_tokens=9, whitening=encoder.whitening).encode(texts)
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(found), **CLOSE)


def test_the_command_writes_whitened_vectors_and_what_queries_need(source, texts, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    embedded = effconv.embed(source, data=data, pieces=9, whiten=True, output=tmp_path / "out.npy", batch_size=1)
    encoder = PieceEncoder(source, piece_tokens=9)
    expected = np.concatenate(encoder.fit_encode(texts))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)
    stored = tmp_path / "out.whitening.safetensors"
    assert embedded.record["whitening"] == str(stored)
    assert sorted(load_file(stored)) == ["matrix", "mean"]
    assert stored.stat().st_mode == (tmp_path / "out.npy").stat().st_mode  # who may read one may read the other
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.ids.jsonl", "out.npy", "out.whitening.safetensors", "texts.jsonl",
    ]  # fmt: skip
    effconv.embed(source, data=data, pieces=9, whitening=stored, output=tmp_path / "more.npy")
    np.testing.assert_allclose(np.load(tmp_path / "more.npy"), expected, atol=1e-4)
    with pytest.raises(OutputError, match="exists"):
        effconv.embed(source, data=data, pieces=9, whiten=True, output=tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pieces": 0}, "pieces must be at least 1"),
        ({"pieces": 500}, "pieces must have 1 to"),
        ({"whiten": True}, "whiten needs pieces"),
        ({"pieces": 9, "whiten": True, "whitening": "x"}, "leave out one of them"),
    ],
)
def test_options_that_do_not_go_together(options, says, source, tmp_path):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        effconv.embed(source, data=tmp_path / "text.txt", output=tmp_path / "out.npy", **options)
    assert not (tmp_path / "out.npy").exists()


def test_vectors_are_not_written_into_the_model(source, tmp_path):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(OutputError, match="must not overlap"):
        effconv.embed(source, data=tmp_path / "text.txt", output=source / "out.npy")
    assert sorted(path.name for path in source.iterdir()) == before


def test_what_is_no_whitening_is_refused(source, tmp_path):
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    run = {"data": tmp_path / "text.txt", "output": tmp_path / "out.npy", "pieces": 9}
    with pytest.raises(BadInputError, match="as many pieces"):
        effconv.embed(source, **run, whiten=True)
    same = Moments()
    same.add(torch.ones(9, 4))
    with pytest.raises(BadInputError, match="the same embedding"):
        fitted(same)
    for name, says in (("text.txt", "not a whitening file"), ("none", "no such file"), (".", "this is a folder")):
        with pytest.raises(BadInputError, match=says) as caught:
            effconv.embed(source, **run, whitening=tmp_path / name)
        assert "no whitening" not in str(caught.value)
    save_file({"mean": torch.zeros(3)}, tmp_path / "half")
    with pytest.raises(BadInputError, match="not a whitening file"):
        effconv.embed(source, **run, whitening=tmp_path / "half")
    (tmp_path / "half").unlink()
    Whitening(torch.zeros(3), torch.eye(3)).save(tmp_path / "narrow")
    with pytest.raises(BadInputError, match="vectors of 3 numbers"):
        effconv.embed(source, **run, whitening=tmp_path / "narrow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow", "text.txt"]


@pytest.fixture(scope="module")
def stored(source, texts, tmp_path_factory) -> Path:
    """A whitening of the source, for pieces of 9 tokens."""
    folder = tmp_path_factory.mktemp("whitening")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    effconv.embed(source, data=data, pieces=9, whiten=True, output=folder / "out.npy")
    return folder / "out.whitening.safetensors"


def test_a_whitening_says_what_it_is_for(source, stored, texts, tmp_path):
    found = Whitening.load(stored)
    assert (found.model, found.piece_tokens) == (file_sha256(source / "model.safetensors"), 9)
    assert PieceEncoder(source, whitening=stored).piece_tokens == 9  # unless asked for others
    copied = PieceEncoder(shutil.copytree(source, tmp_path / "elsewhere"), whitening=stored)
    assert copied.encode(texts[0]).shape == (1, 32)
    fitted_here = PieceEncoder(source, piece_tokens=8)
    fitted_here.fit_encode(texts)
    assert (fitted_here.whitening.model, fitted_here.whitening.piece_tokens) == (found.model, 8)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"pieces": 8}, "fitted to pieces of 9 tokens, and the pieces have 8"),
        ({"model": "other", "pieces": 9}, "fitted with another model"),
    ],
)
def test_a_whitening_of_other_embeddings_is_refused(asked, says, source, stored, texts, tmp_path):
    folder = {"other": save_tiny_sentence_encoder(tmp_path / "other", seed=1)}.get(asked.pop("model", ""), source)
    data = stored.with_name("texts.jsonl")
    for run in (
        lambda: effconv.embed(folder, data=data, whitening=stored, output=tmp_path / "out.npy", **asked),
        lambda: effconv.pieces(folder, whitening=stored, output=tmp_path / "out", **asked),
        lambda: PieceEncoder(folder, whitening=stored, piece_tokens=asked["pieces"]),
        lambda: PieceEncoder(folder, whitening=Whitening.load(stored), piece_tokens=asked["pieces"]),
    ):
        with pytest.raises(BadInputError, match=says) as caught:
            run()
        assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_whitening_of_an_older_effconv_is_taken_with_a_note(source, stored, tmp_path):
    old = tmp_path / "old.safetensors"
    found = Whitening.load(stored)
    save_file({"mean": found.mean, "matrix": found.matrix}, old)
    data = {"data": stored.with_name("texts.jsonl"), "output": tmp_path / "out.npy", "pieces": 9}
    embedded = effconv.embed(source, **data, whitening=old)
    assert "does not say which model" in embedded.record["notes"][0]
    assert effconv.embed(source, **data, whitening=stored, overwrite=True).record["notes"] == []
    made = effconv.pieces(source, whitening=old, pieces=9, output=tmp_path / "made")
    assert "does not say which model" in made.record["notes"][0]


def test_a_collection_that_is_too_small_is_refused_before_it_is_embedded(source, stored, texts, tmp_path, monkeypatch):
    few = tmp_path / "few.txt"
    few.write_text(texts[0], encoding="utf-8")

    def embedded(*_: object) -> None:
        raise AssertionError("embedded")

    monkeypatch.setattr(PieceEncoder, "_pieces", embedded)
    for run in (
        lambda: effconv.embed(source, data=few, pieces=9, whiten=True, output=tmp_path / "out.npy"),
        lambda: effconv.pieces(source, data=few, pieces=9, output=tmp_path / "out"),
        lambda: PieceEncoder(source, piece_tokens=9).fit_encode(texts[:1]),
    ):
        with pytest.raises(BadInputError, match="of 32 numbers needs at least as many pieces, and the texts have 7"):
            run()
    taken = iter(texts)
    encoder = PieceEncoder(source, piece_tokens=9)
    assert list(encoder.with_enough_pieces(taken, str)) == texts
