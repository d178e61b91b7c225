"""examples/bigs_jax.py: training in JAX is what training in torch is, and a trained repo goes on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from bigs_goldens import jax_models, to_jax, to_torch
from places import TESTS

from effconv.api import convert
from effconv.convert.ops import Transpose
from effconv.targets.bigs.target import jax_name, operation
from effconv.templates import modeling_bigs

pytest.importorskip("optax")
pytestmark = pytest.mark.xdist_group("bigs-jax")
STEPS, LENGTH, ROWS, WORDS, MASK = 20, 32, 4, 300, 4
GRADIENTS, LOSSES = 1e-5, 1e-4


@pytest.fixture(scope="module")
def example():
    jax_models()  # XLA's optimizations cost more here than they bring
    spec = importlib.util.spec_from_file_location("bigs_jax", TESTS.parent / "examples" / "bigs_jax.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("modeling_bigs_jax", None)


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repos")
    torch_repo = to_torch("mlm_tied_L37", folder / "torch")
    return torch_repo, to_jax(torch_repo, folder / "jax")


def options(**given):
    usual = {"rate": 1e-3, "warmup": 5, "steps": STEPS, "weight_decay": 0.05, "freeze_kernels": False}
    return argparse.Namespace(**{**usual, "masked": 0.15, "predictions": 20, "seed": 0, "batch": ROWS, **given})


def texts(seed=0, rows=ROWS * STEPS):
    ids = np.random.default_rng(seed).integers(5, WORDS, (rows, LENGTH)).astype(np.int32)
    special = np.zeros(ids.shape, bool)
    special[:, [0, -1]] = True
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "special": special}


def leaves(tree):
    import jax

    return {"/".join(part.key for part in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def as_torch(tree, model):
    """The leaves of a tree by the names of a torch model's parameters, in their shapes."""
    stored, found = leaves(tree), {}
    for name, _ in model.named_parameters():
        canonical = name.removeprefix("bigs.")
        path = jax_name(canonical)
        leaf = stored[path] if path in stored else stored[f"s4_bert/{path}"]
        found[name] = leaf.T if isinstance(operation(canonical), Transpose) else leaf
    return found


def torch_training(model, batches, asked, schedule, undecayed, frozen):
    """The same run in torch: gradients of the first step, and the loss of every step before its update."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        path = jax_name(name.removeprefix("bigs.")).split("/")
        if asked.freeze_kernels and frozen(path):
            parameter.requires_grad_(False)
        else:
            groups[path[-1] not in undecayed].append(parameter)
    groups = [{"params": group, "weight_decay": asked.weight_decay * decayed} for decayed, group in groups.items()]
    optimizer = torch.optim.AdamW(groups, lr=asked.rate, betas=(0.9, 0.98), eps=1e-8)
    losses, first = [], {}
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.zero_grad()
        loss = model.eval()(**{name: torch.from_numpy(table).long() for name, table in batch.items()}).loss
        loss.backward()
        if not step:
            first = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(loss.item())
    return first, losses


def watched(optimizer, seen):
    """The optimizer, and the gradients of every step: a second compilation would take as long as the test."""
    import jax
    import optax

    def update(gradients, state, params):
        jax.debug.callback(seen.append, gradients, ordered=True)
        return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def compare(example, model, jax_model, loss, batches, asked):
    import optax

    seen = []
    trained, losses = example.train(jax_model, loss, watched(example.adamw(jax_model.params, asked), seen), batches)
    gradients = as_torch(seen[0], model)
    start = 0.0 if asked.warmup else asked.rate
    schedule = optax.warmup_cosine_decay_schedule(start, asked.rate, asked.warmup, asked.steps)
    first, wanted = torch_training(model, batches, asked, schedule, example.UNDECAYED, example.frozen)
    assert first
    assert max(float(np.abs(gradients[name] - gradient).max()) for name, gradient in first.items()) <= GRADIENTS
    assert max(float(np.abs(gradient).max()) for gradient in first.values()) > 100 * GRADIENTS
    assert np.abs(np.subtract(losses, wanted)).max() <= LOSSES
    assert np.ptp(losses) > 100 * LOSSES
    return trained, first


def test_masked_lm_learns_as_in_torch(example, repos):
    asked = options()
    model = modeling_bigs.BiGSForMaskedLM.from_pretrained(repos[0])
    jax_model = example.modeling(repos[1]).BiGSForMaskedLM.from_pretrained(repos[1])
    tokenizer = argparse.Namespace(mask_token_id=MASK)
    stream = example.masked_batches(texts(), tokenizer, WORDS, asked)
    compare(example, model, jax_model, example.word_loss, [next(stream) for _ in range(STEPS)], asked)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:in the checkpoint, but not in")
def test_classification_with_frozen_kernels_learns_as_in_torch(example, repos, tmp_path):
    """The classifier starts from the same random weights: those of JAX, moved to torch by a conversion."""
    asked = options(freeze_kernels=True, warmup=0)
    code = example.modeling(repos[1])
    with pytest.warns(UserWarning, match="newly initialised"):
        jax_model = code.BiGSForSequenceClassification.from_pretrained(repos[1], num_labels=3)
    jax_model.save_pretrained(tmp_path / "jax")
    torch_repo = convert(tmp_path / "jax", "jax2torch", output=tmp_path / "torch", verify=False).output
    model = modeling_bigs.BiGSForSequenceClassification.from_pretrained(torch_repo)
    rows = {name: table for name, table in texts(1).items() if name != "special"}
    rows["labels"] = np.arange(len(rows["input_ids"])) % 3
    rows["attention_mask"][::2, 20:] = 0
    stream = example.shuffled(rows, ROWS, asked.seed)
    trained, first = compare(example, model, jax_model, example.label_loss, [next(stream) for _ in range(STEPS)], asked)
    before, after = leaves(jax_model.params), leaves(trained)
    kept = {name for name in before if example.frozen(name.split("/"))}
    assert len(kept) == 2 * 2 * 5 + 1  # two layers, two ways, five tensors; token types
    assert all((before[name] == after[name]).all() for name in kept)
    assert not any((before[name] == after[name]).all() for name in before.keys() - kept)
    assert not any("A_re" in name or "token_type" in name for name in first)


def test_masks_take_no_special_token_and_no_more_than_they_may(example):
    asked = options(masked=0.5, predictions=7)
    batch = texts()
    found = example.with_masks(batch, MASK, WORDS, asked, np.random.default_rng(0))
    chosen = found["labels"] != example.IGNORED
    assert (chosen.sum(axis=1) == 7).all()
    assert not (chosen & batch["special"]).any()
    assert (found["labels"][chosen] == batch["input_ids"][chosen]).all()
    assert (found["input_ids"] == batch["input_ids"])[~chosen].all()
    assert 0.7 < (found["input_ids"][chosen] == MASK).mean() < 0.9
    stored = {**batch, "labels": found["labels"]}
    assert example.with_masks(stored, MASK, WORDS, asked, None)["labels"] is stored["labels"]


def test_a_prepared_folder_is_read_and_padded(example, tmp_path):
    """The columns of `effconv prepare`, with and without static masks."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        {"input_ids": [2, 9, 8, 3], "token_type_ids": [0, 0, 1, 1], "special_tokens_mask": [1, 0, 0, 1]},
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 0], "special_tokens_mask": [1, 0, 1]},
    ]
    for name, labels in (("dynamic", None), ("static", [[-100, 9, -100, -100], [-100, -100, -100]])):
        (tmp_path / name).mkdir()
        table = [row | ({"labels": labels[i]} if labels else {}) for i, row in enumerate(rows)]
        parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / name / "part.parquet")
        found = example.windows([tmp_path / name], argparse.Namespace(pad_token_id=0), 5)
        assert found["input_ids"].tolist() == [[2, 9, 8, 3, 0], [2, 7, 3, 0, 0]]
        assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
        assert found["token_type_ids"].tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
        assert found["special"].tolist() == [[True, False, False, True, True], [True, False, True, True, True]]
        assert ("labels" in found) == bool(labels)
        if labels:
            assert found["labels"].tolist() == [[-100, 9, -100, -100, -100], [-100] * 5]
    with pytest.raises(SystemExit, match="longer than --length"):
        example.windows([tmp_path / "static"], argparse.Namespace(pad_token_id=0), 3)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:in the checkpoint, but not in", "ignore:not in the checkpoint")
@pytest.mark.parametrize("task", ["mlm", "classify"])
def test_the_commands_write_a_repo_that_converts_to_torch(task, example, repos, tmp_path, capsys):
    if task == "mlm":
        data = tmp_path / "text.txt"
        data.write_text("the cat sat on the mat .\n" * 200, encoding="utf-8")
    else:
        data = tmp_path / "rows.jsonl"
        rows = [{"text": f"{word} text", "label": word} for word in ("good", "bad")] * 8
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "trained"
    command = [task, str(repos[1]), "--data", str(data), "--eval", str(data), "--length", "16", "--batch", "4"]
    example.main([*command, "--steps", "3", "-o", str(output)])
    assert "held out: loss" in capsys.readouterr().out
    made = convert(output, "jax2torch", output=tmp_path / "torch", verify=False)
    assert (
        made.manifest["architecture"] == {"mlm": "BiGSForMaskedLM", "classify": "BiGSForSequenceClassification"}[task]
    )
