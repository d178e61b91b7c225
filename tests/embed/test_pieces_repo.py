"""`effconv pieces`: the repo in the hands of sentence-transformers alone, against plain loops, and its later life."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from adapt_text import documents, write_wiki
from environments import FIVE, FOUR, stranger, warm
from piece_oracles import even, pieces_of, unit, whitened
from places import ROOT
from typer.testing import CliRunner

import effconv
from effconv.adapt.ranking import Encoder, PiecesEncoder
from effconv.cli import app
from effconv.convert.errors import (
    BadInputError,
    CheckFailedError,
    EffconvError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from effconv.convert.verify.loaded import Loaded
from effconv.convert.verify.sentence_checks import same_embedding
from effconv.embed import ChunkEncoder, PieceEncoder, Whitening
from tiny import save_tiny_sentence_encoder

torch.set_num_threads(1)
PROMPTS = {"query": "to find ", "document": "they had "}
QUERIES = ["the of and", "which of that was", "a"]
SIZE = 7


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Most are longer than the source, one is empty, one shorter than a piece."""
    return [*documents(14, words=90), "", "the of"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, texts) -> Path:
    """A source with prompts, its LSG, and repos of pieces of both."""
    folder = tmp_path_factory.mktemp("pieces-repo")
    source = save_tiny_sentence_encoder(folder / "source")
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}), encoding="utf-8")
    (source / "README.md").write_text("# Mine\n", encoding="utf-8")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    effconv.convert(source, "lsg", max_length=128, block_size=16, sparse_block_size=16, output=folder / "lsg")
    for name in ("source", "lsg"):
        effconv.pieces(folder / name, data=data, pieces=SIZE, output=folder / f"{name}-pieces")
    return folder


@pytest.fixture(scope="module")
def expected(made, texts) -> dict[str, dict[str, np.ndarray]]:
    """By the model from before in sentence-transformers, one piece at a time."""
    return {name: by_hand(made / name, texts) for name in ("source", "lsg")}


def by_hand(folder, texts) -> dict[str, np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    pieces = [pieces_of(model, text, SIZE, PROMPTS["document"]) for text in texts]
    sample = np.concatenate([rows for rows, text in zip(pieces, texts, strict=True) if text])  # an empty row is no text
    plain = model.encode(QUERIES)
    asked = model.encode([PROMPTS["query"] + query for query in QUERIES])
    return {
        "documents": np.array([even(whitened(sample, rows)) for rows in pieces]),
        "queries": whitened(sample, unit(asked)),
        "plain": plain,
        "pieces": np.array(len(sample)),
    }


@pytest.mark.parametrize("name", ["source", "lsg"])
@pytest.mark.parametrize("python", [FIVE, FOUR])
def test_a_stranger_gets_whitened_averages_and_plain_embeddings(python, name, made, texts, expected, tmp_path):
    asked, vectors, saved = tmp_path / "texts.json", tmp_path / "vectors.npz", tmp_path / "saved"
    asked.write_text(json.dumps({"documents": texts, "queries": QUERIES}), encoding="utf-8")
    worker = ROOT / "tests" / "support" / "pieces_worker.py"
    command = [*warm(python), str(worker), str(made / f"{name}-pieces"), str(asked), str(vectors), str(saved)]
    subprocess.run(command, check=True, env=stranger(tmp_path), cwd=tmp_path)
    found = np.load(vectors)
    np.testing.assert_allclose(found["documents"], expected[name]["documents"], atol=2e-3)
    np.testing.assert_allclose(found["queries"], expected[name]["queries"], atol=2e-3)
    np.testing.assert_allclose(found["plain"], expected[name]["plain"], atol=1e-5)
    # What sentence-transformers saved runs again, with code that effconv wrote.
    assert (saved / "document_pieces.py").read_bytes() == (made / "lsg-pieces" / "document_pieces.py").read_bytes()
    again = PieceEncoder(saved, trust_remote_code=True)
    np.testing.assert_allclose(np.concatenate(again.encode(texts)), found["documents"], atol=1e-5)
    if name == "lsg":
        adopted = effconv.adopt(saved, output=tmp_path / "adopted")
        assert adopted.manifest["pieces"]["piece_tokens"] == SIZE
        effconv.verify(tmp_path / "adopted")


def test_the_manifest_and_the_card_say_what_was_done(made, expected):
    manifest = json.loads((made / "lsg-pieces" / "effconv.json").read_text(encoding="utf-8"))
    record = manifest["pieces"]
    assert record["whitened_on"] == {
        "files": ["texts.jsonl"],
        "texts": 15,
        "pieces": int(expected["lsg"]["pieces"]),
        "rows_without_text": 1,
    }
    assert set(record["checks"]) == {"encode", "encode_document", "encode_query"}
    assert "3_WhitenedAverage/model.safetensors" in manifest["files"]
    for name in ("source", "lsg"):
        card = (made / f"{name}-pieces" / "README.md").read_text(encoding="utf-8")
        assert f"{int(expected[name]['pieces'])} pieces of 15 texts (texts.jsonl)" in card
    assert (made / "source-pieces" / "README.md").read_text(encoding="utf-8").startswith("# Mine\n")
    checks = {check.name: check.passed for check in effconv.verify(made / "lsg-pieces", against=made / "source")}
    assert checks["same_embedding"] is True


def test_without_sentence_transformers_its_modules_are_no_difference(made, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    manifest = json.loads((made / "lsg-pieces" / "effconv.json").read_text(encoding="utf-8"))
    value, details = same_embedding(Loaded(made / "lsg-pieces", made / "source", manifest, False))
    assert (value, "1_Pooling/config.json" in details["files"]) == (0, True)


def test_retrieval_takes_longer_documents_than_the_encoder(made, tmp_path):
    text = write_wiki(tmp_path / "text.txt", count=4, words=400)
    task = {
        "against": made / "source",
        "data": text,
        "tokens": 200,
        "queries": 2,
        "query_tokens": 8,
        "with_": "chunk-max",
    }
    found = effconv.retrieval(made / "lsg-pieces", **task)
    assert [row["documents"] for row in found["rows"]] == ["chunk maximum", "lsg-pieces"]
    with pytest.raises(UsageError, match="lsg takes 128 tokens"):
        effconv.retrieval(made / "lsg", **task)
    with pytest.raises(UsageError, match="takes 65536 tokens") as caught:
        effconv.retrieval(made / "lsg-pieces", **{**task, "tokens": 70_000})
    assert "effconv pieces with --max-len" in caught.value.hint


def test_a_refresh_keeps_the_modules_and_brings_their_code_up_to_date(made, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(made / "lsg-pieces", old)
    assert not effconv.refresh(old, output=tmp_path / "same").changed
    code = old / "document_pieces.py"
    code.write_text(code.read_text(encoding="utf-8") + "\n# of an older effconv\n", encoding="utf-8")
    with pytest.raises(CheckFailedError, match="document_pieces"):
        effconv.verify(old)
    with pytest.raises(CheckFailedError, match="document_pieces"):
        PieceEncoder(old)
    manifest = json.loads((old / "effconv.json").read_text(encoding="utf-8"))
    manifest["files"].pop("document_pieces.py")
    from effconv.convert.io.tensorfile import file_sha256

    manifest["files"]["document_pieces.py"] = file_sha256(code)
    (old / "effconv.json").write_text(json.dumps(manifest), encoding="utf-8")
    refreshed = effconv.refresh(old, output=tmp_path / "new")
    assert "document_pieces.py" in refreshed.changed
    assert (tmp_path / "new" / "document_pieces.py").read_bytes() == (
        made / "lsg-pieces" / "document_pieces.py"
    ).read_bytes()
    assert "effconv:pieces" in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")


def test_code_that_effconv_did_not_write_is_not_adopted(made, tmp_path):
    from sentence_transformers import SentenceTransformer

    saved = tmp_path / "saved"
    SentenceTransformer(str(made / "lsg-pieces"), trust_remote_code=True, device="cpu").save(str(saved))
    with (saved / "document_pieces.py").open("a", encoding="utf-8") as file:
        file.write("\nprint('not of effconv')\n")
    with pytest.raises(CheckFailedError, match="document_pieces"):
        effconv.adopt(saved)


def test_encoders_take_the_whitening_of_the_repo(made, texts, expected, tmp_path):
    encoder = PieceEncoder(made / "lsg-pieces")
    assert encoder.piece_tokens == SIZE
    np.testing.assert_allclose(np.concatenate(encoder.encode(texts)), expected["lsg"]["documents"], atol=2e-3)
    np.testing.assert_allclose(encoder.encode_query(QUERIES), expected["lsg"]["queries"], atol=2e-3)
    chunks = encoder.encode(texts[0], chunk_tokens=25)
    plain = PieceEncoder(made / "lsg", piece_tokens=SIZE, whitening=encoder.whitening)
    np.testing.assert_allclose(chunks, plain.encode(texts[0], chunk_tokens=25), atol=1e-5)
    with pytest.raises(UnsupportedError, match="by pieces"):
        ChunkEncoder(made / "lsg-pieces")
    # The whitening in the repo is for its own pieces.
    with pytest.raises(BadInputError, match=f"fitted to pieces of {SIZE} tokens, and the pieces have 5"):
        effconv.embed(made / "lsg-pieces", data=made / "texts.jsonl", pieces=5, output=tmp_path / "five.npy")
    assert not list(tmp_path.iterdir())
    # It is that of the same encoder: a file of one is for the other.
    again = {"data": made / "texts.jsonl", "pieces": 5, "output": tmp_path / "five.npy"}
    effconv.embed(made / "lsg-pieces", **again, whiten=True)
    stored = tmp_path / "five.whitening.safetensors"
    whole = np.load(tmp_path / "five.npy")
    effconv.embed(made / "lsg", **again, whitening=stored, overwrite=True)
    np.testing.assert_allclose(np.load(tmp_path / "five.npy"), whole, atol=1e-4)
    # The command gives the same, and a new whitening where it is asked for one.
    embedded = effconv.embed(made / "lsg-pieces", data=made / "texts.jsonl", output=tmp_path / "one.npy")
    kept = [i for i, text in enumerate(texts) if text]
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), expected["lsg"]["documents"][kept], atol=2e-3)
    assert embedded.record["piece_tokens"] == SIZE
    effconv.embed(made / "lsg-pieces", data=made / "texts.jsonl", chunks=25, output=tmp_path / "several.npy")
    np.testing.assert_allclose(np.load(tmp_path / "several.npy")[: len(chunks)], chunks, atol=1e-5)
    again = {"data": made / "texts.jsonl", "pieces": SIZE, "whiten": True, "output": tmp_path / "again.npy"}
    effconv.embed(made / "lsg-pieces", **again)
    np.testing.assert_allclose(np.load(tmp_path / "again.npy"), np.load(tmp_path / "one.npy"), atol=2e-3)


def test_retrieval_measures_it_as_it_embeds(made, texts):
    import transformers

    place = made / "source-pieces"
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModel.from_pretrained(place).eval()
    whitening = Whitening.load(next(place.glob("*_WhitenedAverage")) / "model.safetensors")
    ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    encoder = PiecesEncoder(model, *ends, piece_tokens=SIZE, whitening=whitening)
    assert isinstance(encoder, Encoder)
    body = torch.tensor(tokenizer(texts[0], add_special_tokens=False)["input_ids"])
    several, one = encoder.in_context(body, len(body))
    theirs = PieceEncoder(place, trust_remote_code=True)
    theirs.model.prompts = {}
    np.testing.assert_allclose(one, theirs.encode(texts[0]), atol=1e-5)
    np.testing.assert_allclose(several, one, atol=1e-6)
    np.testing.assert_allclose(
        encoder.several([body[:5]]), theirs.encode_query([tokenizer.decode(body[:5])]), atol=1e-5
    )


@pytest.mark.parametrize("command", ["finetune", "adapt", "pretrain", "export", "pieces"])
def test_commands_that_would_leave_the_whitening_behind_refuse(command, made, tmp_path):
    options = {"onnx": True} if command == "export" else {"data": made / "texts.jsonl"}
    with pytest.raises(UnsupportedError, match=r"pieces|whiten"):
        getattr(effconv, command)(made / "lsg-pieces", output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_whitening_may_be_given(made, expected, texts, tmp_path):
    effconv.embed(made / "source", data=made / "texts.jsonl", pieces=SIZE, whiten=True, output=tmp_path / "out.npy")
    stored = tmp_path / "out.whitening.safetensors"
    done = CliRunner().invoke(
        app,
        ["pieces", str(made / "source"), "--whitening", str(stored), "--pieces", str(SIZE), "-o", str(tmp_path / "x")],
    )
    assert done.exit_code == 0, done.output
    assert "whitened on out.whitening.safetensors" in done.output
    found = np.concatenate(PieceEncoder(tmp_path / "x", trust_remote_code=True).encode(texts))
    np.testing.assert_allclose(found, expected["source"]["documents"], atol=2e-3)


def test_bad_input_writes_nothing(made, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "kept").touch()
    few = tmp_path / "few.txt"
    few.write_text("some words", encoding="utf-8")
    for options, error, says in (
        ({}, EffconvError, "data is missing"),
        ({"data": few, "whitening": few}, EffconvError, "both"),
        ({"data": few, "pieces": 0}, EffconvError, "at least 1"),
        ({"data": few, "pieces": 900}, EffconvError, "1 to"),
        ({"data": few}, BadInputError, "as many pieces"),
        ({"data": tmp_path / "none.txt"}, BadInputError, "no such file"),
        ({"whitening": few}, BadInputError, "not a whitening file"),
        ({"data": made / "texts.jsonl", "output": full}, OutputError, "not empty"),
    ):
        with pytest.raises(error, match=says):
            effconv.pieces(made / "lsg", **{"output": tmp_path / "out", **options})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "full"]
