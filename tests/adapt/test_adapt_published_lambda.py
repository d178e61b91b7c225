"""Training a published LambdaBERT (`effconv lambda --groups 1`), whose layers are none of the stock encoder's."""

from __future__ import annotations

import json

import pytest
import torch
from adapt_text import write_wiki

import effconv
from effconv.adapt.models import load_pair, select
from effconv.adapt.recipes import phases_of
from tiny import save_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_wiki(tmp_path_factory.mktemp("text") / "a.txt", count=14, words=400)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("adapt") / "source", "bert", "ForMaskedLM")


@pytest.fixture(scope="module")
def repo(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("repo") / "lambda"
    options = {"max_length": 64, "groups": "1", "key_depth": 4, "num_lambda_queries": 8}
    return effconv.convert(source, "lambda", output=output, verify=False, **options).output


def test_it_comes_closer_to_its_source(repo, source, text, tmp_path, monkeypatch):
    monkeypatch.setattr("effconv.adapt.results.draw", lambda path, record: False)
    fast = {"batch_tokens": 256, "evaluate_every": 4, "verify": False, "steps": 8, "lengths": "32"}
    trained = effconv.adapt(repo, teacher=source, data=[text], output=tmp_path / "out", **fast)
    before, after = (trained.record[name][0]["token_cosine"] for name in ("before", "after"))
    assert after > before


def test_train_attention_chooses_the_lambda_layers(repo, source):
    manifest = json.loads((repo / "effconv.json").read_text())
    phases = phases_of("hidden")
    pair = load_pair(repo, source, manifest, phases, trust_remote_code=False)
    chosen = select(pair, "attention", phases[0], frozenset())
    assert chosen
    assert all(".lambdalayer." in name for name in chosen)
    assert {name.split(".")[3] for name in chosen} == {"0", "1"}
