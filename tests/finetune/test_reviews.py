"""`python -m benchmarks.reviews`: it chooses on a fold, looks at DEV once, and pairs differences by review."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_data import rows_for, write_rows

from benchmarks import reviews
from tiny import save_tiny

torch.set_num_threads(1)


@pytest.fixture
def files(tmp_path):
    def rows(count, seed):
        named = {"n": "neg", "p": "pos"}
        found = rows_for("classification", count, seed)
        return [{**row, "label": named[row["label"]], "fold": 6 + i // 2 % 2} for i, row in enumerate(found)]

    return write_rows(tmp_path / "train.jsonl", rows(24, 0)), write_rows(tmp_path / "dev.jsonl", rows(8, 1))


@pytest.mark.nightly
def test_a_run_chooses_on_a_fold_and_goes_on_where_it_stopped(files, tmp_path, monkeypatch, capsys):
    small = {"block_size": 16, "sparse_block_size": 16}
    monkeypatch.setattr(reviews, "MODELS", {"dense": reviews.Model("", 64), "lsg": reviews.Model("lsg", 128, small)})
    monkeypatch.setattr(reviews, "apart", lambda work, *arguments: work(*arguments))
    seen = []
    trained = reviews.trained

    def watched(path, length, train, test, setting):
        seen.append((length, len(train), len(test), setting.rate, setting.seed))
        return trained(path, length, train, test, setting)

    monkeypatch.setattr(reviews, "trained", watched)
    source = save_tiny(tmp_path / "source", "bert", "Model")
    command = [*map(str, files), "--source", str(source), "--folder", str(tmp_path / "kept"), "--batch", "4"]
    command += ["--rates", "1e-5", "3e-3", "--epochs", "1", "--seeds", "0", "1"]
    reviews.main(command)
    said = capsys.readouterr().out
    for length in (64, 128):
        chosen = [entry for entry in seen if entry[0] == length]
        assert chosen[:2] == [(length, 12, 12, 1e-5, 0), (length, 12, 12, 3e-3, 0)]
        assert [entry[1:3] + entry[4:] for entry in chosen[2:]] == [(24, 8, 0), (24, 8, 1)]
    assert "| dense | 64 |" in said
    assert "| lsg | 128 |" in said
    count = len(seen)
    reviews.main(command)
    assert len(seen) == count
    assert capsys.readouterr().out.splitlines()[-2:] == said.splitlines()[-2:]


def test_differences_are_paired_and_small_ones_are_called_none():
    def entry(*seeds):
        step = {"seconds": 1.0, "megabytes": 2.0}
        return {"rate": 1e-5, "epochs": 2.0, "runs": [{"right": right} for right in seeds], "step": step}

    one, other = entry([1, 1, 1, 0], [1, 1, 1, 1]), entry([0, 1, 0, 0], [0, 1, 1, 1])
    mean, error = reviews.difference(one, other)
    paired = np.array([1.0, 0.0, 0.5, 0.0])
    assert (mean, error) == pytest.approx((paired.mean(), paired.std(ddof=1) / 2))
    assert reviews.table({"dense": other, "lsg": one})[-1].split("|")[5].strip() == "+0.375 ± 0.239: none"
    clear = entry([1] * 40), entry([0] * 30 + [1] * 10)
    assert "none" not in reviews.table({"dense": clear[1], "lsg": clear[0]})[-1]


def test_fewer_reviews_are_of_both_labels():
    rows = [{"label": reviews.LABELS[i % 2], "i": i} for i in range(40)]
    found = reviews.shortened(rows, 10)
    assert [row["label"] for row in found].count("neg") == 5
    assert reviews.shortened(rows, 10) == found
