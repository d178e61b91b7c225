"""Other machines, simulated on this one: every target's checks and recorded cases under what differs between machines.

    python tests/support/machines.py [WORD ...]    (make machines)

Settings run in fresh processes of `machines_worker.py`, one for each choice of variables and threads. A setting that
changes no bit of any result proves nothing here, and the table says so: it is never counted as passed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from places import SUPPORT

if __name__ == "__main__":  # as a script it has only its own folder on the path, and there may be an effconv elsewhere
    sys.path.insert(0, str(Path(__file__).parent))

WORKER = SUPPORT / "machines_worker.py"
LINE = 64  # bytes: the addresses of weights count modulo this
TOKENS = 160  # more than two blocks and more than the rows of a projection
# What others set for themselves would stand in every setting; under MKL_CBWR addresses change nothing.
CLEARED = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lsg": {"block_size": 16},
    "linformer": {"proj_dim": 16},
    "lambda": {"key_depth": 4, "local_context": 5},
    "lambda-published": {"key_depth": 4, "local_context": 5, "intra_depth": 2},
    "transnormer": {"block_size": 16},
}
GOLDENS = (
    "test_lambda.py::test_published_layer_in_eval_and_in_training",
    "test_lambda.py::test_published_models_heads_and_losses",
    "test_linformer.py::test_published_mode_equals_the_golden",
    "test_transnormer.py::test_published_mode_equals_the_golden",
    "test_bigs_goldens.py::test_the_torch_model_gives_the_outputs_of_the_published_jax_model[mlm_tied_L37]",
    "test_bigs_goldens.py::test_the_torch_model_gives_the_outputs_of_the_published_jax_model[nsp_L16]",
    "test_bigs_goldens.py::test_the_float64_form_is_that_of_the_published_model[mlm_tied_L37]",
    "test_adapt.py::test_the_losses_of_a_batchs_parts_add_up_to_its_own",
)
PASSED, FAILED, NO_EFFECT = "passed", "FAILED", "no effect on this machine"


@dataclass(frozen=True, slots=True)
class Setting:
    """Something in which machines differ.

    Attributes:
        variables: of the environment, set before torch is loaded.
        offset: bytes modulo 64 at which the tensors of weights files begin; None leaves the files as they were written.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    offset: int | None = None


DEFAULT = Setting("the default, one thread")
SETTINGS = (
    *(
        Setting(f"{name}={value}", {name: value})
        for name, value in (
            ("ATEN_CPU_CAPABILITY", "default"),
            ("ATEN_CPU_CAPABILITY", "avx2"),
            ("ONEDNN_MAX_CPU_ISA", "AVX2"),
            ("ONEDNN_MAX_CPU_ISA", "SSE41"),
            ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
            ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
            ("MKL_CBWR", "COMPATIBLE"),
        )
    ),
    *(Setting(f"weights at {offset} modulo {LINE}", offset=offset) for offset in range(0, LINE, 8)),
    Setting("two threads", threads=2),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting did: `changed` names results whose bits are not the default's, `faults` says what did not hold."""

    setting: Setting
    changed: tuple[str, ...]
    held: int
    worst: Mapping[str, float]
    faults: tuple[str, ...]

    @property
    def state(self) -> str:
        if self.faults:
            return FAILED
        return PASSED if self.changed or self.setting is DEFAULT else NO_EFFECT


def realign(path: Path, offset: int) -> None:
    """Rewrites a safetensors file with spaces behind its header, so that the data begins at `offset` modulo 64."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + size].rstrip(b" ")
    header += b" " * ((offset - 8 - len(header)) % LINE)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + size :])


def make_repos(folder: Path) -> list[dict[str, str]]:
    """A tiny repo of every target, with a pooled head: it is products of one row that depend on addresses."""
    from bigs_goldens import ROOT, to_jax, to_torch

    import effconv
    from tiny import save_tiny

    text = folder / "text.txt"
    text.write_text("the river of words and the sea to which it runs is in a land that was far from here\n" * 25)
    jobs = []
    for target, options in OPTIONS.items():
        head = "ForPreTraining" if target == "lambda-published" else "ForSequenceClassification"
        source = save_tiny(folder / "sources" / head, "bert", head)
        fitted = {"calibrate": (text,)} if target in ("lambda", "transnormer") else {}
        made = effconv.convert(
            source, target, output=folder / target, verify=False, max_length=TOKENS, **options, **fitted
        )
        jobs.append({"name": target, "repo": str(made.output), "source": str(source)})
    jax = ROOT / "pretraining_L16"
    torch = to_torch(jax.name, folder / "jax2torch")
    resized = effconv.convert(torch, "bigs", output=folder / "bigs", max_length=24, verify=False).output
    back = to_jax(torch, folder / "torch2jax")
    for repo, source in ((torch, jax), (back, torch), (resized, torch)):
        jobs.append({"name": repo.name, "repo": str(repo), "source": str(source)})
    return jobs


def make_parity(folder: Path) -> list[dict[str, Any]]:
    """A part of the recorded LSG cases: the first of every fourth conversion of BERT's."""
    from lsg_goldens import parity_jobs

    return [{**job, "cases": job["cases"][:1]} for job in parity_jobs("bert", folder)[::4]]


def run_together(settings: Sequence[Setting], job: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """What the worker found, by setting, in one fresh process: the settings have variables and threads in common."""
    from environments import stranger

    folder.mkdir()
    turns = {setting.name: turn_of(setting, job, folder) for setting in settings}
    threads, own = settings[0].threads, settings[0].variables
    (folder / "job.json").write_text(json.dumps({"threads": threads, "turns": turns}))
    inherited = {name: value for name, value in stranger(folder).items() if name not in CLEARED}
    run = subprocess.Popen(
        [sys.executable, str(WORKER), str(folder / "job.json")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
        text=True,
        cwd=folder,
        env={**inherited, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)), **own},
    )
    found: dict[str, dict[str, Any]] = {}
    with run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith('{"name":'):
                result = json.loads(line)
                found[result["name"]] = result
                print("\n    ".join([f"{result['name']}: done", *result["faults"]]), file=sys.stderr, flush=True)
    said = f"the process ended with {run.returncode}: {(folder / 'stderr').read_text().strip()[-300:]}"
    dead = {"bits": {}, "held": 0, "worst": {}, "faults": [said]}
    return {setting.name: found.get(setting.name, dead) for setting in settings}


def turn_of(setting: Setting, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a setting has the worker do: all of the job, or what an offset in weights files can reach."""
    if setting.offset is None:
        return {**job, "offset": 0, "without": []}
    mapped = [repo for repo in job["repos"] if (Path(repo["repo"]) / "model.safetensors").is_file()]
    place = folder / str(setting.offset)
    repos = [{**repo, "repo": str(moved(repo["repo"], setting.offset, place))} for repo in mapped]
    # The recordings' weights lie where they lie, and JAX has copies of its own.
    return {"offset": setting.offset, "repos": repos, "without": ["jax_and_torch_agree"], "parity": [], "goldens": []}


def moved(repo: str, offset: int, folder: Path) -> Path:
    """A copy of a repo in which the weights begin at another address."""
    copy = shutil.copytree(repo, folder / Path(repo).name)
    for path in copy.glob("*.safetensors"):
        realign(path, offset)
    return copy


def outcome(setting: Setting, found: Mapping[str, Any], default: Mapping[str, Any]) -> Outcome:
    changed = tuple(name for name, bits in found["bits"].items() if bits != default["bits"].get(name))
    return Outcome(setting, changed, found["held"], found["worst"], tuple(found["faults"]))


def table(outcomes: Iterable[Outcome]) -> str:
    """One line a setting, what failed under it, and how many settings are of each state."""
    outcomes = list(outcomes)
    lines = [f"{'setting':<34}{'result':<27}{'held':>5}{'worst':>10}  bits that differ from the default's"]
    for found in outcomes:
        worst = max(found.worst.values(), default=0.0)
        lines.append(
            f"{found.setting.name:<34}{found.state:<27}{found.held:>5}{worst:>10.1e}  {', '.join(found.changed) or '-'}"
        )
        lines += [f"    {fault}" for fault in found.faults]
    counts = ", ".join(f"{sum(f.state == state for f in outcomes)} {state}" for state in (PASSED, FAILED, NO_EFFECT))
    return "\n".join([*lines, counts])


def main(*wanted: str) -> int:
    """Runs the settings of which the name has one of the words, or all; the exit status is 1 where something failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny conversions: threads would only wait for each other
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="effconv-machines-") as name:
        folder = Path(name)
        job = {"repos": make_repos(folder), "parity": make_parity(folder / "parity"), "goldens": GOLDENS}
        settings = [DEFAULT, *(s for s in SETTINGS if not wanted or any(word in s.name for word in wanted))]
        groups: dict[Any, list[Setting]] = {}
        for setting in settings:
            groups.setdefault((setting.threads, *setting.variables.items()), []).append(setting)
        places = {key: folder / f"process-{number}" for number, key in enumerate(groups)}
        found: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            beside = [key for key in groups if key[0] == 1]
            for results in pool.map(lambda key: run_together(groups[key], job, places[key]), beside):
                found |= results
        for key in groups.keys() - set(beside):  # alone, else their threads wait for the others'
            found |= run_together(groups[key], job, places[key])
        outcomes = [outcome(setting, found[setting.name], found[DEFAULT.name]) for setting in settings]
    print(table(outcomes))
    print(f"{time.monotonic() - begin:.0f} s")
    return int(any(found.state == FAILED for found in outcomes))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
