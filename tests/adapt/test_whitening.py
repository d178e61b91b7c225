"""`--whiten`: the matrix by its definition, the repo through sentence-transformers in a fresh process, and refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from adapt_text import documents
from environments import strangers_output
from safetensors.numpy import load_file

import effconv
from effconv.adapt.dense import dense_layers, pieces_of, whitening
from effconv.adapt.retrieval import retrieval
from effconv.convert.errors import BadInputError, UnsupportedError, UsageError
from effconv.data.documents import Corpus
from tiny import save_tiny_sentence_encoder

LONG = {"objective": "contrastive", "lengths": "128", "piece_tokens": 8, "batch_tokens": 256, "steps": 2}
# As a stranger does it: the pooled states of AutoModel by hand, and what sentence-transformers makes of the folder.
STRANGER = """
import json, sys
sys.modules["effconv"] = None
import torch, transformers
from sentence_transformers import SentenceTransformer
repo, texts = sys.argv[1], json.loads(sys.argv[2])
model = transformers.AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
with torch.no_grad():
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).tolist() for text in texts]
encoded = SentenceTransformer(repo, trust_remote_code=True, device="cpu").encode(texts).tolist()
print(json.dumps({"pooled": states, "encoded": encoded}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sentence encoder, an LSG repo of it, and a text."""
    folder = tmp_path_factory.mktemp("whitening")
    save_tiny_sentence_encoder(folder / "source")
    effconv.convert(
        folder / "source", "lsg", max_length=256, block_size=16, sparse_block_size=16, output=folder / "lsg",
        verify=False,
    )  # fmt: skip
    (folder / "a.txt").write_text("\n\n".join(documents(40, words=300)))
    return folder


def test_the_matrix_undoes_the_shrunk_covariance_and_keeps_lengths():
    """W (C + c I) W is a multiple of I, by numpy; of the roots of it W is the one that is symmetric and positive."""
    random = np.random.default_rng(0)
    texts = random.normal(size=(500, 12)) * np.geomspace(1, 30, 12) + random.normal(size=12) * 5
    matrix = whitening(torch.from_numpy(texts)).double().numpy()
    unit = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    covariance = np.cov(unit.T, bias=True)
    shrunk = covariance + np.trace(covariance) / 12 * np.eye(12)
    product = matrix @ shrunk @ matrix
    np.testing.assert_allclose(product / product[0, 0], np.eye(12), atol=1e-5)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > 0
    assert np.mean(np.square(unit @ matrix).sum(1)) == pytest.approx(1, rel=1e-6)


@pytest.mark.nightly
def test_sentence_transformers_gives_whitened_embeddings_and_the_model_is_as_without(place, tmp_path):
    """The encoder's weights are those of a run without `--whiten`, and the layer does what its matrix says."""
    asked = {"teacher": place / "source", "data": place / "a.txt", **LONG, "evaluate_every": 1}
    plain = effconv.adapt(place / "lsg", **asked, output=tmp_path / "plain", verify=False)
    white = effconv.adapt(place / "lsg", **asked, output=tmp_path / "white", whiten=True)
    assert white.measured
    assert plain.record["best_step"] == white.record["best_step"]
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        tmp_path / "white" / "model.safetensors"
    ).read_bytes()
    modules = json.loads((tmp_path / "white" / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "2_Normalize"]
    assert [module["idx"] for module in modules] == [0, 1, 2, 3]
    assert white.record["whitening"]["texts"] <= 2048
    assert "whitened on" in (tmp_path / "white" / "README.md").read_text()
    assert "whitened" not in (tmp_path / "plain" / "README.md").read_text()

    texts = ["the of and to in", " ".join(documents(1, words=150, seed=9))]
    said = strangers_output("-c", STRANGER, tmp_path / "white", json.dumps(texts), folder=tmp_path)
    found = {name: np.array(rows) for name, rows in json.loads(said.splitlines()[-1]).items()}
    matrix = load_file(tmp_path / "white" / "2_Dense" / "model.safetensors")["linear.weight"]
    wanted = found["pooled"] @ matrix.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found["encoded"], wanted, atol=1e-5)
    assert (
        np.abs(found["encoded"] - found["pooled"] / np.linalg.norm(found["pooled"], axis=1, keepdims=True)).max() > 1e-3
    )

    # The retrieval task goes through the layer.
    shape = {"against": place / "source", "data": place / "a.txt", "tokens": 200, "query_tokens": 8}
    rows = retrieval([tmp_path / "plain", tmp_path / "white"], **shape)["rows"]
    assert rows[-1]["mrr"] != rows[-2]["mrr"]
    assert effconv.verify(tmp_path / "white", against=place / "source")
    with pytest.raises(UsageError, match="already has a dense layer after its pooling"):
        effconv.adapt(tmp_path / "white", **asked, output=tmp_path / "twice", whiten=True)


def test_dense_layers_of_others_are_read_as_sentence_transformers_reads_them(place, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(0)
    for name, dense in (
        ("tanh", Dense(32, 8)),
        ("identity", Dense(32, 8, bias=False, activation_function=torch.nn.Identity())),
    ):
        repo = tmp_path / name
        (repo / "2_Dense").mkdir(parents=True)
        dense.save(str(repo / "2_Dense"), safe_serialization=name == "identity")
        entry = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
        (repo / "modules.json").write_text(json.dumps([entry]))
        x = torch.randn(3, 32)
        with torch.no_grad():
            wanted = dense({"sentence_embedding": x.clone()})["sentence_embedding"]
        torch.testing.assert_close(dense_layers(repo)(x), wanted)
    config = json.loads((repo / "2_Dense" / "config.json").read_text())
    (repo / "2_Dense" / "config.json").write_text(json.dumps({**config, "activation_function": "torch.nn.ReLU"}))
    with pytest.raises(UnsupportedError, match=r"unsupported activation or form \(ReLU\)"):
        dense_layers(repo)
    x = torch.randn(3, 32)
    assert torch.equal(dense_layers(place / "lsg")(x), x)


def test_pieces_run_on_from_one_document_to_the_next():
    """So many short documents give as many pieces as a few long ones; held-out documents give none."""
    tokens = [np.stack([np.arange(10 * i, 10 * i + 10), np.zeros(10)], 1).astype(np.int32) for i in range(5)]
    corpus = Corpus(lambda epoch: iter(tokens), [tokens[0] + 100], [101], [102], {})
    pieces = pieces_of(corpus, 16, least=3)
    assert pieces.tolist() == [[101, *range(16 * i, 16 * i + 16), 102] for i in range(3)]
    with pytest.raises(BadInputError, match="passages of 16 tokens, and the training text has 3"):
        pieces_of(corpus, 16, least=4)


def test_what_cannot_be_whitened_is_refused_and_nothing_is_left(place, tmp_path):
    shutil.copytree(place / "lsg", tmp_path / "bare")
    (tmp_path / "bare" / "modules.json").unlink()
    (tmp_path / "short.txt").write_text("\n\n".join(documents(3, words=90)))
    asked = {"teacher": place / "source", "output": tmp_path / "out", "whiten": True, **LONG}
    with pytest.raises(UsageError, match="not a sentence encoder"):
        effconv.adapt(tmp_path / "bare", data=place / "a.txt", **asked)
    with pytest.raises(BadInputError, match="at least 32 passages of 64 tokens") as caught:
        effconv.adapt(
            place / "lsg",
            data=tmp_path / "short.txt",
            **{**asked, "piece_tokens": 64, "objective": "hidden", "lengths": "32"},
        )
    assert "2,048 tokens at least" in caught.value.hint
    assert caught.value.where
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "short.txt"]
