"""The command line on the oldest versions that are declared: convert, verify, push, download, load, train."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from environments import COMPAT_PYTHON, needs_compat
from finetune_data import rows_for, write_rows
from hub_runs import Client

from hub_server import LoopbackHub
from tiny import save_tiny, save_tiny_sentence_encoder

pytestmark = [*needs_compat, pytest.mark.xdist_group("compat-commands")]
VERSIONS = """
from importlib.metadata import version
print(version("transformers"), version("huggingface_hub"), version("sentence-transformers"))
"""
LOAD = """
import sys
sys.modules["effconv"] = None  # a repo must load without it
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("me/long", trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained("me/long", trust_remote_code=True)
inputs = tokenizer("the cat and the dog " * 20, return_tensors="pt", truncation=True)
print(type(model).__name__, *model(**inputs).logits.shape[:2])
"""
ENCODE = """
from sentence_transformers import SentenceTransformer
print(*SentenceTransformer("long", trust_remote_code=True).encode(["the cat", "the dog " * 40]).shape)
"""
SMALL = {
    "lsg": ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16"),
    "linformer": ("--max-len", "128", "--proj-dim", "32"),
    "lambda": ("--max-len", "128", "--local-context", "15"),
    "transnormer": ("--max-len", "128", "--block-size", "16"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    source = save_tiny(tmp_path_factory.mktemp("source") / "tiny")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The source\n")
    return source


@pytest.fixture
def hub(source):
    with LoopbackHub() as hub:
        hub.add_folder("me/tiny", source)
        yield hub


def run(python_or_command: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a command, or a script, of the second environment prints; nothing of this environment reaches it."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [Path(COMPAT_PYTHON).with_name(python_or_command), *map(str, arguments)],
        cwd=cwd, env={**outer, "HF_HUB_OFFLINE": "1", **(env or {})}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_second_environment_has_the_oldest_versions(tmp_path):
    transformers, hub, sentence = run("python", "-c", VERSIONS, cwd=tmp_path).split()
    assert transformers.startswith("4.57.")
    assert hub.startswith("0.36.")
    assert sentence.startswith("5.")


def test_a_conversion_is_verified_pushed_downloaded_and_loaded_offline(hub, source, tmp_path):
    env = hub.env(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
    run("effconv", "lsg", "me/tiny", *SMALL["lsg"], "-o", "long", cwd=tmp_path, env=env)
    assert "equal_to_source" in (tmp_path / "long" / "effconv.json").read_text()
    run("effconv", "push-to-hub", "long", "me/long", cwd=tmp_path, env=env)
    download = "from huggingface_hub import snapshot_download; print(snapshot_download('me/long'))"
    there = run("python", "-c", download, cwd=tmp_path, env=env).split()[-1]
    assert "passed" in run("effconv", "verify", there, "--against", source, "--offline", cwd=tmp_path, env=env)
    before = len(hub.requests)
    assert run("python", "-c", LOAD, cwd=tmp_path, env=hub.env(tmp_path / "home", offline=True)).split() == [
        "LSGBertForMaskedLM", "1", "128"
    ]  # fmt: skip
    assert len(hub.requests) == before


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["linformer", "lambda", "transnormer"])
def test_other_targets_are_converted_and_verified(target, source, tmp_path):
    out = run("effconv", target, source, *SMALL[target], "-o", "long", cwd=tmp_path)
    assert "passed" in out
    assert "failed" not in out


def test_a_sentence_encoder_is_converted_and_encodes(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    run("effconv", "lsg", source, *SMALL["lsg"], "--no-verify", "-o", "long", cwd=tmp_path)
    assert run("python", "-c", ENCODE, cwd=tmp_path).split() == ["2", "32"]


@pytest.mark.nightly
def test_a_repo_is_adapted(source, tmp_path):
    for name, words in (("text", "cat sat on the mat"), ("heldout", "dog ran to the tree")):
        lines = [f"the {words} {number} and looked at the bird while it sang" for number in range(40)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(lines))
    run("effconv", "lsg", source, *SMALL["lsg"], "--no-verify", "-o", "long", cwd=tmp_path)
    options = ("--data", "text.txt", "--heldout", "heldout.txt", "--steps", "2", "--lengths", "32", "-o", "adapted")
    run("effconv", "adapt", "long", "--teacher", source, *options, cwd=tmp_path)
    assert (tmp_path / "adapted" / "effconv.json").exists()


@pytest.mark.nightly
def test_a_repo_is_fine_tuned_and_a_run_continues(source, tmp_path):
    """Trainer of transformers 4; `datasets` cannot be installed there."""
    run("effconv", "lsg", source, *SMALL["lsg"], "--no-verify", "-o", "long", cwd=tmp_path)
    write_rows(tmp_path / "train.jsonl", rows_for("classification", 12))
    options = ("--data", "train.jsonl", "--steps", "4", "--batch", "4", "--evaluate-every", "2")
    stop = "import effconv, sys\ndef watch(tick):\n    if tick.step == 3: raise KeyboardInterrupt\n"
    flags = "steps=4, batch=4, evaluate_every=2, gradient_checkpointing=True"
    stop += f"try: effconv.finetune('long', data='train.jsonl', output='tuned', watch=watch, {flags})\n"
    stop += "except effconv.EffconvError as error: print(error)"
    assert "the state of checkpoint 2 is kept" in run("python", "-c", stop, cwd=tmp_path)
    out = run(
        "effconv", "finetune", "long", *options, "--gradient-checkpointing", "-o", "tuned", "--resume", cwd=tmp_path
    )
    assert "passed" in out
    assert "failed" not in out


@pytest.mark.parametrize("drops", [False, True])
def test_a_hub_that_is_not_reached_and_one_that_drops_connections(drops, hub, source, tmp_path):
    """The client of 0.36 speaks through requests, whose errors have other names."""
    client = Client(hub, tmp_path, COMPAT_PYTHON)
    assert client("lsg", source, *SMALL["lsg"], "--no-verify", "-o", "long").code == 0
    if drops:
        hub.fault("/whoami", drop="before")
        dropped = client.push("long", "me/long")
        assert (dropped.code, "no reply" in dropped.err) == (6, True), dropped.err
        assert client.push("long", "me/long").code == 0
    else:
        away = client.push("long", "me/long", HF_ENDPOINT="http://127.0.0.1:1")
        assert (away.code, "HF_ENDPOINT" in away.err) == (6, True), away.err
