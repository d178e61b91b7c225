"""What a person wrote in a card outlives every command that writes the card anew, and stays known as theirs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import effconv
from effconv.adapt.publish import publish_trained
from effconv.adapt.results import copy_repo
from effconv.convert.errors import BadInputError
from effconv.convert.repo.card_blocks import blocks, with_block
from effconv.convert.repo.manifest import read_manifest
from effconv.convert.repo.old_card import OldCard, old_card
from effconv.hub.content import Theirs, card_of, files_to_send
from effconv.targets.registry import target_named
from tiny import save_tiny

SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}
WORDS = "\nI wrote this.\n"


@dataclass(frozen=True)
class Run:
    """A training whose result is published."""

    folder: Path
    output: Path
    overwrite: bool = True
    verify: bool = False
    trust_remote_code: bool = False

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    @property
    def target(self) -> Any:
        return target_named("lsg")

    @property
    def options(self) -> Run:
        return self


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("cards") / "source")


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return effconv.convert(source, "lsg", output=tmp_path_factory.mktemp("cards") / "repo", **SMALL).output


@pytest.fixture
def repo(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "repo"))


def write_in(repo: Path, words: str = WORDS) -> None:
    with (repo / "README.md").open("a", encoding="utf-8") as card:
        card.write(words)


def card_in(repo: Path) -> OldCard:
    return old_card(repo, read_manifest(repo))


def publish(run: Run) -> None:
    """As adapt, pretrain and finetune end."""

    def write(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
        new = {**run.manifest, "adapted": [{"effconv": "1", "by": "test"}]}
        return new, copy_repo(run.folder, folder, new, {})

    def add_results(folder: Path, manifest: dict[str, Any], card: str) -> str:
        return with_block(card, "test", "Trained.", heading="A training")

    publish_trained(run, write, add_results, source=None, progress=lambda *_: None)


def test_a_card_that_nobody_edited_is_generated_again_and_stays_unedited(repo, source, tmp_path):
    assert not card_in(repo).edited
    publish(Run(repo, tmp_path / "out"))
    assert not card_in(tmp_path / "out").edited
    effconv.convert(source, "lsg", output=repo, overwrite=True, **SMALL)
    assert not card_in(repo).edited


def test_words_written_before_a_training_stay_and_stay_a_persons(repo, tmp_path):
    write_in(repo)
    publish(Run(repo, tmp_path / "out"))
    found = card_in(tmp_path / "out")
    assert WORDS in found.text
    assert blocks(found.text)["test"] == "Trained."
    assert found.edited
    effconv.refresh(tmp_path / "out", verify=False)
    assert card_in(tmp_path / "out").edited
    assert WORDS in card_in(tmp_path / "out").text


def test_they_win_over_an_edited_card_on_the_hub(repo, tmp_path):
    """Where the card here passed for a generated one, a push would take the text of the Hub's in its place."""
    write_in(repo)
    publish(Run(repo, tmp_path / "out"))
    manifest = read_manifest(tmp_path / "out")
    theirs = Theirs(card_in(repo).text.replace(WORDS, "\nOurs.\n"), manifest)
    assert theirs.edited
    assert WORDS in card_of(files_to_send(tmp_path / "out", manifest, "me/long", theirs=theirs))


def test_words_in_a_result_outlive_its_next_run(repo, tmp_path):
    out = tmp_path / "out"
    publish(Run(repo, out))
    write_in(out)
    publish(Run(repo, out))
    assert card_in(out).edited
    assert card_in(out).text.endswith(WORDS)


def test_overwriting_the_same_model_keeps_the_words(repo, source):
    write_in(repo)
    effconv.convert(source, "lsg", output=repo, overwrite=True, **{**SMALL, "block_size": 32, "sparse_block_size": 32})
    assert card_in(repo).edited
    assert card_in(repo).text.endswith(WORDS)
    assert "--block-size 32" in card_in(repo).text


def test_overwriting_another_model_replaces_its_card(repo, source):
    """Title and front matter would be those of the other model."""
    write_in(repo)
    effconv.convert(source, "lsg", output=repo, overwrite=True, **{**SMALL, "max_length": 256})
    assert not card_in(repo).edited
    assert WORDS not in card_in(repo).text


def test_a_repo_that_was_trained_in_place_keeps_them(repo):
    write_in(repo)
    weights = repo / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    effconv.adopt(repo, verify=False)
    assert card_in(repo).edited
    assert WORDS in card_in(repo).text


def test_a_broken_card_is_refused_by_its_path(repo, source, tmp_path):
    write_in(repo, "<!-- effconv:mine -->")
    with pytest.raises(BadInputError, match="mine") as refused:
        publish(Run(repo, tmp_path / "out"))
    assert str(repo / "README.md") in refused.value.where
    assert not (tmp_path / "out").exists()
    before = sorted(repo.iterdir())
    with pytest.raises(BadInputError, match="mine"):
        effconv.convert(source, "lsg", output=repo, overwrite=True, **SMALL)
    assert sorted(repo.iterdir()) == before
