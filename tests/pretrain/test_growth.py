"""A model that is pretrained on short texts, grows, and is pretrained on long ones: LSG, and BiGS through JAX too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapt_text import documents
from tiers import daily

import effconv
from tiny import save_tokenizer

torch.set_num_threads(1)
SIZES = {"layers": 2, "hidden": 32, "intermediate": 48}
LSG = {"heads": 2, "block_size": 16, "sparse_block_size": 16}
RUN = {"documents": "heading", "across_documents": True, "heldout_share": 0.3, "dropout": 0.0, "learning_rate": 2e-3}


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr("effconv.pretrain.results.draw", lambda path, record: False)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("".join(f" = on {i} = \n{document}\n" for i, document in enumerate(documents(20, 200))))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, "bert", 4096)
    return str(folder)


def pretrain(repo: Path, text: Path, output: Path, steps: int, batch: int, *, verify: bool) -> dict:
    trained = effconv.pretrain(repo, data=text, output=output, steps=steps, batch_size=batch, verify=verify, **RUN)
    return {"before": trained.record["before"][0], "after": trained.record["after"][0]}


def chain_of(repo: Path) -> list[tuple]:
    """What a repo says of how its weights came about."""
    manifest = json.loads((repo / "effconv.json").read_text())
    entries = [*manifest["source"]["trained"], *manifest["adapted"]]
    return [(entry["by"], entry.get("objective"), entry.get("steps"), entry.get("length")) for entry in entries]


def grow(target: str, source: Path, output: Path, length: int, *, verify: bool) -> Path:
    effconv.convert(source, target, max_length=length, output=output, verify=verify)
    return output


@pytest.mark.parametrize("target", daily(["bigs"], of=["lsg", "bigs"]))
def test_a_grown_model_begins_where_the_short_one_ended(target, text, tokenizer, tmp_path):
    """On texts of the old length the grown model gives the same loss; and its card names each training."""
    short, long = 32, 128
    sizes = {**SIZES, **(LSG if target == "lsg" else {})}
    effconv.new(target, length=short, tokenizer=tokenizer, output=tmp_path / "new", verify=False, **sizes)
    first = pretrain(tmp_path / "new", text, tmp_path / "first", 12, 8, verify=False)
    grown = grow(target, tmp_path / "first", tmp_path / "grown", long, verify=False)
    effconv.pretrain(
        grown, data=text, output=tmp_path / "same", steps=1, length=short, batch_size=1, verify=False, **RUN
    )
    again = json.loads((tmp_path / "same" / "effconv.json").read_text())["measurements"]["pretrain"][-1]["before"][0]
    assert again["mlm_loss"] == pytest.approx(first["after"]["mlm_loss"], rel=1e-4)
    second = pretrain(grown, text, tmp_path / "second", 8, 4, verify=False)
    assert second["after"]["tokens"] == long
    assert second["after"]["mlm_loss"] < second["before"]["mlm_loss"] < first["before"]["mlm_loss"]
    assert chain_of(tmp_path / "second") == [
        ("new", None, None, None),
        ("pretrain", "mlm", 12, short),
        ("pretrain", "mlm", 8, long),
    ]
    card = (tmp_path / "second" / "README.md").read_text()
    assert "1. random weights\n2. pretrain mlm, 12 steps of up to 32 tokens\n3. pretrain mlm, 8 steps" in card


@pytest.mark.nightly
@pytest.mark.parametrize(("target", "lengths"), [("lsg", (512, 2048, 16384)), ("bigs", (128, 512, 4096))])
def test_a_model_grows_to_the_published_lengths(target, lengths, text, tokenizer, tmp_path):
    """Every grown repo and the last trained one are verified. BiGS goes through JAX before its last growth."""
    sizes = {**SIZES, **(LSG if target == "lsg" else {})}
    repo = tmp_path / "new"
    effconv.new(target, length=lengths[0], tokenizer=tokenizer, output=repo, verify=False, **sizes)
    for number, length in enumerate(lengths):
        if number:  # grown from the trained one before
            source, how = repo, target
            if target == "bigs" and number == len(lengths) - 1:
                effconv.convert(repo, "torch2jax", output=tmp_path / "jax")
                source, how = tmp_path / "jax", "jax2torch"
            repo = grow(how, source, tmp_path / f"grown-{length}", length, verify=True)
        trained = tmp_path / f"trained-{length}"
        figures = pretrain(repo, text, trained, 2, 1, verify=length == lengths[-1])
        assert figures["after"]["tokens"] == length
        repo = trained
    assert [entry[3] for entry in chain_of(repo)] == [None, *lengths]
