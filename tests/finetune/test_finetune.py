"""`effconv finetune` on tiny models: every task, what is trained, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from finetune_data import TASKS, rows_for, write_rows
from safetensors.numpy import load_file
from tiers import daily

import effconv
from effconv.convert.errors import UsageError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.repo.card_blocks import blocks, front_matter
from tiny import save_tiny, save_tiny_sentence_encoder

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("finetune")
LSG = {"max_length": 128, "block_size": 16, "sparse_block_size": 16}
FAST = {"steps": 2, "batch": 4, "verify": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def lsg(place):
    """A repo with global tokens, from a masked language model."""
    save_tiny(place / "source", "bert", "ForMaskedLM")
    effconv.convert(place / "source", "lsg", output=place / "lsg", num_global_tokens=4, verify=False, **LSG)
    return place / "lsg"


@pytest.fixture(scope="module")
def bart(place):
    save_tiny(place / "bart-source", "bart", "ForConditionalGeneration")
    effconv.convert(place / "bart-source", "lsg", output=place / "bart", verify=False, **LSG)
    return place / "bart"


@pytest.fixture(scope="module")
def rows(place):
    """By task, training and evaluation rows."""
    found = {}
    for task in TASKS:
        folder = place / task
        folder.mkdir()
        train, dev = write_rows(folder / "train.jsonl", rows_for(task)), folder / "dev.jsonl"
        found[task] = {"data": train, "eval": write_rows(dev, rows_for(task, 8, seed=1))}
    return found


@pytest.fixture(scope="module")
def classifier(place, lsg, rows):
    """A fine-tuned repo, verified, that has learned its task."""
    options = {"epochs": 12, "batch": 8, "learning_rate": 3e-3, "dropout": 0.0, "patience": 8}
    return effconv.finetune(lsg, output=place / "classifier", **options, **rows["classification"])


def manifest_of(repo):
    return json.loads((repo / "effconv.json").read_text())


# What is trained


@pytest.mark.parametrize("task", daily(["tokens", "summarize"], of=TASKS))
def test_every_task_trains_and_the_repo_loads_without_a_missing_tensor(task, lsg, bart, rows, tmp_path):
    repo = bart if task == "summarize" else lsg
    result = effconv.finetune(repo, task=task, output=tmp_path / "out", target_length=8, **FAST, **rows[task])
    manifest = manifest_of(result.output)
    assert all(0 <= result.record["after"][name] <= 1 for name in ("f1", "accuracy") if name in result.record["after"])
    assert manifest["adapted"][-1]["by"] == "finetune"
    assert manifest["auto"] in manifest["heads"]
    assert manifest["new"] == []
    model, info = getattr(transformers, manifest["auto"]).from_pretrained(
        result.output, trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model).__name__ == manifest["architecture"] == model.config.architectures[0]
    before, after = load_file(repo / "model.safetensors"), load_file(result.output / "model.safetensors")
    moved = [name for name in before.keys() & after.keys() if (before[name] != after[name]).any()]
    assert len(moved) > 10


def test_a_model_learns_its_task_and_the_best_state_is_kept(classifier):
    record = classifier.record
    assert record["before"]["accuracy"] <= 0.75
    assert record["after"]["accuracy"] == 1
    best = max(record["history"], key=lambda entry: entry["accuracy"])
    assert record["best_step"] == best["step"]
    classify = transformers.pipeline("text-classification", str(classifier.output), trust_remote_code=True)
    found = classify([row["text"] for row in rows_for("classification", 8, seed=1)])
    assert [entry["label"] for entry in found] == ["n", "p"] * 4


def test_every_check_that_training_keeps_was_passed(classifier):
    passed = {result.name for result in classifier.measured if result.passed}
    assert {"equal_to_formula", "padding_changes_nothing", "saved_again_equal", "every_tensor_read"} <= passed
    assert not any(result.passed is False for result in classifier.measured)


def test_the_run_is_in_manifest_and_card(classifier):
    manifest, card = manifest_of(classifier.output), (classifier.output / "README.md").read_text()
    record = manifest["measurements"]["finetune"][0]
    assert record == json.loads(json.dumps(classifier.record))
    assert record["data"]["sha256"].keys() == {"train.jsonl"}
    assert record["data"]["rows"] == 24
    assert manifest["adapted"][0]["options"]["batch"] == 8
    results = front_matter(card)["model-index"][0]["results"]
    assert [metric["type"] for metric in results[0]["metrics"]] == ["accuracy", "f1"]
    assert results[0]["task"]["type"] == front_matter(card)["pipeline_tag"] == "text-classification"
    assert "| accuracy |" in blocks(card)["finetune"]


def test_other_commands_take_the_result(classifier, place, tmp_path):
    assert effconv.refresh(classifier.output).changed == ()
    shutil.copytree(classifier.output, tmp_path / "copy")
    effconv.verify(tmp_path / "copy", against=place / "source")


def test_a_trained_head_keeps_its_meaning_and_is_trained_on(classifier, rows, tmp_path):
    result = effconv.finetune(classifier.output, output=tmp_path / "out", **FAST, **rows["classification"])
    assert result.record["head"] == "kept"
    assert result.record["before"]["accuracy"] == 1
    assert len(manifest_of(result.output)["measurements"]["finetune"]) == 2


def test_a_new_head_takes_the_place_of_one_whose_labels_do_not_fit(classifier, tmp_path):
    rows = [{**row, "label": i % 3} for i, row in enumerate(rows_for("classification"))]
    data = write_rows(tmp_path / "three.jsonl", rows)
    with pytest.raises(effconv.EffconvError, match="do not fit the repo's trained head"):
        effconv.finetune(classifier.output, data=data, output=tmp_path / "out", **FAST)
    result = effconv.finetune(classifier.output, data=data, output=tmp_path / "out", new_head=True, **FAST)
    assert load_file(result.output / "model.safetensors")["classifier.weight"].shape[0] == 3
    same = [{**row, "label": "xy"[i % 2]} for i, row in enumerate(rows_for("classification"))]
    data = write_rows(tmp_path / "two.jsonl", same)
    result = effconv.finetune(
        classifier.output, data=data, output=tmp_path / "out2", new_head=True, freeze="encoder", **FAST
    )
    heads = [load_file(repo / "model.safetensors")["classifier.weight"] for repo in (classifier.output, result.output)]
    assert abs(heads[0] - heads[1]).mean() > 0.01, "the old head was trained on"
    assert any("--new-head" in finding for finding in result.findings)


def test_a_sentence_encoder_becomes_a_classifier(rows, tmp_path):
    """Its names have no prefix, and its modules and pooling make no sense with a head."""
    save_tiny_sentence_encoder(tmp_path / "source")
    effconv.convert(tmp_path / "source", "lsg", output=tmp_path / "lsg", verify=False, **LSG)
    assert (tmp_path / "lsg" / "modules.json").exists()
    result = effconv.finetune(tmp_path / "lsg", output=tmp_path / "out", **FAST, **rows["classification"])
    assert not (result.output / "modules.json").exists()
    assert not (result.output / "1_Pooling").exists()
    assert front_matter((result.output / "README.md").read_text())["library_name"] == "transformers"
    names = load_file(result.output / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"bert", "classifier"}


def test_types_and_shards_stay_and_untrained_tensors_keep_their_bytes(place, rows, tmp_path):
    effconv.convert(
        place / "source", "lsg", output=tmp_path / "lsg", dtype="bfloat16", max_shard_size="20kB", verify=False, **LSG
    )
    result = effconv.finetune(
        tmp_path / "lsg", output=tmp_path / "out", freeze="encoder", **FAST, **rows["classification"]
    )
    one, two = (
        {name: value for file in sorted(repo.glob("*.safetensors")) for name, value in raw(file).items()}
        for repo in (tmp_path / "lsg", result.output)
    )
    assert {dtype for dtype, _ in two.values()} == {"BF16"}
    kept = {name for name in one.keys() & two.keys() if "embeddings" in name or "layer" in name}
    assert kept
    assert all(one[name] == two[name] for name in kept)
    index = json.loads((result.output / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == two.keys()
    transformers.AutoModelForSequenceClassification.from_pretrained(result.output, trust_remote_code=True)


def raw(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return {
        name: (entry["dtype"], content[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]])
        for name, entry in header.items()
        if name != "__metadata__"
    }


SMALL = {
    "linformer": {"max_length": 64, "proj_dim": 16},
    "lambda": {"max_length": 64, "key_depth": 4, "local_context": 5},
    "transnormer": {"max_length": 64, "block_size": 16},
    "lsg": LSG,
}


@pytest.mark.parametrize("target", daily([], of=SMALL))
def test_repos_of_every_target_are_trained_and_pass_their_checks(target, place, rows, tmp_path):
    save_tiny(tmp_path / "source", "roberta", "ForMaskedLM")
    effconv.convert(tmp_path / "source", target, output=tmp_path / "repo", verify=False, **SMALL[target])
    result = effconv.finetune(
        tmp_path / "repo", output=tmp_path / "out", **{**FAST, "verify": True}, **rows["classification"]
    )
    assert sum(check.passed is True for check in result.measured) >= 3
    assert not any(check.passed is False for check in result.measured)


LABELLED = [
    name
    for name, family in FAMILIES.items()
    if any(head.auto == "AutoModelForSequenceClassification" for head in family.heads)
]


@pytest.mark.nightly
@pytest.mark.parametrize("family", LABELLED)
def test_repos_of_every_family_get_a_head_and_pass_their_checks(family, rows, tmp_path):
    """From a base model, whose names have no prefix and which may have no pooler."""
    save_tiny(tmp_path / "source", family, "Model")
    effconv.convert(tmp_path / "source", "lsg", output=tmp_path / "repo", verify=False, **LSG)
    options = {**FAST, "steps": 4, "evaluate_every": 2, "verify": True}
    result = effconv.finetune(tmp_path / "repo", output=tmp_path / "out", **options, **rows["classification"])
    assert not any(check.passed is False for check in result.measured)
    effconv.verify(result.output)
    assert manifest_of(result.output)["new"] == []


PAIRS = [
    *(("tokens", family) for family in ("roberta", "camembert", "albert", "mpnet", "electra")),
    *(("question", family) for family in ("roberta", "camembert", "bart", "mpnet")),
    *(("choice", family) for family in ("roberta", "distilbert", "albert")),
    *(("summarize", family) for family in ("mbart", "pegasus")),
    *((task, "bigs") for task in ("tokens", "question", "choice", "multilabel", "regression")),
]


@pytest.mark.nightly
@pytest.mark.parametrize(("task", "family"), PAIRS)
def test_tokenizers_and_heads_of_other_families_fit_the_tasks(task, family, rows, tmp_path, request):
    """A byte-level tokenizer takes words with a space in front; a pair has other special tokens, and no types."""
    if family == "bigs":
        repo = request.getfixturevalue("bigs")
    else:
        head = "ForConditionalGeneration" if task == "summarize" else "Model"
        save_tiny(tmp_path / "source", family, head)
        repo = tmp_path / "repo"
        effconv.convert(tmp_path / "source", "lsg", output=repo, verify=False, **LSG)
    result = effconv.finetune(repo, task=task, output=tmp_path / "out", target_length=8, **FAST, **rows[task])
    assert moved_of(repo, result.output)
    assert result.record["after"]["loss"] < 10
    auto = manifest_of(result.output)["auto"]
    getattr(transformers, auto).from_pretrained(result.output, trust_remote_code=True)


# Freezing


def moved_of(before, after):
    one, two = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {name for name in two if name not in one or (one[name] != two[name]).any()}


def test_globals_and_head_alone_are_trained(classifier, rows, tmp_path):
    result = effconv.finetune(
        classifier.output, output=tmp_path / "out", freeze="all-but-globals", **FAST, **rows["classification"]
    )
    wanted = {"bert.embeddings.global_embeddings.weight", "classifier.weight", "classifier.bias"}
    assert moved_of(classifier.output, result.output) == wanted
    assert result.record["learning_rate"] == 1e-3


def test_a_frozen_encoder_keeps_its_bytes_and_a_pooler_that_it_lacks_is_trained(lsg, rows, tmp_path):
    result = effconv.finetune(lsg, output=tmp_path / "out", freeze="encoder", **FAST, **rows["classification"])
    wanted = {f"{name}.{part}" for name in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")}
    assert moved_of(lsg, result.output) == wanted


@pytest.fixture(scope="module")
def bigs(place):
    from bigs_goldens import ROOT

    effconv.convert(ROOT / "mlm_tied_L37", "jax2torch", output=place / "bigs", verify=False, max_length=64)
    return place / "bigs"


@pytest.fixture(scope="module")
def alone(place, lsg):
    """A repo without global tokens."""
    effconv.convert(place / "source", "lsg", output=place / "alone", num_global_tokens=0, verify=False, **LSG)
    return place / "alone"


@pytest.mark.parametrize("freeze", ["none", "kernels"])
def test_bigs_is_trained_with_and_without_its_kernels(freeze, bigs, rows, tmp_path):
    result = effconv.finetune(
        bigs, output=tmp_path / "out", freeze=freeze, max_length=32, **FAST, **rows["classification"]
    )
    kernels = ("A_re", "A_im", ".C", ".D", "log_step", "token_type_embeddings.weight")
    names = [name for name in load_file(result.output / "model.safetensors") if name.endswith(kernels)]
    assert len(names) >= 11
    moved = moved_of(bigs, result.output)
    assert moved.isdisjoint(names) if freeze == "kernels" else not moved.isdisjoint(names)
    assert any("du_forward" in name for name in moved)
    assert any("depend on padding" in finding for finding in result.findings)


@pytest.mark.parametrize(
    ("repo", "freeze", "says"),
    [("lsg", "kernels", "is for BiGS"), ("bigs", "all-but-globals", "has none"), ("alone", "all-but-globals", "is 0")],
)
def test_a_freeze_that_fits_nothing_is_refused(repo, freeze, says, rows, tmp_path, request):
    folder = request.getfixturevalue(repo)
    with pytest.raises(UsageError, match=says):
        effconv.finetune(folder, output=tmp_path / "out", freeze=freeze, **FAST, **rows["classification"])
    assert not (tmp_path / "out").exists()
