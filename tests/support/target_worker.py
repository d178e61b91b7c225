"""Check emitted repos of any target from outside: only torch and transformers, every class through its Auto class.

    python target_worker.py JOB.json

JOB.json is {"results", "save", "repos": [{"name", "repo", "auto", "autos", "tokens", ...}]}; the file named
`results` gets {name of the repo: {check: "" or its traceback}}. `auto` is the Auto class of the repo's own head,
`autos` are others that it has classes for, `tokens` what it takes; `equals` names a repo with the same outputs,
`decoder` marks causal ones.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import traceback
from functools import cache
from pathlib import Path

sys.modules["effconv"] = None  # wherever it is installed: an emitted repo must load without it

import torch  # noqa: E402
import transformers  # noqa: E402
from same_models import assert_same_outputs, assert_same_tensors  # noqa: E402
from unpadding_checks import compare_unpadded  # noqa: E402


def load(job, auto=None, folder=None, **options):
    kind = getattr(transformers, auto or job["auto"])
    options = {"torch_dtype": torch.float32, **options}
    return kind.from_pretrained(folder or job["repo"], trust_remote_code=True, **options)


@cache
def as_emitted(repo, auto):
    """The repo's model in eval mode, shared by the checks that only run it."""
    return load({"repo": repo, "auto": auto}).eval()


def ids(model, *lengths):
    """Random right-padded ids (b, t) and their mask."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(5, model.config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens.where(mask.bool(), torch.tensor(model.config.pad_token_id)), "attention_mask": mask}


def outputs(model, **inputs):
    """Every output tensor by name, without gradients."""
    with torch.no_grad():
        return {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}


def by_token(name, value, tokens):
    return value.dim() >= 2 and value.shape[1] == tokens and name != "pooler_output"


def close(actual, expected, tolerance=1e-5):
    difference = (actual.float() - expected.float()).abs().max().item()
    assert actual.isfinite().all(), "not finite"
    assert difference <= tolerance * max(1.0, expected.abs().max().item()), f"differs by {difference}"


def same(model, other, inputs):
    """Two models of the same tensors, which lie at other addresses."""
    assert_same_tensors(other, model)
    expected, found = outputs(model, **inputs), outputs(other, **inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_outputs(found[name], value)


def refuses(words, call):
    message = "no ValueError"
    try:
        call()
    except ValueError as error:
        message = str(error)
    assert words in message, message


def check_it_loads_with_nothing_missing(job):
    model, report = load(job, output_loading_info=True, torch_dtype="auto")
    assert not any(report.values()), report
    assert model.dtype == getattr(torch, job["dtype"])
    assert type(model).__module__.startswith("transformers_modules"), type(model)


def check_every_class_runs(job):
    for auto in job["autos"]:
        model = load(job, auto).eval()
        inputs = ids(model, 20, 13)
        if auto == "AutoModelForMultipleChoice":
            inputs = {name: value[:, None].repeat(1, 3, 1) for name, value in inputs.items()}
        found = outputs(model, **inputs)
        assert found, auto
        assert all(value.isfinite().all() for value in found.values()), auto


def check_the_longest_input_runs_and_longer_ones_are_refused(job):
    model = as_emitted(job["repo"], job["auto"])
    assert all(value.isfinite().all() for value in outputs(model, **ids(model, job["tokens"])).values())
    refuses(str(job["tokens"]), lambda: model(input_ids=torch.full((1, job["tokens"] + 1), 7)))


def check_padding_and_batch_mates_change_nothing(job):
    model = as_emitted(job["repo"], job["auto"])
    for length in (3, job["tokens"] // 4, job["tokens"] * 5 // 8):
        inputs = ids(model, job["tokens"], length)
        together = outputs(model, **inputs)
        for name, alone in outputs(model, input_ids=inputs["input_ids"][1:, :length]).items():
            row = together[name][1:]
            close(row[:, :length] if by_token(name, row, job["tokens"]) else row, alone)


def check_unpadding_changes_no_real_token(job):
    model = load(job).eval()
    if not hasattr(model.config, "unpad_inputs"):  # published models are left as they are
        return
    states = "encoder_hidden_states" if model.config.is_encoder_decoder else "hidden_states"
    compare_unpadded(model, ids(model, job["tokens"], job["tokens"] // 4, 3), states)


def check_a_step_of_training_changes_what_is_new(job):
    torch.manual_seed(0)
    model = load(job).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    inputs = ids(model, job["tokens"], 30)
    found = model(**inputs)
    sum(value.float().square().mean() for value in found.values() if isinstance(value, torch.Tensor)).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.requires_grad and (".mix." in name or ".gate." in name):
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def check_every_parameter_has_a_gradient_at_every_length(job):
    """DistributedDataParallel waits for the gradient of each."""
    model = load(job)
    models = [model, load(job, num_global_tokens=0)] if hasattr(model.config, "num_global_tokens") else [model]
    for model, length in itertools.product(models, (2, 12, job["tokens"])):
        model.train().zero_grad()
        found = model(**ids(model, length))
        sum(value.float().square().mean() for value in found.values() if isinstance(value, torch.Tensor)).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient at {length} tokens: {without[:5]}"


def check_half_precision_and_autocast(job):
    model = as_emitted(job["repo"], job["auto"])
    inputs = ids(model, job["tokens"], 23)
    real = inputs["attention_mask"].bool()
    expected = outputs(model, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        results = {"autocast": outputs(model, **inputs)}
    for dtype in (torch.bfloat16, torch.float16):
        results[dtype] = outputs(load(job, torch_dtype=dtype).eval(), **inputs)
    for kind, found in results.items():
        for name, value in found.items():
            wanted = expected[name]
            if by_token(name, wanted, real.shape[1]):
                value, wanted = value[real], wanted[real]
            assert value.isfinite().all(), (kind, name)
            error = (value.float() - wanted).norm() / wanted.norm()
            assert error < 0.1, (kind, name, error)


def check_saved_loaded_and_copied_it_is_the_same(job):
    model = load(job).eval()
    inputs = ids(model, 35, 21)
    same(model, copy.deepcopy(model), inputs)
    folder = Path(job["save"]) / job["name"].replace("/", "-")
    model.save_pretrained(folder)
    code = {path.name for path in Path(job["repo"]).glob("*.py")}
    assert code <= {path.name for path in folder.glob("*.py")}
    again, report = load(job, folder=folder, output_loading_info=True)
    assert not any(report.values()), report
    same(model, again.eval(), inputs)


def check_it_equals_the_other_repo(job):
    if "equals" in job:
        model, other = (as_emitted(repo, job["auto"]) for repo in (job["repo"], job["equals"]))
        inputs = ids(model, job["tokens"], 33)
        for name, value in outputs(other, **inputs).items():
            close(outputs(model, **inputs)[name], value)


def check_a_decoder_sees_no_later_token(job):
    if not job.get("decoder"):
        return
    model = as_emitted(job["repo"], job["auto"])
    assert model.config.is_decoder
    inputs = ids(model, job["tokens"])
    expected = outputs(model, **inputs)["logits"]
    for length in (1, 15, 16, 17, 70):
        close(outputs(model, input_ids=inputs["input_ids"][:, :length])["logits"], expected[:, :length])
    generated = model.generate(
        input_ids=inputs["input_ids"][:, :20], do_sample=False, max_new_tokens=3, min_new_tokens=3, use_cache=False
    )
    assert generated.shape == (1, 23)


def check_a_decoder_is_refused_at_loading(job):
    """By targets that mix all positions."""
    if job["causal"]:
        return
    assert "AutoModelForCausalLM" not in job["autos"]
    if hasattr(transformers.AutoConfig.from_pretrained(job["repo"], trust_remote_code=True), "is_decoder"):
        refuses("see later tokens", lambda: load(job, is_decoder=True))


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    job = json.loads(Path(sys.argv[1]).read_text())
    checks = {name: check for name, check in globals().items() if name.startswith("check_")}
    results = {}
    for repo in job["repos"]:
        results[repo["name"]] = {}
        for name, check in checks.items():
            try:
                check({**repo, "save": job["save"]})
                results[repo["name"]][name] = ""
            except Exception:
                results[repo["name"]][name] = traceback.format_exc()
    Path(job["results"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
