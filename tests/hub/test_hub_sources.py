"""Hub ids are read with the real client, here against a loopback Hub: by revision, cached, offline from the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_runs import Client

from hub_server import LoopbackHub
from tiny import save_tiny

pytestmark = pytest.mark.xdist_group("hub_sources")
SMALL = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "--no-verify")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("source") / "tiny", "bert", "ForMaskedLM")


@pytest.fixture
def hub(checkpoint):
    with LoopbackHub() as hub:
        hub.add_folder("me/tiny", checkpoint)
        yield hub


@pytest.fixture
def effconv(hub, tmp_path):
    """Runs the command line against the hub, with a cache of its own."""
    return Client(hub, tmp_path)


def manifest(folder: Path) -> dict:
    return json.loads((folder / "effconv.json").read_text())


def payload_requests(hub) -> list:
    return [
        request for request in hub.requests if request.method == "GET" and request.path.endswith("model.safetensors")
    ]


def test_a_hub_id_is_converted_and_its_commit_recorded(effconv, hub, tmp_path):
    run = effconv("lsg", "me/tiny", *SMALL)
    assert run.code == 0, run.err
    made = manifest(tmp_path / "lsg-tiny-128")
    assert made["source"] == {"name": "tiny", "hub_id": "me/tiny", "commit": hub.repos["me/tiny"].head.sha}
    card = (tmp_path / "lsg-tiny-128" / "README.md").read_text()
    assert "base_model: me/tiny" in card


def test_a_revision_is_pinned(effconv, hub, tmp_path):
    first = hub.repos["me/tiny"].head.sha
    hub.add_commit("me/tiny", {"config.json": "{}"}, "break it")
    assert effconv("lsg", "me/tiny", *SMALL).code == 3
    run = effconv("lsg", "me/tiny", "--revision", first, *SMALL)
    assert run.code == 0, run.err
    assert manifest(tmp_path / "lsg-tiny-128")["source"]["commit"] == first


def test_the_plan_of_a_hub_source_reads_headers_and_no_payload(effconv, hub, checkpoint, tmp_path):
    run = effconv("lsg", "me/tiny", "--plan", "--json", *SMALL)
    assert run.code == 0, run.err
    assert json.loads(run.out)["counts"]["copy"] > 20
    blobs = [path for path in (tmp_path / "hf-home").rglob("*") if path.is_file() and path.stat().st_size > 50_000]
    assert not blobs, "the weights were fetched into the cache"


def test_inspect_reads_headers_and_no_payload(effconv, tmp_path):
    run = effconv("inspect", "me/tiny", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["head"] == "ForMaskedLM"


def test_offline_reads_the_cache_and_opens_no_socket(effconv, hub, tmp_path):
    assert effconv("lsg", "me/tiny", *SMALL).code == 0
    before = len(hub.requests)
    for how in (("--offline",), ()):
        run = effconv.alone("lsg", "me/tiny", *SMALL, *how, "-o", f"again{len(how)}", offline=not how)
        assert run.code == 0, run.err
        assert run.sockets == ()
        assert manifest(tmp_path / f"again{len(how)}")["source"]["commit"] == hub.repos["me/tiny"].head.sha
    assert len(hub.requests) == before


def test_offline_without_a_cached_copy_is_a_clear_error(effconv, hub):
    run = effconv.alone("lsg", "me/tiny", "--offline", *SMALL)
    assert run.code == 6
    assert run.sockets == ()
    assert "me/tiny is not in the Hub cache of this machine, and offline mode is on (--offline)" in run.err
    assert "run once without --offline" in run.err
    assert "local_files_only" not in run.err  # the client's own advice, which no command can follow
    assert not hub.requests


def test_an_unchanged_source_is_not_fetched_again(effconv, hub):
    assert effconv("lsg", "me/tiny", *SMALL).code == 0
    hub.requests.clear()
    assert effconv("lsg", "me/tiny", "-o", "again", *SMALL).code == 0
    assert not [request for request in payload_requests(hub) if request.status == 200]


@pytest.mark.parametrize(
    ("hub_id", "prepare", "code", "words"),
    [
        ("me/nothing", None, 6, "check the spelling"),
        ("me/gated", "gated", 6, "accept its conditions"),
        ("me/tiny --revision nowhere", None, 6, "--revision"),
        ("me/evil", "evil", 4, "outside"),
    ],
)
def test_what_the_hub_refuses_is_a_clear_error(effconv, hub, checkpoint, tmp_path, hub_id, prepare, code, words):
    if prepare == "gated":
        hub.add_user("other", "hf_other")
        hub.add_repo("other/gated", {"config.json": "{}"}, gated=True)
        hub_id = "other/gated"
    if prepare == "evil":
        index = json.dumps({"weight_map": {"a": "../../x.safetensors"}})
        hub.add_repo(
            "me/evil", {"config.json": (checkpoint / "config.json").read_bytes(), "model.safetensors.index.json": index}
        )
    run = effconv("lsg", *hub_id.split(), *SMALL)
    assert run.code == code, run.err
    assert words in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["hf-home"]


def test_a_hub_that_is_not_there_is_a_clear_error(effconv):
    run = effconv("lsg", "me/tiny", *SMALL, HF_ENDPOINT="http://127.0.0.1:9")
    assert run.code == 6, run.err
    assert "HF_ENDPOINT" in run.err


def test_a_dropped_download_leaves_nothing_behind(effconv, hub, tmp_path):
    hub.fault(r"model\.safetensors$", method="GET", times=99, skip=1, drop="download", after=20_000)
    run = effconv("lsg", "me/tiny", *SMALL)
    assert run.code == 6, run.err
    assert not (tmp_path / "lsg-tiny-128").exists()
