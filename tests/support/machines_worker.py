"""Under one setting of `machines.py`: what the probe's bits are, and whether checks and recorded cases still hold.

    python machines_worker.py JOB.json

JOB.json is {"threads", "turns": {name of a setting: {"offset", "repos": [{"name", "repo", "source"}], "without",
"parity", "goldens"}}}: repos whose targets' checks are run (but for those named), jobs of `parity_worker.py`, and tests
to run in this very process. Each turn prints one JSON object {"name", "bits": {name: hash}, "held": how many, "worst":
{check: figure}, "faults": [line, ...]} on a line of stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bigs_goldens import jax_models
from lsg_goldens import faults
from machines_probe import bits_of, probe
from parity_worker import run_case
from places import TESTS

from effconv.convert.repo.manifest import read_manifest
from effconv.convert.verify.checks import random_ids
from effconv.convert.verify.loaded import Loaded, outputs
from effconv.convert.verify.stranger import run_check
from effconv.targets.registry import TARGETS


class Findings:
    """What was tried under the setting: how much of it held, the largest figure of each check, and what failed."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.bits: dict[str, str] = {}
        self.held = 0
        self.worst: dict[str, float] = {}
        self.faults: list[str] = []

    def add(self, what: str, fault: str) -> None:
        if fault:
            self.faults.append(f"{what}: {fault}")
        else:
            self.held += 1

    def pytest_runtest_setup(self) -> None:
        torch.set_num_threads(self._threads)  # some test files set one for themselves when they are imported

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            lines = [line.removeprefix("E ").strip() for line in report.longreprtext.splitlines() if line[:2] == "E "]
            self.add(report.nodeid, (lines or [report.longreprtext])[0])
        elif report.when == "call" and report.passed:
            self.add(report.nodeid, "")


def check_repo(found: Findings, job: dict[str, Any], without: Sequence[str] = ()) -> None:
    """Every check that the repo's target promises but those named, and the bits that its model gives for one text."""
    repo, manifest = Path(job["repo"]), read_manifest(Path(job["repo"]))
    loaded = Loaded(repo, Path(job["source"]), manifest, trust_remote_code=False)
    for check in TARGETS[manifest["target"]].checks:
        if check.name in without or check.left_out(manifest):
            continue
        result = run_check(loaded, asdict(check))
        if result["passed"] is None:  # it does not apply, and so it does not count as held
            continue
        found.add(f"{job['name']}: {check.name}", result["why"])
        if result["value"] is not None:
            found.worst[check.name] = max(result["value"], found.worst.get(check.name, 0.0))
    if (repo / "model.safetensors").is_file():
        given = outputs(loaded.model(), loaded.auto, random_ids(loaded, 1, min(20, loaded.max_length)), None)
        found.bits[f"model of {job['name']}"] = bits_of(*(given[name] for name in sorted(given)))


def path_of(name: str) -> str:
    """Where tests named FILE or FILE::TEST are, in whatever folder of the tests."""
    file, *test = name.split("::")
    return "::".join([str(next(TESTS.rglob(file))), *test])


def run_goldens(found: Findings, names: list[str]) -> None:
    """Tests of recorded cases, in this process: they run under the setting that it was started with."""
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "-W", "ignore", f"--confcutdir={TESTS}"]
    before = found.held
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*options, f"--rootdir={TESTS.parent}", *map(path_of, names)], plugins=[found])
    if found.held == before:
        found.faults.append("no recorded case was run")


def turn(job: dict[str, Any], threads: int) -> Findings:
    """All that is to be tried at one offset; the probe comes first."""
    found = Findings(threads)
    found.bits = probe(job["offset"])
    for repo in job["repos"]:
        check_repo(found, repo, job["without"])
    for recorded in job["parity"]:
        for case in recorded["cases"]:
            wrong = faults({case["name"]: run_case(recorded, case)})
            found.add(f"recorded case {case['name']}", "; ".join(wrong))
    if job["goldens"]:
        run_goldens(found, job["goldens"])
    return found


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.chdir(TESTS.parent)  # pytest's own settings name folders from there
    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with contextlib.suppress(ImportError):
        jax_models()
    for name, one in job["turns"].items():
        found = turn(one, job["threads"])
        result = {"bits": found.bits, "held": found.held, "worst": found.worst, "faults": found.faults}
        print(json.dumps({"name": name, **result}), flush=True)


if __name__ == "__main__":
    main()
