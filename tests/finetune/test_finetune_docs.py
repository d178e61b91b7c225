"""docs/how-to/finetune.md and the tutorial: their commands and their code run, on tiny models and a few rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from finetune_data import rows_for, write_rows
from hub_runs import Client
from places import ROOT
from typer.testing import CliRunner

from effconv.cli import app
from effconv.finetune.tasks import GLUE, TASKS
from hub_server import LoopbackHub
from tiny import save_tiny

PAGE, TUTORIAL = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("how-to/finetune", "tutorials/fine-tune")
)
COMMANDS = re.findall(r"^effconv (.+)$", f"{PAGE}\n{TUTORIAL}", flags=re.M)
TINY = ["--no-verify", "--block-size", "16", "--sparse-block-size", "16"]
SHORT = ["--steps", "1", "--batch", "2", "--no-verify"]


pytestmark = pytest.mark.xdist_group("finetune-docs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of both pages have run, on a tiny source of the name that they give."""
    folder = tmp_path_factory.mktemp("finetune-docs")
    save_tiny(folder / "bert-base-uncased")
    for name, task in {
        "train": "classification",
        "dev": "classification",
        "ner": "tokens",
        "squad": "question",
    }.items():
        write_rows(folder / f"{name}.jsonl", rows_for(task, 8))
    lines = [f"it is {i},that was {i},{i % 2}" for i in range(8)]
    (folder / "pairs.csv").write_text("\n".join(["premise,hypothesis,entails", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in COMMANDS:
            words = re.sub(r"--epochs \S+", "", line).split()  # which --steps excludes
            more = {"lsg": TINY, "finetune": SHORT}.get(words[0])
            if more:
                run = CliRunner().invoke(app, [*words, *more])
                assert run.exit_code == 0, f"effconv {line}\n{run.output}\n{run.exception!r}"
    return folder


def test_the_commands_make_what_they_say(folder):
    made = {re.search(r"-o (\S+)", line)[1] for line in COMMANDS if " -o " in line}
    assert made == {path.parent.name for path in folder.glob("*/effconv.json")}
    record = json.loads((folder / "lsg-globals-reviews" / "effconv.json").read_text())["adapted"][0]
    assert record["options"]["freeze"] == "all-but-globals"
    assert (record["by"], record["task"]) == ("finetune", "classification")


def test_the_result_is_verified_and_could_be_pushed(folder, tmp_path):
    assert re.findall(r"^effconv (verify|push-to-hub) (\S+)", PAGE, flags=re.M) == [
        ("verify", "lsg-reviews"),
        ("push-to-hub", "lsg-reviews"),
    ]
    run = CliRunner().invoke(app, ["verify", str(folder / "lsg-reviews")])
    assert run.exit_code == 0, run.output
    with LoopbackHub() as hub:
        pushed = Client(hub, tmp_path).push(folder / "lsg-reviews", "--dry-run", "--license", "mit")
    assert pushed.code == 0, pushed.err


def test_the_code_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    exec(code, {})
    said = capsys.readouterr().out
    assert "'accuracy'" in said
    assert "'score'" in said
    assert Path("lsg-reviews-python").is_dir()


def test_the_table_of_tasks_is_the_codes():
    rows = re.findall(r"^\| (`.*?) \| For\w+ \| (.*?) \| (.*?) \|$", PAGE, flags=re.M)
    named = {name for names, *_ in rows for name in re.findall(r"`(?:glue:)?(\w+)`", names)}
    assert named == {*TASKS, *GLUE}
    for names, _, metrics in rows:
        task = TASKS.get(names.strip("`"))
        if task:
            assert sorted(re.findall(r"\w+", metrics)) == sorted(task.metrics)
            assert tuple(metrics.partition(";")[0].split(", ")) == task.metrics[: task.usual]
