"""What `python -m benchmarks.gpu` counts, compares and writes, as far as that needs no GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from places import ROOT

from benchmarks import gpu, gpu_correctness, gpu_layers, gpu_models, gpu_tables, gpu_training
from effconv.templates.lsg_configuration import ATTENTION_FORMS

CONFIGS = [
    {},
    {"sparsity_factor": 4, "num_global_tokens": 0},
    {"sparsity_factor": 1, "sparse_block_size": 5, "num_global_tokens": 3},
    {"sparsity_factor": 2, "sparse_block_size": 7, "block_size": 6},
]
each_config = pytest.mark.parametrize("changes", CONFIGS, ids=str)


def options(changes):
    stock = {"block_size": 4, "sparse_block_size": 4, "sparsity_factor": 2, "num_global_tokens": 1}
    return SimpleNamespace(**{**stock, **changes})


def keys_by_row(length, config):
    """What each row sees, tokens first, as sets of ("token" | "sparse" | "global", number), one row after the other."""
    block, size, step = config.block_size, config.sparse_block_size, config.block_size // config.sparsity_factor
    entries, global_keys = length // config.sparsity_factor, {("global", i) for i in range(config.num_global_tokens)}
    rows = []
    for token in range(length):
        i = token // block
        start = (i + 2) * step if step > 1 else i
        sparse = [*range((i - 1) * step - size, (i - 1) * step), *range(start, start + size)]
        seen = {("token", j) for j in range((i - 1) * block, (i + 2) * block) if 0 <= j < length}
        rows.append(seen | global_keys | {("sparse", e) for e in sparse if 0 <= e < entries})
    return rows + [global_keys | {("token", j) for j in range(length)}] * config.num_global_tokens


@each_config
def test_pairs_are_those_of_the_formula(changes):
    config = options(changes)
    length = 6 * config.block_size
    assert gpu_layers.pairs(length, config) == sum(len(keys) for keys in keys_by_row(length, config))


def test_products_of_a_layer():
    assert gpu_layers.products(2, 1024, dense=True) == 2 * 2 * 2 * 1025**2 * 64 * 12
    assert gpu_layers.products(1, 1024, dense=False) == 4 * 64 * 12 * gpu_layers.pairs(1024, gpu_layers.CONFIG)


@pytest.mark.nightly
def test_the_layers_to_compare_with_run():
    inputs = gpu_layers.qkv(2, 1024, "cpu")
    for form in (gpu_layers.longformer(2, 1024, "cpu"), gpu_layers.bigbird(2, 1024, "cpu")):
        context = form(*inputs)
        assert context.shape == (2, 1024, 768)
        assert context.isfinite().all()


def test_every_form_is_asked_for_by_the_field():
    assert gpu_layers.forms_on("cuda") == list(ATTENTION_FORMS)
    assert gpu_layers.forms_on("cpu") == ["auto", "plain"]  # what a CPU runs for the others is neither
    assert [gpu_layers.asked(form).attention_form for form in ATTENTION_FORMS] == list(ATTENTION_FORMS)
    assert gpu_layers.CONFIG.attention_form == "auto"


def test_a_layer_that_cannot_run_is_an_entry_that_says_why(monkeypatch):
    made = {
        "LSG, broken": lambda: gpu_layers.lsg_form(gpu_layers.asked("broken")),
        "flash SDPA": lambda: gpu_layers.sdpa,
    }
    monkeypatch.setattr(gpu_layers, "layers", lambda *_: made)
    broken, sound = gpu_layers.run("cpu", [(1, 300)])
    assert broken["error"].startswith("ValueError: attention_form must be one of")
    assert not gpu.sound("layers", broken)
    assert gpu.sound("layers", sound)
    assert {"forward_ms", "train_ms", "train_tflops"} <= sound.keys()


def test_a_job_is_right_only_within_its_limits(monkeypatch):
    nan = float("nan")
    jobs = {"near": lambda: {"x": (1e-7, 1e-6)}, "far": lambda: {"x": (2e-6, 1e-6)}, "nan": lambda: {"x": (nan, 1.0)}}
    jobs["raises"] = lambda: 1 / 0
    monkeypatch.setattr(gpu_correctness, "jobs", lambda device, tiny: jobs)
    found = {entry["case"]: entry for entry in gpu_correctness.run("cpu", True, 0, 60)}
    assert {name: gpu_correctness.right(entry) for name, entry in found.items()} == {
        "near": True, "far": False, "nan": False, "raises": False,
    }  # fmt: skip
    assert {name: gpu.sound("correctness", entry) for name, entry in found.items()} == {
        name: gpu_correctness.right(entry) for name, entry in found.items()
    }
    assert "ZeroDivisionError" in found["raises"]["error"]


def test_jobs_name_every_form_sparsity_type_and_target():
    names = "\n".join(gpu_correctness.jobs("cuda", False))
    for word in (
        *gpu_correctness.SPARSITY_TYPES,
        "linformer",
        "lambda",
        "transnormer",
        "BiGS",
        "bart, generate",
        "flex",
    ):
        assert word in names, word


def test_a_difference_from_the_oracle_is_seen(monkeypatch):
    """The check of the checks: a wrong form is not right."""
    stock = gpu_correctness.lsg.plain_attention
    monkeypatch.setattr(gpu_correctness.lsg, "plain_attention", lambda *x: stock(*x) * 1.001)
    job = gpu_correctness.jobs("cpu", True)["pooling, none mask, 0 globals, float32"]
    found = job()
    assert found["auto, context"][0] <= found["auto, context"][1]
    assert found["plain, context"][0] > found["plain, context"][1]


@pytest.mark.nightly
def test_on_a_cpu_the_command_can_be_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_layers, "longformer", lambda *_: gpu_layers.sdpa)  # they run in a test above
    monkeypatch.setattr(gpu_layers, "bigbird", lambda *_: gpu_layers.sdpa)
    monkeypatch.setattr(gpu_models, "BERT_BASE", gpu_models.BERT_BASE | {"num_hidden_layers": 1})
    monkeypatch.setattr(gpu_training, "adapted", lambda *_: {"seconds": 1.0})  # test_adapt.py runs it
    out = tmp_path / "out.json"
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), "--processes", "0", "--only", "^(none, none|same)"]
    assert gpu.main(arguments) == 0
    results = json.loads(out.read_text())
    assert [part for part in gpu.PARTS if results[part]] == list(gpu.PARTS)
    assert all(entry["finite"] for entry in results["training"] if "finite" in entry)
    capsys.readouterr()
    assert gpu.main(["--show", str(out), "--plot", str(tmp_path / "plot.svg")]) == 0
    shown = capsys.readouterr().out
    for words in ("CPU, as a trial", "2 of 2 jobs right", "| 1 × 384 |", "| BERT-base LSG, auto |", "steps a second"):
        assert words in shown, words
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1


def test_the_tables_of_the_documentation_are_those_of_the_recorded_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "gpu-nvidia-h200.json").read_text("utf-8"))
    assert gpu_tables.markdown(results) in (ROOT / "docs" / "reference" / "gpu.md").read_text("utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        gpu.main([])
