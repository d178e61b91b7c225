"""`effconv adapt` on tiny models: the objectives against the models themselves, and what a run leaves behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapt_text import write_wiki
from bigs_goldens import ROOT
from environments import FOUR, strangers_output
from places import SUPPORT
from safetensors.numpy import load_file
from tiers import daily

import effconv
from effconv.adapt import objectives
from effconv.adapt.batches import batches, masked
from effconv.adapt.contrastive import PIECES, Pieces, cut_pieces
from effconv.adapt.heldout import score
from effconv.adapt.models import load_pair, new_tensors, select
from effconv.adapt.objectives import Objective, attended, scales_of
from effconv.adapt.recipes import phases_of
from effconv.adapt.teacher import lesson
from effconv.convert.errors import (
    BadInputError,
    CheckFailedError,
    OutputError,
    StoppedError,
    UnsupportedError,
    UsageError,
)
from effconv.convert.repo.card_blocks import blocks
from effconv.data.documents import read_corpus
from tiny import save_tiny, wordpiece_vocab

torch.set_num_threads(1)
FAMILIES = ("bert", "roberta", "electra", "distilbert", "albert", "xlm-roberta-xl", "ernie")
SMALL = {
    "linformer": {"max_length": 64, "proj_dim": 16},
    "lambda": {"max_length": 64, "key_depth": 4, "local_context": 5},
    "transnormer": {"max_length": 64, "block_size": 16},
    "lsg": {"max_length": 128, "block_size": 16, "sparse_block_size": 16},
}
FAST = {"batch_tokens": 256, "evaluate_every": 4, "verify": False}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_wiki(tmp_path_factory.mktemp("text") / "a.txt", count=14, words=400)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("adapt") / "source", "bert", "ForMaskedLM")


@pytest.fixture(scope="module")
def repos(source, text, tmp_path_factory):
    """A repo of each target from one source."""
    place, made = tmp_path_factory.mktemp("repos"), {}
    for target, options in SMALL.items():
        fitted = {"calibrate": (text,)} if target in ("lambda", "transnormer") else {}
        made[target] = place / target
        effconv.convert(source, target, output=made[target], verify=False, **options, **fitted)
    return made


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """A run collects garbage at its end: what was imported before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_plot(request, monkeypatch):
    """A plot is a third of a short run: one test looks at it."""
    if "plot" not in request.node.name:
        monkeypatch.setattr("effconv.adapt.results.draw", lambda path, record: False)


@pytest.fixture
def keep_last(monkeypatch):
    """The last state is kept, whether or not it is the best."""
    order = itertools.count()
    monkeypatch.setattr("effconv.adapt.trainer.score", lambda rows: next(order))


def pair_of(repo, teacher, objective="attention"):
    manifest = json.loads((repo / "effconv.json").read_text())
    return load_pair(repo, teacher, manifest, phases_of(objective), trust_remote_code=False)


def far_apart(pair):
    """The pair with a student that is not close to its teacher: a loss near zero keeps few of the states' digits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pair


def batch_of(pair, text, length, tokens=128):
    corpus = read_corpus([str(text)], [], pair.tokenizer, pair.student.get_input_embeddings().num_embeddings, seed=0)
    return next(batches(corpus, [length], tokens, seed=0))


# Objectives


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_equals_its_teacher_has_no_loss(family, text, tmp_path):
    """Up to proj_dim tokens a Linformer is its source: what the student does must be what the teacher did, anywhere."""
    save_tiny(tmp_path / "source", family, "ForMaskedLM")
    effconv.convert(tmp_path / "source", "linformer", output=tmp_path / "repo", verify=False, **SMALL["linformer"])
    pair = pair_of(tmp_path / "repo", tmp_path / "source", "attention+hidden+logits")
    batch = batch_of(pair, text, 16)
    taught = lesson(pair, batch.ids)
    layers = pair.student_layers()
    assert len(taught.states) == len(layers) + 1 == len(taught.attended) + 1 == 3
    for layer, given, wanted in zip(layers, taught.inputs, taught.attended, strict=True):
        torch.testing.assert_close(attended(pair, layer, given), wanted, rtol=1e-5, atol=1e-5)
    run = Objective(pair, ("attention", "hidden", "logits"), scales_of([taught]))
    with torch.no_grad():
        losses, longer = run(batch), run(batch_of(pair, text, 48))
    assert all(abs(float(loss)) < 1e-6 for loss in losses.values()), losses
    assert all(float(loss) > 1e-6 for loss in longer.values()), longer


def test_losses_are_the_written_out_formulas(repos, source, text):
    pair = pair_of(repos["transnormer"], source, "attention+hidden+logits+mlm")
    batch = masked(batch_of(pair, text, 32), 0.15, pair.tokenizer.mask_token_id, 90, False, (0,))
    taught = lesson(pair, batch.ids)
    scales = scales_of([taught])
    found = Objective(pair, ("attention", "hidden", "logits", "mlm"), scales)(batch)
    with torch.no_grad():
        student = pair.student(batch.ids, output_hidden_states=True)
        errors = [attended(pair, *parts) for parts in zip(pair.student_layers(), taught.inputs, strict=True)]

    def relative(a, b):
        a, b = a.double().flatten(0, 1), b.double().flatten(0, 1)
        return ((a - b) ** 2).sum(1).mean() / ((b - b.mean(0)) ** 2).sum(1).mean()

    attention = torch.stack([relative(a, b) for a, b in zip(errors, taught.attended, strict=True)]).mean()
    states = list(zip(student.hidden_states[1:], taught.states[1:], strict=True))
    a, b = (x.double().flatten(0, 1) for x in states[-1])
    cosine = ((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).mean()
    hidden = torch.stack([relative(*pair_) for pair_ in states]).mean() + 1 - cosine
    p, q = taught.logits.double().softmax(-1), student.logits.double().softmax(-1)
    logits = (p * (p / q).log()).sum(-1).mean()
    with torch.no_grad():
        guessed = pair.student(batch.masked_ids).logits.double().softmax(-1)
    places = batch.labels != -100
    mlm = -guessed[places].gather(1, batch.labels[places][:, None]).log().mean()
    for name, wanted in (("attention", attention), ("hidden", hidden), ("logits", logits), ("mlm", mlm)):
        assert float(found[name]) == pytest.approx(float(wanted), rel=1e-4), name


@pytest.mark.parametrize("objective", ["attention", "hidden", "logits", "mlm"])
def test_the_losses_of_a_batchs_parts_add_up_to_its_own(objective, repos, source, text):
    pair = far_apart(pair_of(repos["lambda"], source, objective))
    batch = masked(batch_of(pair, text, 32, tokens=160), 0.15, pair.tokenizer.mask_token_id, 90, False, (0,))
    run = Objective(pair, (objective,), scales_of([lesson(pair, batch.ids)]))
    with torch.no_grad():
        whole = float(run(batch)[objective])
        parts = [float(run(part)[objective]) for part, counts in (batch.part(i, 3) for i in range(3)) if counts]
    assert len(parts) == 3
    assert whole > 0.1
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_a_long_text_is_taught_on_the_teachers_windows(repos, source, text):
    """Windows of 62 tokens and their two special ones, by the stock model alone."""
    import transformers

    pair = pair_of(repos["lsg"], source, "hidden+sentence")
    batch = batch_of(pair, text, 126)
    found = lesson(pair, batch.ids)
    stock = transformers.AutoModel.from_pretrained(source).eval()
    body, (first, last) = batch.ids[:, 1:-1], (batch.ids[:, :1], batch.ids[:, -1:])
    with torch.no_grad():
        one, two = (stock(torch.cat([first, part, last], 1)).last_hidden_state for part in (body[:, :62], body[:, 62:]))
    torch.testing.assert_close(found.states[-1], torch.cat([one[:, :-1], two[:, 1:]], 1), rtol=1e-5, atol=1e-5)
    wanted = sum(torch.nn.functional.normalize(part.mean(1), dim=-1) for part in (one, two)) / 2
    torch.testing.assert_close(found.embedding, wanted, rtol=1e-5, atol=1e-5)
    losses = Objective(pair, ("hidden", "sentence"), scales_of([lesson(pair, batch.ids[:, :64])]))(batch)
    with torch.no_grad():
        embedding = pair.student(batch.ids, output_hidden_states=True).hidden_states[-1].mean(1)
    cosine = (embedding * wanted).sum(1) / embedding.norm(dim=1) / wanted.norm(dim=1)
    assert losses["sentence"].item() == pytest.approx(float(1 - cosine.mean()), rel=1e-4)


def contrasted(repo, source, text):
    """A pair, and a batch of three texts of 128 tokens with its pieces, which one such batch came before."""
    pair = pair_of(repo, source, "hidden+contrastive")
    corpus = read_corpus([str(text)], [], pair.tokenizer, pair.student.get_input_embeddings().num_embeddings, seed=0)
    stream, pieces = batches(corpus, [128], 384, seed=0), Pieces(pair, 8, 7, torch.device("cpu"))
    earlier = pieces.add(next(stream), 0)
    return pair, earlier, pieces.add(next(stream), 1)


def test_a_long_text_is_contrasted_with_the_pieces_of_others(repos, source, text):
    """The loss by a loop over pieces; the pieces embedded by the stock model alone."""
    import transformers

    pair, earlier, batch = contrasted(repos["lsg"], source, text)
    cut = cut_pieces(batch.ids, batch.special, PIECES, 8, (7, 3, 1))
    assert cut.shape == (3, PIECES, 8)
    stock = transformers.AutoModel.from_pretrained(source).eval()
    for row, pieces, embedded in zip(batch.ids.tolist(), cut.tolist(), batch.pieces, strict=True):
        body = [tuple(row[i : i + 8]) for i in range(1, 127 - 8 + 1)]
        assert {tuple(piece) for piece in pieces} <= set(body)
        with torch.no_grad():
            states = stock(torch.tensor([[row[0], *piece, row[-1]] for piece in pieces])).last_hidden_state
        wanted = torch.nn.functional.normalize(states.mean(1), dim=-1)
        torch.testing.assert_close(embedded, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(batch.before, earlier.pieces.flatten(0, 1))
    assert not len(earlier.before)

    with torch.no_grad():
        states = pair.student(batch.ids, output_hidden_states=True).hidden_states[-1].mean(1).double()
        found = float(Objective(pair, ("contrastive",), None)(batch)["contrastive"])
    total = 0.0
    for i, document in enumerate(states / states.norm(dim=1, keepdim=True)):
        others = [piece for j in range(3) if j != i for piece in batch.pieces[j]] + list(batch.before)
        wrong = sum(math.exp(float(document @ other.double()) / 0.05) for other in others)
        for piece in batch.pieces[i]:
            right = math.exp(float(document @ piece.double()) / 0.05)
            total -= math.log(right / (right + wrong))
    assert found == pytest.approx(total / (3 * PIECES), rel=1e-4)


def test_the_contrastive_losses_of_a_batchs_parts_add_up_and_the_first_text_has_none(repos, source, text):
    pair, earlier, batch = contrasted(repos["lsg"], source, text)
    run = Objective(pair, ("contrastive",), None)
    with torch.no_grad():
        whole = float(run(batch)["contrastive"])
        parts = [float(run(batch.part(i, 2)[0])["contrastive"]) for i in range(2)]
    assert all(parts)
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    alone = replace(earlier.part(0, 3)[0], rows=1, pieces=earlier.pieces[:1])
    loss = run(alone)["contrastive"]
    loss.backward()
    assert loss.item() == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in pair.student.parameters() if p.grad is not None)


def test_contrastive_takes_over_where_the_teachers_own_states_end(repos, source, text):
    """Up to its length the others hold; beyond, they would match its windows. The best state is chosen likewise."""
    pair, _, batch = contrasted(repos["lsg"], source, text)
    short = replace(batch, ids=batch.ids[:, :40], special=batch.special[:40], pieces=None, places=None, before=None)
    run = Objective(pair, ("hidden", "sentence", "contrastive"), scales_of([lesson(pair, short.ids)]))
    with torch.no_grad():
        assert set(run(batch)) == {"contrastive"}
        assert set(run(short)) == {"hidden", "sentence"}
    known = {"token_cosine": 0.5, "sentence_cosine": 0.9}
    assert score([known]) == pytest.approx(0.7)
    assert score([known, {**known, "piece_mrr": 0.6}]) == pytest.approx(0.65)


# What is trained


@pytest.mark.parametrize(
    ("target", "train", "objective", "changed"),
    [
        ("linformer", "new", "attention,hidden", {"mix.key_projection"}),
        (
            "linformer",
            "attention",
            "attention",
            {"mix.", "self.query", "self.key", "self.value", "attention.output.dense"},
        ),
        ("lsg", "globals", "hidden", {"global_embeddings"}),
        ("transnormer", "all", "attention,hidden+mlm", {""}),
    ],
)
def test_what_is_not_trained_keeps_its_bytes(
    target, train, objective, changed, repos, source, text, tmp_path, keep_last
):
    before = load_file(repos[target] / "model.safetensors")
    result = effconv.adapt(
        repos[target], teacher=source, data=text, output=tmp_path / "out", steps=4, objective=objective, train=train,
        learning_rate=3e-3, lengths="40,64", **FAST,
    )  # fmt: skip
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys()
    differ = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert result.record["best_step"] == 4
    assert differ
    assert all(any(part in name for part in changed) for name in differ), differ
    if train != "all":
        assert all(any(part in name for name in differ) for part in changed - {"self.key"}), differ
    else:
        # The pooler and, in a masked-LM model, nothing else is out of reach; a key's bias has no effect on a softmax.
        untouched = {name for name in before if name not in differ}
        assert not [name for name in untouched if not name.endswith(("key.bias", "token_type_embeddings.weight"))], (
            untouched
        )


def test_training_for_attention_alone_frees_nothing_else(repos, source):
    pair = pair_of(repos["linformer"], source)
    (phase,) = phases_of("attention")
    assert set(select(pair, "all", phase, new_tensors(pair))) == set(
        select(pair, "attention", phase, new_tensors(pair))
    )


# Runs


@pytest.mark.parametrize("target", daily(["linformer"], of=["linformer", "lambda", "transnormer"]))
def test_training_brings_a_repo_closer_to_its_source(target, repos, source, text, tmp_path):
    losses: dict[str, list[float]] = {}

    def watch(tick):
        for name, loss in tick.losses.items():
            losses.setdefault(name, []).append(loss)

    result = effconv.adapt(
        repos[target], teacher=source, data=[text], output=tmp_path / "out", steps=48, learning_rate=3e-3, watch=watch,
        lengths="64", objective="attention,hidden", **{**FAST, "evaluate_every": 24},
    )  # fmt: skip
    assert len(losses["attention"]) == len(losses["hidden"]) == 24
    for values in losses.values():
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), values
    if target == "lambda":  # which is fitted so well to a tiny model that only the losses show what is left
        return
    (before,), (after,) = ([r for r in result.record[when] if r["tokens"] == 64] for when in ("before", "after"))
    assert after["token_cosine"] > before["token_cosine"]
    assert after["sentence_cosine"] > before["sentence_cosine"]


def test_masked_lm_training_without_a_teacher_lowers_the_held_out_loss(repos, text, tmp_path):
    result = effconv.adapt(
        repos["lsg"], data=text, output=tmp_path / "out", objective="mlm", train="all", steps=24, learning_rate=1e-2,
        lengths="32,64", whole_words=True, **{**FAST, "evaluate_every": 24},
    )  # fmt: skip
    for before, after in zip(result.record["before"], result.record["after"], strict=True):
        assert after["mlm_loss"] < 0.9 * before["mlm_loss"]
    assert result.record["teacher"] is None


def test_a_run_is_recorded_in_manifest_card_and_plot(repos, source, text, tmp_path):
    shutil.copytree(repos["linformer"], tmp_path / "repo")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "repo").iterdir()}
    result = effconv.adapt(
        tmp_path / "repo", teacher=source, data=text, output=tmp_path / "out", steps=8, objective="attention:.4,hidden",
        **{**FAST, "verify": True},
    )  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "repo").iterdir()} == kept
    assert {path.name for path in tmp_path.iterdir()} == {"repo", "out"}
    manifest = json.loads((tmp_path / "out" / "effconv.json").read_text())
    (record,), (stated,) = manifest["measurements"]["adapt"], manifest["adapted"]
    described = json.loads(json.dumps(result.described()))
    assert {key: described[key] for key in record} == record
    assert stated["data"] == record["data"]
    assert record["data"]["data"] == ["a.txt"]
    assert len(record["data"]["sha256"]) == 64
    assert record["spent"]["wall_seconds"] > 0
    assert [row["tokens"] for row in record["before"]] == [row["tokens"] for row in record["after"]] == [32, 64]
    assert {entry["step"] for entry in record["history"]} == {0, 3, 4, 8}  # a phase's end, and every fourth step
    card = (tmp_path / "out" / "README.md").read_text()
    block = blocks(card)["adapt"]
    for row in record["after"]:
        assert f"{row['token_cosine']:.4f}" in block
    assert record["data"]["heldout_sha256"][:12] in block
    assert "after the training below" in blocks(card)["fidelity"]
    assert "trained after the conversion" in blocks(card)["checks"]
    assert (tmp_path / "out" / "adapt.svg").read_text().startswith("<?xml")
    held = {check.name: check.passed for check in effconv.verify(tmp_path / "out", against=source)}
    assert held["equal_to_source"] is None
    assert held["saved_again_equal"]
    again = effconv.adapt(tmp_path / "out", teacher=source, data=text, output=tmp_path / "twice", steps=2, **FAST)
    assert len(json.loads((again.output / "effconv.json").read_text())["measurements"]["adapt"]) == 2


@pytest.mark.parametrize("python", [FOUR])
def test_a_trained_repo_loads_on_transformers_4(python, repos, source, text, tmp_path, keep_last):
    effconv.adapt(repos["transnormer"], teacher=source, data=text, output=tmp_path / "out", steps=2, **FAST)
    loads = f"""import json, torch, transformers
model = transformers.AutoModelForMaskedLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True).eval()
with torch.no_grad():
    print(transformers.__version__[0], json.dumps(model(torch.arange(5, 55)[None]).logits.tolist()))"""
    version, found = strangers_output("-c", loads, folder=tmp_path, python=python).split(maxsplit=1)
    assert version == "4"
    with torch.no_grad():
        wanted = effconv.load(tmp_path / "out", auto="AutoModelForMaskedLM").eval()(torch.arange(5, 55)[None]).logits
    torch.testing.assert_close(torch.tensor(json.loads(found)), wanted, rtol=1e-5, atol=1e-5)


def test_a_stored_half_precision_stays_one_and_bf16_trains(source, text, tmp_path, keep_last):
    effconv.convert(source, "linformer", output=tmp_path / "repo", verify=False, dtype="bfloat16", **SMALL["linformer"])
    effconv.adapt(
        tmp_path / "repo", teacher=source, data=text, output=tmp_path / "out", steps=4, learning_rate=1e-2,
        gradient_checkpointing=True, accumulation=2, objective="hidden", bf16=True, tensorboard=True, **FAST,
    )  # fmt: skip
    from safetensors import safe_open

    assert list((tmp_path / "out.tensorboard").rglob("events.out.tfevents.*"))
    with (
        safe_open(tmp_path / "repo" / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as b,
    ):
        names = list(a.keys())
        assert [a.get_tensor(name).dtype for name in names] == [b.get_tensor(name).dtype for name in names]
        assert b.get_tensor("bert.encoder.layer.0.attention.self.query.weight").dtype == torch.bfloat16
        assert any(not torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in names)


@pytest.mark.nightly
def test_accumulation_and_checkpointing_change_no_weight_beyond_rounding(repos, source, text, tmp_path):
    weights = []
    for name, options in (("plain", {}), ("parts", {"accumulation": 3, "gradient_checkpointing": True})):
        effconv.adapt(
            repos["linformer"], teacher=source, data=text, output=tmp_path / name, steps=6, objective="hidden",
            lengths="64", **options, **FAST,
        )  # fmt: skip
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert max(float(abs(weights[0][n] - weights[1][n]).max()) for n in weights[0]) < 1e-5


def test_a_budget_ends_a_run(repos, source, text, tmp_path):
    ticks = []
    result = effconv.adapt(
        repos["linformer"], teacher=source, data=text, output=tmp_path / "out", budget="1s", budget_clock="cpu",
        watch=ticks.append, **FAST,
    )  # fmt: skip
    assert [tick.phase for tick in ticks] == sorted(tick.phase for tick in ticks)
    assert {tick.phase for tick in ticks} == {"attention", "hidden"}
    assert ticks[-1].share == pytest.approx(1.0)
    assert result.record["steps"] == len(ticks)


# Faults


class Killed(BaseException):
    pass


def test_a_loss_that_is_not_a_number_stops_the_run_and_the_last_checkpoint_stays(
    repos, source, text, tmp_path, monkeypatch
):
    run, calls = objectives.hidden_loss, []

    def break_in_the_seventh_step(*args):
        calls.append(1)
        return run(*args) * (math.nan if len(calls) == 7 else 1.0)

    monkeypatch.setattr(objectives, "hidden_loss", break_in_the_seventh_step)
    options = {"teacher": source, "data": text, "output": tmp_path / "out", "steps": 12, "checkpoint_every": 3, **FAST}
    with pytest.raises(CheckFailedError, match=r"stopped at step 7.*hidden nan.*step 000006 is kept") as raised:
        effconv.adapt(repos["linformer"], objective="hidden", **options)
    assert "--learning-rate" in raised.value.hint
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out.checkpoints").glob("step*")] == ["step-000006"]
    assert effconv.adapt(repos["linformer"], objective="hidden", resume=True, **options).record["steps"] == 12


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(repos, source, text, tmp_path):
    options = {
        "teacher": source,
        "data": text,
        "steps": 8,
        "checkpoint_every": 2,
        "objective": "attention,hidden",
        **FAST,
    }
    effconv.adapt(repos["linformer"], output=tmp_path / "whole", **options)
    for broken in (4, 7):  # at a phase's end, inside the next one
        out = tmp_path / f"broken-{broken}"

        def stop(tick, broken=broken):
            if tick.step == broken:
                raise Killed

        with pytest.raises(Killed):
            effconv.adapt(repos["linformer"], output=out, watch=stop, **options)
        ticks = []
        effconv.adapt(repos["linformer"], output=out, resume=True, watch=ticks.append, **options)
        assert ticks[0].step <= broken
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
        assert not out.with_name(out.name + ".checkpoints").exists()


@pytest.mark.nightly
def test_a_resumed_run_remembers_what_its_texts_are_contrasted_with(repos, source, text, tmp_path):
    options = {"teacher": source, "data": text, "steps": 5, "checkpoint_every": 3, "objective": "hidden+contrastive"}
    options |= {"lengths": "64,128", "piece_tokens": 8, **FAST}

    def stop(tick):
        if tick.step == 4:
            raise Killed

    for name, watch in (("whole", lambda tick: None), ("broken", stop)):
        with pytest.raises(Killed) if name == "broken" else contextlib.nullcontext():
            result = effconv.adapt(repos["lsg"], output=tmp_path / name, watch=watch, **options)
    assert ["piece_mrr" in row for row in result.record["after"]] == [False, True]
    effconv.adapt(repos["lsg"], output=tmp_path / "broken", resume=True, **options)
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:672]")],
    ids=["the system's", "torch's"],
)
@pytest.mark.parametrize("kept", daily([2], of=[0, 2]))
def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(
    error, kept, repos, source, text, tmp_path, monkeypatch
):
    save = torch.save

    def fill(value, file, *args, **options):
        if f"{kept + 2:06d}.unfinished" not in str(file):
            return save(value, file, *args, **options)
        Path(file).write_bytes(b"half")
        raise error

    options = {"teacher": source, "data": text, "output": tmp_path / "out", "steps": 6, "checkpoint_every": 2, **FAST}
    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OutputError, match="the disk") as raised:
        effconv.adapt(repos["linformer"], objective="hidden", **options)
    monkeypatch.setattr(torch, "save", save)
    assert "free some space" in raised.value.hint
    left = sorted(path.name for path in (tmp_path / "out.checkpoints").glob("*"))
    assert left == (["run.json", "step-000002"] if kept else [])
    assert [path.name for path in tmp_path.iterdir()] == (["out.checkpoints"] if kept else [])
    if kept:
        assert effconv.adapt(repos["linformer"], objective="hidden", resume=True, **options).record["steps"] == 6


@pytest.mark.parametrize("every", daily([1], of=[1, 4]))
def test_an_interrupted_run_says_what_is_left(every, repos, source, text, tmp_path):
    def interrupt(tick):
        if tick.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError, match=r"step 000002 is kept" if every == 1 else "no output was written") as raised:
        effconv.adapt(
            repos["linformer"], teacher=source, data=text, output=tmp_path / "out", steps=6, watch=interrupt,
            checkpoint_every=every, **FAST,
        )  # fmt: skip
    assert raised.value.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoints"] * (every == 1)


@pytest.mark.nightly
def test_checkpoints_are_given_up_only_on_request_and_continued_only_with_the_same_options(
    repos, source, text, tmp_path
):
    options = {"teacher": source, "data": text, "output": tmp_path / "out", "checkpoint_every": 2, **FAST}

    def stop(tick):
        if tick.step == 3:
            raise Killed

    with pytest.raises(UsageError, match="no checkpoint to continue from"):
        effconv.adapt(repos["linformer"], resume=True, steps=6, **options)
    with pytest.raises(Killed):
        effconv.adapt(repos["linformer"], steps=6, watch=stop, **options)
    with pytest.raises(OutputError, match="there are checkpoints of an earlier run"):
        effconv.adapt(repos["linformer"], steps=6, **options)
    with pytest.raises(BadInputError, match=r"started with other settings:\n.*steps: started with 6, now 9"):
        effconv.adapt(repos["linformer"], resume=True, steps=9, **options)
    assert effconv.adapt(repos["linformer"], steps=5, overwrite=True, **options).record["steps"] == 5


@pytest.mark.nightly
def test_runs_that_are_killed_lose_at_most_an_interval_and_end_with_the_same_weights(repos, source, text, tmp_path):
    found = in_processes("kill", repos["linformer"], source, text, tmp_path)
    assert len(found) == 8
    for moment, (kept, ended, same) in found.items():
        assert same, moment
        assert kept >= ended - 2, moment


@pytest.mark.nightly
def test_two_processes_give_the_weights_of_one(repos, source, text, tmp_path):
    """The processes have unequal shares of a step's texts, which are contrasted with each other's pieces too."""
    for objective, found in in_processes("processes", repos["linformer"], source, text, tmp_path).items():
        assert found["moved"] > 1e-3, objective
        assert found["largest"] <= 1e-5, objective


def in_processes(what, repo, source, text, tmp_path):
    """What `adapt_worker.py` found, whose runs are processes of their own."""
    command = [sys.executable, SUPPORT / "adapt_worker.py", what, repo, source, text, tmp_path]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def bad(name, error, what, **options):
    return pytest.param(error, what, options, id=name)


@pytest.mark.parametrize(
    ("error", "what", "options"),
    [
        bad("no teacher", UsageError, "needs a teacher", teacher=None),
        bad("no text", UsageError, "no text to train on", data=()),
        bad("another family", UsageError, "the source is a roberta", teacher="roberta"),
        bad("another tokenizer", BadInputError, "another tokenizer", teacher="odd"),
        bad("no head to learn from", BadInputError, "has no ForMaskedLM head", teacher="headless", objective="logits"),
        bad("text too short", BadInputError, "the held-out text is shorter than 64", data="short.txt", lengths="64"),
        bad(
            "beyond the teacher",
            UsageError,
            "too long: the teacher takes 64",
            lengths="65",
            objective="hidden,logits",
            repo="lsg",
        ),
        bad("no dense source", UnsupportedError, "not made from a dense source", repo="upgraded"),
        bad("an encoder and a decoder", UnsupportedError, "encoder-decoder", repo="seq2seq"),
        bad("beyond the repo", UsageError, "the repo takes 128", lengths="129", repo="lsg"),
        bad("globals without a teacher", UnsupportedError, "global tokens", objective="attention", repo="lsg"),
        bad("no globals", UsageError, "nothing to train", train="globals"),
        bad("no such repo", BadInputError, "no such folder", repo="missing"),
        bad("unknown option", UsageError, "has no option leraning_rate", leraning_rate=1),
        bad("output in the way", OutputError, "not empty", output="full"),
        bad("output inside the repo", OutputError, "overlap", output="inside"),
        bad("disk full", OutputError, "not enough disk space", full=True),
    ],
)
def test_bad_input_is_refused_and_nothing_is_left(error, what, options, repos, source, text, tmp_path, monkeypatch):
    if options.get("teacher") == "roberta":
        save_tiny(tmp_path / "teacher", "roberta")
    elif options.get("teacher") == "headless":
        save_tiny(tmp_path / "teacher", "bert", "Model")
    elif options.get("teacher") == "odd":
        shutil.copytree(source, tmp_path / "teacher")
        words = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
        vocab = words["model"]["vocab"]
        vocab["the"], vocab["of"] = vocab["of"], vocab["the"]
        (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(words))
    teacher = {None: None, "source": source}.get(options.pop("teacher", "source"), tmp_path / "teacher")
    data = options.pop("data", text)
    if data == "short.txt":
        data = write_wiki(tmp_path / "short.txt", count=3, words=12)
    if options.pop("full", False):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    repo = options.pop("repo", "linformer")
    what_differs = {"upgraded": {"dense_source": False}, "seq2seq": {"family": "bart"}}.get(repo)
    if what_differs:
        shutil.copytree(repos["linformer"], tmp_path / repo)
        manifest = json.loads((tmp_path / repo / "effconv.json").read_text())
        (tmp_path / repo / "effconv.json").write_text(json.dumps({**manifest, **what_differs}))
    output = options.pop("output", "out")
    place = repos["linformer"] / "inside" if output == "inside" else tmp_path / output
    if output == "full":
        place.mkdir()
        (place / "file").write_text("")
    found = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=what) as raised:
        effconv.adapt(
            repos.get(repo, tmp_path / repo), teacher=teacher, data=data, output=place, steps=2, **options, **FAST
        )
    assert raised.value.hint
    assert sorted(tmp_path.rglob("*")) == found


EARLY = {
    "no such file": (BadInputError, "no such file: nowhere.txt", {"data": "nowhere.txt"}),
    "no such held-out file": (BadInputError, "no such file: ./nowhere", {"heldout": "./nowhere"}),
    "a folder": (UsageError, "is a folder", {"data": "."}),
    "a column of text files": (UsageError, "text files have no columns", {"text_column": "body"}),
    "a column of nothing": (UsageError, "no text to train on", {"text_column": "body", "data": None}),
    "no teacher": (UsageError, "needs a teacher", {"teacher": None}),
    "globals without a teacher": (UnsupportedError, "global tokens", {"objective": "attention", "repo": "lsg"}),
    "no attention": (UnsupportedError, "no attention", {"objective": "attention", "manifest": {"family": "bigs"}}),
    "no masked-LM head": (UnsupportedError, "no masked-LM head", {"objective": "mlm", "manifest": {"heads": []}}),
    "no logits": (UnsupportedError, "no logits", {"objective": "logits"}),
    "no tokenizer": (BadInputError, "has no tokenizer", {"left": ("tokenizer.json", "vocab.txt")}),
}


@pytest.mark.parametrize("name", EARLY)
def test_what_files_and_config_tell_is_refused_before_anything_is_hashed_or_loaded(
    name, repos, source, text, tmp_path, monkeypatch
):
    error, what, options = EARLY[name]
    options = dict(options)
    monkeypatch.setattr("effconv.adapt.run.check_hashes", lambda *_: pytest.fail("too late"))
    repo = Path(shutil.copytree(repos[options.pop("repo", "linformer")], tmp_path / "repo"))
    manifest = json.loads((repo / "effconv.json").read_text())
    changes = {"auto": "AutoModel", **options.pop("manifest", {})}
    (repo / "effconv.json").write_text(json.dumps(manifest | changes))
    for file in options.pop("left", ()):
        (repo / file).unlink(missing_ok=True)
    asked = {"teacher": source, "data": text, "output": tmp_path / "out", **options}
    with pytest.raises(error, match=what) as raised:
        effconv.adapt(repo, **asked)
    assert raised.value.where
    assert raised.value.hint


def test_the_command_takes_files_as_a_shell_lists_them_and_prints_the_record_as_json(repos, source, text, tmp_path):
    other = write_wiki(tmp_path / "b.txt", count=3, seed=5)
    command = [Path(sys.executable).with_name("effconv"), "adapt", repos["linformer"], "--teacher", source]
    command += ["--data", text, other, "-o", tmp_path / "out", "--no-verify", "--json"]
    options = ["--steps", "3", "--batch-tokens", "128", "--evaluate-every", "1"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == 3
    assert json.loads(run.stdout)["data"]["data"] == ["a.txt", "b.txt"]
    assert "step 2: " in run.stderr


def test_bigs_is_trained_on_at_a_new_length(text, tmp_path):
    """The recorded model's words are few: it gets those of the tiny models."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pretraining_L16", source)
    source.chmod(0o755)
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    words = wordpiece_vocab()
    assert len(words) <= size
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").write_text("\n".join([*words, *(f"[unused{i}]" for i in range(size - len(words)))]) + "\n")
    effconv.convert(source, "jax2torch", output=tmp_path / "repo", max_length=64, verify=False)
    result = effconv.adapt(
        tmp_path / "repo", data=text, output=tmp_path / "out", steps=16, learning_rate=1e-2, lengths="64", **FAST
    )
    assert result.record["objective"] == "mlm"
    assert result.record["after"][0]["tokens"] == 64
    assert result.record["after"][0]["mlm_loss"] < 0.95 * result.record["before"][0]["mlm_loss"]
