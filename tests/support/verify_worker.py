"""Run what `effconv lsg` verifies on many repos in one process, and record what each puts out.

    python verify_worker.py JOBS.json

JOBS.json is a list of {"name", "repo", "source", "case", "in_memory"}; the result is one JSON object {name: {check: ""
or its fault}} on the last line of stdout, in which "runs" and "trains" stand beside the checks. `case` is written as a
recorded case is: inputs, and outputs as `output.<name>`.
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from effconv.convert.families.registry import FAMILIES
from effconv.convert.repo.manifest import read_manifest
from effconv.convert.verify.checks import padded_ids
from effconv.convert.verify.loaded import Loaded, decoder_inputs
from effconv.convert.verify.stranger import run_check
from effconv.lsgify.inmemory import lsgify
from effconv.lsgify.target import LSG


def verify(loaded):
    results = {}
    for check in LSG.checks:
        if check.left_out(loaded.manifest):
            continue
        result = run_check(loaded, asdict(check))
        results[check.name] = result["why"] if result["passed"] is False else ""
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


def attempt(what, loaded):
    """The fault of one thing that people do with a model; "" where it goes well."""
    try:
        what(loaded)
    except Exception:
        return traceback.format_exc()
    return ""


def inputs_of(loaded, batch, length, decoded=None):
    """Ids in the shape that the class takes, with what a decoder beside the encoder gets: the first `decoded`."""
    ids, _ = padded_ids(loaded, [length] * batch)
    inputs = {"input_ids": ids, **decoder_inputs(loaded.model(), ids[:, :decoded])}
    if loaded.auto in ("AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"):
        inputs.pop("decoder_input_ids", None)  # these decode the text itself
    return {name: x[None] if loaded.auto == "AutoModelForMultipleChoice" else x for name, x in inputs.items()}


def runs(loaded):
    """A whole text of the new length, of which every token gets an output."""
    with torch.no_grad():
        inputs = inputs_of(loaded, 1, loaded.max_length, decoded=16)
        outputs = loaded.model()(**inputs, output_hidden_states=True)
    assert all(value.isfinite().all() for value in outputs.values() if isinstance(value, torch.Tensor))
    states = outputs.get("encoder_hidden_states") or outputs.hidden_states
    globals_ = loaded.config.num_global_tokens if "encoder_hidden_states" in outputs else 0  # which a decoder sees
    assert states[-1].shape[:2] == (1, globals_ + loaded.max_length)


def trains(loaded):
    """A step on the head's own loss over more than two blocks; everything that the loss reads has a gradient."""
    model, inputs = loaded.model().train(), inputs_of(loaded, 2, 70)
    loss_of(model, loaded.auto, inputs).backward()
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    still = [name for name, value in learned.items() if value.grad is None or not value.grad.any()]
    unused = ["pooler.", "crossattention."]  # by losses that read tokens, and without an encoder's states
    if loaded.manifest.get("part"):
        unused.append("encoder_attn")  # of a decoder alone
    if loaded.manifest["family"] == "xmod":  # adapters of other languages than the text's
        unused += [f"adapter_modules.{name}." for name in loaded.config.languages[:1]]
    if FAMILIES[loaded.manifest["family"]].computes_positions:
        unused.append("embed_positions.")
    if loaded.auto == "AutoModelForMultipleChoice":
        unused.append("classifier.bias")  # which adds the same to every choice
    if loaded.auto == "AutoModelForQuestionAnswering":
        unused.append("qa_outputs.bias")  # and this one to every token
    if not getattr(loaded.config, "tie_word_embeddings", True):
        unused += ["predictions.bias", "shared."]  # ALBERT's decoder then has another; BART's embeddings are their own
    assert all(any(part in name for part in unused) for name in still), still
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    assert loss_of(model, loaded.auto, inputs).isfinite()


def loss_of(model, auto, inputs):
    """The loss of the class on labels that are all zero; of a base model, which has none, the mean square."""
    batch, length = inputs["input_ids"].shape[-2:]
    if auto == "AutoModel":
        outputs = model(**inputs).values()
        return sum(value.square().mean() for value in outputs if isinstance(value, torch.Tensor))
    by_text = torch.zeros(batch, dtype=torch.long)
    if auto == "AutoModelForQuestionAnswering":
        return model(**inputs, start_positions=by_text, end_positions=by_text).loss
    if auto == "AutoModelForMultipleChoice":
        return model(**inputs, labels=by_text[:1]).loss
    if auto in ("AutoModelForSequenceClassification", "AutoModelForNextSentencePrediction"):
        return model(**inputs, labels=by_text).loss
    taken = inspect.signature(model.forward).parameters
    pairs = {name: by_text for name in ("next_sentence_label", "sentence_order_label") if name in taken}
    return model(**inputs, labels=torch.zeros(batch, length, dtype=torch.long), **pairs).loss


def record(loaded, path):
    ids, mask = padded_ids(loaded, (60, 41))
    model = loaded.model()
    model.config.unpad_inputs = False  # an encoder's states of padding are recorded, too
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
        results[job["name"]] = {
            **verify(loaded),
            "runs": attempt(runs, loaded),
            "trains": attempt(trains, loaded),
        }
        if job.get("in_memory"):
            results[job["name"]]["same_in_memory"] = same_in_memory(loaded)
        record(loaded, job["case"])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
