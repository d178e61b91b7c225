"""A converted model that its user trained and saved: every command takes the folder, whatever library saved it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from bigs_goldens import COPY as GOLDENS
from checkpoints import edit_config, read_json, snapshot
from environments import FOUR_NIGHTLY, strangers_output
from hub_runs import Client
from places import ROOT
from tiers import daily

import effconv
from effconv.adopt.view import saved_elsewhere, view_of
from effconv.bench.options import bench_options
from effconv.bench.sources import opened
from effconv.convert.errors import (
    BadInputError,
    CheckFailedError,
    EffconvError,
    HubError,
    OutputError,
    UnsupportedError,
)
from hub_server import LoopbackHub
from tiny import WORDS, save_tiny, save_tiny_sentence_encoder, save_tokenizer

WORKER = ROOT / "tests" / "support" / "saving_worker.py"
SMALL = {"max_length": 128}
BLOCKS = {"block_size": 16, "sparse_block_size": 16}
WAYS = ("trainer", "checkpoint", "deepspeed", "peft", "accelerate", "fsdp", "vocabulary", "dtype", "sentence")
TARGETS = ("linformer", "lambda", "transnormer", "bigs")
PUBLISHED = "lambda-published"  # which has fewer heads than the ways need
EVERY = [*((target, way) for target in TARGETS for way in WAYS[:-1]), (PUBLISHED, "dtype")]
LEFT_OUT = (
    "optimizer",
    "scheduler",
    "rng_state",
    "training_args",
    "trainer_state",
    "zero_to_fp32",
    "latest",
    "global_step",
)
pytestmark = pytest.mark.xdist_group("saved-elsewhere")


def save(folder: Path, python: str = sys.executable, **repos: Path) -> None:
    """Saves the model of a repo in each of these ways, in one process."""
    strangers_output(WORKER, folder, *(f"{way}={repo}" for way, repo in repos.items()), folder=folder, python=python)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Sources, LSG repos of them, and the LSG models saved in all ways, in `saved`."""
    folder = tmp_path_factory.mktemp("made")
    lines = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(150)) for i in range(24)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    save_tiny(folder / "source").joinpath("README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    save_tiny_sentence_encoder(folder / "sentences")
    for name in ("source", "sentences"):
        effconv.convert(folder / name, "lsg", output=folder / f"lsg-{name}", **SMALL, **BLOCKS)
    (folder / "saved").mkdir()
    save(folder / "saved", **{way: folder / f"lsg-{source_of(folder, way).name}" for way in WAYS})
    return folder


def source_of(made: Path, way: str) -> Path:
    return made / ("sentences" if way == "sentence" else "source")


@pytest.mark.parametrize("way", WAYS)
def test_commands_that_read_take_what_a_library_saved(way, made):
    saved = made / "saved" / way
    before = snapshot(saved)
    checks = {check.name: check.passed for check in effconv.verify(saved)}
    if way == "vocabulary":
        with pytest.raises(EffconvError, match="the vocabulary was changed after the conversion: 108 tokens"):
            effconv.fidelity(saved, against=made / "source", lengths=(32,))
    elif way != "accelerate":  # which has no tokenizer
        (row,) = effconv.fidelity(saved, against=source_of(made, way), lengths=(32,), texts=2)
        assert row["token_cosine"] > 0
    assert checks["equal_to_formula"]
    assert checks["padding_changes_nothing"]
    assert checks["saved_again_equal"]
    assert checks["equal_to_source"] is checks["stock_attention_equals_source"] is None
    assert checks["same_tokens"] is (None if way in ("accelerate", "vocabulary") else True)
    measured = opened(str(saved), bench_options({"lengths": [32]}))
    assert measured.manifest["source"]["name"] == source_of(made, way).name
    assert effconv.load(saved).config.max_position_embeddings == 128
    assert snapshot(saved) == before  # nothing was written


@pytest.mark.parametrize("way", WAYS)
def test_commands_that_write_take_what_a_library_saved(way, made, tmp_path):
    saved = made / "saved" / way
    before = snapshot(saved)
    effconv.refresh(saved, output=tmp_path / "refreshed", verify=False)
    adopted = effconv.adopt(saved, output=tmp_path / "adopted", **origin_for(way, made))
    assert all(check.passed is not False for check in effconv.verify(tmp_path / "adopted"))
    assert snapshot(saved) == before
    assert (tmp_path / "adopted" / "model.safetensors").exists() or way == "dtype"
    assert not [name for name in snapshot(tmp_path / "adopted") if name.startswith(LEFT_OUT)]
    manifest = adopted.manifest
    assert manifest["adapted"] == [{"by": "another program"}]
    assert manifest["options"] == read_json(made / "lsg-source" / "effconv.json")["options"]
    assert read_json(tmp_path / "refreshed" / "effconv.json")["architecture"] == manifest["architecture"]
    if (tmp_path / "adopted" / "tokenizer.json").exists():
        assert read_json(tmp_path / "adopted" / "tokenizer.json")["truncation"] is None
    if manifest["auto"] in ("AutoModelForMaskedLM",):
        options = {"objective": "mlm", "steps": 1, "lengths": "32", "verify": False, "data": made / "text.txt"}
        trained = effconv.adapt(tmp_path / "adopted", output=tmp_path / "trained", **options)
        assert [entry.get("by") for entry in read_json(trained.output / "effconv.json")["adapted"]] == [
            "another program",
            None,
        ]


def origin_for(way: str, made: Path) -> dict[str, Path]:
    """Accelerate's examples save no tokenizer: it comes from the repo before."""
    return {"origin": made / "lsg-source"} if way == "accelerate" else {}


def test_documents_are_found_by_what_sentence_transformers_saved(made):
    found = effconv.retrieval(
        made / "saved" / "sentence", against=made / "sentences", data=made / "text.txt",
        documents=4, tokens=120, query_tokens=8,
    )  # fmt: skip
    assert [row["documents"] for row in found["rows"]][-1] == "sentence"


def test_pushed_as_a_repo(made, tmp_path):
    """By transformers' own push_to_hub from a repo of the Hub, whose code then is named by the Hub's repo."""
    with LoopbackHub() as hub:
        client = Client(hub, tmp_path)
        assert client.push(made / "lsg-source", "me/long").code == 0
        client.python(
            "import json, transformers\n"
            "model = transformers.AutoModelForMaskedLM.from_pretrained('me/long', trust_remote_code=True)\n"
            "model.push_to_hub('me/trained')\n"
            "from huggingface_hub import snapshot_download\n"
            "print(json.dumps(snapshot_download('me/trained', local_dir='trained')))"
        )
        saved = made / "saved" / "checkpoint"
        dry = client.push(saved, "me/again", "--dry-run", "--license", "mit", "--json").json()
        assert {"effconv.json", "README.md", "model.safetensors", "lsg_attention.py"} <= set(dry["added"])
        assert not [name for name in dry["added"] if name.startswith(LEFT_OUT)]
        assert not (saved / "effconv.json").exists()
        assert client.push(tmp_path / "trained", "me/again", "--license", "mit").code == 0
        pushed = json.loads(hub.repos["me/again"].files["effconv.json"])
    assert pushed["adapted"] == [{"by": "another program"}]


def test_a_push_that_cannot_begin_is_refused_before_the_checks(made, monkeypatch):
    steps = []
    saved = made / "saved" / "checkpoint"
    with pytest.raises(HubError, match="offline mode is on"):
        effconv.push_to_hub(saved, "me/again", offline=True, progress=lambda *step: steps.append(step))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match="no token"):
        effconv.push_to_hub(saved, "me/again", progress=lambda *step: steps.append(step))
    assert steps == []


def test_code_of_a_hub_repo_is_found_beside_the_model(made, tmp_path):
    """A model that came from the Hub may go on naming its repo there."""
    saved = Path(shutil.copytree(made / "saved" / "peft", tmp_path / "saved"))
    references = read_json(saved / "config.json")["auto_map"]
    edit_config(saved, auto_map={auto: f"me/long--{name}" for auto, name in references.items()})
    view = view_of(saved)
    assert read_json(view.folder / "config.json")["auto_map"] == references
    assert "config.json" in view.new


def test_a_repo_that_was_trained_in_place_is_adopted(made, tmp_path):
    """Its manifest knows more than its config: the plan goes, all else stays; what a person wrote stays too."""
    repo = Path(shutil.copytree(made / "lsg-source", tmp_path / "repo"))
    (repo / "README.md").write_text("# Ours\n\nTrained on letters.\n", encoding="utf-8")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(made / "saved" / "trainer" / name, repo / name)
    (repo / "notes.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(CheckFailedError, match="effconv adopt"):
        effconv.verify(repo)
    adopted = effconv.adopt(repo)
    assert effconv.verify(repo)
    assert set(adopted.written) == {"README.md", "config.json", "effconv.json", "tokenizer.json"}
    assert (repo / "notes.txt").read_text() == "kept"
    card = (repo / "README.md").read_text(encoding="utf-8")
    assert "Trained on letters." in card
    assert "trained after the conversion, outside effconv" in card
    assert "cannot tell training from damage" in adopted.findings[-1]
    assert effconv.adopt(repo).written == ()  # once is enough


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that root cannot write to either")
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path):
    for folder, output in ((tmp_path, Path("/proc/adopted")), (Path("/proc"), None)):
        with pytest.raises(OutputError, match="no file can be created") as caught:
            effconv.adopt(folder, output=output)
        assert caught.value.where == "/proc"


def test_what_is_no_such_model_is_refused(made, tmp_path):
    """By name, with what to do next; nothing is written."""

    def copy(**fields: object) -> Path:
        folder = Path(shutil.copytree(made / "saved" / "trainer", tmp_path / f"copy{len(os.listdir(tmp_path))}"))
        return edit_config(folder, **fields) if fields else folder

    other = copy()
    with (other / "lsg_attention.py").open("a", encoding="utf-8") as file:
        file.write("print('mine')\n")
    stray = copy()
    (stray / "train.py").write_text("print('mine')\n", encoding="utf-8")
    adapter = copy()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    sharded = copy()
    (sharded / "model.safetensors").unlink()
    (sharded / "pytorch_model_fsdp_0").mkdir()
    (sharded / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"part")
    cases = [
        (other, CheckFailedError, "lsg_attention.py: differs"),
        (stray, CheckFailedError, "train.py: no file of such a repo"),
        (adapter, UnsupportedError, "adapter"),
        (copy(effconv=None), BadInputError, "its field effconv is missing or damaged"),
        (copy(effconv={"version": "0.1.0", "target": 1}), BadInputError, "effconv.target, effconv.family"),
        (copy(architectures=["MyBert"]), UnsupportedError, "MyBert is no class"),
        (sharded, BadInputError, "no readable weights"),
        (made / "source", BadInputError, "not a model that effconv converted"),
        (made / "saved" / "run", BadInputError, "output folder of a training"),
    ]
    for folder, kind, words in cases:
        before = snapshot(folder)
        with pytest.raises(kind, match=words) as refused:
            effconv.adopt(folder)
        assert refused.value.hint
        assert snapshot(folder) == before
        if folder == sharded:
            assert "accelerate merge-weights" in refused.value.hint
    shutil.rmtree(made / "saved" / "trainer" / "__pycache__", ignore_errors=True)
    older = copy(effconv=None)
    assert not saved_elsewhere(older)
    with pytest.raises(BadInputError, match="adopt") as refused:
        effconv.verify(older)
    assert "--from REPO" in refused.value.hint
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputError, match="not empty") as refused:
        effconv.adopt(older, origin=made / "lsg-source", output=tmp_path / "full")
    assert refused.value.hint == "choose another folder with --output"  # there is no --overwrite
    assert effconv.adopt(older, origin=made / "lsg-source", verify=False).manifest["source"]["name"] == "source"


def repo_of(target: str, folder: Path) -> Path:
    """A tiny repo of a target, with a tokenizer."""
    if target == "bigs":
        source = Path(shutil.copytree(GOLDENS / "mlm_bf16params_L37", folder / "jax"))
        save_tokenizer(source, "bert", 37)
        return effconv.convert(source, "jax2torch", output=folder / "repo").output
    head = "ForPreTraining" if target == PUBLISHED else "ForMaskedLM"
    small = {"linformer": {"proj_dim": 16}, "lambda": {"key_depth": 4, "local_context": 5}}
    published = {"groups": "1", "key_depth": 4, "local_context": 5, "intra_depth": 2}
    options = {**small, PUBLISHED: published, "transnormer": {"block_size": 16}}[target]
    source = save_tiny(folder / "source", "bert", head)
    return effconv.convert(source, target.partition("-")[0], output=folder / "repo", **SMALL, **options).output


@pytest.mark.parametrize("python", [FOUR_NIGHTLY])
def test_what_transformers_4_saves(python, made, tmp_path):
    ways = ("trainer", "vocabulary", "dtype", "sentence")
    save(tmp_path, python, **{way: made / f"lsg-{source_of(made, way).name}" for way in ways})
    for way in ways:
        assert all(check.passed is not False for check in effconv.verify(tmp_path / way))


@pytest.mark.parametrize(
    ("target", "way"),
    daily([*((target, "trainer") for target in TARGETS), (PUBLISHED, "dtype")], of=EVERY),
)
def test_every_target_stays_a_repo(target, way, tmp_path):
    repo = repo_of(target, tmp_path)
    save(tmp_path, **{way: repo})
    checks = effconv.verify(tmp_path / way)
    adopted = effconv.adopt(tmp_path / way, **({"origin": repo} if way == "accelerate" else {}))
    assert "saved_again_equal" in {check.name for check in checks if check.passed}
    assert adopted.manifest["target"] == read_json(repo / "effconv.json")["target"]
    with LoopbackHub() as hub:
        dry = Client(hub, tmp_path).push(tmp_path / way, "me/trained", "--dry-run", "--license", "mit", "--json").json()
    assert {"effconv.json", "README.md", "config.json"} <= set(dry["added"])
