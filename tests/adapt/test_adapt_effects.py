"""`effconv adapt` trains what was asked for, or says why it cannot: no run that leaves everything as it was."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from adapt_text import write_wiki

import effconv
from effconv.adapt.batches import Batch
from effconv.adapt.logits import DISTRIBUTION, VALUES, kind_of_logits
from effconv.adapt.models import load_pair, new_tensors, select
from effconv.adapt.objectives import Objective, logit_loss
from effconv.adapt.options import AdaptOptions
from effconv.adapt.recipes import phases_of, recipe_of
from effconv.adapt.trainer import Run
from effconv.convert.errors import UnsupportedError, UsageError
from effconv.targets.registry import TARGETS
from tiny import save_tiny

torch.set_num_threads(1)
FAST = {"batch_tokens": 256, "evaluate_every": 4, "verify": False}
BLOCKS = {"max_length": 64, "block_size": 16, "sparse_block_size": 16}
REPOS = {
    "linformer": ("linformer", "ForMaskedLM", {"max_length": 64, "proj_dim": 16}, {}),
    "no globals": ("lsg", "ForMaskedLM", {**BLOCKS, "num_global_tokens": 0}, {}),
    "one label": ("lsg", "ForSequenceClassification", BLOCKS, {"num_labels": 1}),
    "spans": ("lsg", "ForQuestionAnswering", BLOCKS, {}),
    "two heads": ("lsg", "ForPreTraining", BLOCKS, {}),
    "choices": ("lsg", "ForMultipleChoice", BLOCKS, {}),
    "decoder": ("lsg", "LMHeadModel", BLOCKS, {"is_decoder": True}),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_wiki(tmp_path_factory.mktemp("text") / "a.txt", count=14, words=400)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Repo and source by name, each made once."""
    folder, known = tmp_path_factory.mktemp("effects"), {}

    def make(name):
        if name not in known:
            target, head, options, config = REPOS[name]
            source = save_tiny(folder / f"{name}-source", "bert", head, 64, **config)
            effconv.convert(source, target, output=folder / name, verify=False, **options)
            known[name] = folder / name, source
        return known[name]

    return make


IGNORED = {  # options that nothing reads, with what they are for
    "mask_share": ({"mask_share": 0.3}, "--mask-share applies only with --objective mlm"),
    "whole_words": ({"whole_words": True}, "--whole-words applies only with --objective mlm"),
    "piece_tokens": ({"piece_tokens": 16}, "--piece-tokens applies only with --objective contrastive"),
    "budget_clock": ({"budget_clock": "cpu"}, "--budget-clock applies only with --budget"),
    "teacher": ({"objective": "mlm", "mask_share": 0.15}, "--teacher applies only with objectives that compare"),
}
NOTHING = {
    "globals that are not used": ("no globals", UsageError, "num_global_tokens is 0", {"train": "globals"}),
    "new ones that are not used": ("no globals", UsageError, "num_global_tokens is 0", {"train": "new"}),
    "where LSG is exact": ("no globals", UsageError, "up to 32 tokens the repo equals", {"lengths": "32"}),
    "where Linformer is": ("linformer", UsageError, "up to 16 tokens the repo equals", {"lengths": "8,16"}),
    "starts and ends": ("spans", UnsupportedError, "no logits that can be compared", {"objective": "logits"}),
    "outputs of two heads": ("two heads", UnsupportedError, "no logits that", {"objective": "hidden+logits"}),
    "choices": ("choices", UnsupportedError, "no logits that can be compared", {"objective": "logits"}),
    "masks in a decoder": ("decoder", UnsupportedError, "the repo is a decoder", {"objective": "mlm", "teacher": None}),
    **{name: ("linformer", UsageError, says, options) for name, (options, says) in IGNORED.items()},
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_would_train_nothing_is_refused_before_a_model_is_loaded(name, made, text, tmp_path, monkeypatch):
    repo, error, says, options = NOTHING[name]
    monkeypatch.setattr("effconv.adapt.run.check_hashes", lambda *_: pytest.fail("too late"))
    folder, source = made(repo)
    with pytest.raises(error, match=says) as raised:
        effconv.adapt(folder, **{"teacher": source, "data": text, "output": tmp_path / "out", **options})
    assert raised.value.where
    assert raised.value.hint


def test_lengths_beyond_where_the_repo_is_exact_are_trained(made, text, tmp_path, monkeypatch):
    """Beside the refusals: the same repos and options, a little longer."""
    monkeypatch.setattr("effconv.adapt.run.check_hashes", lambda *_: (_ for _ in ()).throw(InterruptedError))
    for name, lengths in (("no globals", "16,48"), ("linformer", "8,17")):
        folder, source = made(name)
        with pytest.raises(InterruptedError):
            effconv.adapt(folder, teacher=source, data=text, output=tmp_path / "out", lengths=lengths)


CLASSES, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
KINDS = [
    (CLASSES, {"num_labels": 2}, "bert", DISTRIBUTION),
    (CLASSES, {"num_labels": 1}, "bert", VALUES),
    (CLASSES, {"id2label": {"0": "LABEL_0"}}, "bert", VALUES),
    (CLASSES, {"problem_type": "regression", "num_labels": 3}, "bert", VALUES),
    (CLASSES, {"problem_type": "multi_label_classification", "num_labels": 3}, "bert", VALUES),
    (CLASSES, {"problem_type": "single_label_classification", "num_labels": 3}, "bert", DISTRIBUTION),
    (TOKENS, {"num_labels": 1}, "bert", VALUES),
    (TOKENS, {"num_labels": 5}, "bert", DISTRIBUTION),
    ("AutoModelForMaskedLM", {"num_labels": 1}, "bert", DISTRIBUTION),
    ("AutoModelForNextSentencePrediction", {}, "bert", DISTRIBUTION),
    ("AutoModelForPreTraining", {}, "electra", VALUES),
    ("AutoModelForPreTraining", {}, "bert", ""),
    ("AutoModel", {}, "bert", ""),
]


@pytest.mark.parametrize(("auto", "config", "family", "kind"), KINDS)
def test_a_softmax_is_for_distributions(auto, config, family, kind):
    assert kind_of_logits(auto, config, family) == kind


def test_single_numbers_are_compared_by_their_squares():
    wanted, got = torch.randn(2, 4, 1), torch.randn(4, 1, requires_grad=True)
    batch = Batch(torch.zeros(4, 8, dtype=torch.long), torch.zeros(8), torch.zeros(4, 8), rows=4)
    loss = logit_loss(got, wanted[0], batch, VALUES)
    torch.testing.assert_close(loss, (got - wanted[0]).square().mean())
    loss.backward()
    assert got.grad.abs().max() > 0
    flat = got.detach().requires_grad_()
    divergence = logit_loss(flat, wanted[0], batch, DISTRIBUTION)
    divergence.backward()
    assert float(divergence.detach()) == float(flat.grad.abs().max()) == 0  # what it was, whatever the logits are


def test_a_classifier_of_one_label_is_trained_and_the_run_says_how(made, text, tmp_path, monkeypatch):
    monkeypatch.setattr("effconv.adapt.results.draw", lambda path, record: False)
    folder, source = made("one label")
    manifest = json.loads((folder / "effconv.json").read_text())
    pair = load_pair(folder, source, manifest, phases_of("logits"), trust_remote_code=False)
    assert pair.logits == VALUES
    ids = torch.randint(10, 60, (4, 48), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.zeros(48, dtype=torch.bool), torch.ones(4, 48, dtype=torch.bool), rows=4)
    select(pair, "all", phases_of("logits")[0], new_tensors(pair))
    loss = Objective(pair, ("logits",), None)(batch)["logits"]
    loss.backward()
    assert float(loss.detach()) > 0
    assert max(float(p.grad.abs().max()) for p in pair.student.parameters() if p.grad is not None) > 0
    options = {"objective": "logits", "lengths": "48", "steps": 2, "output": tmp_path / "out", **FAST}
    result = effconv.adapt(folder, teacher=source, data=text, **options)
    assert any("squared differences" in finding for finding in result.findings)


def test_gates_of_a_feed_forward_are_the_targets_own(text, tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", 64)
    options = {"max_length": 64, "block_size": 16, "ffn": "glu", "calibrate": text, "verify": False}
    effconv.convert(source, "transnormer", output=tmp_path / "repo", **options)
    manifest = json.loads((tmp_path / "repo" / "effconv.json").read_text())
    pair = load_pair(tmp_path / "repo", source, manifest, phases_of("hidden"), trust_remote_code=False)
    chosen = select(pair, "new", phases_of("hidden")[0], new_tensors(pair))
    made_new = {name for name in manifest["new"] if "pooler" not in name}
    assert {name for name in chosen if ".gate." in name} == {name for name in made_new if ".gate." in name} != set()


def rates(**options):
    """Peak rates and decays of the optimizer's groups, and the factors of the rate over a phase."""
    chosen = AdaptOptions(**options)
    run = object.__new__(Run)
    run.options, run.recipe = chosen, recipe_of(TARGETS["linformer"], chosen)
    names = {"a.weight": torch.zeros(2, 2), "a.bias": torch.zeros(2), "a.mix.key": torch.zeros(2, 2)}
    student = SimpleNamespace(named_parameters=names.items)
    run.pair = SimpleNamespace(student=student)
    groups = run._groups(phases_of("hidden")[0], {name: ".mix." in name for name in names})
    factors = []
    for share in (0.0, 0.1, 0.5, 0.9):
        run.place = SimpleNamespace(share=share)
        factors.append(round(run.factor(phases_of("hidden")[0]), 6))
    return [(group["peak"], group["weight_decay"]) for group in groups], factors


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e-5},
        {"new_learning_rate": 1e-5},
        {"weight_decay": 0.1},
        {"warmup": 0.3},
        {"schedule": "linear"},
        {"schedule": "constant"},
    ],
)
def test_rates_and_schedules_are_what_the_options_say(options):
    assert rates(**options) != rates()
