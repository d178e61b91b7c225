"""`effconv adapt --train positions`: what texts of the source's length use keeps its bytes and its outputs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from adapt_text import write_wiki
from safetensors.numpy import load_file
from tiers import daily

import effconv
from effconv.convert.errors import UnsupportedError, UsageError
from tiny import save_tiny

BLOCKS = {"max_length": 200, "block_size": 16, "sparse_block_size": 16}
ROWS = {"bert": 64, "roberta": 66}  # of the source's table: RoBERTa begins at row 2
TABLE = "embeddings.position_embeddings.weight"
OPTIONS = {"steps": 3, "batch_tokens": 256, "evaluate_every": 3, "lengths": "160", "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_wiki(tmp_path_factory.mktemp("text") / "a.txt", count=14, words=400)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sources that take 64 tokens, and LSG repos of them that take 200: two copies behind the first, and a part."""
    folder = tmp_path_factory.mktemp("made")
    for family in ROWS:
        save_tiny(folder / family, family, "ForMaskedLM")
        effconv.convert(folder / family, "lsg", output=folder / f"lsg-{family}", verify=False, **BLOCKS)
    return folder


@pytest.fixture(autouse=True)
def _last_state_without_a_plot(monkeypatch):
    order = itertools.count()
    monkeypatch.setattr("effconv.adapt.trainer.score", lambda rows: next(order))
    monkeypatch.setattr("effconv.adapt.results.draw", lambda path, record: False)


def tables(*repos):
    found = []
    for repo in repos:
        tensors = load_file(repo / "model.safetensors")
        (name,) = (name for name in tensors if name.endswith(TABLE))
        found.append((tensors.pop(name), tensors))
    return found


@pytest.mark.parametrize(
    ("family", "train"),
    daily(
        [("roberta", "positions"), ("bert", "offsets")],
        of=list(itertools.product(ROWS, ("positions", "offsets"))),
    ),
)
def test_only_rows_behind_the_sources_change(family, train, made, text, tmp_path):
    repo, verify = made / f"lsg-{family}", (family, train) == ("roberta", "positions")
    effconv.adapt(
        repo, teacher=made / family, data=text, output=tmp_path / "out", train=train, objective="hidden",
        verify=verify, **OPTIONS,
    )  # fmt: skip
    (before, others), (after, rest) = tables(repo, tmp_path / "out")
    assert all(others[name].tobytes() == rest[name].tobytes() for name in others)
    first = ROWS[family]
    assert before[:first].tobytes() == after[:first].tobytes()
    moved = (after - before)[first:]
    trained = moved[: 160 - 64]  # texts of 160 tokens use no row behind
    assert np.abs(trained).max(axis=1).min() > 1e-4
    if train == "offsets":
        for copy in np.split(moved, [64, 128]):
            assert np.abs(copy - copy[:1]).max() < 1e-6
        assert np.abs(moved[0] - moved[64]).max() > 1e-4
        assert np.abs(moved[128:]).max() == 0
    else:
        assert np.abs(trained[1:] - trained[:1]).max() > 1e-4
    if verify:  # it still equals its source up to two blocks, and the manifest says so
        passed = {check["name"]: check["passed"] for check in manifest_of(tmp_path / "out")["measurements"]["checks"]}
        assert passed["equal_to_source"] is passed["stock_attention_equals_source"] is True


def manifest_of(repo):
    return json.loads((repo / "effconv.json").read_text(encoding="utf-8"))


def test_short_texts_give_what_they_gave(made, text, tmp_path):
    repo = made / "lsg-bert"
    effconv.adapt(repo, data=text, output=tmp_path / "out", train="positions", objective="mlm", verify=False, **OPTIONS)
    models = [effconv.load(folder).eval() for folder in (repo, tmp_path / "out")]
    generator = torch.Generator().manual_seed(0)
    for tokens, same in ((7, True), (64, True), (150, False)):
        ids = torch.randint(5, 60, (2, tokens), generator=generator)
        with torch.no_grad():
            one, other = (model(input_ids=ids).logits for model in models)
        assert (float((one - other).abs().max()) <= 1e-6) is same, tokens


def test_what_has_no_new_positions_is_refused(made, text, tmp_path):
    def refused(kind, words, repo, **options):
        with pytest.raises(kind, match=words) as error:
            effconv.adapt(repo, data=text, output=tmp_path / "out", train="positions", verify=False, **options)
        assert error.value.hint
        assert not (tmp_path / "out").exists()

    mlm = {"objective": "mlm", "steps": 1, "batch_tokens": 256}
    refused(UsageError, "nothing to train: texts of up to 64", made / "lsg-bert", lengths="64", **mlm)
    effconv.convert(made / "bert", "lsg", output=tmp_path / "short", verify=False, **{**BLOCKS, "max_length": 64})
    refused(UsageError, "nothing to train", tmp_path / "short", **mlm)
    save_tiny(tmp_path / "t5", "t5", "Model")
    effconv.convert(tmp_path / "t5", "lsg", output=tmp_path / "lsg-t5", verify=False, **BLOCKS)
    refused(
        UnsupportedError, "no table of learned positions", tmp_path / "lsg-t5",
        teacher=tmp_path / "t5", objective="hidden", lengths="160", steps=1, batch_tokens=256,
    )  # fmt: skip
