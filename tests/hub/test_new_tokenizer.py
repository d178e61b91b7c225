"""A new model's tokenizer by Hub id: fetched, copied, and named by commit."""

from __future__ import annotations

import json

import pytest
from hub_runs import Client

from hub_server import LoopbackHub
from tiny import save_tokenizer

pytestmark = pytest.mark.xdist_group("hub_sources")
SMALL = ("--length", "64", "--layers", "1", "--hidden", "32", "--heads", "4", "--no-verify")


def test_a_tokenizer_of_the_hub_is_copied_and_its_commit_recorded(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    words = save_tokenizer(folder, "bert", 32)
    with LoopbackHub() as hub:
        hub.add_folder("me/words", folder)
        effconv = Client(hub, tmp_path)
        run = effconv("new", "dense", "--tokenizer", "me/words", *SMALL, "-o", "made")
        assert run.code == 0, run.err
        manifest = json.loads((tmp_path / "made" / "effconv.json").read_text())
        commit = hub.repos["me/words"].head.sha
        assert manifest["source"]["random"]["tokenizer"] == {"hub_id": "me/words", "commit": commit}
        assert f"--tokenizer me/words --revision {commit}" in (tmp_path / "made" / "README.md").read_text()
        assert json.loads((tmp_path / "made" / "config.json").read_text())["vocab_size"] == words
        settings = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == 64
        again = effconv("new", "dense", "--tokenizer", "me/words", "--offline", *SMALL, "-o", "again")
        assert again.code == 0, again.err
        missing = effconv("new", "dense", "--tokenizer", "me/nothing", *SMALL, "-o", "third")
        assert missing.code == 6
        assert not (tmp_path / "third").exists()
        assert effconv("push-to-hub", "made", "me/made", "--dry-run", "--license", "mit").code == 0
