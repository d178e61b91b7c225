"""The ways that `effconv retrieval` compares, its standard errors, whole documents and the cache."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
import torch
import transformers
from adapt_text import documents, write_wiki
from piece_oracles import even, whitened
from typer.testing import CliRunner

import effconv
from effconv.adapt import ways
from effconv.adapt.controls import LABELS, chosen
from effconv.adapt.embedding_cache import Cache, digest_of
from effconv.adapt.ranking import Encoder, Task, best, make_task, mean_error
from effconv.adapt.retrieval import retrieval
from effconv.adapt.retrieval_text import read_units, text_units
from effconv.adapt.stretched import stretched
from effconv.adapt.whole import whole_task
from effconv.cli import app
from effconv.convert.errors import BadInputError, UsageError
from effconv.convert.families.registry import FAMILIES
from effconv.data.named import NamedText
from tiny import save_tiny, save_tokenizer

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_a_mean_has_the_error_of_its_units():
    """By hand: deviations from 0.5 are +0.5 +0.5 | -0.5 | +0.5 -0.5 -0.5; their sums by unit are 1, -0.5, -0.5."""
    values, units = torch.tensor([1, 1, 0, 1, 0, 0]), torch.tensor([7, 7, 3, 9, 9, 9])
    mean, error = mean_error(values, units)
    assert mean == 0.5
    assert error == pytest.approx((3 / 2 * (1 + 0.25 + 0.25)) ** 0.5 / 6)
    _, error = mean_error(values, torch.arange(6))  # of independent queries, the usual one
    assert error == pytest.approx(statistics.stdev([1, 1, 0, 1, 0, 0]) / 6**0.5)
    assert mean_error(values, torch.zeros(6))[1] is None


def test_the_best_vector_of_a_document_counts():
    vectors = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    similarity = best(torch.tensor([[1.0, 0], [0, 2]]), vectors, [2, 1])
    torch.testing.assert_close(similarity, torch.tensor([[1, 0.6], [2, 1.6]]))


def test_articles_are_the_units_where_a_text_has_headings(tmp_path):
    first = "\n = One = \n\n the of . \n = = Part = = \n and to \n = Two = \n in a \n"
    assert text_units([first]) == ("article", [first[: first.index(" = Two")], first[first.index(" = Two") :]])
    assert text_units([first, "plain"]) == ("article", [*text_units([first + "\n"])[1], "plain"])
    assert text_units(["the", "of"]) == ("file", ["the\n", "of"])
    assert text_units(["the of"]) == ("document", ["the of"])

    save_tokenizer(tmp_path, "bert", 64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text("".join(f" = the {i} = \n the of and {'to ' * i}\n" for i in range(4)))
    found = read_units([tmp_path / "a.txt"], tokenizer, len(tokenizer))
    whole = tokenizer((tmp_path / "a.txt").read_text(), add_special_tokens=False)["input_ids"]
    assert (found.tokens, found.unit) == (whole, "article")
    assert [found.unit_of.tolist().count(i) for i in range(4)] == [7, 8, 9, 10]


def test_rows_are_the_units_where_a_file_is_a_table(tmp_path):
    save_tokenizer(tmp_path, "bert", 64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"body": "the of and"}\n{"body": " "}\n{"body": "to in"}\n')
    (tmp_path / "b.txt").write_text("of\n")
    found = read_units([tmp_path / "a.jsonl", tmp_path / "b.txt"], tokenizer, len(tokenizer), "body")
    assert found.tokens == tokenizer("the of and to in of", add_special_tokens=False)["input_ids"]
    assert (found.unit, found.unit_of.tolist()) == ("text", [0, 0, 0, 1, 1, 2])
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(BadInputError, match="contains no text"):
        read_units([tmp_path / "a.jsonl"], tokenizer, len(tokenizer))


def test_a_query_belongs_to_the_unit_where_it_begins():
    unit_of = [0] * 35 + [1] * 30 + [2] * 35
    task = make_task(range(100), documents=9, length=50, queries=2, size=5, beyond=20, unit_of=unit_of)
    assert [query[0] for query in task.queries.tolist()] == [20, 45, 70, 95]
    assert task.units.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_the_stretched_model_has_the_sources_positions_again(family, tmp_path):
    """Repeated, it gives the source's own states; interpolated, its table is the line between the source's rows."""
    save_tiny(tmp_path, family, "Model", positions=32)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    longer = stretched(model, FAMILIES[family], 96, "repeat")
    ids = torch.randint(5, 40, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(longer(ids).last_hidden_state, model(ids).last_hidden_state, **CLOSE)
        assert longer(ids.repeat(1, 3)).last_hidden_state.shape[1] == 96
    name = next(key for key in model.state_dict() if key.endswith(FAMILIES[family].positions))
    old, new = model.state_dict()[name], longer.state_dict()[name]
    special = len(old) - 32
    torch.testing.assert_close(new[special + 32 : special + 64], old[special:])
    smooth = stretched(model, FAMILIES[family], 63, "interpolate").state_dict()[name]
    torch.testing.assert_close(smooth[special::2], old[special:], **CLOSE)
    torch.testing.assert_close(smooth[special + 1 :: 2], (old[special:-1] + old[special + 1 :]) / 2, **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_chunks_in_context_are_pooled_from_the_whole_texts_states(pooling, tmp_path):
    save_tiny(tmp_path, "bert", "Model", positions=64)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    body = torch.randint(5, 40, (50,))
    halves, one = Encoder(model, [2], [3], pooling, longest=64).in_context(body, 25)
    row = [2, *body.tolist(), 3] if pooling == "mean" else [2, *body[:25].tolist(), 3, 2, *body[25:].tolist(), 3]
    with torch.no_grad():
        states = model(torch.tensor([row])).last_hidden_state[0]
    parts = (states[:26].mean(0), states[26:].mean(0)) if pooling == "mean" else (states[0], states[27])
    expected = torch.stack([part / part.norm() for part in parts])
    torch.testing.assert_close(halves, expected, **CLOSE)
    if pooling == "mean":
        torch.testing.assert_close(one, Encoder(model, [2], [3])(body[None]), **CLOSE)
    else:
        assert one is None


def prose(words: int, seed: int) -> str:
    """A document of sentences of eight words, in lines of three sentences."""
    found = documents(1, words=words, seed=seed)[0].split()
    sentences = [" ".join(found[i : i + 8]).capitalize() + "." for i in range(0, len(found), 8)]
    return "\n".join(" ".join(sentences[i : i + 3]) for i in range(0, len(sentences), 3))


def contained(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "bert", 64)
    return transformers.AutoTokenizer.from_pretrained(folder)


def whole_of(tokenizer, texts, **changed):
    named = [NamedText(str(i), "a.txt", text) for i, text in enumerate(texts)]
    asked = {"documents": 50, "longer_than": 62, "room": 120, "queries": 3, "size": 9, "seed": 1, **changed}
    return whole_task(named, tokenizer, len(tokenizer), **asked)


def test_a_query_is_cut_out_of_its_document(tokenizer):
    again = "The of and to in a is that. "
    texts = [again + prose(120, seed) + "\n" + again for seed in range(5)] + [prose(40, 9)]
    made = whole_of(tokenizer, texts)
    assert made.record["left_out"] == 1  # the short one
    assert made.record["cut"] == 5  # 120 tokens are fewer than they have
    assert len(made.task.documents) == 5
    assert len(made.task.queries) == len(made.sentences) == 15
    for query, sentence, answer in zip(made.task.queries, made.sentences, made.task.answers.tolist(), strict=True):
        document = made.task.documents[answer].tolist()
        source = tokenizer(texts[answer], add_special_tokens=False)["input_ids"]
        assert contained(query.tolist(), source)
        assert not contained(query.tolist(), document)
        assert sentence in texts[answer]
        assert sentence not in made.texts[answer]
        assert sentence != again.strip()
        assert len(document) <= 120
    assert made.sentences == whole_of(tokenizer, texts).sentences
    assert made.sentences != whole_of(tokenizer, texts, seed=2).sentences
    kept = {sentence for line in texts[0].splitlines() for sentence in made.texts[0].splitlines() if sentence in line}
    assert kept  # what was not cut out stands as it was


def test_too_few_long_documents_are_refused(tokenizer):
    with pytest.raises(BadInputError, match="2 documents of the data: 0 of more than 62 tokens") as caught:
        whole_of(tokenizer, ["The of and.", "To in a."])
    assert caught.value.hint
    with pytest.raises(BadInputError, match="with a sentence of 50 to 200 tokens"):
        whole_of(tokenizer, [prose(120, 1), prose(120, 2)], size=100)


@pytest.mark.parametrize("of_chunks", [False, True])
def test_pieces_are_whitened_and_averaged_by_the_formula(of_chunks):
    lengths, size = [100, 70], 50  # two chunks each, of 50 and 35 tokens: two pieces of at most 30 each
    pieces = np.random.default_rng(0).normal(size=(8, 3)) + 2
    queries = np.random.default_rng(1).normal(size=(4, 3)) + 2
    task = Task([torch.zeros(length) for length in lengths], torch.zeros(4, 1), torch.zeros(4), torch.zeros(4))
    embedded = ways.Embedded(torch.tensor(pieces), [4, 4], 1.0, None)
    changed, found = ways._averaged(torch.tensor(queries), embedded, task, size, of_chunks=of_chunks)
    np.testing.assert_allclose(changed.numpy(), whitened(pieces, queries), atol=1e-5)
    parts = whitened(pieces, pieces).reshape((4, 2, 3) if of_chunks else (2, 4, 3))
    np.testing.assert_allclose(found.vectors.numpy(), [even(part) for part in parts], atol=1e-5)
    assert found.counts == ([2, 2] if of_chunks else [1, 1])


def test_ways_are_named():
    assert chosen(None) == tuple(LABELS)
    assert chosen("Dense, truncation") == ("truncation", "dense")
    for odd in ("dense,longformer", ""):
        with pytest.raises(UsageError) as caught:
            chosen(odd)
        assert "late-chunking" in caught.value.hint


def test_what_is_stored_is_not_made_again(tmp_path):
    made: list[int] = []

    def make() -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        made.append(1)
        return {"a": torch.arange(3)}, {"b": 2}

    for of in ({"c": 1}, {"c": 1}, {"c": 2}):
        tensors, values = Cache(tmp_path / "cache").get(of, make)
        assert (tensors["a"].tolist(), values) == ([0, 1, 2], {"b": 2})
    assert len(made) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2
    one, two = torch.tensor([1, 2]), torch.tensor([3])
    assert digest_of([one, two]) != digest_of([torch.tensor([1]), torch.tensor([2, 3])])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny source and its LSG for 128 tokens."""
    folder = tmp_path_factory.mktemp("ways")
    save_tiny(folder / "source", "bert", "Model", positions=64)
    effconv.convert(
        folder / "source", "lsg", max_length=128, block_size=16, sparse_block_size=16, output=folder / "lsg",
        verify=False,
    )  # fmt: skip
    write_wiki(folder / "wiki.txt", count=8)
    return folder


def test_the_command_measures_whole_documents_and_a_second_run_loads_no_model(made, tmp_path, monkeypatch):
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"body": prose(200, seed)}) + "\n" for seed in range(4)))
    words = ["retrieval", made / "lsg", "--against", made / "source", "--data", data, "--whole", "--tokens", "128"]
    words += ["--query-tokens", "9", "--queries", "2", "--text-column", "body", "--cache", tmp_path / "cache"]
    words += ["--with", "chunk-max,dense,repo-chunks,late-chunking", "--chunk-tokens", "32", "--json"]
    first = CliRunner().invoke(app, list(map(str, words)))
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["task"]["kind"] == "whole"
    assert (found["task"]["units"], found["task"]["unit"], found["task"]["queries"]) == (4, "document", 8)
    assert [row["way"] for row in found["rows"]] == ["chunk-max", "late-chunking", "dense", "repo-chunks", "repo"]
    assert [row["documents"] for row in found["rows"]][-2:] == ["lsg, chunks", "lsg"]
    for row in found["rows"]:
        assert row["vectors"] == (1 if row["way"] in ("dense", "repo") else 4)
        assert row["cpu_seconds"] > 0
        assert "over_chunk_average" not in row  # which was not asked for
        assert row["over_chunk_maximum"] == pytest.approx(row["r@1"] - found["rows"][0]["r@1"])
        assert row["r@1_error"] is not None

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model is run")

    monkeypatch.setattr(Encoder, "_states", refuse)
    second = CliRunner().invoke(app, list(map(str, words)))
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout) == found
    other = CliRunner().invoke(app, [*map(str, words), "--seed", "5"])
    assert isinstance(other.exception, AssertionError)
    shown = CliRunner().invoke(app, list(map(str, words[:-1])))
    assert "± is the standard error over 4 independent documents" in shown.stdout
    assert "4 documents of up to 128 tokens" in shown.stdout
    assert "0 documents left out" in shown.stdout


def test_windows_count_their_articles(made):
    asked = {"tokens": 100, "query_tokens": 8, "with_": "truncation,chunk-mean"}
    found = retrieval(made / "lsg", against=made / "source", data=made / "wiki.txt", **asked)
    assert found["task"]["unit"] == "article"
    assert 2 < found["task"]["units"] <= 8 < found["task"]["documents"]


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("unknown way to embed a document: bigbird", {"with_": "bigbird"}),
        ("a chunk has 1 to 62 tokens", {"chunk_tokens": 63}),
        ("documents are cut at 64 tokens, which the source takes", {"tokens": 64, "whole": True}),
    ],
)
def test_options_that_cannot_be_are_refused(says, options, made):
    asked = {"tokens": 100, "query_tokens": 8, **options}
    with pytest.raises(UsageError, match=says) as caught:
        retrieval(made / "lsg", against=made / "source", data=made / "wiki.txt", **asked)
    assert caught.value.where
    assert caught.value.hint


def test_long_models_run_once_for_both_of_their_rows():
    assert ways._runs(["chunk-mean", "chunk-max", "truncation"]) == [
        ("chunk-max", {"chunk-mean": "chunks", "chunk-max": "chunks"}), ("truncation", {"truncation": "one"}),
    ]  # fmt: skip
    assert ways._runs(["repo", "repo-chunks"]) == [("whole", {"repo": "one", "repo-chunks": "chunks"})]
