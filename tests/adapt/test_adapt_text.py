"""What `effconv adapt` trains on: documents, the split, packing, masks. No model runs here."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from adapt_text import documents, write_wiki
from transformers import AutoTokenizer

from effconv.adapt.batches import IGNORED, TokenStream, batches, check_enough, masked
from effconv.adapt.options import AdaptOptions
from effconv.adapt.recipes import phase_steps, phases_of, training_lengths
from effconv.convert.errors import BadInputError, HubError, UsageError
from effconv.data.documents import SHARED, read_corpus, text_documents
from effconv.targets.registry import TARGETS
from tiny import save_tokenizer


@pytest.fixture(scope="module", params=["bert", "roberta", "albert"])
def each_tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_tokenizer(folder, request.param, 64)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder, "bert", 64)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return AutoTokenizer.from_pretrained(folder)


def corpus_of(tokenizer, *files, heldout=(), **options):
    return read_corpus([str(f) for f in files], [str(f) for f in heldout], tokenizer, 1000, seed=1, **options)


def joined(corpus, epoch=0):
    return [tuple(document[:, 0].tolist()) for document in corpus.train(epoch)]


# Documents and the split


def test_a_heading_begins_a_document_and_a_subheading_does_not():
    text = " = One = \n a b \n = = Part = = \n c \n = Two = \n d \n"
    assert text_documents(text) == [" = One = \n a b \n = = Part = = \n c \n", " = Two = \n d \n"]


def test_a_text_without_headings_is_cut_at_empty_lines_and_nothing_is_lost():
    paragraphs = documents(60, words=20)
    found = text_documents("\n\n".join(paragraphs))
    assert 10 <= len(found) <= 30
    assert " ".join(found).split() == " ".join(paragraphs).split()


def test_training_never_sees_a_run_of_held_out_tokens(tokenizer, tmp_path):
    texts = documents(30, words=100)
    texts.append(texts[3])  # the same once more
    texts += [
        f"{text[:200]} of the {other}" for text, other in zip(texts, documents(30, words=50, seed=9), strict=False)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = corpus_of(tokenizer, tmp_path / "a.jsonl")

    def runs(tokens, size=SHARED):
        return {tokens[i : i + size] for i in range(len(tokens) - size + 1)}

    held = set().union(*(runs(tuple(document[:, 0].tolist())) for document in corpus.heldout))
    trained = joined(corpus)
    assert len(held) > 50
    assert len(trained) > 20
    assert not any(runs(tokens) & held for tokens in trained)
    assert corpus.record["left_out"] == len(texts) - len(corpus.heldout) - len(trained)


def test_the_split_does_not_depend_on_the_order_of_documents(tokenizer, tmp_path):
    texts = documents(20, words=80)
    for name, order in (("a", texts), ("b", texts[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in order))
    a, b = (corpus_of(tokenizer, tmp_path / f"{name}.jsonl") for name in "ab")
    assert a.record["heldout_sha256"] == b.record["heldout_sha256"]
    assert a.record["sha256"] != b.record["sha256"]
    assert sorted(map(bytes, a.heldout)) == sorted(map(bytes, b.heldout))


def test_an_epoch_holds_every_document_once_and_each_epoch_has_another_order(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, write_wiki(tmp_path / "a.txt"))
    assert joined(corpus, 0) == joined(corpus, 0)
    assert joined(corpus, 0) != joined(corpus, 1)
    assert sorted(joined(corpus, 0)) == sorted(joined(corpus, 1))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_column_of_a_table_is_read(ending, tokenizer, tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"body": documents(6, words=80), "n": list(range(6))})
    path = tmp_path / f"a.{ending}"
    rows.to_json(path) if ending == "jsonl" else rows.to_parquet(path)
    corpus = corpus_of(tokenizer, path, column="body")
    assert corpus.record["documents"] + len(corpus.heldout) == 6
    streamed = corpus_of(tokenizer, path, column="body", streaming=True)
    assert sorted(joined(streamed)) == sorted(joined(corpus))
    with pytest.raises(BadInputError, match="no column 'text', found body, n"):
        corpus_of(tokenizer, path)


def test_text_that_is_held_out_by_name_is_left_out_of_the_data(tokenizer, tmp_path):
    whole = write_wiki(tmp_path / "a.txt")
    apart = tmp_path / "b.txt"
    apart.write_text(text_documents(whole.read_text())[2])
    corpus = corpus_of(tokenizer, whole, heldout=[apart])
    assert corpus.record["documents"] == 11
    with pytest.raises(BadInputError, match="all training text is also in the held-out text"):
        corpus_of(tokenizer, apart, heldout=[whole])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no text"),
        (b" \n\n ", "no text"),
        (b"\xff\xfe\x00", "cannot read the text"),
        (b"one line", "a single document, so no document can be held out"),
        ("\n\n".join(documents(40, 80)).replace(" ", " 日 ").encode(), "does not know"),
    ],
    ids=["empty", "blank", "no UTF-8", "one document", "unknown words"],
)
def test_a_text_that_cannot_be_trained_on_is_refused(content, what, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadInputError, match=what) as raised:
        corpus_of(tokenizer, tmp_path / "a.txt")
    assert raised.value.hint


def test_a_name_that_is_neither_file_nor_dataset_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="no file nobody/nothing here, and the dataset could not be fetched"):
        corpus_of(tokenizer, "nobody/nothing")
    with pytest.raises(BadInputError, match="no such file: "):  # it can be no dataset's name
        corpus_of(tokenizer, tmp_path / "missing")
    with pytest.raises(UsageError, match="is a folder"):
        corpus_of(tokenizer, tmp_path)


# Batches


def test_texts_are_packed_and_nothing_is_skipped_or_repeated(each_tokenizer, tmp_path):
    corpus = corpus_of(each_tokenizer, write_wiki(tmp_path / "a.txt"))
    around = len(corpus.prefix) + len(corpus.suffix)
    taken = []
    for batch in itertools.islice(batches(corpus, [16, 32], 64, seed=3), 12):
        assert batch.ids.shape in ((4, 16), (2, 32))
        assert batch.tokens == 64
        assert int(batch.special.sum()) == around
        assert set(batch.ids[:, 0].tolist()) == {each_tokenizer.cls_token_id}
        assert set(batch.ids[:, -1].tolist()) == {each_tokenizer.sep_token_id}
        taken += batch.ids[:, ~batch.special].flatten().tolist()
    stream = list(itertools.chain.from_iterable(itertools.chain(joined(corpus, 0), joined(corpus, 1))))
    assert taken == stream[: len(taken)]


def test_the_stream_goes_on_in_the_next_epoch(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, write_wiki(tmp_path / "a.txt", count=4, words=30))
    stream, size = TokenStream(corpus.train), corpus.record["tokens"]
    taken = np.concatenate([stream.take(7)[:, 0] for _ in range(3 * size // 7)]).tolist()
    assert (
        taken
        == list(itertools.chain.from_iterable(joined(corpus, 0) + joined(corpus, 1) + joined(corpus, 2)))[: len(taken)]
    )


def test_a_skipped_run_continues_with_the_same_batches(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, write_wiki(tmp_path / "a.txt"))
    whole = list(itertools.islice(batches(corpus, [16, 24], 64, seed=3), 9))
    rest = list(itertools.islice(batches(corpus, [16, 24], 64, seed=3, skip=5), 4))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_parts_of_a_batch_are_the_batch(parts, tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, write_wiki(tmp_path / "a.txt"))
    batch = masked(next(batches(corpus, [16], 64, seed=3)), 0.15, 4, 90, False, (0,))
    found = [part for part, counts in (batch.part(i, parts) for i in range(parts)) if counts]
    for name in ("ids", "begins", "masked_ids", "labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in found]), getattr(batch, name))
    assert {(part.tokens, part.masked) for part in found} == {(64, int((batch.labels != IGNORED).sum()))}


def test_a_text_shorter_than_a_sequence_is_refused(tokenizer, tmp_path):
    corpus = corpus_of(tokenizer, write_wiki(tmp_path / "a.txt", count=2, words=20))
    with pytest.raises(BadInputError, match=r"the training text has only \d+ tokens, fewer than one text of 512"):
        check_enough(corpus, [512])


def test_masks_are_dynamic_and_leave_special_tokens_alone(each_tokenizer, tmp_path):
    corpus = corpus_of(each_tokenizer, write_wiki(tmp_path / "a.txt"))
    batch = next(batches(corpus, [64], 64 * 200, seed=3))
    mask, vocabulary = each_tokenizer.mask_token_id, len(each_tokenizer)
    first, again, other = (masked(batch, 0.2, mask, vocabulary, False, (0, step)) for step in (1, 1, 2))
    assert torch.equal(first.masked_ids, again.masked_ids)
    assert not torch.equal(first.masked_ids, other.masked_ids)
    chosen = first.labels != IGNORED
    assert not chosen[:, first.special].any()
    assert torch.equal(first.labels[chosen], batch.ids[chosen])
    assert torch.equal(first.masked_ids[~chosen], batch.ids[~chosen])
    assert first.masked == int(chosen.sum()) == 200 * round(0.2 * int((~batch.special).sum()))
    share = float((first.masked_ids[chosen] == mask).float().mean())
    assert 0.76 < share < 0.84
    assert 0.08 < float((first.masked_ids[chosen] == batch.ids[chosen]).float().mean()) < 0.14


def test_whole_words_are_masked_or_left(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(" ".join("zoo".join("abc") for _ in range(40)) for _ in range(40)))
    corpus = corpus_of(tokenizer, tmp_path / "a.txt", heldout=[write_wiki(tmp_path / "b.txt")])
    batch = next(batches(corpus, [64], 640, seed=3))
    found = masked(batch, 0.3, tokenizer.mask_token_id, 90, True, (0,))
    chosen = (found.labels != IGNORED)[:, ~batch.special]
    pieces = [tokenizer.convert_ids_to_tokens(row) for row in batch.ids[:, ~batch.special].tolist()]
    assert any(piece.startswith("##") for piece in pieces[0])
    for row, words in zip(chosen.tolist(), pieces, strict=True):
        assert all(
            a == b for (a, b), piece in zip(itertools.pairwise(row), words[1:], strict=True) if piece.startswith("##")
        )
    assert 0.2 < float(chosen.float().mean()) < 0.4


# Phases and options


def test_phases_have_shares_that_add_up():
    attention, rest = phases_of("attention:.4,hidden+mlm")
    assert (attention.objectives, attention.share) == (("attention",), 0.4)
    assert (rest.objectives, round(rest.share, 9)) == (("hidden", "mlm"), 0.6)
    assert phase_steps((attention, rest), 7) == [3, 4]
    assert [phase.needs_teacher for phase in phases_of("mlm,logits")] == [False, True]


@pytest.mark.parametrize(
    "text", ["", "attentoin", "hidden:2", "hidden:.2", "hidden+hidden", "attention:x,hidden", "mlm:1,hidden"]
)
def test_an_objective_that_means_nothing_is_refused(text):
    with pytest.raises(UsageError, match=r"objective|phase"):
        phases_of(text)


def test_lengths_are_halves_of_the_reach_where_the_target_differs_from_its_source():
    sizes = {"max_length": 4096, "source_max_length": 512}
    linformer = {"target": "linformer", "options": {"proj_dim": 128}, "settings": {"dtype": None}, **sizes}
    phases = phases_of("attention,hidden")
    assert training_lengths(TARGETS["linformer"], linformer, None, phases) == (256, 512)
    assert training_lengths(TARGETS["lambda"], {"target": "lambda", "options": {}, **sizes}, None, phases) == (
        64,
        128,
        256,
        512,
    )
    assert training_lengths(TARGETS["lsg"], {"target": "lsg", "options": {}, **sizes}, None, phases_of("mlm")) == (
        512,
        1024,
        2048,
        4096,
    )
    assert training_lengths(TARGETS["linformer"], linformer, (100, 200), phases) == (100, 200)
    assert training_lengths(TARGETS["linformer"], linformer, (2048,), phases_of("hidden+sentence")) == (2048,)
    lsg = {"target": "lsg", "options": {}, **sizes}
    assert training_lengths(TARGETS["lsg"], lsg, (512, 2048), phases_of("hidden+contrastive")) == (512, 2048)
    assert training_lengths(TARGETS["lsg"], lsg, (2048,), phases_of("contrastive")) == (2048,)
    for lengths in ((512,), None):
        with pytest.raises(UsageError, match="contrastive needs texts longer than the 512"):
            training_lengths(TARGETS["lsg"], lsg, lengths, phases_of("hidden+contrastive"))
    with pytest.raises(UsageError, match="contrastive alone trains nothing"):
        training_lengths(TARGETS["lsg"], lsg, (512, 2048), phases_of("hidden,contrastive"))
    with pytest.raises(UsageError, match="the teacher takes 512"):
        training_lengths(TARGETS["linformer"], linformer, (513,), phases)
    with pytest.raises(UsageError, match="the repo takes 4096"):
        training_lengths(TARGETS["linformer"], linformer, (4097,), phases_of("hidden"))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"steps": 5, "budget": "1m"}, "give only one"),
        (
            {"learning_rate": 3.0, "mask_share": 0.0},
            "--learning-rate must be .*got 3.0\n.*--mask-share must be .*got 0.0",
        ),
        ({"budget": "soon"}, "'soon' is not a time"),
        ({"lengths": "a,b"}, "--lengths must be numbers of at least 8 tokens"),
    ],
)
def test_options_that_mean_nothing_are_refused(values, what):
    with pytest.raises(UsageError, match=what):
        AdaptOptions(**values)


def test_a_budget_is_read_in_seconds():
    assert [AdaptOptions(budget=text).seconds() for text in ("90s", "10m", "2h", "1.5m")] == [90, 600, 7200, 90]
