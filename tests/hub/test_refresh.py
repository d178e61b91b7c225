"""`effconv refresh`: code, blocks and manifest of an older repo become today's; weights and a person's words stay."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from bigs_goldens import ROOT
from checkpoints import edit_config, rewrite
from hub_runs import Client, files_of
from transformers import AutoConfig

import effconv
from effconv.convert.errors import HubError, OutputError
from effconv.convert.repo.card_blocks import blocks, front_matter
from effconv.convert.repo.manifest import changed_files
from hub_server import LoopbackHub
from tiny import save_tiny, save_tiny_sentence_encoder

SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16}
CARD = "---\nlicense: apache-2.0\n---\n# The source\n"
WORDS = "\n## What I found\n\nIt reads novels.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repo as today's effconv makes it, checked."""
    folder = tmp_path_factory.mktemp("made")
    source = save_tiny_sentence_encoder(folder / "source")
    (source / "README.md").write_text(CARD)
    return effconv.convert(source, "lsg", output=folder / "long", **SMALL).output


def restate(repo: Path, **fields: object) -> None:
    """Writes the manifest anew, with the hashes of the files as they are."""
    manifest = json.loads((repo / "effconv.json").read_text()) | fields
    names = [
        p.relative_to(repo).as_posix() for p in sorted(repo.rglob("*")) if p.is_file() and p.name != "effconv.json"
    ]
    manifest["files"] = {name: hashlib.sha256((repo / name).read_bytes()).hexdigest() for name in names}
    (repo / "effconv.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def manifest_of(repo: Path) -> dict:
    return json.loads((repo / "effconv.json").read_text())


@pytest.mark.parametrize("target", ["jax2torch", "torch2jax", "bigs", "lambda"])
def test_a_repo_of_today_with_a_model_of_its_own_needs_no_refresh(target, tmp_path):
    """Beside those of `test_card.py`, whose models are the source's with another attention."""
    source, options = ROOT / "mlm_tied_L37", {"verify": False}
    if target == "lambda":
        source, options = save_tiny(tmp_path / "source"), {**options, "max_length": 64, "groups": "1"}
    elif target != "jax2torch":
        source = effconv.convert(source, "jax2torch", output=tmp_path / "torch", **options).output
    repo = effconv.convert(source, target, output=tmp_path / "repo", **options).output
    before = files_of(repo)
    assert effconv.refresh(repo, verify=False).changed == ()
    (code,) = [name for name in before if name.startswith(("modeling_", "lambda_published"))]
    (repo / code).write_text("# older\n")
    restate(repo)
    effconv.refresh(repo, verify=False)
    assert files_of(repo) == before


def test_code_of_the_source_and_the_class_of_a_colbert_stay(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Scale", "type": "scale.Scale"})
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "scale.py").write_text("class Scale: ...\n")
    edit_config(source, architectures=["HF_ColBERT"])
    rewrite(source, lambda tensors: {**tensors, "linear.weight": torch.ones(8, 32)})
    repo = effconv.convert(source, "lsg", output=tmp_path / "repo", verify=False, **SMALL).output
    before = files_of(repo)
    assert effconv.refresh(repo, verify=False).changed == ()
    (repo / "lsg_attention.py").write_text("# older\n")
    restate(repo)
    effconv.refresh(repo, verify=False)
    assert files_of(repo) == before


def test_an_output_inside_the_repo_is_refused(made):
    before = files_of(made)
    with pytest.raises(OutputError, match="must not overlap"):
        effconv.refresh(made, output=made / "new")
    assert files_of(made) == before


def test_a_push_without_a_token_leaves_the_folder_as_it_was(old, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    before = files_of(old)
    with pytest.raises(HubError, match="no token"):
        effconv.refresh(old, push=True)
    assert files_of(old) == before


@pytest.fixture
def old(made, tmp_path) -> Path:
    """The same repo as an older effconv might have made it: other code, a module that is no more, another card."""
    repo = Path(shutil.copytree(made, tmp_path / "old"))
    (repo / "lsg_attention.py").write_text("# an older file\n" + (repo / "lsg_attention.py").read_text())
    (repo / "lsg_helpers.py").write_text("# no more\n")
    config = json.loads((repo / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "modeling_lsg_bert.OldName"
    (repo / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    card = (repo / "README.md").read_text()
    (repo / "README.md").write_text(
        card.replace(blocks(card)["summary"], "An older summary.").replace("custom_code", "mine")
    )
    restate(repo, effconv="0.0.9")
    return repo


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path) -> Client:
    return Client(hub, tmp_path)


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: data for name, data in files.items() if name.endswith((".safetensors", ".txt")) or "tokenizer" in name
    }


def test_an_older_repo_becomes_what_todays_effconv_makes(made, old):
    before = files_of(old)
    found = effconv.refresh(old)
    after, today = files_of(old), files_of(made)
    assert weights(after) == weights(before)
    assert found.removed == ("lsg_helpers.py",)
    assert set(found.changed) == {"README.md", "config.json", "effconv.json", "lsg_attention.py"}
    for name in today.keys() - {"README.md", "effconv.json"}:
        assert after[name] == today[name], name
    assert after.keys() == today.keys()
    assert manifest_of(old)["effconv"] == effconv.__version__
    assert blocks(after["README.md"].decode())["summary"] == blocks(today["README.md"].decode())["summary"]
    assert changed_files(old, manifest_of(old)) == []

    # Checks run on the new code; what was compared with the source before is said to be old.
    checks = {check["name"]: check for check in manifest_of(old)["measurements"]["checks"]}
    assert all(result.passed is not False for result in found.measured)
    assert checks["equal_to_formula"]["passed"]
    assert checks["equal_to_source"]["passed"] is None
    assert "0.0.9" in checks["equal_to_source"]["why"]
    measured = manifest_of(old)["measurements"]
    assert measured["fidelity"] == manifest_of(made)["measurements"]["fidelity"]
    assert measured["fidelity_by"] == "0.0.9"
    assert "effconv 0.0.9" in blocks((old / "README.md").read_text())["fidelity"]


def test_a_repo_from_before_a_field_gets_the_code_that_knows_it_and_its_default(made, tmp_path):
    repo = Path(shutil.copytree(made, tmp_path / "before"))
    (repo / "lsg_kernel_flex.py").unlink()
    config = json.loads((repo / "config.json").read_text())
    del config["attention_form"]
    (repo / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    options = manifest_of(repo)["options"]
    del options["attention_form"]
    restate(repo, effconv="0.0.9", options=options)
    effconv.refresh(repo, verify=False)
    assert (repo / "lsg_kernel_flex.py").read_bytes() == (made / "lsg_kernel_flex.py").read_bytes()
    assert AutoConfig.from_pretrained(repo, trust_remote_code=True).attention_form == "auto"
    before = files_of(repo)
    assert effconv.refresh(repo, verify=False).changed == ()
    assert files_of(repo) == before


def test_a_field_that_no_code_reads_any_more_is_dropped(made, tmp_path):
    repo = Path(shutil.copytree(made, tmp_path / "before"))
    config = json.loads((repo / "config.json").read_text()) | {"mkldnn_fp32_precision": "bf16"}
    (repo / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    restate(repo, effconv="0.0.9", options=manifest_of(repo)["options"] | {"mkldnn_fp32_precision": "bf16"})
    effconv.refresh(repo, verify=False)
    assert (repo / "config.json").read_bytes() == (made / "config.json").read_bytes()
    assert manifest_of(repo)["options"] == manifest_of(made)["options"]


def test_with_the_source_at_hand_it_is_compared_again(made, old):
    effconv.refresh(old, against=made.parent / "source")
    measured = manifest_of(old)["measurements"]
    assert {check["name"]: check["passed"] for check in measured["checks"]}["equal_to_source"]
    assert "fidelity_by" not in measured


def test_what_a_person_wrote_in_the_card_stays(old):
    card = (old / "README.md").read_text().replace("# source, LSG", "# My title") + WORDS
    card = card.replace("license: apache-2.0", "license: mit  # mine").replace(
        "An older summary.", "Edited in a block."
    )
    (old / "README.md").write_text(card)
    effconv.refresh(old, verify=False)
    after = (old / "README.md").read_text()
    assert after.endswith(WORDS)
    assert "# My title" in after
    assert "license: mit  # mine\n" in after
    assert front_matter(after)["tags"] == front_matter(card)["tags"]
    assert "Edited in a block." not in after
    assert effconv.refresh(old, verify=False).changed == ()
    assert (old / "README.md").read_text() == after


def test_a_repo_of_today_is_left_alone(made, client):
    before = files_of(made)
    run = client("refresh", made)
    assert run.code == 0, run.err
    assert "nothing to do" in run.out
    assert files_of(made) == before
    assert "torch" not in run.modules


def test_without_checks_the_manifest_and_the_card_say_so(old, client):
    trainings = {name: [{"steps": 1}] for name in ("pretrain", "adapt", "finetune")}
    restate(old, measurements=manifest_of(old)["measurements"] | trainings)
    run = client("refresh", old, "--no-verify")
    assert run.code == 0, run.err
    assert "--no-verify" in run.out
    measured = manifest_of(old)["measurements"]
    assert measured["checks"] == "not run"
    assert {name: measured.get(name) for name in trainings} == trainings
    assert "not run" in blocks((old / "README.md").read_text())["checks"]
    assert "torch" not in run.modules


def test_another_folder_gets_the_refreshed_repo_and_the_old_one_stays(old, client, tmp_path):
    before = files_of(old)
    found = client("refresh", old, "--no-verify", "-o", "new", "--json").json()
    assert found["output"] == str(tmp_path / "new")
    assert files_of(old) == before
    assert (tmp_path / "new" / "model.safetensors").stat().st_ino != (old / "model.safetensors").stat().st_ino
    run = client("refresh", old, "--no-verify", "-o", "new")
    assert run.code == 7
    assert "--overwrite" not in run.err


@pytest.mark.parametrize("change", ["code", "weights", "extra", "family", "manifest"])
def test_what_is_not_as_its_manifest_says_is_refused_and_stays(old, client, change):
    if change == "code":
        (old / "lsg_kernel_cpu.py").write_text("mine\n")
    elif change == "weights":
        data = bytearray((old / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (old / "model.safetensors").write_bytes(data)
    elif change == "extra":
        (old / "extra.py").write_text("")
    elif change == "family":
        restate(old, family="gpt9")
    else:
        restate(old, source={})
    before = files_of(old)
    run = client("refresh", old)
    assert run.code == {"family": 3, "manifest": 4}.get(change, 5), run.err
    assert files_of(old) == before
    assert [path.name for path in old.parent.iterdir() if path.name.startswith(".")] == []


def test_code_that_fails_its_checks_does_not_appear(old, client, monkeypatch):
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "hidden_size": 48}, indent=2))
    restate(old)
    before = files_of(old)
    run = client("refresh", old)
    assert run.code == 5
    assert files_of(old) == before


class TestHub:
    def test_a_repo_on_the_hub_gets_a_pull_request_without_its_weights(self, hub, client, old, tmp_path):
        with (old / "README.md").open("a") as card:
            card.write(WORDS)
        repo = hub.add_folder("me/long", old)
        main = repo.head.sha
        run = client("refresh", "me/long", "--no-verify", "--push", "--json")
        found = run.json()["pushed"]
        assert found["url"] == f"{hub.endpoint}/me/long/discussions/1"
        assert repo.pull_requests == {1: f"Refresh with effconv {effconv.__version__}"}
        assert repo.head.sha == main
        assert hub.count("PUT") == 0
        offered = {name: blob.data for name, blob in repo.resolve("refs/pr/1").files.items()}
        assert weights(offered) == weights(files_of(old))
        assert "lsg_helpers.py" not in offered
        assert not offered["lsg_attention.py"].startswith(b"# an older file")
        card = offered["README.md"].decode()
        assert card.endswith(WORDS)
        assert 'repo = "me/long"' in card
        assert "torch" not in run.modules
        assert not [path for path in tmp_path.iterdir() if path.name == "long"]

        again = client("refresh", "me/long", "--no-verify", "--push", "--json").json()["pushed"]
        assert (again["pull_request"], again["nothing_to_do"]) == (1, True)

    def test_a_repo_on_the_hub_that_is_of_today_gets_none(self, hub, client, made):
        assert client.push(made, "me/long").code == 0
        found = client("refresh", "me/long", "--push", "--json").json()
        assert (found["changed"], found["pushed"]) == ([], None)
        assert hub.repos["me/long"].pull_requests == {}

    def test_without_push_it_becomes_a_folder(self, hub, client, old, tmp_path):
        hub.add_folder("me/long", old)
        run = client("refresh", "me/long", "--no-verify", "-q")
        assert (run.code, run.out) == (0, f"{tmp_path / 'long'}\n")
        assert not (tmp_path / "long" / "model.safetensors").is_symlink()
        assert weights(files_of(tmp_path / "long")) == weights(files_of(old))

    def test_a_folder_is_refreshed_and_offered_where_it_says(self, hub, client, old):
        hub.add_folder("me/long", old)
        found = client("refresh", old, "--no-verify", "--push", "--to", "me/long", "--json").json()
        assert found["output"] == str(old)
        assert found["pushed"]["pull_request"] == 1

    def test_a_repo_that_is_not_there_and_one_that_is_not_effconvs(self, hub, client):
        hub.add_repo("me/other", {"config.json": "{}"})
        assert client("refresh", "me/missing").code == 6
        run = client("refresh", "me/other")
        assert run.code == 4
        assert "not made by effconv" in run.err
