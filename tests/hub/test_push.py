"""`effconv push-to-hub` on a Hub of this machine, with the real client: what is sent, refused, survived."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from hub_runs import Client, files_of

import effconv
from hub_server import LoopbackHub
from tiny import save_tiny, save_tiny_sentence_encoder

SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}
FLAGS = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "--no-verify")
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# The source\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A repo with a masked-LM head, a tenth of a megabyte."""
    folder = tmp_path_factory.mktemp("small")
    source = save_tiny(folder / "source")
    (source / "README.md").write_text(CARD)
    return effconv.convert(source, "lsg", output=folder / "long", **SMALL).output


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A sentence-transformers repo of 20 MB in two shards."""
    folder = tmp_path_factory.mktemp("large")
    wide = {"hidden_size": 256, "num_hidden_layers": 7, "intermediate_size": 1024}
    source = save_tiny_sentence_encoder(folder / "source", **wide)
    (source / "README.md").write_text(CARD)
    return effconv.convert(source, "lsg", output=folder / "long", max_shard_size="12MB", **SMALL).output


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path) -> Client:
    return Client(hub, tmp_path)


@pytest.fixture
def repo(small, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(small, tmp_path / "repo"))


def without_generated(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in ("README.md", "effconv.json", ".gitattributes")}


def commits(hub, name="me/long", revision="main") -> list[str]:
    return [commit.title for commit in hub.repos[name].history(revision)]


class TestWhatIsSent:
    @pytest.mark.nightly
    @pytest.mark.xdist_group("push-large")
    def test_a_repo_of_20_mb_is_one_commit_and_loads_by_its_name(self, client, hub, large, tmp_path):
        before = files_of(large)
        run = client.push(large, "me/long")
        assert run.code == 0, run.err
        assert f"{hub.endpoint}/me/long" in run.out.splitlines()
        pushed = hub.repos["me/long"]
        assert len(commits(hub)) == 2  # the Hub's own first, and one
        assert without_generated(pushed.files) == without_generated(before)
        assert sum(len(blob.data) for blob in pushed.head.files.values() if blob.lfs) > 20e6
        assert files_of(large) == before

        # What the card on the Hub says is what works: both of its pieces of code, as they stand there.
        code = "\n".join(
            part.partition("```")[0] for part in pushed.files["README.md"].decode().split("```python\n")[1:3]
        )
        assert 'repo = "me/long"' in code
        script = f"""
import json
{code}
encoder = model
from transformers import AutoModel
loaded = AutoModel.from_pretrained(repo, revision="{pushed.head.sha}", trust_remote_code=True)
tokens = tokenizer("the cat and the dog " * 20, return_tensors="pt", truncation=True)
states = loaded(**tokens).last_hidden_state
print(json.dumps([type(loaded).__name__, states.shape[1], encoder.encode(["the cat"]).shape]))
"""
        assert client.python(script) == ["LSGBertModel", 128, [1, 256]]

    def test_the_repo_on_the_hub_is_what_its_manifest_says(self, client, hub, small, tmp_path):
        assert client.push(small, "me/long").code == 0
        for name, data in hub.repos["me/long"].files.items():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(data)
        from effconv.convert.repo.manifest import changed_files, read_manifest

        assert changed_files(tmp_path / "copy", read_manifest(tmp_path / "copy")) == []

    def test_the_name_is_the_users_and_the_folders_where_none_is_given(self, client, hub, repo):
        assert client.push(repo, "-q").out == f"{hub.endpoint}/me/repo\n"
        assert client.push(repo, "other-name").code == 0
        assert set(hub.repos) == {"me/repo", "me/other-name"}

    def test_an_identical_push_is_nothing_to_do(self, client, hub, small):
        assert client.push(small, "me/long").code == 0
        head = hub.repos["me/long"].head.sha
        hub.requests.clear()
        again = client.push(small, "me/long", "--json").json()
        assert again["nothing_to_do"]
        assert again["commit"] == head
        assert hub.repos["me/long"].head.sha == head
        assert not hub.count("POST")
        assert "nothing to do" in client.push(small, "me/long").out

    def test_only_what_changed_is_sent(self, client, hub, repo):
        client.push(repo, "me/long")
        with (repo / "README.md").open("a") as card:
            card.write("\nI wrote this.\n")
        found = client.push(repo, "me/long", "--json", "--commit-message", "a word").json()
        assert set(found["changed"]) == {"README.md", "effconv.json"}
        assert not found["added"]
        assert commits(hub)[0] == "a word"
        assert b"I wrote this." in hub.repos["me/long"].files["README.md"]
        assert client.push(repo, "me/long", "--json").json()["nothing_to_do"]

    def test_files_of_an_earlier_push_that_are_no_more_go_and_others_stay(self, client, hub, large, small):
        client.push(large, "me/long")
        hub.add_commit("me/long", {"notes.txt": "mine"})
        found = client.push(small, "me/long", "--json").json()
        assert "model.safetensors.index.json" in found["removed"]  # with it, a loader would look for the old shards
        assert found["others"] == ["notes.txt"]
        assert any("notes.txt" in note for note in found["notes"])
        ours = {name.relative_to(small).as_posix() for name in small.rglob("*") if name.is_file()}
        assert set(hub.repos["me/long"].files) == {*ours, "notes.txt"} | {".gitattributes"}

    def test_a_dry_run_lists_with_sizes_and_changes_nothing(self, client, hub, repo):
        found = client.push(repo, "me/long", "--dry-run", "--json").json()
        assert found["added"]["model.safetensors"] == (repo / "model.safetensors").stat().st_size
        assert hub.repos == {}
        client.push(repo, "me/long")
        with (repo / "README.md").open("a") as card:
            card.write("more\n")
        hub.requests.clear()
        run = client.push(repo, "me/long", "--dry-run")
        lines = [line.split() for line in run.out.splitlines()]
        assert ["changed", "README.md"] in [words[:2] for words in lines]
        weights = (repo / "model.safetensors").stat().st_size
        assert ["unchanged", "model.safetensors", f"{weights / 1e6:.1f}", "MB"] in lines
        assert "dry run: nothing was uploaded" in run.out
        assert not hub.count("POST")

    def test_a_pull_request_leaves_main_where_it_is_and_is_opened_once(self, client, hub, small):
        repo = hub.add_repo("me/long", {"config.json": "{}"})
        main = repo.head.sha
        found = client.push(small, "me/long", "--create-pr", "--json").json()
        assert found["url"] == f"{hub.endpoint}/me/long/discussions/1"
        assert repo.head.sha == main
        assert "model.safetensors" in repo.resolve("refs/pr/1").files
        again = client.push(small, "me/long", "--create-pr", "--json").json()
        assert (again["pull_request"], again["nothing_to_do"]) == (1, True)
        assert len(repo.pull_requests) == 1

    def test_a_branch_is_made_where_it_is_missing(self, client, hub, small):
        repo = hub.add_repo("me/long", {"notes.txt": "mine"})
        main = repo.head.sha
        found = client.push(small, "me/long", "--revision", "next", "--json").json()
        assert found["url"].endswith("/me/long/tree/next")
        assert (repo.head.sha, repo.resolve("next").sha) == (main, found["commit"])
        assert b'revision = "next"' in repo.resolve("next").files["README.md"].data

    def test_text_written_on_the_hub_stays_while_nobody_wrote_here(self, client, hub, small):
        client.push(small, "me/long")
        card = (
            hub.repos["me/long"].files["README.md"].decode().replace("## How to load", "Ours since May.\n\n## Loading")
        )
        hub.add_commit("me/long", {"README.md": card, "vocab.txt": "broken"})
        found = client.push(small, "me/long", "--json").json()
        assert list(found["changed"]) == ["vocab.txt"]
        assert any("that text stays" in note for note in found["notes"])
        assert hub.repos["me/long"].files["README.md"].decode() == card
        assert client.push(small, "me/long", "--json").json()["nothing_to_do"]


class TestWithoutTorch:
    def test_pushing_imports_no_torch_and_little_else(self, client, small):
        run = client.alone("push-to-hub", small, "me/long")
        assert run.code == 0, run.err
        heavy = {"torch", "transformers", "sentence_transformers", "tokenizers", "jax", "flax", "accelerate", "pandas"}
        assert not run.modules & heavy
        assert run.rss < 150, f"{run.rss:.0f} MB"  # measured: 100; with torch it is more than 300

    def test_the_core_dependencies_but_torch_are_enough(self, client, small):
        """As on a machine where nothing else is installed: every other distribution is hidden."""
        prelude = """
import importlib.abc, importlib.metadata as metadata, re
core, seen = ["huggingface-hub", "typer", "rich", "jinja2", "numpy", "safetensors", "effconv-itself"], set()
while core:
    name = core.pop()
    if name in seen:
        continue
    seen.add(name)
    try:
        needed = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        continue
    core += [re.match(r"[\\\\w.-]+", line)[0].lower().replace("_", "-") for line in needed if "extra ==" not in line]
owners = metadata.packages_distributions()
seen.add("effconv")
allowed = {top for top, names in owners.items() if any(n.lower().replace("_", "-") in seen for n in names)}

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owners and top not in allowed:
            raise ModuleNotFoundError(f"no module named {name} here", name=name)

sys.meta_path.insert(0, Hidden())
for name in ("torch", "transformers", "sentence_transformers", "pytest"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit("not hidden: " + name)
"""
        run = client.alone("push-to-hub", small, "me/long", prelude=prelude.replace("\\\\", "\\"))
        assert run.code == 0, run.err

    @pytest.mark.parametrize("how", ["flag", "environment"])
    def test_offline_opens_no_socket_and_says_so(self, client, hub, small, how):
        arguments = ["--offline"] if how == "flag" else []
        for command in (["push-to-hub", small, "me/long"], ["refresh", small, "--push"]):
            run = client.alone(*command, *arguments, offline=how == "environment")
            assert run.code == 6
            assert "offline mode is on" in run.err
            assert "nothing was sent" in run.err
            assert run.sockets == ()
        assert hub.requests == []

    def test_online_the_same_watch_sees_sockets(self, client, small):
        assert client.push(small, "me/long").sockets


class TestRefusals:
    def test_bytes_that_differ_from_the_manifest_are_not_sent(self, client, hub, repo):
        (repo / "lsg_attention.py").write_text("print('mine')\n")
        (repo / "extra.txt").write_text("")
        run = client.push(repo, "me/long")
        assert run.code == 5
        assert "lsg_attention.py: changed" in run.err
        assert "extra.txt: not in the manifest" in run.err
        assert hub.repos == {}

    def test_a_file_that_changes_while_it_is_pushed_is_not_sent(self, client, hub, repo):
        hub.fault("/api/repos/create", call=lambda: (repo / "vocab.txt").write_text("changed\n"))
        run = client.push(repo, "me/long")
        assert run.code == 5
        assert "vocab.txt" in run.err
        assert len(commits(hub)) == 1

    def test_a_card_that_is_gone_is_asked_for(self, client, hub, repo):
        (repo / "README.md").unlink()
        run = client.push(repo, "me/long")
        assert run.code == 4
        assert "effconv refresh" in run.err
        assert hub.repos == {}

    def test_a_card_that_a_person_wrote_in_is_sent(self, client, hub, repo):
        (repo / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
        assert client.push(repo, "me/long").code == 0
        assert hub.repos["me/long"].files["README.md"] == b"---\nlicense: mit\n---\nMine.\n"

    def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(self, client, hub, repo):
        (repo / "README.md").write_text("---\nlicense: [\n---\n")
        run = client.push(repo, "me/long")
        assert run.code == 4
        assert "front matter" in run.err
        assert not hub.count("POST")

    @pytest.mark.parametrize("stated", ["", "license: other\n"])
    def test_a_license_is_asked_for_where_the_source_names_none(self, client, hub, tmp_path, stated):
        source = save_tiny(tmp_path / "source")
        (source / "README.md").write_text(f"---\n{stated}language: en\n---\n# Source\n")
        repo = effconv.convert(source, "lsg", output=tmp_path / "long", **SMALL).output
        before = files_of(repo)
        run = client.push(repo, "me/long")
        assert run.code == 2
        assert "--license" in run.err
        assert hub.repos == {}
        dry = client.push(repo, "me/long", "--dry-run", "--json").json()
        assert any("--license" in note for note in dry["notes"])
        assert client.push(repo, "me/long", "--license", "mit").code == 0
        assert hub.repos["me/long"].files["README.md"].decode().count("license: mit\n") == 1
        assert client.push(repo, "me/long", "--license", "mit", "--json").json()["nothing_to_do"]
        assert client.push(repo, "me/other", "--license", "other").code == 0
        assert files_of(repo) == before

    @pytest.mark.parametrize("word", ["hf_" + "a1" * 17, "HOME"])
    def test_tokens_and_paths_are_not_sent(self, client, hub, repo, tmp_path, word):
        word = f"{tmp_path}/model" if word == "HOME" else word
        with (repo / "README.md").open("a") as card:
            card.write(f"see {word}\n")
        run = client.push(repo, "me/long", HOME=str(tmp_path))
        assert run.code == 5
        assert "README.md: a " in run.err
        assert word not in run.err + run.out or "/" in word
        assert hub.repos == {}

    def test_a_folder_that_is_no_repo_and_a_name_that_is_none(self, client, hub, small, tmp_path):
        (tmp_path / "empty").mkdir()
        assert client.push(tmp_path / "empty", "me/long").code == 4
        assert client.push(tmp_path / "missing", "me/long").code == 4
        for name in ("me/a/b", "me/..", "https://x.y/me", "me/a--b", "-/x y"):
            run = client.push(small, "--", name)
            assert run.code == 2, name
            assert "Hub id" in run.err
        assert hub.requests == []


class TestGatedSources:
    @pytest.fixture
    def gated(self, hub, client, tmp_path) -> Path:
        """A repo made from a gated source on the Hub."""
        source = save_tiny(tmp_path / "checkpoint")
        (source / "README.md").write_text(CARD)
        hub.add_folder("me/gated", source, gated=True)
        assert client("lsg", "me/gated", "-o", "long", *FLAGS).code == 0
        return tmp_path / "long"

    def test_a_gated_source_is_named_and_makes_a_private_repo(self, client, hub, gated):
        manifest = json.loads((gated / "effconv.json").read_text())
        assert manifest["source"]["gated"] == "auto"
        assert "**gated**" in (gated / "README.md").read_text()
        run = client.push(gated, "me/long")
        assert run.code == 0, run.err
        assert "gated" in run.out
        assert hub.repos["me/long"].private

    def test_it_is_public_when_asked_for(self, client, hub, gated):
        assert client.push(gated, "me/long", "--public").code == 0
        assert not hub.repos["me/long"].private

    def test_a_public_repo_that_exists_is_refused_until_asked_for(self, client, hub, gated):
        hub.add_repo("me/long")
        assert client.push(gated, "me/long").code == 2
        assert len(commits(hub)) == 1
        assert client.push(gated, "me/long", "--public").code == 0

    def test_a_source_that_was_gated_after_the_conversion_is_found(self, client, hub, tmp_path):
        source = save_tiny(tmp_path / "checkpoint")
        (source / "README.md").write_text(CARD)
        hub.add_folder("me/source", source)
        assert client("lsg", "me/source", "-o", "long", *FLAGS).code == 0
        hub.repos["me/source"].gated = True
        assert client.push(tmp_path / "long", "me/long", "--json").json()["private"]

    def test_private_holds_for_new_repos_alone(self, client, hub, small):
        assert client.push(small, "me/long", "--private").code == 0
        assert hub.repos["me/long"].private
        hub.add_repo("me/public")
        run = client.push(small, "me/public", "--private")
        assert run.code == 2
        assert "public" in run.err


class TestABadNetwork:
    @pytest.mark.parametrize(("token", "words"), [("hf_bad", "401"), (None, "no token"), ("hf_reader", "only read")])
    def test_a_bad_token_fails_before_anything_else(self, client, hub, small, token, words):
        hub.add_user("reader", "hf_reader", write=False)
        run = client.push(small, "me/long", token=token)
        assert run.code == 6
        assert words in run.err
        assert {request.path for request in hub.requests} <= {"/api/whoami-v2"}
        assert token is None or token not in run.err

    def test_the_token_given_wins(self, client, hub, small):
        assert client.push(small, "me/long", "--token", "hf_me", token="hf_bad").code == 0

    def test_a_host_that_is_not_there_fails_at_the_first_try(self, client, small):
        run = client.push(small, "me/long", HF_ENDPOINT="http://127.0.0.1:9")
        assert run.code == 6
        assert "HF_ENDPOINT" in run.err

    def test_a_namespace_of_somebody_else_is_refused_before_the_upload(self, client, hub, small):
        hub.add_user("other", "hf_other")
        hub.add_repo("other/there", {"config.json": "{}"})
        for name in ("other/long", "other/there"):
            run = client.push(small, name)
            assert run.code == 6
            assert "neither me nor an organisation" in run.err
            assert "--create-pr" in run.err
        assert {request.path for request in hub.requests} == {"/api/whoami-v2"}
        assert client.push(small, "other/there", "--create-pr").code == 0

    def test_an_organisation_of_the_user_is_pushed_to(self, client, hub, small):
        hub.add_user("me", "hf_me", orgs=("lab",))
        assert client.push(small, "lab/long").code == 0
        assert commits(hub, "lab/long")

    @pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/commit/"])
    @pytest.mark.parametrize(("status", "words"), [(401, "not accepted"), (403, "may write there")])
    def test_a_refusal_is_not_tried_again_and_says_what_would_help(self, client, hub, small, where, status, words):
        hub.fault(where, status=status, times=99)
        run = client.push(small, "me/long")
        assert run.code == 6
        assert f"the Hub answered {status}" in run.err
        assert words in run.err
        assert hub.count("POST", where) == 1
        assert "me/long" not in hub.repos or len(commits(hub)) == 1

    def test_a_repo_that_appears_meanwhile_is_used(self, client, hub, small):
        hub.fault("/api/repos/create", call=lambda: hub.add_repo("me/long"))  # the Hub then answers 409
        run = client.push(small, "me/long")
        assert run.code == 0, run.err
        assert [request.status for request in hub.requests if request.path == "/api/repos/create"] == [409]
        assert len(commits(hub)) == 2

    @pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"drop": "before"}])
    @pytest.mark.parametrize("where", ["/whoami", "/api/repos/create", "/api/models/me/long", "/commit/"])
    def test_a_hub_that_is_away_ends_with_6_and_a_later_push_goes_on(self, client, hub, small, where, fault):
        hub.fault(where, times=99, **fault)
        run = client.push(small, "me/long")
        assert run.code == 6
        assert f"the Hub answered {fault['status']}" in run.err if "status" in fault else "no reply" in run.err
        assert "run the command again" in run.err
        sent = hub.count("PUT")
        hub.faults.clear()
        assert client.push(small, "me/long").code == 0
        assert len(commits(hub)) == 2
        assert hub.count("PUT") == max(sent, 1)  # what had arrived is not sent twice

    @pytest.mark.xdist_group("push-large")
    @pytest.mark.parametrize("drop", ["before", "upload", "reply"])
    def test_an_upload_that_drops_midway_is_sent_again(self, client, hub, large, drop):
        hub.fault("/_lfs/[0-9a-f]+$", method="PUT", drop=drop, after=5_000_000)
        run = client.push(large, "me/long")
        assert run.code == 0, run.err
        assert without_generated(hub.repos["me/long"].files) == without_generated(files_of(large))

    @pytest.mark.xdist_group("push-large")
    def test_what_arrived_before_the_upload_broke_off_is_not_sent_twice(self, client, hub, large):
        fault = hub.fault("/_lfs/[0-9a-f]+$", method="PUT", drop="upload", after=5_000_000, skip=1, times=999)
        run = client.push(large, "me/long")
        assert run.code == 6
        assert hub.repos["me/long"].head.title == "initial commit"
        fault.times = 0
        hub.requests.clear()
        assert client.push(large, "me/long").code == 0
        received = sum(request.received for request in hub.requests if request.method == "PUT")
        assert 0 < received < 12.5e6  # one shard of the two

    @pytest.mark.parametrize("pull_request", [False, True])
    def test_a_commit_whose_reply_was_lost_is_not_made_again(self, client, hub, small, pull_request):
        hub.fault("/commit/", method="POST", drop="reply")
        arguments = (small, "me/long", "--json", *(["--create-pr"] if pull_request else []))
        assert client.push(*arguments).code == 6
        found = client.push(*arguments).json()
        assert found["nothing_to_do"]
        assert hub.count("POST", "/commit/") == 1
        assert len(hub.repos["me/long"].pull_requests) == pull_request
        assert found["commit"] == hub.repos["me/long"].resolve("refs/pr/1" if pull_request else "main").sha

    def test_a_repo_that_moved_meanwhile_is_left_as_it_is(self, client, hub, small):
        hub.add_repo("me/long", {"notes.txt": "old"})
        hub.fault("/commit/", method="POST", call=lambda: hub.add_commit("me/long", {"notes.txt": "new"}, "theirs"))
        run = client.push(small, "me/long")
        assert run.code == 6
        assert "somebody else committed meanwhile" in run.err
        assert commits(hub) == ["theirs", "initial commit"]
        assert client.push(small, "me/long").code == 0
        assert hub.repos["me/long"].files["notes.txt"] == b"new"


class TestCtrlC:
    def interrupted(self, client, hub, repo, path, **fault):
        processes = []
        then, number = fault.pop("then", lambda: None), fault.pop("number", signal.SIGINT)
        hub.fault(path, call=lambda: (then(), os.kill(processes[0], number)), **fault)
        before = files_of(repo)
        processes.append(client.start("push-to-hub", repo, "me/long"))
        run = client.finish()
        assert run.code == 128 + number, run.err
        assert files_of(repo) == before
        return run

    @pytest.mark.xdist_group("push-large")
    def test_during_an_upload_it_says_what_is_on_the_hub(self, client, hub, large):
        run = self.interrupted(
            client, hub, large, "/_lfs/[0-9a-f]+$", method="PUT", skip=1, drop="upload", after=9_000_000
        )
        assert "local files are as they were" in run.err
        assert f"{hub.endpoint}/me/long stands at commit {hub.repos['me/long'].head.sha[:12]}" in run.err
        assert "without a commit of this push" in run.err
        assert "kept there for the next run" in run.err
        assert client.push(large, "me/long").code == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_before_anything_is_sent_it_says_so(self, client, hub, small, number):
        run = self.interrupted(client, hub, small, "/whoami", status=503, headers={"Retry-After": "0"}, number=number)
        assert "nothing was sent to the Hub" in run.err
        assert hub.repos == {}

    def test_after_the_commit_it_says_whose_the_head_is(self, client, hub, small):
        manifest = json.loads((small / "effconv.json").read_text())
        title = f"{manifest['architecture']}, made with effconv {effconv.__version__}"
        land = lambda: hub.add_commit("me/long", {"config.json": "{}"}, title)  # noqa: E731
        run = self.interrupted(client, hub, small, "/commit/", method="POST", status=503, then=land)
        assert "which is this push's" in run.err


class TestConvertingCommands:
    @pytest.fixture
    def source(self, tmp_path) -> Path:
        folder = save_tiny(tmp_path / "source")
        (folder / "README.md").write_text(CARD)
        return folder

    def test_a_conversion_is_pushed_once_it_stands(self, client, hub, source, tmp_path):
        run = client("lsg", source, "-o", "long", *FLAGS, "--push-to-hub", "me/long", "--private", "--json")
        assert run.json()["pushed"]["commit"] == hub.repos["me/long"].head.sha
        assert hub.repos["me/long"].private
        assert without_generated(hub.repos["me/long"].files) == without_generated(files_of(tmp_path / "long"))

    def test_every_target_has_the_flag(self, client, hub, source):
        run = client(
            "linformer", source, "--max-len", "128", "--proj-dim", "32", "--no-verify", "--push-to-hub", "me/lin"
        )
        assert run.code == 0, run.err
        assert "me/lin" in run.out
        assert "linformer_attention.py" in hub.repos["me/lin"].files

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["--push-to-hub", "me/long", "--token", "hf_bad"], 6),
            (["--push-to-hub", "me/a/b"], 2),
            (["--push-to-hub", "other/long"], 6),
            (["--push-to-hub", "me/long", "--offline"], 6),
            (["--push-to-hub", "me/long", "--license", "MIT License"], 2),
            (["--license", "mit"], 2),
            (["--license", "mit", "--plan"], 2),
            (["--public", "--plan"], 2),
            (["--push-to-hub", "me/a/b", "--plan"], 2),
        ],
    )
    def test_what_would_keep_it_from_pushing_shows_before_the_conversion(
        self, client, source, tmp_path, arguments, code
    ):
        run = client("lsg", source, "-o", "long", *FLAGS, *arguments)
        assert run.code == code, run.err
        assert not (tmp_path / "long").exists()
        assert ("--offline" in arguments) <= (run.sockets == ())

    def test_a_push_that_fails_leaves_the_converted_repo_and_says_how_to_go_on(self, client, hub, source, tmp_path):
        hub.fault("/api/repos/create", status=403, times=99)
        run = client("lsg", source, "-o", "long", *FLAGS, "--push-to-hub", "me/long")
        assert run.code == 6
        assert "effconv push-to-hub" in run.err
        hub.faults.clear()
        assert client.push(tmp_path / "long", "me/long").code == 0
