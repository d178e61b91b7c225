"""What an emitted LSG model does as a transformers model, in fresh processes, on both versions of transformers."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import repo_worker
from environments import COMPAT_PYTHON, FIVE, FOUR_NIGHTLY, needs_compat, run_checks
from lsg_goldens import convert
from tiers import daily

from effconv.convert.families.registry import FAMILIES, families_for
from tiny import save_tiny, save_tiny_sentence_encoder

CHECKS = [name for name in vars(repo_worker) if name.startswith("check_")]
SENTENCE = "check_sentence_transformers_encodes_long_texts"  # the second environment has no sentence-transformers
LATER = "check_a_saved_model_loads_again"  # in a process of its own: the one that saved a class has registered it
BLOCKS = {"block_size": 8, "sparse_block_size": 8}
WORKER = Path(repo_worker.__file__)
# Those with a decoder: test_lsg_seq2seq. What these three do otherwise (no cross-attention; words that are not tied;
# ids of languages in second place) the checks here take for a fault: test_targets and the matrix have them.
OTHERWISE = ("megatron-bert", "rembert", "xmod")
ENCODERS = [family for family in families_for(()) if family not in OTHERWISE]
DAILY = ("bert", "albert", "xlm-roberta-xl")
each_family = pytest.mark.parametrize("family", daily(DAILY, of=ENCODERS))
together = pytest.mark.xdist_group("models")  # they share the repos and the processes


@pytest.fixture(scope="session")
def jobs(request, tmp_path_factory):
    """A job for each family; for all of them where a nightly test of this file is selected."""
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    families = ENCODERS if any(item.get_closest_marker("nightly") for item in ours) else DAILY
    return {family: job_of(family, tmp_path_factory.mktemp(family)) for family in families}


def job_of(family: str, folder: Path) -> dict:
    source = save_tiny(folder / "source", family, "ForMaskedLM", 64)
    sentence = save_tiny_sentence_encoder(folder / "sentence_source", family)
    return {
        "repo": str(convert(source, folder / "repo", 256, BLOCKS)),
        "source": str(source),
        "sentence_repo": str(convert(sentence, folder / "sentence_repo", 256, BLOCKS)),
        "sentence_source": str(sentence),
        "heads": {head.suffix: head.auto for head in FAMILIES[family].heads},
    }


@pytest.fixture(scope="session")
def checked(jobs, tmp_path_factory):
    """The faults that all checks find under a version, by family; each model is saved by it too."""

    @functools.cache
    def run(python: str) -> tuple[dict[str, dict[str, str]], dict[str, dict]]:
        folder = tmp_path_factory.mktemp("worker")
        own = {family: {**job, "save": str(folder / f"saved-{family}")} for family, job in jobs.items()}
        left_out = {LATER} | (set() if python == sys.executable else {SENTENCE})
        return run_checks(WORKER, own, [name for name in CHECKS if name not in left_out], folder, python), own

    return run


@together
@each_family
@pytest.mark.parametrize("python", [FIVE, FOUR_NIGHTLY])
def test_the_emitted_model(family, python, checked, subtests):
    faults = checked(python)[0][family]
    assert len(faults) >= len(CHECKS) - 2
    for check, fault in faults.items():
        with subtests.test(check):
            assert not fault, fault


@pytest.fixture(scope="session")
def loaded(checked, tmp_path_factory):
    """The faults that loading in one version finds in what another saved, by family."""

    @functools.cache
    def run(saver: str, loader: str) -> dict[str, dict[str, str]]:
        return run_checks(WORKER, checked(saver)[1], [LATER], tmp_path_factory.mktemp("loader"), loader)

    return run


@together
@each_family
@pytest.mark.parametrize(
    ("saver", "loader"),
    [
        pytest.param(sys.executable, COMPAT_PYTHON, id="5 then 4", marks=needs_compat),
        pytest.param(COMPAT_PYTHON, sys.executable, id="4 then 5", marks=[*needs_compat, pytest.mark.nightly]),
    ],
)
def test_a_model_that_one_version_saved_loads_in_the_other(family, saver, loader, loaded):
    faults = loaded(saver, loader)[family]
    assert not any(faults.values()), faults
