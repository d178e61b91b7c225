"""The recorded BiGS cases: checkpoints and outputs of the published JAX model, and of the published torch port.

The README beside the recordings says how they are laid out. The folder here holds some; a full checkout reads all.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SHARED, TESTS
from safetensors.numpy import load_file

from effconv.api import convert
from effconv.convert.repo.manifest import read_manifest
from effconv.convert.verify.loaded import Loaded
from effconv.convert.verify.stranger import run_check
from effconv.targets.registry import TARGETS
from effconv.templates import configuration_bigs, modeling_bigs

COPY = TESTS / "goldens" / "bigs"
FULL = SHARED / "goldens" / "bigs"
ROOT = FULL if FULL.is_dir() else COPY
CASES = sorted(folder.name for folder in ROOT.iterdir()) if ROOT.is_dir() else []
TORCH_CASES = [name for name in CASES if (ROOT / name / "torch_model.safetensors").is_file()]
SHARDED = "mlm_sharded_L37"
HALVES = {"mlm_bf16params_L37": "BF16", "seqcls_fp16params_L16": "F16"}
TOLERANCE = 2e-5  # with the rounding order of the published JAX model, at every length


def each(cases: list[str]) -> pytest.MarkDecorator:
    """Parametrizes `case`; all tests of one stay in one process, which converts it and compiles its JAX model once."""
    marks = {case: pytest.mark.xdist_group(f"bigs-{case}") for case in cases}
    return pytest.mark.parametrize("case", [pytest.param(case, marks=marks[case]) for case in cases])


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def architecture(case: str) -> str:
    return read_json(ROOT / case / "config.json")["architectures"][0]


def inputs_of(case: str) -> dict[str, np.ndarray]:
    return load_file(ROOT / case / "inputs.safetensors")


def flax_outputs(case: str) -> dict[str, np.ndarray]:
    """Recorded outputs; of half-precision parameters those of the same values in float32."""
    found = load_file(ROOT / case / "outputs_flax.safetensors")
    upcast = {name.removeprefix("upcast."): value for name, value in found.items() if name.startswith("upcast.")}
    return upcast or {name: value for name, value in found.items() if not name.startswith("kernel.")}


def runs_of(case: str) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Inputs and the outputs recorded for them: all inputs, without a mask, without types."""
    inputs, outputs = inputs_of(case), flax_outputs(case)
    runs = []
    for prefix, dropped in (("", ""), ("nomask.", "attention_mask"), ("notype.", "token_type_ids")):
        wanted = {
            name.removeprefix(prefix): value
            for name, value in outputs.items()
            if (name.startswith(prefix) if prefix else not name.startswith(("nomask.", "notype.")))
        }
        if wanted:
            runs.append(({name: value for name, value in inputs.items() if name != dropped}, wanted))
    return runs


def to_torch(case: str, folder: Path, **options: Any) -> Path:
    return convert(ROOT / case, "jax2torch", output=folder, verify=False, **options).output


def to_jax(source: Path, folder: Path, **options: Any) -> Path:
    return convert(source, "torch2jax", output=folder, verify=False, **options).output


class Here(Loaded):
    """A torch repo whose model comes from effconv's own templates: a check in this process costs no fresh one."""

    @property
    def config(self) -> Any:
        return configuration_bigs.BiGSConfig.from_pretrained(self.repo)

    def model(self, auto: str | None = None, folder: Path | None = None, **overrides: Any) -> Any:
        suffix = "BiGSModel" if auto == "AutoModel" else self.manifest["architecture"]
        return getattr(modeling_bigs, suffix).from_pretrained(folder or self.repo, **overrides).eval()


def checked(repo: Path, *names: str, source: Path | None = None) -> dict[str, bool | None]:
    """Whether each check of the repo's target, or those named, passes; None for those that do not apply."""
    if importlib.util.find_spec("jax") and importlib.util.find_spec("flax"):
        jax_models()
    manifest = read_manifest(repo)
    loaded = Here(repo, source, manifest, False)
    found: dict[str, bool | None] = {}
    for check in TARGETS[manifest["target"]].checks:
        if names and check.name not in names:
            continue
        fields = {"name": check.name, "function": check.function, "says": check.says, "tolerance": check.tolerance}
        found[check.name] = None if check.left_out(manifest) else run_check(loaded, fields)["passed"]
    return found


def jax_models() -> Any:
    """The module of the JAX model; XLA's optimizations cost more here than they bring."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    from effconv.templates import modeling_bigs_jax

    return modeling_bigs_jax


def port_source(case: str, folder: Path) -> Path:
    """A folder as the published torch port leaves it on the Hub."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((ROOT / case / "config_torch.json").read_text())
    for stored, name in (("torch_model.safetensors", "model.safetensors"), ("vocab.txt", "vocab.txt")):
        (folder / name).write_bytes((ROOT / case / stored).read_bytes())
    return folder


def worst(got: dict[str, Any], wanted: dict[str, np.ndarray]) -> float:
    """The largest |a - b| / max(1, max |b|) over all that was wanted; everything wanted is there and finite."""
    found = [0.0]
    for name, value in wanted.items():
        actual = np.asarray(got[name], dtype=np.float64)
        assert actual.shape == value.shape, name
        assert np.isfinite(actual).all(), name
        found.append(float(np.abs(actual - value).max() / max(1.0, np.abs(value).max())))
    return max(found)


def flat_outputs(outputs: Any) -> dict[str, np.ndarray]:
    """Outputs by the names of the recordings: hidden_states.0, hidden_states.1, ..."""
    found = {name: value for name, value in outputs.items() if name != "hidden_states" and value is not None}
    states = outputs.get("hidden_states") or ()
    return {
        name: np.asarray(value, dtype=np.float32)
        for name, value in {**found, **{f"hidden_states.{i}": state for i, state in enumerate(states)}}.items()
    }
