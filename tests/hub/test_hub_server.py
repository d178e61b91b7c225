"""The loopback Hub answers the real huggingface_hub client as the Hub does: what stands on it can be trusted."""

from __future__ import annotations

import json
import struct
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_runs
import pytest

from hub_server import LoopbackHub

PRELUDE = """
import json, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import *
api = HfApi()

def show(value):
    print(json.dumps(value))

def name_of_error(function, *args, **options):
    try:
        function(*args, **options)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, response.status_code if response is not None else None]
    return None

"""
Client = Callable[..., object]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def client(hub: LoopbackHub, tmp_path: Path) -> Client:
    """Run a script in a process of its own, whose environment names the Hub; return what it shows."""
    runs = hub_runs.Client(hub, tmp_path)

    def run(script: str, **options: object) -> object:
        runs.start(script=PRELUDE + textwrap.dedent(script), **options)
        done = runs.finish()
        assert done.code == 0, done.err
        return json.loads(done.out.splitlines()[-1]) if done.out else None

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to upload: text, a file in a folder, 3 MB of safetensors."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a model\n")
    (folder / "config.json").write_text('{"hidden_size": 32}\n')
    (folder / "1_Pooling" / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(safetensors_file(elements=750_000))
    return folder


def safetensors_file(elements: int) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [elements], "data_offsets": [0, elements * 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + (bytes(range(256)) * (elements // 64 + 1))[: elements * 4]


UPLOAD = """
    api.create_repo("me/model", exist_ok=True)
    info = api.upload_folder(repo_id="me/model", folder_path="model", commit_message="the model")
    show([info.oid, info.pr_url])
"""


def test_an_uploaded_folder_is_one_commit_with_the_same_bytes(hub: LoopbackHub, client: Client, folder: Path):
    oid, _ = client(UPLOAD)
    repo = hub.repos["me/model"]
    assert [commit.title for commit in repo.history()] == ["the model", "initial commit"]
    assert repo.head.sha == oid
    expected = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(repo.files) == {*expected, ".gitattributes"}
    assert repo.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert repo.head.files["model.safetensors"].lfs
    assert not repo.head.files["config.json"].lfs


def test_an_identical_upload_makes_no_commit_and_sends_no_object(hub: LoopbackHub, client: Client, folder: Path):
    assert client(UPLOAD) == client(UPLOAD)
    assert hub.count("POST", "/commit/") == 1
    assert hub.count("PUT", "/_lfs/") == 1


def test_a_changed_file_is_all_that_the_next_commit_holds(hub: LoopbackHub, client: Client, folder: Path):
    client(UPLOAD)
    (folder / "config.json").write_text('{"hidden_size": 64}\n')
    client(UPLOAD)
    after, before = (commit.files for commit in hub.repos["me/model"].history()[:2])
    assert [path for path in after if after[path] != before[path]] == ["config.json"]


def test_a_snapshot_is_of_the_revision_asked_for_and_is_read_offline_from_the_cache(hub: LoopbackHub, client: Client):
    repo = hub.add_repo("me/model", {"config.json": "old", "sub/model.safetensors": safetensors_file(10)})
    old = repo.head.sha
    hub.add_commit("me/model", {"config.json": "new"})
    read = "show(Path(snapshot_download('me/model', revision={!r}), 'config.json').read_text())"
    assert client(read.format(old)) == "old"
    assert client(read.format("main")) == "new"

    hub.requests.clear()
    assert client(read.format(old), offline=True) == "old"
    assert client(read.format("main"), offline=True) == "new"
    assert hub.requests == []


def test_a_moved_revision_is_seen(hub: LoopbackHub, client: Client):
    repo = hub.add_repo("me/model", {"config.json": "old"})
    stale = repo.head.sha
    hub.add_commit("me/model", {"config.json": "new"})
    script = f"""
    operation = CommitOperationAdd("config.json", b"mine")
    show(name_of_error(api.create_commit, "me/model", [operation], commit_message="x", parent_commit={stale!r}))
    """
    assert client(script) == ["HfHubHTTPError", 412]
    assert repo.files["config.json"] == b"new"


def test_a_revision_can_move_under_a_running_request(hub: LoopbackHub, client: Client):
    hub.add_repo("me/model", {"config.json": "old"})
    hub.fault("/resolve/main/", method="HEAD", call=lambda: hub.add_commit("me/model", {"config.json": "new"}))
    assert client("show(Path(hf_hub_download('me/model', 'config.json')).read_text())") == "new"


def test_headers_of_safetensors_are_read_by_range(hub: LoopbackHub, client: Client):
    hub.add_repo("me/model", {"model.safetensors": safetensors_file(1_000_000)})
    script = """
    found = api.parse_safetensors_file_metadata("me/model", "model.safetensors")
    whole = api.get_safetensors_metadata("me/model")
    show([found.parameter_count, whole.parameter_count, list(found.tensors["weight"].shape)])
    """
    assert client(script) == [{"F32": 1_000_000}, {"F32": 1_000_000}, [1_000_000]]
    assert {line.status for line in hub.requests if line.method == "GET" and "/resolve/" in line.path} == {206}


def test_infos_trees_and_history_are_listed(hub: LoopbackHub, client: Client):
    repo = hub.add_repo("me/model", {"config.json": "{}", "a/b/c.txt": "c", "model.bin": b"\0" * 9}, gated=True)
    script = """
    info = api.model_info("me/model", files_metadata=True)
    show([
        info.sha, info.gated, {file.rfilename: file.size for file in info.siblings},
        [item.path for item in api.list_repo_tree("me/model", recursive=True)],
        [commit.title for commit in api.list_repo_commits("me/model")], api.whoami()["name"],
    ])
    """
    assert client(script) == [
        repo.head.sha,
        "auto",
        {"a/b/c.txt": 1, "config.json": 2, "model.bin": 9},
        ["a", "a/b", "a/b/c.txt", "config.json", "model.bin"],
        ["initial commit"],
        "me",
    ]


def test_files_are_deleted(hub: LoopbackHub, client: Client):
    repo = hub.add_repo("me/model", {"keep": "1", "old": "2"})
    client('api.create_commit("me/model", [CommitOperationDelete("old")], commit_message="x")')
    assert set(repo.files) == {"keep"}


def test_a_pull_request_leaves_main_where_it_is(hub: LoopbackHub, client: Client):
    hub.add_user("other", "hf_other")
    repo = hub.add_repo("me/model", {"config.json": "{}"})
    main = repo.head.sha
    script = """
    one = api.upload_file(repo_id="me/model", path_or_fileobj=b"1", path_in_repo="new.bin", create_pr=True)
    api.upload_file(repo_id="me/model", path_or_fileobj=b"2", path_in_repo="more", revision=one.pr_revision)
    show([one.pr_num, one.pr_revision])
    """
    assert client(script) == [1, "refs/pr/1"]
    assert repo.head.sha == main
    assert set(repo.resolve("refs/pr/1").files) == {"config.json", "new.bin", "more"}

    # Somebody without rights may open one too, and may not commit.
    upload = 'name_of_error(api.upload_file, repo_id="me/model", path_or_fileobj=b"1", path_in_repo="x", create_pr={})'
    assert client(f"show([{upload.format(True)}, {upload.format(False)}])", token="hf_other") == [
        None,
        ["HfHubHTTPError", 403],
    ]


def test_missing_things_are_told_apart(client: Client, hub: LoopbackHub):
    hub.add_repo("me/model", {"config.json": "{}"})
    script = """
    show([
        name_of_error(hf_hub_download, "me/missing", "config.json"),
        name_of_error(hf_hub_download, "me/model", "missing"),
        name_of_error(hf_hub_download, "me/model", "config.json", revision="missing"),
        name_of_error(snapshot_download, "me/model", revision="missing"),
    ])
    """
    assert client(script) == [
        ["RepositoryNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404],
        ["RevisionNotFoundError", 404],
        ["RevisionNotFoundError", 404],
    ]


def test_rights_are_checked(client: Client, hub: LoopbackHub):
    hub.add_user("reader", "hf_reader", write=False)
    hub.add_repo("me/private", {"config.json": "{}"}, private=True)
    gated = hub.add_repo("me/gated", {"config.json": "{}"}, gated=True)
    script = """
    show([
        name_of_error(api.whoami),
        name_of_error(api.create_repo, "me/new"),
        name_of_error(api.model_info, "me/private"),
        name_of_error(api.model_info, "me/gated"),
        name_of_error(hf_hub_download, "me/gated", "config.json"),
    ])
    """
    nobody, bad = client(script, token=None), client(script, token="hf_bad")
    assert nobody[1:] == [
        ["HfHubHTTPError", 401],
        ["RepositoryNotFoundError", 401],
        None,
        ["GatedRepoError", 401],
    ]
    assert bad == [["HfHubHTTPError", 401]] * 4 + [bad[4]]
    assert client(script, token="hf_reader") == [
        None,
        ["HfHubHTTPError", 403],
        ["RepositoryNotFoundError", 404],
        None,
        ["GatedRepoError", 403],
    ]
    gated.allowed.add("reader")
    assert client(script, token="hf_reader")[4] is None
    assert client(script) == [None] * 5


def test_invalid_metadata_is_refused_before_anything_is_sent(hub: LoopbackHub, client: Client, folder: Path):
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    script = """
    api.create_repo("me/model")
    show(name_of_error(api.upload_folder, repo_id="me/model", folder_path="model"))
    """
    assert client(script) == ["ValueError", None]
    assert hub.count("PUT") == 0


def test_a_lost_reply_is_an_error_although_the_commit_landed(hub: LoopbackHub, client: Client, folder: Path):
    hub.fault("/commit/", method="POST", drop="reply")
    script = """
    api.create_repo("me/model")
    show(name_of_error(api.upload_folder, repo_id="me/model", folder_path="model", commit_message="the model"))
    """
    name, status = client(script)
    assert (name, status) in {("RemoteProtocolError", None), ("ReadError", None)}
    assert hub.repos["me/model"].head.title == "the model"
    assert client(UPLOAD)[0] == hub.repos["me/model"].head.sha
    assert hub.count("POST", "/commit/") == 1


def test_a_commit_of_an_object_that_never_arrived_is_refused(hub: LoopbackHub, client: Client, folder: Path):
    hub.fault("/commit/", method="POST", call=hub.lfs.clear)
    script = """
    api.create_repo("me/model")
    show(name_of_error(api.upload_folder, repo_id="me/model", folder_path="model"))
    """
    assert client(script) == ["BadRequestError", 400]
