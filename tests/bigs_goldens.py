"""The recorded BiGS cases: checkpoints and outputs of the published JAX model, and of the published torch port.

The README beside the recordings says how they are laid out. The folder here holds some; a full checkout reads all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from effconv.api import convert

TESTS = Path(__file__).parent
COPY = TESTS / "goldens" / "bigs"
FULL = TESTS.parent.parent / "shared" / "goldens" / "bigs"
ROOT = FULL if FULL.is_dir() else COPY
CASES = sorted(folder.name for folder in ROOT.iterdir()) if ROOT.is_dir() else []
TORCH_CASES = [name for name in CASES if (ROOT / name / "torch_model.safetensors").is_file()]
TOLERANCE = 2e-5  # with the rounding order of the published JAX model, at every length


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
