"""`effconv lsg` against the published LSG implementation: what it converts, and what the converted models put out.

The recorded sources are converted by the command line; the repos are loaded with trust_remote_code in fresh processes
that cannot import effconv, on both versions of transformers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import FIVE, FOUR_NIGHTLY
from lsg_goldens import (
    COPY,
    FAMILY_OF,
    FULL,
    convert,
    faults,
    golden_folder,
    parity_jobs,
    read_cases,
    read_json,
    run_worker,
)
from safetensors.numpy import load_file
from tiers import daily

# Of the published config: its code and bookkeeping, and `use_cache`, which it left true although it keeps no cache.
NOT_OURS = {"auto_map", "base_model_prefix", "model_type", "torch_dtype", "transformers_version", "use_cache"}
# Families whose code differs in kind, with every change; the others nightly.
DAILY = [name for name in ("bert", "electra", "distilbert", "albert", "bart") if name in FAMILY_OF]
each_family = pytest.mark.parametrize("family", daily(DAILY, of=FAMILY_OF))
each_copied = pytest.mark.parametrize("family", [name for name in FAMILY_OF if (COPY / name).is_dir()])


CONVERSIONS = [path for family in FAMILY_OF for path in sorted(golden_folder(family).glob("expected*_conversion.json"))]


@pytest.mark.parametrize("path", CONVERSIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_command_makes_the_recorded_tensors_and_config(path, tmp_path):
    conversion, stem = read_json(path), path.name.removesuffix("_conversion.json")
    source = path.parent / conversion["source"]
    out = convert(source, tmp_path / "out", conversion["max_sequence_length"], {})
    made, before = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    expected = load_file(path.parent / f"{stem}.safetensors")
    deterministic = expected.pop("global_rows_deterministic").astype(bool)
    assert deterministic.any()
    assert made.keys() == before.keys() | expected.keys()
    for name, tensor in made.items():
        wanted = expected.get(name, before.get(name))
        rows = deterministic if name.endswith("global_embeddings.weight") else slice(None)
        assert (tensor.dtype, tensor.shape) == (wanted.dtype, wanted.shape), name
        assert tensor[rows].tobytes() == wanted[rows].tobytes(), name

    config, recorded = read_json(out / "config.json"), read_json(path.parent / f"{stem}_config.json")
    assert {name: config.get(name) for name in recorded.keys() - NOT_OURS} == {
        name: value for name, value in recorded.items() if name not in NOT_OURS
    }


@pytest.fixture(scope="session")
def jobs(request, tmp_path_factory):
    """Of all families where a nightly test of this file is selected."""
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    families = FAMILY_OF if any(item.get_closest_marker("nightly") for item in ours) else DAILY
    return [job for family in families for job in parity_jobs(family, tmp_path_factory.mktemp("repos"))]


@pytest.fixture(scope="session", params=[FIVE, FOUR_NIGHTLY])
def results(request, jobs, tmp_path_factory):
    return run_worker(jobs, tmp_path_factory.mktemp("worker"), request.param)


@pytest.mark.xdist_group("parity")
@each_family
def test_every_recorded_case_is_matched(family, results):
    found = {name: result for name, result in results.items() if name.startswith(f"{family}/")}
    assert len(found) == len(read_cases(golden_folder(family)))
    assert not faults(found), "\n".join(faults(found))


@pytest.mark.skipif(not FULL.is_dir(), reason="only the copy is at hand")
@each_copied
def test_the_copy_holds_the_same_recordings(family):
    for path in (COPY / family).rglob("*"):
        if path.is_file() and path.name != "cases.json":
            assert path.read_bytes() == (FULL / path.relative_to(COPY)).read_bytes(), path


@pytest.mark.skipif(not FULL.is_dir(), reason="only the copy is at hand")
@each_copied
def test_the_copy_lists_cases_that_it_holds(family):
    copied, every = read_cases(COPY / family), read_cases(FULL / family)
    assert copied
    for case in copied:
        assert case in every
        config = case["expected"].replace(".safetensors", "_config.json")
        conversion = case["expected"].replace(".safetensors", "_conversion.json")
        for name in (case["file"], case["expected"], config, conversion, f"{case['source']}/config.json"):
            assert (COPY / family / name).is_file(), name
