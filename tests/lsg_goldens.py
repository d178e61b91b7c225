"""The recorded LSG cases: build the repo that a case runs on, and hand cases to a fresh process.

Everything recorded comes from the published implementation; see the README beside the recordings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

from effconv.convert import modelcode
from effconv.convert.families import FAMILIES

TESTS = Path(__file__).parent
COPY = TESTS / "goldens" / "lsg"
FULL = TESTS.parent.parent / "shared" / "goldens" / "lsg"
WORKER = TESTS / "parity_worker.py"
TOLERANCE = 2e-5

# What the published code does in these two respects, and ours only when asked to.
PUBLISHED = {"causal_globals": "published", "bos_pooling_padding": "published"}


def golden_folder(family: str) -> Path:
    """All recordings of a family where they are at hand, else the copy of a few."""
    return FULL / family if (FULL / family).is_dir() else COPY / family


def read_cases(folder: Path) -> list[dict]:
    return json.loads((folder / "cases.json").read_text())


def build_repo(golden: Path, family: str, source: str, expected: str, repo: Path) -> Path:
    """An emitted repo made by laying the recorded conversion over its source."""
    repo.mkdir(parents=True)
    tensors = load_file(golden / source / "model.safetensors")
    changed = load_file(golden / expected)
    changed.pop("global_rows_deterministic")
    save_file({**tensors, **changed}, repo / "model.safetensors", metadata={"format": "pt"})
    code = FAMILIES[family].code
    heads = {head.suffix: head.auto for head in FAMILIES[family].heads}
    config = json.loads((golden / expected.replace(".safetensors", "_config.json")).read_text())
    del config["base_model_prefix"]
    config["model_type"] = modelcode.names(code, modelcode.LSG_CODE).model_type
    config["auto_map"] = modelcode.auto_map(code, modelcode.LSG_CODE, heads)
    (repo / "config.json").write_text(json.dumps(config, indent=2))
    for name, text in modelcode.render(code, modelcode.LSG_CODE, heads).items():
        (repo / name).write_text(text)
    return repo


def parity_jobs(golden: Path, family: str, folder: Path) -> list[dict]:
    """One job for each converted source: its repo, and the cases that run on it."""
    autos = {head.suffix: head.auto for head in FAMILIES[family].heads}
    jobs: dict[str, dict] = {}
    for case in read_cases(golden):
        expected = case["expected"]
        if expected not in jobs:
            repo = build_repo(golden, family, case["source"], expected, folder / Path(expected).stem)
            jobs[expected] = {"repo": str(repo), "cases": []}
        weights = load_file(Path(jobs[expected]["repo"]) / "model.safetensors")
        has_pooler = any("pooler.dense" in name for name in weights)
        jobs[expected]["cases"].append(
            {
                "name": case["name"],
                "file": str(golden / case["file"]),
                "auto_class": autos[case["head"]],
                "load": {**case["config"], **PUBLISHED},
                "has_pooler": has_pooler,
            }
        )
    return list(jobs.values())


def run_worker(jobs: list[dict], folder: Path, python: str = sys.executable) -> dict[str, dict]:
    """The worker's results by case, from a fresh process that cannot see effconv."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [python, str(WORKER), str(path)], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def faults(results: dict[str, dict], tolerance: float = TOLERANCE) -> list[str]:
    """What is wrong with the results, a line each; none where all is within the tolerance."""
    lines = []
    for name, result in results.items():
        if "error" in result:
            lines.append(f"{name}: {result['error']}")
            continue
        if result["missing"] or result["changed_inputs"] or not result["class"].startswith("LSG"):
            lines.append(f"{name}: {result}")
        lines += [
            f"{name}: {output} differs by {difference}"
            for output, difference in result["outputs"].items()
            if not (isinstance(difference, float) and difference <= tolerance)
        ]
    return lines
