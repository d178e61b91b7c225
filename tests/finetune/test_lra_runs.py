"""`python -m benchmarks.lra`: every target and task trains, validation chooses, and what is there is not run again."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from benchmarks.lra import __main__ as lra
from benchmarks.lra import training
from benchmarks.lra.examples import PAD, Examples, Splits, features
from benchmarks.lra.models import loaded, repo_of
from benchmarks.lra.presets import SMALL, TARGETS, TASKS, VARIANTS
from benchmarks.lra.training import Outcome
from effconv.finetune.features import collator
from effconv.finetune.tasks import CLASSIFICATION

torch.set_num_threads(1)
TINY = dataclasses.replace(SMALL, layers=2, hidden=16, heads=2, inner=32, length=64, steps=3, batch=4)


@pytest.fixture
def tiny(monkeypatch):
    size = dataclasses.replace(
        TASKS["listops"].sizes["small"],
        **{name: getattr(TINY, name) for name in ("layers", "hidden", "heads", "inner", "length", "steps", "batch")},
        counts={"train": 24, "valid": 8, "test": 12},
        rates=(1e-3, 1e-2),
    )
    monkeypatch.setitem(TASKS, "listops", dataclasses.replace(TASKS["listops"], sizes={"small": size}))


def test_a_run_chooses_on_validation_looks_at_test_once_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
    seen = []
    counted = training.right_of

    def watched(trainer, examples, length):
        seen.append(len(examples))
        return counted(trainer, examples, length)

    monkeypatch.setattr(training, "right_of", watched)
    command = ["listops", "--target", "dense", "--folder", str(tmp_path)]
    assert lra.main(command) == 0
    assert seen == [8, 8, 12]
    first = capsys.readouterr().out.splitlines()
    assert first[0].endswith("24 train, 8 valid, 12 test")
    assert first[-1].startswith("| dense | ")
    assert lra.main(command) == 0
    assert len(seen) == 3
    assert capsys.readouterr().out.splitlines()[-1] == first[-1]
    assert lra.main([*command, "--no-test", "--steps", "1", "--rates", "1e-3"]) == 0
    assert seen[3:] == [8, 8]


@pytest.mark.nightly
@pytest.mark.parametrize("target", [*TARGETS, *VARIANTS])
@pytest.mark.parametrize("pair", [False, True])
def test_every_target_trains_on_texts_and_on_pairs(target, pair, tmp_path):
    random = np.random.default_rng(0)

    def examples(count):
        texts = [random.integers(0, 20, random.integers(20, 60)).astype(np.uint8) for _ in range(2 * count)]
        ids = list(zip(texts[::2], texts[1::2], strict=True)) if pair else texts[::2]
        return Examples(ids, [i % 3 for i in range(count)])

    splits = Splits(examples(12), examples(4), examples(4), 20, 3)
    path = repo_of(target, TINY, splits, tmp_path, 0)
    before = loaded(path, 3, pair, 0.0)
    trainer, seconds = training.trained(path, splits, TINY, pair, 0, 1e-2)
    assert seconds > 0
    pairs = zip(trainer.model.named_parameters(), before.parameters(), strict=True)
    changed = [name for (name, one), other in pairs if not torch.equal(one, other)]
    assert any("layer" in name for name in changed)
    assert 0 <= training.right_of(trainer, splits.test, TINY.length) <= 4


@pytest.mark.nightly
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("target", ["transnormer", "transnormer-t1"])
def test_the_published_models_read_examples_of_their_task(task, target, tmp_path):
    size, pair, vocabulary = TASKS[task].sizes["published"], TASKS[task].pair, 15 if task == "listops" else 256
    splits = Splits(*[Examples([], [])] * 3, vocabulary, 2)
    model = loaded(repo_of(target, size, splits, tmp_path, 0), 2, pair, 0.1).eval()
    random = np.random.default_rng(0)
    short, long = (random.integers(0, vocabulary, count).astype(np.uint8) for count in (50, size.length + 9))
    found = features(Examples([(short, short), (long, short)] if pair else [short, long], [0, 1]), size.length)
    collate = collator(CLASSIFICATION, training.PADDING, None)
    batch, alone = ({k: v for k, v in collate(items).items() if k != "labels"} for items in (found.items, [found[0]]))
    assert batch["input_ids"].shape[-1] == size.length
    with torch.no_grad():
        padded, plain = model(**batch)["logits"][:1], model(**alone)["logits"]
    torch.testing.assert_close(padded, plain, rtol=0, atol=1e-5)
    assert (model.config.layer_order, model.config.pad_token_id) == ("both", PAD)
    assert model.config.variant == ("t1" if target.endswith("t1") else "t2")


@pytest.mark.nightly
def test_a_pair_is_two_texts_encoded_apart(tmp_path):
    """Exchanged texts give other logits; what one text is padded to changes nothing."""
    splits = Splits(*[Examples([], [])] * 3, 20, 2)
    model = loaded(repo_of("dense", TINY, splits, tmp_path, 0), 2, True, 0.0).eval()
    ids = torch.randint(2, 22, (1, 2, 12))
    mask = torch.ones_like(ids)
    mask[:, 1, 6:] = 0
    with torch.no_grad():
        logits = model(ids, mask)["logits"]
        other = model(ids.masked_fill(mask == 0, 0), mask)["logits"]
        swapped = model(ids.flip(1), mask.flip(1))["logits"]
    torch.testing.assert_close(other, logits, rtol=0, atol=1e-5)
    assert (swapped - logits).abs().max() > 1e-4


def test_an_accuracy_is_compared_with_the_majority_class():
    found = Outcome(1e-3, 0.5, right=300, count=1000, majority=0.2, seconds=60.0, parameters=1)
    assert found.errors == pytest.approx(0.1 / math.sqrt(0.2 * 0.8 / 1000))
    assert found.learned
    assert not dataclasses.replace(found, right=260).learned
    rows = lra.table({"lsg": found, "dense": dataclasses.replace(found, right=260)})
    assert "8 standard errors |" in rows[2]
    assert "not 5" in rows[3]


def test_a_task_without_its_data_is_refused(capsys):
    with pytest.raises(SystemExit):
        lra.main(["text"])
    assert "aclImdb" in capsys.readouterr().err
    assert lra.main(["text", "--data", "missing"]) == 4
    assert "not found" in capsys.readouterr().err
