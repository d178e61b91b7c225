"""Runs of `effconv finetune` that stop and go on, and runs in two processes."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from environments import stranger, strangers_output
from finetune_data import rows_for, write_rows
from places import SUPPORT
from safetensors.numpy import load_file
from tiers import daily

import effconv
from effconv.convert.errors import BadInputError, CheckFailedError, OutputError, StoppedError, UsageError
from effconv.convert.repo.manifest import Measured
from tiny import save_tiny

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("finetune-runs")
FAST = {"steps": 4, "batch": 4, "evaluate_every": 2, "verify": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for family, head in (("bert", "ForMaskedLM"), ("bart", "ForConditionalGeneration")):
        save_tiny(folder / f"{family}-source", family, head)
        effconv.convert(
            *(folder / f"{family}-source", "lsg"),
            **{"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False},
            output=folder / family,
        )
    for task in ("classification", "tokens", "question", "summarize"):
        write_rows(folder / f"{task}.jsonl", rows_for(task, 26))  # not a multiple of the batch
        write_rows(folder / f"{task}-dev.jsonl", rows_for(task, 7, seed=1))
    return folder


@pytest.fixture
def data(place):
    return {"data": place / "classification.jsonl", "eval": place / "classification-dev.jsonl"}


def worker(name, place, task, tmp_path):
    files = [place / f"{task}.jsonl", place / f"{task}-dev.jsonl"]
    repo = place / ("bart" if task == "summarize" else "bert")
    said = strangers_output(SUPPORT / "finetune_worker.py", name, repo, *files, tmp_path, folder=tmp_path)
    return json.loads(said.splitlines()[-1])


def test_a_killed_run_goes_on_and_two_processes_give_the_weights_of_one(place, tmp_path):
    found = worker("daily", place, "classification", tmp_path)
    kept, difference = found["killed"]["step 3"]
    assert kept == 2
    assert difference < 1e-6
    assert found["together"]["largest"] < 1e-5
    assert found["together"]["moved"] > 1e-3
    assert found["together"]["metrics"] < 1e-6


@pytest.mark.nightly
def test_runs_that_are_killed_at_any_moment_end_with_the_same_weights(place, tmp_path):
    found = worker("killed", place, "classification", tmp_path)
    assert len(found) == 7
    for moment, (_, difference) in found.items():
        assert difference < 1e-6, moment
    assert found["optimizer half written"][0] == found["before the end"][0] == 2


@pytest.mark.nightly
@pytest.mark.parametrize("task", ["tokens", "question", "summarize"])
def test_two_processes_give_the_weights_of_one_where_rows_have_many_labels(task, place, tmp_path):
    """A process's share of a batch has fewer or more labels than the other's: the loss counts those of the step."""
    found = worker(task, place, task, tmp_path)
    assert found["largest"] < 1e-5
    assert found["moved"] > 1e-3


@pytest.mark.parametrize("launcher", daily([], of=["torchrun", "accelerate"]))
def test_launchers_start_the_command(launcher, place, data, tmp_path):
    """On CPUs, accelerate leaves processes to MPI and starts one."""
    start = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes", "1"],
    }[launcher]
    options = ["--data", data["data"], "--eval", data["eval"], "--steps", "4", "--batch", "4", "--no-verify", "--json"]
    command = [sys.executable, "-m", *start, "-m", "effconv.finetune", place / "bert", "-o", tmp_path / "out", *options]
    environment = {**stranger(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)  # of rank 0 alone
    assert found["spent"]["processes"] == (2 if launcher == "torchrun" else 1)


class Stop(KeyboardInterrupt):
    pass


def test_an_interrupted_run_says_what_is_left_and_goes_on(place, data, tmp_path):
    def watch(tick):
        if tick.step == 3:
            raise Stop

    options = {**FAST, **data, "metric": "loss"}
    effconv.finetune(place / "bert", output=tmp_path / "whole", **options)
    with pytest.raises(StoppedError, match="the state of checkpoint 2 is kept"):
        effconv.finetune(place / "bert", output=tmp_path / "out", watch=watch, **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="checkpoints of an earlier run"):
        effconv.finetune(place / "bert", output=tmp_path / "out", **options)
    with pytest.raises(BadInputError, match=r"--lr: started with the default, now 0\.5"):
        effconv.finetune(place / "bert", output=tmp_path / "out", resume=True, learning_rate=0.5, **options)
    result = effconv.finetune(place / "bert", output=tmp_path / "out", resume=True, **options)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert max(float(abs(one[name] - two[name]).max()) for name in one) < 1e-6
    assert [entry["step"] for entry in result.record["history"]] == [0, 2, 4]
    assert not (tmp_path / "out.checkpoints").exists()


def test_a_training_whose_repo_fails_its_checks_is_kept(place, data, tmp_path, monkeypatch):
    """At its last step, where there is nothing more to train."""
    options = {**FAST, **data, "metric": "loss"}
    whole = effconv.finetune(place / "bert", output=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr("effconv.adapt.verified.run_checks", _fails)
        with pytest.raises(CheckFailedError, match="--resume --no-verify"):
            effconv.finetune(place / "bert", output=tmp_path / "out", **{**options, "verify": True})
    assert not (tmp_path / "out").exists()
    result = effconv.finetune(place / "bert", output=tmp_path / "out", resume=True, **options)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert max(float(abs(one[name] - two[name]).max()) for name in one) < 1e-6
    assert [result.record[name] for name in ("steps", "best_step", "before")] == [
        whole.record[name] for name in ("steps", "best_step", "before")
    ]


def _fails(*_, **__):
    return [Measured("padding_changes_nothing", "says", False, 1.0, 1e-5, why="differs")], {}


def test_nothing_to_resume_is_refused(place, data, tmp_path):
    with pytest.raises(UsageError, match="no checkpoint to continue from"):
        effconv.finetune(place / "bert", output=tmp_path / "out", resume=True, **FAST, **data)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_named(place, data, tmp_path, monkeypatch):
    def guarded(make):
        def denied(path, *args, **named):
            if tmp_path in Path(path).parents:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return make(path, *args, **named)

        return denied

    monkeypatch.setattr(Path, "mkdir", guarded(Path.mkdir))  # as the superuser may write everywhere
    monkeypatch.setattr(os, "makedirs", guarded(os.makedirs))
    with pytest.raises(OutputError, match="no permission to write the output"):
        effconv.finetune(place / "bert", output=tmp_path / "out", **FAST, **data)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_stops_the_run(place, data, tmp_path, monkeypatch):
    from effconv.finetune import losses

    def broken(outputs, labels, summed=losses._classes):
        broken.calls += 1
        return summed(outputs, labels) * (math.nan if broken.calls > 6 else 1)

    broken.calls = 0
    monkeypatch.setattr(losses, "_classes", broken)
    with pytest.raises(CheckFailedError, match="the loss of step"):
        effconv.finetune(place / "bert", output=tmp_path / "out", **FAST, **data)
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_accumulation_and_checkpointing_change_no_weight_beyond_rounding(place, data, tmp_path):
    shared = {**FAST, **data, "dropout": 0.0, "metric": "loss"}
    for name, options in {
        "plain": {},
        "parts": {"accumulation": 2},
        "recomputed": {"gradient_checkpointing": True},
    }.items():
        effconv.finetune(place / "bert", output=tmp_path / name, **shared, **options)
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "parts", "recomputed"))
    for other in others:
        assert max(float(abs(one[name] - other[name]).max()) for name in one) < 1e-5


def test_a_batch_that_processes_cannot_share_is_refused(place, data, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="a batch of 4 cannot be divided by 3 processes"):
        effconv.finetune(place / "bert", output=tmp_path / "out", **FAST, **data)


def test_early_stopping_bf16_and_tensorboard(place, data, tmp_path):
    options = {**FAST, **data, "steps": 20, "patience": 1, "learning_rate": 1e-9, "evaluate_every": 1}
    result = effconv.finetune(place / "bert", output=tmp_path / "out", bf16=True, tensorboard=True, **options)
    assert result.record["steps"] == 2
    assert list((tmp_path / "out.tensorboard").glob("events*"))
