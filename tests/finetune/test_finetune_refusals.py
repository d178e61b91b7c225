"""What `effconv finetune` refuses, before torch is imported, and the data sets that it reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bigs_goldens import ROOT as GOLDENS
from environments import stranger
from finetune_data import rows_for, write_rows
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import BadInputError, UnsupportedError, UsageError
from effconv.data.rows import held_out, read_tables
from effconv.finetune.options import FinetuneOptions
from effconv.finetune.run import open_run
from effconv.finetune.tasks import GLUE, TASKS
from tiny import save_tiny

ROWS = [{"text": f"it is {i}", "label": "np"[i % 2], "score": i / 2, "tags": ["a"] * (i % 2)} for i in range(8)]
LSG = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    save_tiny(folder / "source", "bert", "ForMaskedLM")
    effconv.convert(folder / "source", "lsg", output=folder / "lsg", **LSG)
    save_tiny(folder / "three-source", "bert", "ForSequenceClassification", num_labels=3)
    effconv.convert(folder / "three-source", "lsg", output=folder / "three", **LSG)
    effconv.convert(GOLDENS / "mlm_tied_L37", "jax2torch", output=folder / "bigs", verify=False)
    effconv.convert(folder / "bigs", "torch2jax", output=folder / "jax", verify=False)
    save_tiny(folder / "t5-source", "t5", "Model")
    effconv.convert(folder / "t5-source", "lsg", output=folder / "t5", **LSG)
    write_rows(folder / "train.jsonl", ROWS)
    (folder / "empty.jsonl").write_text("")
    (folder / "empty.csv").write_text("text,label\n")
    (folder / "notes.txt").write_text("no columns")
    write_rows(folder / "new.jsonl", [*ROWS[:2], {**ROWS[0], "label": "z"}])
    write_rows(folder / "same.jsonl", [{"text": "it", "label": "n"}] * 4)
    write_rows(folder / "holes.jsonl", [*ROWS, {**ROWS[0], "label": None}])
    write_rows(folder / "words.jsonl", [{"tokens": ["it", "is"], "tags": ["O"]}] * 4)
    write_rows(folder / "choices.jsonl", [{"text": "it", "choices": ["a", "b"], "label": 2}] * 4)
    return folder


REFUSED = {
    "no data": (UsageError, "no rows to train on", {}),
    "two sources": (UsageError, "--data and --dataset exclude each other", {"data": "train.jsonl", "dataset": "x/y"}),
    "no such file": (BadInputError, "no such file: .*nothing.jsonl", {"data": "nothing.jsonl"}),
    "no columns": (BadInputError, "notes.txt is not a file with columns", {"data": "notes.txt"}),
    "a column that is missing": (
        *(BadInputError, "no column 'body', found text, label, score, tags"),
        {"data": "train.jsonl", "text": "body"},
    ),
    "an empty file": (BadInputError, "no rows", {"data": "empty.jsonl"}),
    "a header alone": (BadInputError, "no rows", {"data": "empty.csv"}),
    "empty evaluation": (BadInputError, "no rows", {"data": "train.jsonl", "eval": "empty.jsonl"}),
    "a label of eval alone": (
        *(BadInputError, "labels only in the evaluation rows: z. The training rows have n, p"),
        {"data": "train.jsonl", "eval": "new.jsonl"},
    ),
    "one label": (BadInputError, "all rows have the same label 'n'", {"data": "same.jsonl"}),
    "a row without a label": (BadInputError, "row 9 has no label", {"data": "holes.jsonl"}),
    "a text that is none": (BadInputError, "is not a text but float", {"data": "train.jsonl", "text": "score"}),
    "numbers as classes": (
        *(BadInputError, "not a class"),
        {"data": "train.jsonl", "label": "score", "task": "classification"},
    ),
    "texts as numbers": (BadInputError, "labels that are not numbers", {"data": "train.jsonl", "task": "regression"}),
    "lists without a task": (UsageError, "the labels do not tell the task", {"data": "train.jsonl", "label": "tags"}),
    "labels without words": (
        *(BadInputError, "not a list of words"),
        {"data": "train.jsonl", "task": "tokens", "text": "text"},
    ),
    "a choice that is not there": (BadInputError, "labels up to 2", {"data": "choices.jsonl", "task": "choice"}),
    "an unknown task": (UsageError, "unknown task 'clasification'. Did you mean class", {"task": "clasification"}),
    "an unknown glue task": (UsageError, "unknown task 'glue:colla'. Did you mean glue:cola", {"task": "glue:colla"}),
    "an unknown metric": (
        *(UsageError, "classification has no metric 'acuracy'. Did you mean accuracy"),
        {"data": "train.jsonl", "metric": "acuracy"},
    ),
    "a length beyond the repo's": (UsageError, "the repo takes 128", {"data": "train.jsonl", "max_length": 129}),
    "choices of no choice": (UsageError, "--choices applies only", {"data": "train.jsonl", "choices": "a,b"}),
    "a head that the family lacks": (UnsupportedError, "bert has no head for summarize", {"task": "summarize"}),
    "an encoder without heads": (UnsupportedError, "t5 has no head for", {"repo": "t5", "data": "train.jsonl"}),
    "JAX": (UnsupportedError, "JAX repos cannot be trained here", {"repo": "jax", "data": "train.jsonl"}),
    "labels of another head": (
        *(BadInputError, "do not fit the repo's trained head: the data has n, p, and the head has LABEL_0"),
        {"repo": "three", "data": "train.jsonl"},
    ),
    "one number for three": (
        *(BadInputError, "a regression has one output, and the head has 3"),
        {"repo": "three", "data": "train.jsonl", "label": "score"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(case, place, tmp_path, monkeypatch):
    kind, says, given = REFUSED[case]
    monkeypatch.setattr("effconv.finetune.run.train", lambda *_: pytest.fail("a model would have been loaded"))
    monkeypatch.chdir(place)
    options = dict(given)
    with pytest.raises(kind, match=says):
        effconv.finetune(options.pop("repo", "lsg"), output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_row_is_named_by_its_place_in_its_file(place, tmp_path):
    """A tenth of the rows is held out first, and files are joined."""
    rows = [{"text": f"the {i}", "label": i / 4} for i in range(40)]
    for odd in (7, 29):
        spoilt = [{**row, "label": "n/a"} if i == odd else row for i, row in enumerate(rows)]
        for name, part in (("one.jsonl", spoilt), ("none.jsonl", rows[:5])):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        one, both = tmp_path / "one.jsonl", [tmp_path / "none.jsonl", tmp_path / "one.jsonl"]
        run = {"output": tmp_path / "out", "steps": 1}
        with pytest.raises(BadInputError, match=f"row {odd + 1}: 'n/a'"):
            effconv.finetune(place / "lsg", data=one, task="regression", **run)
        with pytest.raises(BadInputError, match=f"row {odd + 1} of one.jsonl: 'n/a'"):
            effconv.finetune(place / "lsg", data=both, task="regression", **run)
        with pytest.raises(BadInputError, match=f"numbers and texts: row 1 has 0.0, and row {odd + 1} has 'n/a'"):
            effconv.finetune(place / "lsg", data=one, **run)


def test_words_need_as_many_labels(place, tmp_path):
    with pytest.raises(BadInputError, match=r"row \d has 2 words and 1 labels"):
        effconv.finetune(place / "lsg", data=place / "words.jsonl", task="tokens", output=tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batch": 0}, "--batch must be at least 1, got 0"),
        ({"learning_rate": 2.0}, "--lr must be between 0 and 1"),
        ({"steps": 3, "epochs": 1.0}, "--steps and --epochs exclude each other"),
        ({"freeze": "all"}, "--freeze must be one of none, encoder, all-but-globals, kernels, got 'all'"),
        ({"warmup": 1.0, "dropout": -1.0, "max_length": 4}, "--max-len must be at least 8"),
    ],
)
def test_options_that_mean_nothing_are_refused(values, says):
    with pytest.raises(UsageError, match=says):
        FinetuneOptions(**values)


def test_an_error_imports_neither_torch_nor_transformers(place, tmp_path):
    code = (
        "import sys, effconv\n"
        "try: effconv.finetune('lsg', data='train.jsonl', eval='new.jsonl', output='out')\n"
        "except effconv.EffconvError as error: print(error)\n"
        "print([name for name in ('torch', 'transformers', 'sklearn') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=stranger(tmp_path), capture_output=True, text=True, check=True
    )
    assert "labels only in the evaluation rows" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_missing_package_is_named(place, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    parquet = tmp_path / "rows.parquet"
    parquet.write_bytes(b"")
    for module, name in (("sklearn", "scikit-learn"), ("datasets", "datasets"), ("accelerate", "accelerate")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda m, *a, gone=module: None if m == gone else found(m, *a))
        with pytest.raises(UsageError, match=f"the package {name} is not installed") as error:
            effconv.finetune(place / "lsg", data=parquet)
        assert "pip install 'effconv[finetune]'" in str(error.value)


# Data


def opened(place, tmp_path, **options):
    for name in ("data", "eval"):
        options[name] = tuple(map(str, options.get(name, ())))
    repo = place / options.pop("repo", "lsg")
    return open_run(repo, FinetuneOptions(output=tmp_path / "out", **options), lambda *_: None)


@pytest.mark.parametrize(("ending", "package"), [("jsonl", 1), ("csv", 1), ("parquet", 1), ("jsonl", 0), ("csv", 0)])
def test_files_of_every_kind_give_the_same_rows(ending, package, place, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("effconv.data.rows._has_datasets", lambda: bool(package))

    table = datasets.Dataset.from_list([{"text": row["text"], "label": i % 3} for i, row in enumerate(ROWS)])
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[ending](tmp_path / f"rows.{ending}")
    asked = opened(place, tmp_path, data=[tmp_path / f"rows.{ending}"], eval=[tmp_path / f"rows.{ending}"])
    assert asked.rows[0].columns["text"] == [row["text"] for row in ROWS]
    assert asked.labels.train == [i % 3 for i in range(8)]
    assert asked.labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_labels_tell_the_task(place, tmp_path):
    tasks = {c: opened(place, tmp_path, data=[place / "train.jsonl"], label=c).task.name for c in ("label", "score")}
    assert tasks == {"label": "classification", "score": "regression"}


def test_evaluation_rows_are_held_out_and_leave_every_class_in_training(place, tmp_path):
    rows = [{"text": f"it is {i}", "label": "rare" if i == 3 else "np"[i % 2]} for i in range(40)]
    read = read_tables([str(write_rows(tmp_path / "rows.jsonl", rows))], ["text", "label"], "label", "--data")
    for seed in range(20):
        train, apart = held_out(read, "label", seed)
        assert len(train) == 36
        assert len(apart) == 4
        assert "rare" in train.columns["label"]
        assert not {*train.columns["text"]} & {*apart.columns["text"]}


@pytest.mark.parametrize("name", GLUE)
def test_glue_tasks_read_a_folder_with_their_columns(name, place, tmp_path, monkeypatch):
    """As the Hub's data set has them: classes by name, a test split without labels."""
    import datasets

    task = GLUE[name]
    columns = {column: datasets.Value("string") for column in (task.text, task.pair) if column}
    numbers = task.name == "regression"
    label = datasets.Value("float32") if numbers else datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({**columns, "label": label})

    def split(count, unlabelled=False):
        given = [-1 if unlabelled else i % 2 for i in range(count)]
        return datasets.Dataset.from_dict({**{c: ["it is"] * count for c in columns}, "label": given}, features)

    splits = {"train": split(12), task.evaluated: split(4), "test": split(4, unlabelled=True)}
    asked_for = []

    def load(identifier, configuration=None, **_):
        asked_for.append((identifier, configuration))
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    asked = opened(place, tmp_path, task=f"glue:{name}")
    assert asked_for == [("nyu-mll/glue", name)]
    assert asked.labels.names == (("LABEL_0",) if numbers else ("no", "yes"))
    assert [len(rows) for rows in asked.rows] == [12, 4]
    assert not asked.split
    assert set(asked.metrics) <= {*TASKS[task.name].metrics}


def test_a_folder_stands_for_a_dataset_of_the_hub(place, tmp_path):
    """The Hub cannot be asked here: the same files, by --dataset."""
    folder = tmp_path / "cola"
    folder.mkdir()
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        rows = [{"sentence": text["text"], "label": i % 2} for i, text in enumerate(rows_for("classification", count))]
        write_rows(folder / f"{split}.jsonl", rows)
    command = ["finetune", str(place / "lsg"), "--task", "glue:cola", "--dataset", str(folder), "--steps", "1"]
    run = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out"), "--no-verify", "--json", "-q"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["task"] == "glue:cola"
    assert found["metrics"] == ["matthews", "accuracy"]
    assert found["data"]["data"] == ["cola@train"]
    assert found["heldout"]["data"] == ["cola@validation"]
    assert str(tmp_path) not in (tmp_path / "out" / "effconv.json").read_text()


def test_files_as_a_shell_lists_them(place, tmp_path):
    for i in range(3):
        write_rows(tmp_path / f"{i}.jsonl", ROWS)
    files = [str(tmp_path / f"{i}.jsonl") for i in range(3)]
    command = [
        "finetune",
        str(place / "lsg"),
        "--data",
        *files,
        "--steps",
        "1",
        "--no-verify",
        "-o",
        str(tmp_path / "out"),
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "no --eval: held out" in run.stdout
    record = json.loads((tmp_path / "out" / "effconv.json").read_text())["measurements"]["finetune"][0]
    assert record["data"]["data"] == ["0.jsonl", "1.jsonl", "2.jsonl"]
