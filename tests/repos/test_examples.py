"""The examples run as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from places import ROOT
from safetensors import safe_open

import effconv
from tiny import save_tiny

EXAMPLES = ROOT / "examples"


@pytest.mark.nightly
def test_training_global_tokens_changes_the_globals_and_the_head_and_nothing_else(tmp_path):
    save_tiny(tmp_path / "source", "bert", "ForMaskedLM")
    result = effconv.convert(
        tmp_path / "source",
        "lsg",
        max_length=128,
        block_size=16,
        sparse_block_size=16,
        num_global_tokens=4,
        architecture="ForSequenceClassification",
        output=tmp_path / "lsg",
        verify=False,
    )
    rows = [{"text": "the of and to in " * (3 + i % 9), "label": i % 2} for i in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, EXAMPLES / "train_global_tokens.py", result.output, tmp_path / "train.jsonl"]
    run = subprocess.run(
        [*command, "--output", tmp_path / "trained", "--steps", "2", "--batch", "2"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    with (
        safe_open(result.output / "model.safetensors", "np") as before,
        safe_open(tmp_path / "trained" / "model.safetensors", "np") as after,
    ):
        names = set(after.keys())
        changed = {name for name in names if not (before.get_tensor(name) == after.get_tensor(name)).all()}
    assert changed == {"bert.embeddings.global_embeddings.weight", "classifier.weight", "classifier.bias"}
    assert (tmp_path / "trained" / "modeling_lsg_bert.py").exists()
