"""What an emitted LSG model does as a transformers model, in fresh processes, on both versions of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import repo_worker
from environments import COMPAT_PYTHON, FIVE, FOUR, needs_compat, stranger
from lsg_goldens import convert

from effconv.convert.families import FAMILIES
from effconv.lsgify.target import LSG
from tiny import save_tiny, save_tiny_sentence_encoder

CHECKS = [name for name in vars(repo_worker) if name.startswith("check_")]
SENTENCE = "check_sentence_transformers_encodes_long_texts"  # the second environment has no sentence-transformers
SAVING, LATER = "check_a_saved_model_carries_its_code", "check_a_saved_model_loads_again"  # in processes of their own
BLOCKS = {"block_size": 8, "sparse_block_size": 8}
each_family = pytest.mark.parametrize("family", LSG.families)
together = pytest.mark.xdist_group("models")  # they share the repos and the processes


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    return {family: job_of(family, tmp_path_factory.mktemp(family)) for family in LSG.families}


def job_of(family: str, folder: Path) -> dict:
    source = save_tiny(folder / "source", family, "ForMaskedLM", 64)
    sentence = save_tiny_sentence_encoder(folder / "sentence_source", family)
    return {
        "repo": str(convert(source, folder / "repo", 256, BLOCKS)),
        "source": str(source),
        "save": str(folder / "saved"),
        "sentence_repo": str(convert(sentence, folder / "sentence_repo", 256, BLOCKS)),
        "sentence_source": str(sentence),
        "heads": {head.suffix: head.auto for head in FAMILIES[family].heads},
    }


def run_worker(jobs: dict[str, dict], checks: list[str], folder: Path, python: str) -> dict[str, dict[str, str]]:
    """The faults that the checks found, by family and check, from a fresh process."""
    path, results = folder / "jobs.json", folder / "results.json"
    path.write_text(json.dumps({"jobs": jobs, "checks": checks, "results": str(results)}))
    command = [python, str(Path(repo_worker.__file__)), str(path)]
    run = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=stranger(folder),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(results.read_text())


@pytest.fixture(scope="session", params=[FIVE, FOUR])
def faults(request, jobs, tmp_path_factory):
    later = {SAVING, LATER} | (set() if request.param == sys.executable else {SENTENCE})
    checks = [name for name in CHECKS if name not in later]
    return run_worker(jobs, checks, tmp_path_factory.mktemp("worker"), request.param)


@together
@each_family
def test_the_emitted_model(family, faults, subtests):
    assert len(faults[family]) >= len(CHECKS) - 3
    for check, fault in faults[family].items():
        with subtests.test(check):
            assert not fault, fault


@pytest.fixture(
    scope="session",
    params=[
        pytest.param((sys.executable, sys.executable), id="5 then 5"),
        pytest.param((sys.executable, COMPAT_PYTHON), id="5 then 4", marks=needs_compat),
        pytest.param((COMPAT_PYTHON, sys.executable), id="4 then 5", marks=needs_compat),
    ],
)
def faults_of_saving(request, jobs, tmp_path_factory):
    saver, loader = request.param
    folder = tmp_path_factory.mktemp("saving")
    own = {family: {**job, "save": str(folder / family)} for family, job in jobs.items()}
    return [run_worker(own, [check], folder, python) for check, python in ((SAVING, saver), (LATER, loader))]


@together
@each_family
def test_a_model_that_one_version_saved_loads_in_the_other(family, faults_of_saving):
    for faults in faults_of_saving:
        assert not any(faults[family].values()), faults[family]
