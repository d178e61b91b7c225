"""`make machines` itself: what it moves lies where it should, a broken repo fails, and no effect is not a success."""

from __future__ import annotations

import json
from pathlib import Path

import machines
import machines_probe
import pytest
import torch
from checkpoints import convert
from machines import DEFAULT, FAILED, NO_EFFECT, PASSED, SETTINGS, Outcome, Setting, outcome, realign, table
from machines_worker import Findings, check_repo
from safetensors.torch import load_file, save_file

from tiny import save_tiny

OFFSETS = range(0, 64, 8)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_weights_file_is_moved_to_an_offset_and_stays_the_same(offset, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7, dtype=torch.int8)}
    save_file(tensors, path, metadata={"format": "pt"})
    for _ in range(2):  # what was moved can be moved again
        realign(path, offset)
        raw = path.read_bytes()
        header = int.from_bytes(raw[:8], "little")
        assert (8 + header) % 64 == offset
        assert json.loads(raw[8 : 8 + header])["__metadata__"] == {"format": "pt"}
        assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_weights_of_the_probe_lie_at_the_offset(offset):
    tensor = torch.randn(6, 7)
    copy = machines_probe.placed(tensor, offset)
    assert copy.data_ptr() % 64 == offset
    assert torch.equal(copy, tensor)


def test_the_probe_repeats_its_bits():
    assert machines_probe.probe(0) == machines_probe.probe(0)


def test_every_difference_between_machines_has_a_setting():
    variables = {pair for setting in SETTINGS for pair in setting.variables.items()}
    assert variables >= {
        ("ATEN_CPU_CAPABILITY", "default"),
        ("ATEN_CPU_CAPABILITY", "avx2"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
        ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
    }
    assert {setting.threads for setting in (DEFAULT, *SETTINGS)} == {1, 2}
    assert [setting.offset for setting in SETTINGS if setting.offset is not None] == list(OFFSETS)
    assert all("MKL_CBWR" not in setting.variables for setting in SETTINGS if setting.offset is not None)
    assert {name for setting in SETTINGS for name in setting.variables} <= set(machines.CLEARED)


def test_a_setting_without_effect_is_not_counted_as_passed():
    default = {"bits": {"sum": "aa", "fft": "bb"}, "held": 5, "worst": {"check": 1e-7}, "faults": []}
    found = {
        "the same": default,
        "other": {**default, "bits": {"sum": "aa", "fft": "cc"}},
        "broken": {**default, "faults": ["lsg: saved_again_equal: differs by 1e-3"]},
        "dead": {"bits": {}, "held": 0, "worst": {}, "faults": ["the process failed"]},
    }
    outcomes = [outcome(Setting(name), result, default) for name, result in found.items()]
    assert [o.state for o in outcomes] == [NO_EFFECT, PASSED, FAILED, FAILED]
    assert outcomes[1].changed == ("fft",)
    assert Outcome(DEFAULT, (), 5, {}, ()).state == PASSED
    said = table(outcomes)
    assert said.endswith(f"1 {PASSED}, 2 {FAILED}, 1 {NO_EFFECT}")
    assert "lsg: saved_again_equal: differs by 1e-3" in said


def test_a_broken_repo_fails_under_a_setting(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForSequenceClassification")
    repo = Path(convert(source, tmp_path / "repo").output)
    job = {"name": "lsg", "repo": str(repo), "source": str(source)}
    sound, broken = Findings(1), Findings(1)
    check_repo(sound, job)
    assert not sound.faults
    assert sound.held == 8
    assert "model of lsg" in sound.bits
    tensors = load_file(repo / "model.safetensors")
    tensors["classifier.bias"] += 1e-3
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})
    check_repo(broken, job)
    first, second = broken.faults
    assert first.startswith("lsg: equal_to_source: differs by")
    assert second.startswith("lsg: stock_attention_equals_source: differs by")
