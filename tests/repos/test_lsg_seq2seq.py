"""Emitted LSG models with an encoder and a decoder, in fresh processes, on both versions of transformers."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import seq2seq_worker
from environments import COMPAT_PYTHON, FIVE, FOUR_NIGHTLY, needs_compat, run_checks
from lsg_goldens import convert
from tiers import daily

import effconv
from effconv.convert.errors import EffconvError
from effconv.convert.families.registry import ENCODER_DECODERS, FAMILIES
from effconv.targets.registry import TARGETS
from tiny import save_tiny

WORKER = Path(seq2seq_worker.__file__)
CHECKS = [name for name in vars(seq2seq_worker) if name.startswith("check_")]
LATER = "check_a_saved_model_loads_again"  # in a process of its own: the one that saved a class has registered it
DAILY = ("bart", "pegasus")
each_family = pytest.mark.parametrize("family", daily(DAILY, of=ENCODER_DECODERS))
together = pytest.mark.xdist_group("seq2seq")  # they share the repos and the processes


@pytest.fixture(scope="session")
def jobs(request, tmp_path_factory):
    """A job for each family; for all of them where a nightly test of this file is selected."""
    folder = tmp_path_factory.mktemp("seq2seq")
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    found = {}
    for family in ENCODER_DECODERS if any(item.get_closest_marker("nightly") for item in ours) else DAILY:
        source = save_tiny(folder / f"{family}-source", family, "ForConditionalGeneration")
        repo = convert(source, folder / family, 256, {"block_size": 8, "sparse_block_size": 8})
        heads = {head.suffix: head.auto for head in FAMILIES[family].heads}
        found[family] = {"repo": str(repo), "source": str(source), "heads": heads}
    return found


@pytest.fixture(scope="session")
def checked(jobs, tmp_path_factory):
    """The faults that all checks find under a version, by family; each model is saved by it too."""

    @functools.cache
    def run(python: str) -> tuple[dict[str, dict[str, str]], dict[str, dict]]:
        folder = tmp_path_factory.mktemp("worker")
        own = {family: {**job, "save": str(folder / f"saved-{family}")} for family, job in jobs.items()}
        return run_checks(WORKER, own, [name for name in CHECKS if name != LATER], folder, python), own

    return run


@together
@each_family
@pytest.mark.parametrize("python", [FIVE, FOUR_NIGHTLY])
def test_the_emitted_model(family, python, checked, subtests):
    faults = checked(python)[0][family]
    assert len(faults) == len(CHECKS) - 1
    for check, fault in faults.items():
        with subtests.test(check):
            assert not fault, fault


@pytest.mark.nightly
@together
@pytest.mark.parametrize(
    ("saver", "loader"),
    [
        pytest.param(sys.executable, COMPAT_PYTHON, id="5 then 4", marks=needs_compat),
        pytest.param(COMPAT_PYTHON, sys.executable, id="4 then 5", marks=needs_compat),
    ],
)
def test_a_model_that_one_version_saved_loads_in_the_other(saver, loader, checked, tmp_path):
    faults = run_checks(WORKER, checked(saver)[1], [LATER], tmp_path, loader)
    assert not any(fault for found in faults.values() for fault in found.values()), faults


def test_the_decoder_alone_of_a_whole_model_is_verified(tmp_path):
    source = save_tiny(tmp_path / "source", "bart", "ForConditionalGeneration")
    options = {"max_length": 128, "architecture": "ForCausalLM", "output": tmp_path / "out"}
    made = effconv.convert(source, "lsg", **options)
    passed = {check.name: check.passed for check in made.measured}
    assert passed.pop("equal_to_formula") is None  # it has no encoder
    assert passed.pop("same_embedding") is None
    assert all(passed.values()), made.measured
    assert made.manifest["measurements"]["fidelity"] == []
    assert "the decoder alone" in (made.output / "README.md").read_text()


@each_family
def test_of_a_whole_model_the_decoder_alone_is_emitted_if_asked_for(family, tmp_path):
    source = save_tiny(tmp_path / "source", family, "ForConditionalGeneration")
    plan = effconv.plan(source, "lsg", max_length=128, architecture="ForCausalLM")
    made = {row.target: row for row in plan.rows if row.target}
    assert all(name.startswith("model.decoder.") for name in made)
    assert made["model.decoder.embed_tokens.weight"].sources == ("model.shared.weight",)
    dropped = {row.sources[0]: row.why for row in plan.rows if not row.target}
    assert "has only the decoder" in dropped["model.encoder.layers.0.fc1.weight"]


def test_computed_positions_need_not_be_stored(tmp_path):
    from checkpoints import bits, convert, read, write

    source = save_tiny(tmp_path / "source", "pegasus", "ForConditionalGeneration")
    stored = read(source)
    whole = convert(source, tmp_path / "whole").output
    tables = [name for name in stored if name.endswith("embed_positions.weight")]
    assert len(tables) == 2
    write(source, {name: tensor for name, tensor in stored.items() if name not in tables})
    bare = convert(source, tmp_path / "bare").output
    assert {name: bits(tensor) for name, tensor in read(bare).items()} == {
        name: bits(tensor) for name, tensor in read(whole).items()
    }
    assert all(bits(read(whole)[name][:64]) == bits(stored[name]) for name in tables)


REFUSED = {
    "a dense model has no decoder": ("bert", "ForMaskedLM", {"pass_global_tokens_to_decoder": False}, "no decoder"),
    "sinusoids": (
        "pegasus",
        "ForConditionalGeneration",
        {"positions": "interpolate"},
        "for every length: positions cannot be interpolated",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_mean_nothing_to_a_family_are_refused(name, tmp_path):
    family, head, options, words = REFUSED[name]
    with pytest.raises(EffconvError, match=words) as refused:
        effconv.plan(save_tiny(tmp_path, family, head), "lsg", max_length=128, **options)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if "bart" not in target.families])
def test_targets_for_encoders_alone_refuse_the_family(target, tmp_path):
    source = save_tiny(tmp_path, "bart", "ForConditionalGeneration")
    with pytest.raises(EffconvError, match="bart") as refused:
        effconv.plan(source, target, max_length=512)
    assert refused.value.exit_code == 3
