"""`effconv eval`: scores against plain loops over embeddings, what the card says of them, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapt_text import documents
from hub_runs import Client
from huggingface_hub import ModelCard
from places import ROOT
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import BadInputError, HubError, OutputError, UnsupportedError, UsageError
from effconv.convert.repo.card_blocks import blocks
from effconv.convert.repo.manifest import changed_files, read_manifest
from effconv.eval.tasks import split_names
from hub_server import LoopbackHub
from tiny import save_tiny, save_tiny_sentence_encoder

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("eval")  # mteb is imported once: that takes seconds
DOCS = documents(24, words=150)
PROMPTS = {"query": "the of: ", "document": "and to: "}


def write_task(folder: Path, split: str = "test") -> Path:
    """Queries are words that stand behind the source's 64 tokens; each has a document, some a second one."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": f"d{i}", "title": "the of" if i % 2 else None, "text": text} for i, text in enumerate(DOCS)]
    queries = [{"_id": f"q{i}", "text": " ".join(text.split()[100:108])} for i, text in enumerate(DOCS)]
    relevant = [f"q{i}\td{i}\t{1 + i % 2}\nq{i}\td{(i + 7) % 24}\t{i % 2}\n" for i in range(20)]  # q20 to q23: none
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(relevant))
    return folder


def ndcg(repo: Path, folder: Path, split: str = "test") -> float:
    """Mean nDCG@10 from embeddings (Järvelin and Kekäläinen 2002): gains as they are, divided by log2(rank + 1)."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(repo), trust_remote_code=True)
    files = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("corpus", "queries")]
    rows = [[json.loads(line) for line in lines] for lines in files]
    texts = [f"{row['title'] or ''} {row['text']}".strip() for row in rows[0]]
    vectors = model.encode_document(texts, normalize_embeddings=True)
    total, count = 0.0, 0
    lines = [line.split("\t") for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
    for row in rows[1]:
        gains = {document: int(score) for query, document, score in lines if query == row["_id"]}
        if not gains:
            continue
        found = np.argsort(-(vectors @ model.encode_query([row["text"]], normalize_embeddings=True)[0]))
        dcg = sum(gains.get(rows[0][j]["_id"], 0) / math.log2(r + 2) for r, j in enumerate(found[:10]))
        best = sum(gain / math.log2(r + 2) for r, gain in enumerate(sorted(gains.values(), reverse=True)[:10]))
        total, count = total + dcg / best, count + 1
    return total / count


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny sentence encoder with prompts, its LSG for 256 tokens, and a task."""
    folder = tmp_path_factory.mktemp("eval")
    save_tiny_sentence_encoder(folder / "source")
    (folder / "source" / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": PROMPTS, "default_prompt_name": None})
    )
    (folder / "source" / "README.md").write_text("---\nlicense: mit\n---\n# The source\n")
    effconv.convert(
        folder / "source", "lsg", max_length=256, block_size=16, sparse_block_size=16, output=folder / "lsg",
        verify=False,
    )  # fmt: skip
    write_task(folder / "my-task")
    return folder


@pytest.fixture
def repo(made, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made / "lsg", tmp_path / "lsg"))


def run_eval(*words: object) -> dict:
    run = CliRunner().invoke(app, ["eval", *map(str, words), "--json"])
    assert run.exit_code == 0, f"{run.output}\n{run.exception!r}"
    return json.loads(run.stdout)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folders_task_has_the_score_of_a_plain_computation_and_the_card_has_it(made, repo, tmp_path):
    results = tmp_path / "all.json"
    found = run_eval(repo, "--tasks", made / "my-task", "--against", made / "source", "--results", results)
    (row,) = found["results"]
    ours, theirs = ndcg(made / "lsg", made / "my-task"), ndcg(made / "source", made / "my-task")
    assert (row["score"], row["against"]) == (pytest.approx(ours, abs=1e-4), pytest.approx(theirs, abs=1e-4))
    assert row["difference"] == pytest.approx(ours - theirs, abs=2e-4)
    assert ours - theirs > 0.1  # the repo read what stands behind the source's length
    assert (found["max_length"], found["against_max_length"]) == (256, 64)

    whole = json.loads(results.read_text())
    assert whole["repo"][0]["scores"]["test"][0]["ndcg_at_10"] == row["score"]
    assert whole["source"][0]["scores"]["test"][0]["main_score"] == row["against"]

    card = ModelCard.load(repo / "README.md")
    (entry,) = card.data.eval_results
    assert (entry.task_type, entry.dataset_name, entry.dataset_split) == ("Retrieval", "my-task", "test")
    assert (entry.metric_type, entry.metric_value) == ("ndcg_at_10", pytest.approx(ours, abs=1e-4))
    assert entry.dataset_revision == row["revision"]
    assert card.data.model_name == "lsg"
    shown = blocks((repo / "README.md").read_text())["eval"]
    cells = f"{row['score']:.4f} | {row['against']:.4f} | {row['difference']:+.4f}"
    assert f"| my-task (own task) | test | ndcg_at_10 | {cells} |" in shown
    weights = read_manifest(repo)["files"]["model.safetensors"][:12]
    assert f"sha256 `{weights}`" in shown

    assert changed_files(repo, read_manifest(repo)) == []
    effconv.verify(repo)
    with LoopbackHub() as hub:
        pushed = Client(hub, tmp_path).push(repo, "me/lsg", "--dry-run", "--license", "mit")
    assert pushed.code == 0, pushed.err


def sts_task(name: str, rows: dict[str, list]):
    """A task of mteb that is in memory."""
    from datasets import Dataset, DatasetDict
    from mteb import TaskMetadata
    from mteb.abstasks import AbsTaskSTS

    class Similar(AbsTaskSTS):
        metadata = TaskMetadata(
            name=name,
            description="Pairs.",
            type="STS",
            dataset={"path": "someone/pairs", "revision": "abc123"},
            eval_splits=["test", "validation"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, *args, **kwargs):
            self.dataset = DatasetDict({split: Dataset.from_dict(rows) for split in self.eval_splits})
            self.data_loaded = True

    return Similar()


@pytest.fixture
def similar(monkeypatch) -> dict[str, list]:
    """The rows of the tasks Similar and Similar2, which mteb then has."""
    import mteb

    rows = {
        "sentence1": [" ".join(text.split()[:6]) for text in DOCS],
        "sentence2": [" ".join(text.split()[2 + i % 5 : 9]) for i, text in enumerate(DOCS)],
        "score": [float(i % 6) for i in range(len(DOCS))],
    }
    real = mteb.get_task

    def get_task(name, eval_splits=None, **more):
        if name not in ("Similar", "Similar2"):
            return real(name, eval_splits=eval_splits, **more)
        task = sts_task(name, rows)
        return task.filter_eval_splits(eval_splits) if eval_splits else task

    monkeypatch.setattr(mteb, "get_task", get_task)
    return rows


def test_tasks_of_mteb_are_measured_on_each_split_and_later_runs_add_rows(similar, made, repo):
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    found = effconv.eval(repo, tasks=["Similar", made / "my-task"]).record["results"]
    model = SentenceTransformer(str(repo), trust_remote_code=True)
    one, other = (model.encode(similar[name], normalize_embeddings=True) for name in ("sentence1", "sentence2"))
    expected = spearmanr((one * other).sum(1), similar["score"]).statistic
    assert [(row["task"], row["split"], row["metric"]) for row in found] == [
        ("Similar", "test", "cosine_spearman"),
        ("Similar", "validation", "cosine_spearman"),
        ("my-task", "test", "ndcg_at_10"),
    ]
    assert [row["score"] for row in found[:2]] == [pytest.approx(expected, abs=1e-4)] * 2

    text = (repo / "README.md").read_text()
    (repo / "README.md").write_text(f"{text}\nWritten by hand.\n")
    stated = read_manifest(repo)["files"]["README.md"]
    again = run_eval(repo, "--tasks", "Similar2, Similar", "--split", "test")["results"]
    assert [row["task"] for row in again] == ["Similar2", "Similar"]
    card = ModelCard.load(repo / "README.md")
    assert card.text.endswith("Written by hand.\n")
    assert read_manifest(repo)["files"]["README.md"] == stated  # the card is a person's now, and stays theirs
    assert {(entry.dataset_name, entry.dataset_split) for entry in card.data.eval_results} == {
        ("MTEB Similar", "test"), ("MTEB Similar", "validation"), ("MTEB Similar2", "test"), ("my-task", "test"),
    }  # fmt: skip
    assert {entry.dataset_revision for entry in card.data.eval_results if entry.task_type == "STS"} == {"abc123"}
    tasks = re.findall(r"^\| ([^|]+) \| (?:test|validation) \|", blocks(card.content)["eval"], flags=re.M)
    assert tasks == ["Similar", "my-task (own task)", "Similar2", "Similar"]

    manifest = read_manifest(repo)
    manifest["files"]["model.safetensors"] = "0" * 64  # other weights: their rows must not stand with the old ones
    from effconv.eval.card import block

    record = effconv.eval(repo, tasks="Similar2", split="test", card=False).record
    rows = block(manifest, record, blocks(card.content)["eval"]).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| Similar2"]
    effconv.verify(repo)


def test_another_model_is_measured_and_has_no_card(made, tmp_path):
    source = Path(shutil.copytree(made / "source", tmp_path / "dense"))
    before = files_of(source)
    run = CliRunner().invoke(app, ["eval", str(source), "--tasks", str(made / "my-task"), "--normalize"])
    assert run.exit_code == 0, run.output
    assert "effconv did not make this model" in run.stdout
    assert f"{ndcg(source, made / 'my-task'):.3f}" in run.stdout
    assert files_of(source) == before


def test_no_card_leaves_the_repo_as_it_is(made, repo):
    before = files_of(repo)
    found = run_eval(repo, "--tasks", made / "my-task", "--no-card")
    assert found["card"] is None
    assert found["notes"] == []
    assert files_of(repo) == before


def test_a_model_that_another_program_saved_is_measured_and_left_alone(made, repo):
    (repo / "effconv.json").unlink()
    before = files_of(repo)
    found = effconv.eval(repo, tasks=made / "my-task")
    assert found.record["results"][0]["score"] == pytest.approx(ndcg(made / "lsg", made / "my-task"), abs=1e-4)
    assert "effconv adopt" in found.notes[0]
    assert files_of(repo) == before


BROKEN = {
    "corpus.jsonl": '{"_id": "d0", "text": "the"}\nno json\n["d1"]\n{"_id": "d2"}\n{"_id": "d0", "text": "of"}\n',
    "queries.jsonl": '{"_id": "q0", "text": "the"}\n{"_id": null, "text": "of"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq0 d0 1\nq0\td0\t0.5\n",
}
LINES = [
    "corpus.jsonl line 2: not JSON", "corpus.jsonl line 3: not an object", "corpus.jsonl line 4: text must be a string",
    "corpus.jsonl line 5: _id d0 is there twice", "queries.jsonl line 2: _id must be a string",
    "qrels/test.tsv line 2: 1 columns", "qrels/test.tsv line 3: score must be a whole number, got '0.5'",
]  # fmt: skip


def test_every_broken_line_of_a_task_is_named(made, tmp_path):
    for name, text in BROKEN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInputError) as caught:
        effconv.eval(made / "lsg", tasks=tmp_path)
    assert [line for line in LINES if line not in caught.value.what] == []
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corpus.jsonl": b"\xff\n"}, "corpus.jsonl line 1: not valid UTF-8"),
        ({"corpus.jsonl": b""}, "corpus.jsonl: no rows"),
        ({"corpus.jsonl": b'{"_id": "d0", "text": "\\ud800"}\n'}, "corpus.jsonl line 1: text with half a character"),
        ({"queries.jsonl": None}, "queries.jsonl: no such file"),
        ({"qrels/test.tsv": None, "qrels/dev.tsv": b""}, "qrels/test.tsv: no such file"),
        ({"qrels/test.tsv": b""}, "qrels/test.tsv line 1: must be query-id, corpus-id, score"),
        ({"qrels/test.tsv": b"query-id\tcorpus-id\tscore\n"}, "qrels/test.tsv: no rows"),
        ({"qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq0\td0\t0\n"}, "no score is above 0"),
        ({"qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq0\td99\t1\n"}, "line 2: no document 'd99' in corpus.jsonl"),
        ({"qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq99\td0\t1\n"}, "line 2: no query 'q99' in queries.jsonl"),
        (
            {"qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td0\t1\n"},
            "line 3: q0 and d0 are there twice",
        ),
    ],
)
def test_a_broken_task_is_refused(change, says, made, tmp_path):
    folder = write_task(tmp_path / "task")
    for name, data in change.items():
        (folder / name).unlink(missing_ok=True)
        if data is not None:
            (folder / name).write_bytes(data)
    with pytest.raises(BadInputError, match=re.escape(says)) as caught:
        effconv.eval(made / "lsg", tasks=folder)
    assert "BEIR" in caught.value.hint
    assert ("--split, such as dev" in caught.value.hint) == ("qrels/dev.tsv" in change)


def other_model(folder: Path) -> Path:
    """A source of another size."""
    return save_tiny_sentence_encoder(folder, hidden_size=64, num_attention_heads=4)


def with_broken_card(repo: Path) -> None:
    (repo / "README.md").write_text("<!-- effconv:eval -->\n")


@pytest.mark.parametrize(
    ("says", "error", "options"),
    [
        ("--tasks is missing", UsageError, {"tasks": [" , "]}),
        ("--batch-size must be at least 1", UsageError, {"batch_size": 0}),
        ("--results must end in .json", UsageError, {"results": "a.csv"}),
        ("the results file exists", OutputError, {"results": "there.json"}),
        ("no such folder", OutputError, {"results": "nowhere/a.json"}),
        ("no file can be created here", OutputError, {"results": "/proc/all.json"}),
        ("no such folder: ./nowhere", BadInputError, {"tasks": "./nowhere"}),
        ("mteb has no task STS1. Did you mean STS1", UsageError, {"tasks": "STS1"}),
        ("Did you mean LEMBQMSumRetrieval", UsageError, {"tasks": "LEMBQMSumRetrival,LEMBNarativeQARetrieval"}),
        ("several tasks are called my-task", UsageError, {"tasks": ["my-task", "other/my-task"]}),
        ("Similar has no split 'dev'", UsageError, {"tasks": "Similar", "split": "dev"}),
        ("torch knows no device", UsageError, {"device": "gpu"}),
        ("no such folder", BadInputError, {"repo": "nowhere"}),
        ("not made by effconv", BadInputError, {"repo": "."}),
        ("it has no modules.json", UnsupportedError, {"repo": "masked"}),
        ("the repo is a SparseEncoder", UnsupportedError, {"repo": "sparse"}),
        ("is not the source of this repo: hidden size", UsageError, {"against": "other"}),
        ("no readable weights", BadInputError, {"repo": "weightless"}),
        ("has no tokenizer", BadInputError, {"against": "wordless"}),
        ("the source gives no sentence embeddings", UnsupportedError, {"against": "plain"}),
        ("has no end", BadInputError, {"repo": "broken-card"}),
        ("eval has no option task", UsageError, {"task": "STS12"}),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_begins(
    says, error, options, similar, made, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("{}")
    for folder in (Path("my-task"), Path("other/my-task")):
        write_task(folder)
    repo = options.pop("repo", None)
    if repo == "masked":
        save_tiny(Path("plain"))
        effconv.convert(
            "plain", "lsg", max_length=128, block_size=16, sparse_block_size=16, output="masked", verify=False
        )
    if repo == "sparse":
        shutil.copytree(made / "lsg", "sparse")
        Path("sparse/config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')
    for folder, names in (("weightless", ["model.safetensors"]), ("wordless", ["tokenizer.json", "vocab.txt"])):
        shutil.copytree(made / "source", folder, ignore=shutil.ignore_patterns(*names))
    if repo == "broken-card":
        with_broken_card(Path(shutil.copytree(made / "lsg", "broken-card")))
    if options.get("against") in ("other", "plain"):
        {"other": other_model, "plain": save_tiny}[options["against"]](Path(options["against"]))
    before = files_of(tmp_path) | files_of(made)
    with pytest.raises(error, match=re.escape(says)) as caught:
        effconv.eval(repo or made / "lsg", **{"tasks": "my-task", **options})
    assert caught.value.where
    assert caught.value.hint
    assert files_of(tmp_path) | files_of(made) == before


def test_data_that_cannot_be_downloaded_is_an_error_of_the_network(made, repo, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = files_of(repo)
    with pytest.raises(HubError, match="the data of LEMBNarrativeQARetrieval cannot be downloaded") as caught:
        effconv.eval(repo, tasks=["LEMBNarrativeQARetrieval", made / "my-task"])
    assert caught.value.exit_code == 6
    assert "dwzhu/LongEmbed" in caught.value.where
    assert files_of(repo) == before


def test_without_mteb_the_extra_is_named(made, monkeypatch):
    from effconv.eval import run

    real = run.importlib.util.find_spec
    absent = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None if name == "mteb" else real(name)))
    monkeypatch.setattr(run, "importlib", absent)
    with pytest.raises(UsageError, match="the package mteb is not installed") as caught:
        effconv.eval(made / "lsg", tasks="STS12")
    assert caught.value.hint == "pip install 'effconv[eval]'"


def test_names_are_split_at_commas_and_folders_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()
    assert split_names(["STS12, STS13", "a,b", "STS12"]) == ["STS12", "STS13", "a,b"]


PAGE = (ROOT / "docs" / "how-to" / "eval.md").read_text(encoding="utf-8")


def test_the_commands_and_the_code_of_the_page_run(made, repo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "source", "source")
    write_task(write_task(Path("my-task")), "dev")
    commands = [line.split() for line in re.findall(r"^effconv (.+)$", PAGE, flags=re.M) if "LEMB" not in line]
    assert len(commands) == 2
    for words in commands:
        run = CliRunner().invoke(app, words)
        assert run.exit_code == 0, f"{words}\n{run.output}\n{run.exception!r}"
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    exec(code, {})
    assert capsys.readouterr().out.startswith("my-task test ndcg_at_10 0.")


def test_help_and_options_import_neither_torch_nor_mteb():
    code = """
import sys
import effconv.eval.options, effconv.eval.folder
sys.argv = ["effconv", "eval", "--help"]
from effconv.cli import main
try:
    main()
finally:
    assert not {"torch", "mteb", "transformers", "datasets"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--tasks" in run.stdout
