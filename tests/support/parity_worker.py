"""Run recorded cases on emitted repos as a stranger would, and print how far the outputs are from the recorded ones.

    python parity_worker.py JOBS.json

Needs torch, transformers and safetensors only, so that any environment can run it. JOBS.json is a list of
{"repo", "cases": [{"name", "file", "auto_class", "load": {...}, "has_pooler"}]}; the result is one JSON object
{name of the case: {"class", "missing", "changed_inputs", "outputs": {name: difference}} or {"error": text}}, on the
last line of stdout. A difference is max |a - b| / max(1, max |b|) over real tokens, or "nan".
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def relative_difference(actual, expected, mask):
    """Max |a - b| / max(1, max |b|), over real tokens where the output has the mask's leading axes."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}"
    if mask is not None and expected.shape[: mask.dim()] == mask.shape:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    difference = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    return difference if difference == difference else "nan"  # max(0, nan) is 0: never compare a NaN


def mask_of(name, expected, mask):
    """The mask for a recorded output: an encoder's states have global tokens in front of those that it stands for."""
    if mask is None or name != "encoder_last_hidden_state":
        return mask
    return torch.nn.functional.pad(mask, (expected.shape[1] - mask.shape[1], 0), value=1)


def run_case(job, case):
    tensors = load_file(case["file"])
    inputs = {name: tensor for name, tensor in tensors.items() if not name.startswith("output.")}
    expected = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("output.")}
    auto = getattr(transformers, case["auto_class"])
    model, report = auto.from_pretrained(
        job["repo"], trust_remote_code=True, output_loading_info=True, **case.get("load", {})
    )
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    mask = inputs.get("attention_mask")
    with torch.no_grad():
        outputs = model.eval()(**inputs)
        model.config.unpad_inputs = False  # as it was recorded: an encoder's states of padding are compared, too
        padded = model(**inputs)
    changed = [name for name, tensor in inputs.items() if not torch.equal(tensor, given[name])]
    missing = sorted(report["missing_keys"])
    if not case["has_pooler"]:  # a random one was recorded, and a random one is here
        expected.pop("pooler_output", None)
        missing = [name for name in missing if "pooler." not in name]
    return {
        "class": type(model).__name__,
        "missing": missing,
        "changed_inputs": changed,
        "outputs": {
            **{name: relative_difference(getattr(padded, name), tensor, mask) for name, tensor in expected.items()},
            **{
                f"{name}, unpadded": relative_difference(getattr(outputs, name), tensor, mask_of(name, tensor, mask))
                for name, tensor in expected.items()
            },
        },
    }


def main() -> None:
    sys.modules["effconv"] = None  # wherever it is installed: an emitted repo must load without it
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results = {}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        for case in job["cases"]:
            try:
                results[case["name"]] = run_case(job, case)
            except Exception:
                results[case["name"]] = {"error": traceback.format_exc()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
