"""The retrieval task: how it is cut, how it is ranked, and what it says of tiny models."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
import transformers
from adapt_text import documents
from typer.testing import CliRunner

import effconv
from effconv.adapt.ranking import Encoder, difference, make_task, ranked, reciprocal
from effconv.adapt.retrieval import retrieval
from effconv.cli import app
from effconv.convert.errors import BadInputError, UsageError
from tiny import save_tiny

torch.set_num_threads(1)


def test_queries_are_pieces_of_their_document_beyond_the_sources_length():
    task = make_task(range(1000), documents=7, length=130, queries=3, size=10, beyond=50)
    assert task.documents.shape == (7, 130)
    assert task.queries.shape == (21, 10)
    assert task.documents.flatten().tolist() == list(range(910))
    for query, answer in zip(task.queries.tolist(), task.answers.tolist(), strict=True):
        start = query[0] - 130 * answer
        assert query == list(range(query[0], query[0] + 10))
        assert 50 <= start <= 120
    assert sorted({query[0] % 130 for query in task.queries.tolist()}) == [50, 85, 120]


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (600, "the text has 1,000 tokens: 1 document of 600"),
        (60, "3 queries of 10 tokens do not fit into documents"),
    ],
)
def test_a_text_that_gives_no_task_is_refused(length, says):
    with pytest.raises(BadInputError, match=says) as caught:
        make_task(range(1000), documents=7, length=length, queries=3, size=10, beyond=50)
    assert caught.value.hint


def test_ranks_are_counted_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    ranks = ranked(similarity, torch.tensor([0, 1, 0, 0]))
    assert ranks.tolist() == [1, 2, 3, 3]  # ties are lost
    assert reciprocal(ranks) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)


def test_a_difference_comes_with_the_error_of_a_mean_over_documents():
    """Against the standard library's deviation: queries of one document are found, or not, together."""
    answers = torch.tensor([0, 0, 1, 1, 2, 2])
    ranks, others = torch.tensor([1, 1, 1, 2, 3, 1]), torch.tensor([2, 1, 1, 1, 4, 2])
    over, error = difference(ranks, others, answers)
    assert over == pytest.approx((1 + 0 + 0 - 1 + 0 + 1) / 6)
    assert error == pytest.approx(statistics.stdev([0.5, -0.5, 0.5]) / 3**0.5)


def test_a_repo_that_equals_its_source_ranks_as_truncation_does_where_nothing_is_truncated(tmp_path):
    """And `effconv retrieval` measures the source in all three ways."""
    save_tiny(tmp_path / "source", "bert", "Model", positions=64)
    effconv.convert(
        tmp_path / "source", "lsg", max_length=256, block_size=128, sparse_block_size=128, num_global_tokens=0,
        output=tmp_path / "lsg", verify=False,
    )  # fmt: skip
    text = tmp_path / "a.txt"
    text.write_text(" ".join(documents(6, words=300)))
    found = retrieval([tmp_path / "lsg"], against=tmp_path / "source", data=[text], tokens=144, query_tokens=16)
    own = [
        "truncation",
        "chunk average",
        "chunk maximum",
        "late chunking",
        "whitened pieces",
        "whitened pieces, chunks",
    ]
    dense = ["dense", "dense, interpolated", "dense, chunks"]
    assert [row["documents"] for row in found["rows"]] == [*own, *dense, "lsg, chunks", "lsg"]
    assert found["task"]["documents"] == 12
    assert found["task"]["queries"] == 12 * ((144 - 2 - 64) // 16)  # as many as fit
    assert found["rows"][1]["over_chunk_average"] == found["rows"][1]["over_chunk_average_error"] == 0
    for row in found["rows"]:
        assert row["over_chunk_average"] == pytest.approx(row["r@1"] - found["rows"][1]["r@1"])
    assert all(0 <= row["r@1"] <= row["mrr"] <= 1 for row in found["rows"])
    # The same as a shell writes it, --data *.txt, and from one name in place of a list.
    other = tmp_path / "b.txt"
    other.write_text(" ".join(documents(6, words=300, seed=1)))
    words = ["retrieval", tmp_path / "lsg", "--against", tmp_path / "source", "--data", text, other, "--json"]
    run = CliRunner().invoke(app, [*map(str, words), "--tokens", "144", "--query-tokens", "16", "--queries", "2"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["data"]["text"] == "a.txt, b.txt"

    for says, error, options in (
        ("takes 256 tokens, but a document has 512", UsageError, {"tokens": 512}),
        ("after the first 64 tokens", UsageError, {"tokens": 80}),
        ("--documents must be at least 2", UsageError, {"documents": 1}),
        ("no text given", UsageError, {"data": ()}),
        ("cannot read the text: .*nowhere.txt", BadInputError, {"data": tmp_path / "nowhere.txt"}),
        ("no such folder", BadInputError, {"repos": tmp_path / "nowhere"}),
        ("no repo to measure", UsageError, {"repos": ()}),
        ("not made by effconv", BadInputError, {"repos": tmp_path / "source"}),
        ("--cache is a file", UsageError, {"cache": text}),
        ("a part of the path of --cache is a file", UsageError, {"cache": text / "new"}),
    ):
        asked = {"repos": tmp_path / "lsg", "against": tmp_path / "source", "data": text, "tokens": 144, **options}
        with pytest.raises(error, match=says) as caught:
            retrieval(asked.pop("repos"), **asked)
        assert caught.value.where
        assert caught.value.hint

    stock = transformers.AutoModel.from_pretrained(tmp_path / "source").eval()
    emitted = effconv.load(tmp_path / "lsg", auto="AutoModel").eval()
    body = torch.randint(5, 60, (3, 60))
    one, other = (Encoder(model, [2], [3])(body) for model in (stock, emitted))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    chunks = Encoder(stock, [2], [3]).alone(body[0], 25)
    assert chunks.shape == (3, 32)
    torch.testing.assert_close(chunks[1:2], Encoder(stock, [2], [3])(body[:1, 20:40]), rtol=1e-5, atol=1e-5)


def test_the_task_is_written_as_json(capsys):
    from effconv.report.training import show_retrieval

    show_retrieval({"task": {}, "rows": [{"documents": "lsg", "r@1": 0.5, "mrr": 0.75}]}, as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"][0]["r@1"] == 0.5
