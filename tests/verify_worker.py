"""Run what `effconv lsg` verifies on many repos in one process, and record what each puts out.

    python verify_worker.py JOBS.json

JOBS.json is a list of {"name", "repo", "source", "case", "in_memory"}; the result is one JSON object {name: {check: ""
or its fault}} on the last line of stdout. `case` is written as a recorded case is: inputs, and outputs as
`output.<name>`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from effconv.convert.checks import padded_ids
from effconv.convert.loaded import Loaded, decoder_inputs
from effconv.convert.manifest import read_manifest
from effconv.convert.stranger import run_check
from effconv.inmemory import lsgify
from effconv.lsgify.target import LSG


def verify(loaded):
    results = {}
    for check in LSG.checks:
        if check.applies(loaded.manifest):
            continue
        result = run_check(loaded, asdict(check))
        results[check.name] = "" if result["passed"] else result["why"]
    return results


def same_in_memory(loaded):
    """`effconv.lsgify(model)` against the repo that the command made of the same source."""
    model = lsgify(
        loaded.source_model(loaded.auto),
        loaded.tokenizer,
        **{name: loaded.manifest["options"][name] for name in ("max_length", "block_size", "sparse_block_size")},
    )
    wanted, got = loaded.model().state_dict(), model.state_dict()
    assert type(model).__name__ == loaded.manifest["architecture"]
    assert got.keys() == wanted.keys()
    return ", ".join(name for name, tensor in wanted.items() if not torch.equal(got[name], tensor))


def record(loaded, path):
    ids, mask = padded_ids(loaded, (60, 41))
    model = loaded.model()
    inputs = {"input_ids": ids, "attention_mask": mask, **decoder_inputs(model, ids)}
    if loaded.auto == "AutoModelForMultipleChoice":
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    with torch.no_grad():
        outputs = model(**inputs)
    tensors = {f"output.{name}": value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    inputs = {name: tensor.clone() for name, tensor in inputs.items()}  # one that two names share cannot be saved
    save_file({**inputs, **{name: value.contiguous() for name, value in tensors.items()}}, path)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        repo = Path(job["repo"])
        loaded = Loaded(repo, Path(job["source"]), read_manifest(repo), trust_remote_code=False)
        results[job["name"]] = verify(loaded)
        if job["in_memory"]:
            results[job["name"]]["same_in_memory"] = same_in_memory(loaded)
        record(loaded, job["case"])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
