"""`effconv embed` and `ChunkEncoder`: late chunking against plain loops, and against sentence-transformers itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from adapt_text import documents
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import BadInputError, EffconvError, OutputError, UsageError
from effconv.embed import ChunkEncoder
from effconv.embed.chunks import cut, passes
from tiny import save_tiny_sentence_encoder

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_chunks_are_the_fewest_and_nearly_equally_long():
    for length in range(1, 40):
        for size in range(1, 12):
            expected = [len(part) for part in torch.arange(length).tensor_split(-(-length // size))]
            assert [end - begin for begin, end in cut(length, size)] == expected
    assert cut(0, 5) == [(0, 0)]


@pytest.mark.parametrize("longest", [64, 12, 9])
@pytest.mark.parametrize("size", [3, 8, 50])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 23])
def test_every_token_is_pooled_once_after_at_least_the_overlap(length, size, longest):
    body = list(range(100, 100 + length))
    chunks = cut(length, size)
    runs = passes(body, chunks, [1, 2], [3], longest)
    pooled: list[list[int]] = [[] for _ in chunks]
    for number, run in enumerate(runs):
        assert len(run.ids) <= longest
        for chunk, first, behind in run.takes:
            pooled[chunk] += run.ids[first:behind]
            assert number == 0 or first >= 2 + (longest - 3) // 2  # half a window stands before it
    expected = [body[begin:end] for begin, end in chunks]
    expected[0], expected[-1] = [1, 2, *expected[0]], [*expected[-1], 3]
    if len(chunks) == 1:
        expected[0] = [1, 2, *body, 3]
    assert pooled == expected


def test_chunks_with_special_tokens_of_their_own_share_a_pass():
    runs = passes([10, 11, 12, 13, 14], [(0, 2), (2, 4), (4, 5)], [1], [3], 8, own_ends=True)
    assert [run.ids for run in runs] == [[1, 10, 11, 3, 1, 12, 13, 3], [1, 14, 3]]
    assert [run.takes for run in runs] == [[(0, 0, 4), (1, 4, 8)], [(2, 0, 3)]]
    with pytest.raises(ValueError, match="does not fit"):
        passes([10, 11, 12], [(0, 3)], [1], [3], 4, own_ends=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny sentence encoder, and its LSG for 256 tokens."""
    folder = tmp_path_factory.mktemp("embed")
    save_tiny_sentence_encoder(folder / "source")
    effconv.convert(
        folder / "source", "lsg", max_length=256, block_size=16, sparse_block_size=16, output=folder / "lsg",
        verify=False,
    )  # fmt: skip
    return folder


def states_of(folder: Path, text: str) -> torch.Tensor:
    """Last states (t, w) of a whole text by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", truncation=False)).last_hidden_state[0]


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.square().sum().sqrt()).numpy()


def test_a_chunk_is_the_mean_of_its_states_in_the_whole_text(made):
    text = documents(1, words=150)[0]
    states = states_of(made / "lsg", text)
    tokens = len(states) - 2
    found = ChunkEncoder(made / "lsg").encode(text, chunk_tokens=40)
    count = -(-tokens // 40)
    assert found.shape == (count, 32)
    begin = 1
    sizes = [len(part) for part in np.array_split(np.arange(tokens), count)]
    for i, size in enumerate(sizes):
        first, behind = (0 if i == 0 else begin), begin + size + (i == count - 1)
        total = torch.zeros(32)
        for row in states[first:behind]:
            total += row
        np.testing.assert_allclose(found[i], unit(total / (behind - first)), **CLOSE)
        begin += size
    alone = ChunkEncoder(made / "lsg").encode([text[:200]], chunk_tokens=40)[0][0]
    assert np.abs(alone - found[0]).max() > 1e-3  # it saw what stands behind it


def test_a_text_of_one_chunk_is_embedded_as_sentence_transformers_does(made):
    texts = [*documents(3, words=60), "the of", ""]
    encoder = ChunkEncoder(made / "lsg")
    found = encoder.encode(texts, chunk_tokens=None, batch_size=2)
    assert [len(vectors) for vectors in found] == [1] * 5
    np.testing.assert_allclose(np.concatenate(found), encoder.model.encode_document(texts), **CLOSE)
    one = encoder.encode(texts, chunk_tokens=20, batch_size=1)
    for vectors, others in zip(one, encoder.encode(texts, chunk_tokens=20, batch_size=8), strict=True):
        np.testing.assert_allclose(vectors, others, **CLOSE)
    np.testing.assert_allclose(encoder.encode_query("the of"), encoder.model.encode_query("the of"), **CLOSE)


def test_a_text_longer_than_the_model_is_read_in_windows_that_overlap(made):
    """Against a loop over windows: 62 tokens a window, 31 shared, states from the first window that has them."""
    text = documents(1, words=110)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "source")
    model = transformers.AutoModel.from_pretrained(made / "source").eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows, begin, ends = [], 0, []
    while len(rows) < len(ids):
        window = ids[begin : begin + 62]
        with torch.no_grad():
            states = model(torch.tensor([[first, *window, last]])).last_hidden_state[0]
        ends += [states[0], states[-1]]
        rows += list(states[1:-1][len(rows) - begin :])
        begin += 31
    half = -(-len(ids) // 2)
    expected = [torch.stack([ends[0], *rows[:half]]).mean(0), torch.stack([*rows[half:], ends[-1]]).mean(0)]
    found = ChunkEncoder(made / "source").encode(text, chunk_tokens=half)
    np.testing.assert_allclose(found, [unit(vector) for vector in expected], **CLOSE)


def pooled_by(folder: Path, **config: object) -> Path:
    """Another pooling, written into a copy of the folder's settings."""
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **config}))
    return folder


def test_a_model_that_pools_its_first_token_gets_one_for_every_chunk(tmp_path):
    folder = pooled_by(
        save_tiny_sentence_encoder(tmp_path / "a"), pooling_mode_cls_token=True, pooling_mode_mean_tokens=False
    )
    text = documents(1, words=30)[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    half = -(-len(ids) // 2)
    row = [2, *ids[:half], 3, 2, *ids[half:], 3]
    assert tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"]) == [2, 3]
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(folder)(torch.tensor([row])).last_hidden_state[0]
    encoder = ChunkEncoder(folder)
    found = encoder.encode(text, chunk_tokens=half)
    np.testing.assert_allclose(found, [unit(states[0]), unit(states[half + 2])], **CLOSE)
    np.testing.assert_allclose(encoder.encode(text, chunk_tokens=None)[0], encoder.model.encode(text), **CLOSE)
    with pytest.raises(UsageError, match="chunks of 63 tokens do not fit"):
        encoder.encode(text, chunk_tokens=63)


def test_prompts_and_dense_layers_are_those_of_the_model(tmp_path):
    from sentence_transformers import SentenceTransformer, models

    folder = save_tiny_sentence_encoder(tmp_path / "a")
    stored = SentenceTransformer(str(folder))
    dense = models.Dense(32, 8, activation_function=torch.nn.Tanh())
    model = SentenceTransformer(
        modules=[stored[0], stored[1], dense, models.Normalize()], prompts={"query": "", "document": "the of: "}
    )
    encoder = ChunkEncoder(model)
    texts = documents(2, words=20)
    found = np.concatenate(encoder.encode(texts, chunk_tokens=None))
    np.testing.assert_allclose(found, model.encode_document(texts), **CLOSE)
    assert np.abs(found - model.encode(texts, prompt="")).max() > 1e-3
    model[1].include_prompt = False
    found = np.concatenate(encoder.encode(texts, chunk_tokens=None))
    np.testing.assert_allclose(found, model.encode_document(texts), **CLOSE)
    assert [chunk.tokens for chunk in encoder.chunks("the of and to", 2)] == [2, 2]
    with pytest.raises(UsageError, match="no prompt 'passage'"):
        encoder.encode(texts, prompt_name="passage")


def test_chunks_say_where_they_stand_in_the_text(made):
    text = "  the of and  to in. "
    chunks = ChunkEncoder(made / "source").chunks(text, 2)
    assert [text[chunk.start : chunk.end] for chunk in chunks] == ["the of", "and  to", "in."]


def embed(*words: object) -> dict:
    run = CliRunner().invoke(app, ["embed", *map(str, words), "--json"])
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_the_command_writes_vectors_and_where_they_come_from(made, tmp_path):
    texts = documents(3, words=90)
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"name": f"text {i}", "body": text}) + "\n" for i, text in enumerate(texts)))
    more = tmp_path / "b.csv"
    more.write_text("name,body\nlast,the of and\n")
    output = tmp_path / "out" / "vectors.npy"
    columns = ["--text-column", "body", "--id-column", "name"]
    found = embed(made / "lsg", "--data", data, more, "--chunks", 40, *columns, "-o", output)
    lines = output.with_suffix(".ids.jsonl").read_text().splitlines()
    vectors, rows = np.load(output), [json.loads(line) for line in lines]
    assert len(vectors) == len(rows) == found["vectors"]
    assert (found["texts"], found["width"], found["longer_than_the_model"]) == (4, 32, 0)
    expected = ChunkEncoder(made / "lsg").encode([*texts, "the of and"], chunk_tokens=40)
    np.testing.assert_allclose(vectors, np.concatenate(expected), **CLOSE)
    assert [row["id"] for row in rows if row["chunk"] == 0] == ["text 0", "text 1", "text 2", "last"]
    whole = [row for row in rows if row["id"] == "text 1"]
    assert whole[0]["start"] == 0
    assert whole[-1]["end"] == len(texts[1])
    assert sorted(path.name for path in output.parent.iterdir()) == ["vectors.ids.jsonl", "vectors.npy"]

    run = CliRunner().invoke(app, ["embed", str(made / "source"), "--data", str(data), *columns, "-o", str(output)])
    assert isinstance(run.exception, OutputError), run.output
    run = CliRunner().invoke(
        app, ["embed", str(made / "source"), "--data", str(data), *columns, "-o", str(output), "--overwrite"]
    )
    assert "3 texts longer than the model" in run.stdout
    assert np.load(output).shape == (3, 32)
    np.testing.assert_allclose(np.load(output), ChunkEncoder(made / "source").model.encode(texts), **CLOSE)


def test_rows_without_text_are_told(made, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the of"}\n{"text": null}\n{"text": " "}\n')
    words = [made / "lsg", "--data", tmp_path / "a.jsonl", "-o", tmp_path / "v.npy", "--overwrite"]
    found = embed(*words)
    assert (found["texts"], found["rows_without_text"]) == (1, 2)
    run = CliRunner().invoke(app, ["embed", *map(str, words)])
    assert "note: 2 rows without text left out" in run.stdout
    (tmp_path / "a.jsonl").write_text('{"text": "the of"}\n')
    run = CliRunner().invoke(app, ["embed", *map(str, words)])
    assert "note" not in run.stdout


def test_parquet_is_read_by_others(made, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    text = tmp_path / "a.txt"
    text.write_text("the of\nand to in\n")
    output = tmp_path / "v.parquet"
    found = effconv.embed(made / "lsg", data=text, lines=True, chunks=2, normalize=True, output=output)
    table = parquet.read_table(output).to_pylist()
    assert [(row["id"], row["chunk"], row["tokens"]) for row in table] == [
        ("a.txt#0", 0, 2), ("a.txt#1", 0, 2), ("a.txt#1", 1, 1),
    ]  # fmt: skip
    assert found.record["vectors"] == 3
    np.testing.assert_allclose([np.linalg.norm(row["embedding"]) for row in table], 1, **CLOSE)


@pytest.mark.parametrize(
    ("says", "error", "options"),
    [
        ("--data is missing", UsageError, {"data": ()}),
        ("--chunks must be at least 1", UsageError, {"chunks": 0}),
        ("no file can be created here", OutputError, {"output": "/proc/v.npy"}),
        ("part of the output path is not a folder", OutputError, {"output": "a.csv/v.npy"}),
        ("torch knows no device 'gpu'", UsageError, {"device": "gpu"}),
        ("finds no device of the kind xpu", UsageError, {"device": "xpu"}),
        ("--output must end in .parquet or .npy", UsageError, {"output": "v.csv"}),
        ("no such file", BadInputError, {"data": "nowhere.txt"}),
        ("contains no text", BadInputError, {"data": "empty.txt"}),
        ("no column 'body'", BadInputError, {"data": "a.csv", "text_column": "body"}),
        ("not made by effconv", BadInputError, {"repo": "."}),
    ],
)
def test_what_cannot_be_embedded_is_refused(says, error, options, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("a.csv").write_text("text\nthe of\n")
    asked = {"repo": made / "lsg", "data": "a.csv", "output": "v.npy", **options}
    with pytest.raises(error, match=says) as caught:
        effconv.embed(asked.pop("repo"), **asked)
    assert isinstance(caught.value, EffconvError)
    assert caught.value.where
    assert caught.value.hint
    assert not list(tmp_path.glob("*.npy"))


def test_changed_code_is_not_run(made, tmp_path):
    import shutil

    copy = shutil.copytree(made / "lsg", tmp_path / "changed")
    with (copy / "lsg_attention.py").open("a") as file:
        file.write("\nraise SystemExit\n")
    with pytest.raises(EffconvError, match=r"lsg_attention\.py"):
        ChunkEncoder(copy)


def test_the_options_need_no_torch():
    code = "import effconv.embed.options, effconv.embed.chunks, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
