"""`effconv pretrain` on tiny models: runs against a plain loop, what a run leaves, and what it refuses."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from adapt_text import documents
from environments import strangers_output
from places import SUPPORT
from safetensors.torch import load_file
from tiers import daily

import effconv
from effconv.convert.errors import BadInputError, StoppedError, UnsupportedError, UsageError
from effconv.data.masking import mask_tokens
from effconv.data.pretraining import pretraining_examples
from effconv.data.pretraining_options import PretrainingOptions
from tiny import save_tokenizer

torch.set_num_threads(1)
SIZES = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48, "length": 64}
TARGETS = {
    "linformer": {"proj_dim": 16},
    "lsg": {"block_size": 16, "sparse_block_size": 16},
    "transnormer": {"block_size": 16},
    "lambda": {"key_depth": 4, "local_context": 5},
    "lambda --groups 1": {"groups": "1", "key_depth": 4, "local_context": 5},
    "dense": {},
    "bigs": {"heads": None},
}
CAUSAL = ("lsg", "transnormer", "dense")
RUN = {
    "documents": "heading", "length": 48, "batch_size": 6, "steps": 5, "heldout_share": 0.2, "learning_rate": 2e-3,
    "evaluate_every": 2, "verify": False,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def frozen():
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr("effconv.pretrain.results.draw", lambda path, record: False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents under headings, eight words a line."""
    lines = []
    for number, document in enumerate(documents(24, 96)):
        words = document.split()
        lines += [f" = on {number} = ", *(" ".join(words[i : i + 8]) for i in range(0, len(words), 8)), ""]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "bert", 64)
    return folder


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """Makes a repo with random weights, once for each way to ask."""
    place, known = tmp_path_factory.mktemp("new"), {}

    def make(target: str, **options: object) -> Path:
        key = json.dumps([target, options], sort_keys=True)
        if key not in known:
            known[key] = place / str(len(known))
            asked = {**SIZES, "tokenizer": str(tokenizer), **TARGETS[target], **options}
            asked = {name: value for name, value in asked.items() if value is not None}
            effconv.new(target.split()[0], output=known[key], verify=False, **asked)
        return known[key]

    return make


def record_of(repo: Path) -> dict:
    return json.loads((repo / "effconv.json").read_text())["measurements"]["pretrain"][-1]


def log_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.with_name(output.name + ".log.jsonl").read_text().splitlines()]


# Against a plain loop


def plain(repo, text, objective, auto):
    """The same training in the fewest lines: transformers' own losses, optimizer, schedule and clipping.

    Returns:
        The losses of the steps, the model, and the held-out accuracies.
    """
    config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True)
    dropout = {name: 0.0 for name in DROPOUT if hasattr(config, name)}
    kind = getattr(transformers, auto)
    model = kind.from_pretrained(repo, trust_remote_code=True, dtype=torch.float32, **dropout)
    tokenizer = transformers.AutoTokenizer.from_pretrained(repo)
    asked = PretrainingOptions(objective=objective, length=48, documents="heading", heldout_share=0.2, shuffle=10_000)
    stream = list(pretraining_examples([str(text)], tokenizer, asked))
    apart = PretrainingOptions(objective=objective, length=48, documents="heading", heldout_share=0.2)
    held = list(pretraining_examples([str(text)], tokenizer, apart, part="heldout"))

    def padded(examples, seed):
        longest = max(len(example["input_ids"]) for example in examples)
        rows = {name: [] for name in ("input_ids", "token_type_ids", "attention_mask")}
        special = []
        for example in examples:
            rest = longest - len(example["input_ids"])
            rows["input_ids"].append(example["input_ids"] + [tokenizer.pad_token_id] * rest)
            rows["token_type_ids"].append(example["token_type_ids"] + [0] * rest)
            rows["attention_mask"].append([1] * len(example["input_ids"]) + [0] * rest)
            special.append(example["special_tokens_mask"] + [1] * rest)
        given = {name: torch.tensor(row) for name, row in rows.items()}
        if objective == "clm":
            given["labels"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
            return given
        ids, labels = mask_tokens(
            given["input_ids"].numpy(), np.array(special), None, share=0.15, mask_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer), random=np.random.default_rng(seed),
        )  # fmt: skip
        given |= {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if "+" in objective:
            label = torch.tensor([example["next_sentence_label"] for example in examples])
            given["sentence_order_label" if "albert" in str(type(model)).lower() else "next_sentence_label"] = label
        return given

    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), eps=1e-8)
    schedule = transformers.get_scheduler("linear", optimizer, 2, 5)
    losses = []
    for step in range(5):
        loss = model.train()(**padded(stream[6 * step : 6 * step + 6], [123, 2, step])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        right = pairs = count = 0
        for i in range(0, len(held), 16):
            given = padded(held[i : i + 16], [0, 4, i // 16])
            found = model.eval()(**given)
            logits = found.logits if "logits" in found else found.prediction_logits
            labels = given["labels"]
            if objective == "clm":
                logits, labels = logits[:, :-1], labels[:, 1:]
            right += int((logits.argmax(-1) == labels)[labels != -100].sum())
            count += int((labels != -100).sum())
            if "next_sentence_label" in given:
                pairs += int((found[2].argmax(-1) == given["next_sentence_label"]).sum())
    return losses, model, {"tokens": right / count, "pairs": pairs / len(held), "predicted": count}


DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
AUTO = {
    "mlm": "AutoModelForMaskedLM",
    "mlm+nsp": "AutoModelForPreTraining",
    "mlm+sop": "AutoModelForPreTraining",
    "clm": "AutoModelForCausalLM",
}


@pytest.mark.parametrize(
    ("target", "objective", "how"),
    daily(
        [("lsg", "mlm+nsp", {"architecture": "ForPreTraining"}), ("transnormer", "clm", {"causal": True})],
        of=[
            ("lsg", "mlm+nsp", {"architecture": "ForPreTraining"}),
            ("transnormer", "clm", {"causal": True}),
            ("linformer", "mlm", {}),
            ("bigs", "mlm+sop", {"architecture": "ForPreTraining"}),
            ("lsg", "clm", {"causal": True}),
        ],
    ),
)
def test_a_run_is_a_plain_loop(target, objective, how, made, text, tmp_path):
    repo = made(target, **how)
    options = {**RUN, "objective": objective, "dropout": 0.0, "warmup_steps": 2, "log_every": 1}
    trained = effconv.pretrain(repo, data=text, output=tmp_path / "out", **options)
    losses, model, accuracy = plain(repo, text, objective, AUTO[objective])
    log = log_of(tmp_path / "out")
    found = [sum(value for name, value in line.items() if name.startswith("loss/")) for line in log]
    assert found == pytest.approx(losses, rel=1e-4)
    assert [line["learning_rate"] for line in log] == pytest.approx([0.0, 1e-3, 2e-3, 2e-3 * 2 / 3, 2e-3 / 3])
    stored, wanted = load_file(tmp_path / "out" / "model.safetensors"), dict(model.named_parameters())
    for name in stored.keys() & wanted.keys():
        torch.testing.assert_close(stored[name], wanted[name].detach(), rtol=1e-3, atol=2e-5, msg=name)
    after = trained.record["after"][0]
    words, _, pair = objective.partition("+")
    assert after["predicted"] == accuracy["predicted"]
    assert after[f"{words}_accuracy"] == pytest.approx(accuracy["tokens"], abs=1.5 / accuracy["predicted"])
    if pair:
        assert after[f"{pair}_accuracy"] == pytest.approx(accuracy["pairs"], abs=1.5 / after["texts"])
    assert after["perplexity"] == pytest.approx(np.exp(after[f"{words}_loss"]), rel=1e-4)
    assert log[-1][f"heldout/{words}_loss"] == after[f"{words}_loss"]


@pytest.mark.parametrize(
    "how", daily([{}], of=[{}, {"optimizer": "adam", "decay": "all", "weight_decay": 0.05, "clip": 0.0}])
)
def test_parts_of_a_step_give_the_weights_of_the_whole(how, made, text, tmp_path):
    """With a large eps: the gradient of a key's bias is rounding alone, which Adam would blow up."""
    weights = []
    for parts in (1, 4):
        options = {**RUN, "objective": "mlm+nsp", "dropout": 0.0, "eps": 1e-4, **how}
        output = tmp_path / f"{parts}"
        effconv.pretrain(
            made("lsg", architecture="ForPreTraining"), data=text, output=output, accumulation=parts, **options
        )
        weights.append(load_file(output / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


# What a run leaves


def test_a_run_that_stops_before_its_first_checkpoint_leaves_nothing(made, text, tmp_path):
    def stop(tick):
        raise KeyboardInterrupt

    with pytest.raises(StoppedError, match="no output was written") as stopped:
        effconv.pretrain(made("lambda --groups 1"), data=text, output=tmp_path / "out", watch=stop, **RUN)
    assert list(tmp_path.iterdir()) == []
    assert "--checkpoint-every" in stopped.value.hint


@pytest.mark.parametrize("keep", daily(["last"], of=["last", "best"]))
def test_a_stopped_and_continued_run_gives_the_weights_of_an_unbroken_one(keep, made, text, tmp_path):
    """With dropout, batch norms and an odd step: all that a step draws and moves is in the checkpoint or its number."""
    repo = made("lambda --groups 1")
    options = {**RUN, "objective": "mlm+nsp", "keep": keep, "checkpoint_every": 2, "log_every": 1, "dropout": 0.1}
    effconv.pretrain(repo, data=text, output=tmp_path / "whole", **options)

    def stop(tick):
        if tick.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError, match="step 000002"):
        effconv.pretrain(repo, data=text, output=tmp_path / "again", watch=stop, **options)
    assert not (tmp_path / "again").exists()
    with pytest.raises(BadInputError, match="other settings"):
        effconv.pretrain(repo, data=text, output=tmp_path / "again", resume=True, **{**options, "beta2": 0.9})
    effconv.pretrain(repo, data=text, output=tmp_path / "again", resume=True, **options)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    assert [line["loss/mlm"] for line in log_of(tmp_path / "again")] == [
        line["loss/mlm"] for line in log_of(tmp_path / "whole")
    ]
    assert not (tmp_path / "again.checkpoints").exists()
    moved, before = load_file(tmp_path / "whole" / "model.safetensors"), load_file(repo / "model.safetensors")
    name = "lambdabert.encoder.layer.1.lambdalayer.self.norm_v.running_var"
    assert not torch.equal(moved[name], before[name]), "batch norms keep their averages"
    different = [name for name in before if not torch.equal(moved[name], before[name])]
    assert len(different) > 0.9 * len([name for name in before if "num_batches" not in name])


@pytest.mark.nightly
def test_a_killed_run_and_two_processes_give_the_weights_of_an_unbroken_one(made, text, tmp_path):
    """Two processes have unequal shares of a step's examples."""
    repo = made("lsg", architecture="ForPreTraining")

    def found(what):
        (tmp_path / what).mkdir()
        worker = SUPPORT / "pretrain_worker.py"
        said = strangers_output(worker, what, repo, text, tmp_path / what, folder=tmp_path)
        return json.loads(said.splitlines()[-1])

    assert found("kill") == {"left": ["step-000004"], "same": True, "lines": [6]}
    together = found("processes")
    assert together["moved"] > 1e-3
    assert together["largest"] < 1e-5


def test_a_trained_repo_is_verified_and_says_what_was_done(made, text, tmp_path, capsys):
    trained = effconv.pretrain(
        made("linformer"), data=text, output=tmp_path / "out", preset="linformer",
        **{**RUN, "steps": 2, "verify": True}, tensorboard=True, bf16=True,
    )  # fmt: skip
    assert trained.measured
    assert all(result.passed is not False for result in trained.measured)
    manifest = json.loads((tmp_path / "out" / "effconv.json").read_text())
    (entry,) = manifest["adapted"]
    assert (entry["by"], entry["objective"], entry["steps"], entry["length"]) == ("pretrain", "mlm", 2, 48)
    assert entry["options"]["eps"] == 1e-6
    assert entry["options"]["max_predictions"] == 80
    assert entry["data"]["data"] == ["a.txt"]
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("preset `linformer`", "Cerebras", "| masked-LM accuracy |", "| perplexity |"):
        assert said in card, said
    assert str(tmp_path) not in card + json.dumps(manifest)
    assert list((tmp_path / "out.tensorboard").rglob("events.out.tfevents*"))
    assert "perplexity" in repr(trained)


def test_the_command_prints_the_figures(made, text, tmp_path, monkeypatch, capsys):
    from effconv.cli import main

    words = f"effconv pretrain {made('linformer')} --data {text} --documents heading --steps 1 --heldout-share 0.2"
    monkeypatch.setattr(
        "sys.argv",
        [*words.split(), "--length", "32", "--batch-size", "2", "--no-verify", "-o", str(tmp_path / "out"), "--quiet"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "masked-LM accuracy" in capsys.readouterr().out


def test_a_prepared_folder_is_trained_on(made, text, tokenizer, tmp_path):
    pytest.importorskip("pyarrow")
    effconv.prepare(
        [text], tokenizer=str(tokenizer), output=tmp_path / "data", objective="mlm+sop", length=48,
        documents="heading", heldout_share=0.2, masks="static", max_predictions=3,
    )  # fmt: skip
    options = {name: value for name, value in RUN.items() if name not in ("documents", "heldout_share")}
    repo = made("lsg", architecture="ForPreTraining")
    options |= {"objective": "mlm+sop", "epochs": 0.5, "steps": None, "batch_size": 4}
    trained = effconv.pretrain(repo, data=tmp_path / "data", output=tmp_path / "out", **options)
    (prepared,) = trained.record["data"]["prepared"]
    assert trained.record["steps"] == -(-prepared["train"]["examples"] // 8)
    after = trained.record["after"][0]
    assert after["predicted"] == prepared["heldout"]["masked"]
    with pytest.raises(BadInputError, match="mlm\\+nsp"):
        effconv.pretrain(repo, data=tmp_path / "data", output=tmp_path / "no", **{**options, "objective": "mlm+nsp"})


# Every target and objective


@pytest.mark.parametrize(
    ("target", "objective"),
    daily(
        [("lambda --groups 1", "mlm+sop"), ("bigs", "mlm+nsp")],
        of=[
            *((target, objective) for target in TARGETS for objective in ("mlm", "mlm+nsp", "mlm+sop")),
            *((target, "clm") for target in CAUSAL),
        ],
    ),
)
def test_every_target_learns_every_objective_that_it_can_have(target, objective, made, text, tmp_path):
    head = {"causal": True} if objective == "clm" else {"architecture": "ForPreTraining"}
    if target == "lambda --groups 1":
        head = {"architecture": "ForPreTrainingSOP" if "sop" in objective else "ForPreTrainingNSP"}
    options = {**RUN, "objective": objective, "steps": 12, "learning_rate": 3e-3, "dropout": 0.0}
    trained = effconv.pretrain(made(target, **head), data=text, output=tmp_path / "out", **options)
    words = objective.partition("+")[0]
    (before,), (after,) = trained.record["before"], trained.record["after"]
    assert after[f"{words}_loss"] < before[f"{words}_loss"] - 0.1
    loaded = effconv.load(tmp_path / "out")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in loaded.parameters())


# Refusals


def test_what_cannot_be_trained_is_refused_before_torch_runs(made, text, tmp_path):
    def refused(kind, match, repo=None, **options):
        with pytest.raises(kind, match=match):
            effconv.pretrain(repo or made("linformer"), **{**RUN, "data": text, "output": tmp_path / "out", **options})
        assert not (tmp_path / "out").exists()

    refused(UsageError, "no text to train on", data=())
    refused(BadInputError, "no such file", data="nothing.txt")
    refused(UsageError, "the repo takes 64 .the preset bigs has 128.", preset="bigs", length=None)
    refused(UnsupportedError, "clm needs a causal model", objective="clm")
    refused(UsageError, "to train on and to evaluate on", heldout=text)
    refused(UnsupportedError, "mlm needs an encoder", made("lsg", causal=True))
    refused(BadInputError, "no held-out example", heldout_share=0.0)
