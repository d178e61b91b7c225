"""`python -m benchmarks.published` on a local Hub, with tiny models under the published ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from bigs_goldens import ROOT
from places import TESTS

from hub_server import LoopbackHub
from tiny import save_tiny

pytestmark = pytest.mark.xdist_group("published")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    with LoopbackHub() as hub:
        hub.add_folder("bert-base-uncased", save_tiny(folder / "bert", "bert", "ForMaskedLM"))
        hub.add_folder("JunxiongWang/BiGS_128", ROOT / "mlm_tied_L37")
        yield hub


def run(hub, folder, *arguments):
    env = hub.env(folder / "home", None) | {"PYTHONPATH": os.fspath(TESTS.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.published", "--json", folder / "rows.json", *arguments]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done, json.loads((folder / "rows.json").read_text())


@pytest.mark.nightly
def test_a_model_is_converted_checked_and_asked_for_its_words(hub, tmp_path):
    """A tiny stand-in says other words than BiGS_128, so that these rows fail, and nothing else does."""
    done, rows = run(hub, tmp_path, "--only", "BiGS_128", "BiGS_512")
    assert done.returncode == 1
    by_model = {source: [row for row in rows if row["model"].endswith(source)] for source in ("BiGS_128", "BiGS_512")}
    checks = {row["check"]: row for row in by_model["BiGS_128"] if "[MASK]" not in row["check"]}
    assert checks["converts"]["passed"] is True
    assert {"equal_to_source", "saved_again_equal", "every_tensor_read"} & checks.keys()
    assert all(row["passed"] is not False for row in checks.values())
    words = [row for row in by_model["BiGS_128"] if "[MASK]" in row["check"]]
    assert [row["bound"].split()[0] for row in words] == ["0.1605", "0.0431", "0.0365", "0.9982"]
    assert not any(row["passed"] for row in words)
    (missing,) = by_model["BiGS_512"]  # which this Hub does not have
    assert (missing["check"], missing["passed"]) == ("converts", False)
    assert "| jax2torch JunxiongWang/BiGS_512 | converts | FAILED |" in done.stdout


@pytest.mark.nightly
def test_an_lsg_model_passes_and_reports_its_fidelity(hub, tmp_path):
    done, rows = run(
        hub, tmp_path, "--only", "bert-base-uncased", "--max-len", "512", "--folder", str(tmp_path / "kept")
    )
    rows = [row for row in rows if row["model"] == "lsg bert-base-uncased"]
    found = {row["check"]: row["passed"] for row in rows}
    assert found["converts"] is found["equal_to_source"] is found["equal_to_formula"] is True
    assert any(row["check"].startswith("fidelity") and row["passed"] is None for row in rows)
    assert (tmp_path / "kept" / "lsg-bert-base-uncased" / "effconv.json").is_file()
    assert "lsg ccdv/lsg-bert-base-uncased-4096 | converts | FAILED" in done.stdout
