"""The recorded LSG cases: convert their sources with the command line, and hand cases to a fresh process.

Everything recorded comes from the published implementation; see the README beside the recordings.
"""

from __future__ import annotations

import json
from pathlib import Path

from environments import strangers_output
from places import SHARED, SUPPORT, TESTS
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from effconv.cli import app
from effconv.convert.families.registry import ENCODER_DECODERS, FAMILIES
from effconv.lsgify.target import LSG

COPY = TESTS / "goldens" / "lsg"
FULL = SHARED / "goldens" / "lsg"
WORKER = SUPPORT / "parity_worker.py"
# Family by name of the recordings, as far as they are at hand.
FAMILY_OF = {
    name: family
    for name, family in {**{name: name for name in LSG.families}, "barthez": "mbart"}.items()
    if (FULL / name).is_dir() or (COPY / name).is_dir()
}
RECORDED = tuple(family for family in LSG.families if family in FAMILY_OF)
TOLERANCE = 2e-5

# What the published code does in these respects, and ours only when asked to.
PUBLISHED = {
    "causal_globals": "published",
    "bos_pooling_padding": "published",
    "decoder_first_token": "published",
}
LOAD_OPTIONS = ("is_decoder",)  # given when a repo is loaded: no options of the conversion


def golden_folder(name: str) -> Path:
    """The recordings of that name: all of them where they are at hand, else the copy of a few."""
    return FULL / name if (FULL / name).is_dir() else COPY / name


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_cases(folder: Path) -> list[dict]:
    return read_json(folder / "cases.json")


def convert(source: Path, output: Path, max_length: int, config: dict) -> Path:
    """`effconv lsg` as somebody types it, with values of the emitted config as flags."""
    arguments = ["lsg", str(source), "--max-len", str(max_length), "--no-verify", "-o", str(output), *flags(config)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, f"effconv {' '.join(arguments)}\n{run.output}\n{run.exception!r}"
    return output


def flags(config: dict) -> list[str]:
    """The command line's flags for values of the emitted config."""
    found = []
    for name, value in config.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            on_by_default = name != "mask_first_token"
            found += [flag] if value else [f"--no-{flag[2:]}"] if on_by_default else []
        else:
            found += [flag, str(value)]
    return found


def parity_jobs(name: str, folder: Path) -> list[dict]:
    """One job for each conversion that the recorded cases of that name need: its repo, and the cases that run on it."""
    golden = golden_folder(name)
    autos = {head.suffix: head.auto for head in FAMILIES[FAMILY_OF[name]].heads}
    jobs: dict[tuple, dict] = {}
    for case in read_cases(golden):
        random = case["uses_random_global_rows"]
        config = dict(case["config"])
        load = {name: config.pop(name) for name in LOAD_OPTIONS if name in config}
        key = (case["expected"], random, *sorted(config.items()))
        if key not in jobs:
            conversion = read_json(golden / case["expected"].replace(".safetensors", "_conversion.json"))
            repo = folder / f"{name}-{len(jobs)}"
            published = {k: v for k, v in PUBLISHED.items() if k != "decoder_first_token" or has_decoder(name)}
            convert(golden / case["source"], repo, conversion["max_sequence_length"], {**config, **published})
            if random:  # drawn by the published code: no other code draws the same
                with_recorded_globals(repo, golden / case["expected"])
            jobs[key] = {"repo": str(repo), "cases": []}
        jobs[key]["cases"].append(
            {
                "name": f"{name}/{case['name']}",
                "file": str(golden / case["file"]),
                "auto_class": autos[case["head"]],
                "load": load,
                "has_pooler": any("pooler." in key for key in load_file(golden / case["source"] / "model.safetensors")),
            }
        )
    return list(jobs.values())


def has_decoder(name: str) -> bool:
    """Whether the recorded models have a decoder beside their encoder."""
    return FAMILY_OF[name] in ENCODER_DECODERS


def with_recorded_globals(repo: Path, expected: Path) -> None:
    """Overwrites the repo's table of global embeddings with the recorded one."""
    tensors, recorded = load_file(repo / "model.safetensors"), load_file(expected)
    name = next(name for name in recorded if name.endswith("global_embeddings.weight"))
    assert tensors[name].shape == recorded[name].shape
    save_file(tensors | {name: recorded[name]}, repo / "model.safetensors", metadata={"format": "pt"})


def run_worker(jobs: list[dict], folder: Path, python: str) -> dict[str, dict]:
    """The worker's results by case, from a process in which effconv cannot be imported."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    return json.loads(strangers_output(WORKER, path, folder=folder, python=python).splitlines()[-1])


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
        if not result["outputs"]:
            lines.append(f"{name}: no output was compared")
    return lines
