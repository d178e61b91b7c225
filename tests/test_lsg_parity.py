"""The emitted code against outputs recorded from the published LSG implementation, loaded as a stranger loads it."""

from __future__ import annotations

import os

import pytest
from lsg_goldens import COPY, FULL, faults, golden_folder, parity_jobs, read_cases, run_worker

COMPAT_PYTHON = os.environ.get("EFFCONV_COMPAT_PYTHON")
FAMILIES = ["bert", "roberta"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_case_is_matched(family, tmp_path):
    golden = golden_folder(family)
    results = run_worker(parity_jobs(golden, family, tmp_path), tmp_path)
    assert len(results) == len(read_cases(golden))
    assert not faults(results), "\n".join(faults(results))


@pytest.mark.compat
@pytest.mark.skipif(not COMPAT_PYTHON, reason="EFFCONV_COMPAT_PYTHON names no second environment")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_case_is_matched_on_transformers_4(family, tmp_path):
    results = run_worker(parity_jobs(golden_folder(family), family, tmp_path), tmp_path, COMPAT_PYTHON)
    assert not faults(results), "\n".join(faults(results))


@pytest.mark.skipif(not FULL.is_dir(), reason="only the copy is at hand")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_copy_holds_the_same_recordings(family):
    for path in (COPY / family).rglob("*.safetensors"):
        assert path.read_bytes() == (FULL / family / path.relative_to(COPY / family)).read_bytes()
