"""NSP and SOP examples are those of the described procedure; pairs keep what they promise."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pair_oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from effconv.convert.errors import BadInputError
from effconv.data.pairs import Document, documents_of, nsp_pairs, sop_pairs, with_pool
from effconv.data.pretraining import pretraining_examples
from effconv.data.pretraining_options import PretrainingOptions
from tiny import WORDS, save_tokenizer

SENTENCES = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_tokenizer(folder, request.param, 64)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return AutoTokenizer.from_pretrained(folder)


def write_articles(path, count=9, seed=0):
    """Documents with a heading of the first level, one of the second, and sentences of 1 to 15 words, one a line."""
    random = Random(seed)
    lines = []
    for number in range(count):
        lines += [f" = on {number} = ", "", " = = the was = = "] if number else [f" = on {number} = "]
        lines += [" ".join(random.choices(WORDS, k=random.randint(1, 15))) for _ in range(random.randint(2, 12))]
    path.write_text("\n".join(lines) + "\n")
    return path


def sentences_of(path, tokenizer):
    """Documents of `write_articles` as lists of token ids a sentence, read without effconv."""
    documents = []
    for line in path.read_text().splitlines():
        if line.startswith(" = ") and not line.startswith(" = ="):
            documents.append([])
        elif line.strip():
            documents[-1].append(tokenizer(line.strip(), add_special_tokens=False)["input_ids"])
    return documents


def as_documents(lengths):
    """Documents of sentences of these lengths, all tokens different."""
    token, documents = 0, []
    for number, sentences in enumerate(lengths):
        ends = np.cumsum(sentences)
        tokens = np.stack([np.arange(token, token + ends[-1]), np.ones(ends[-1])], 1).astype(np.int32)
        documents.append(Document(number, tokens, ends))
        token += int(ends[-1])
    return documents


def as_lists(documents):
    return [[document.text(i, i + 1)[:, 0].tolist() for i in range(len(document))] for document in documents]


def plain(pairs):
    return [(a[:, 0].tolist(), b[:, 0].tolist(), label) for a, b, label in pairs]


@pytest.mark.parametrize("objective", ["mlm+sop", "mlm+nsp"])
@pytest.mark.parametrize("seed", [3, 4])
def test_examples_of_a_text_are_those_of_the_described_procedure(objective, seed, tokenizer, tmp_path):
    path = write_articles(tmp_path / "wiki.txt", seed=seed)
    options = PretrainingOptions(objective=objective, length=40, documents="heading", seed=seed, copies=2)
    found = list(pretraining_examples([str(path)], tokenizer, options))
    documents, wanted = sentences_of(path, tokenizer), []
    room = 40 - tokenizer.num_special_tokens_to_add(pair=True)
    for copy in range(2):
        for number, document in enumerate(documents):
            draws = pair_oracles.draws_of(seed, copy, number)
            if objective == "mlm+sop":
                pairs = pair_oracles.sop(document, room, 0.1, 2, draws)
            else:
                pairs = pair_oracles.nsp(documents, number, room, 0.1, 2, draws)
            wanted += pairs
    assert len(found) == len(wanted) > 20
    for example, (a, b, label) in zip(found, wanted, strict=True):
        body = [
            id for id, special in zip(example["input_ids"], example["special_tokens_mask"], strict=True) if not special
        ]
        assert (body, example["next_sentence_label"]) == (a + b, label)
        separators = tokenizer.num_special_tokens_to_add(pair=True) - 2
        assert example["special_tokens_mask"] == [1, *[0] * len(a), *[1] * separators, *[0] * len(b), 1]
        assert {type(value) for value in example["input_ids"]} == {int}
    if "token_type_ids" in tokenizer.model_input_names:  # of BERT: 0 up to the first [SEP], 1 behind it
        a, b, _ = wanted[0]
        assert found[0]["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


@settings(deadline=None, max_examples=150)
@given(SENTENCES, st.integers(5, 40), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 10**6))
def test_sop_pairs_are_those_of_the_oracle(lengths, room, short, seed):
    (document,) = as_documents([lengths])
    found = plain(sop_pairs(document, room, short, 2, Random(seed)))
    assert found == pair_oracles.sop(as_lists([document])[0], room, short, 2, Random(seed))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(SENTENCES, min_size=2, max_size=5), st.integers(5, 40), st.sampled_from([0.0, 1.0]), st.integers(0, 10**6)
)
def test_nsp_pairs_are_those_of_the_oracle_and_come_from_two_documents(lengths, room, short, seed):
    documents = as_documents(lengths)
    lists = as_lists(documents)
    owner = {token: number for number, document in enumerate(lists) for sentence in document for token in sentence}
    for number, document in enumerate(documents):
        found = plain(nsp_pairs(document, documents, room, short, 2, Random(seed)))
        assert found == pair_oracles.nsp(lists, number, room, short, 2, Random(seed))
        for a, b, label in found:
            assert 0 < len(a) + len(b) <= room
            assert a
            assert b
            assert {owner[token] for token in a} == {number}
            assert ({owner[token] for token in b} == {number}) == (label == 0)


def test_a_pair_in_order_is_one_text_and_a_swapped_one_is_not():
    (document,) = as_documents([[3] * 400])
    pairs = plain(sop_pairs(document, 30, 0.1, 2, Random(0)))
    for a, b, label in pairs:  # tokens count upwards through the document
        assert a == sorted(a)
        assert b == sorted(b)
        assert (a[-1] < b[0]) == (label == 0)
    used = sorted(token for a, b, _ in pairs for token in a + b)
    assert used == list(range(1200))  # nothing was trimmed, and nothing is lost


@pytest.mark.parametrize("make", ["sop", "nsp"])
def test_labels_are_balanced(make):
    documents = as_documents([[5, 9, 2, 7, 11, 4, 6] * 12] * 40)
    labels = []
    for document in documents:
        random = Random(f"{document.number}")
        pairs = (
            sop_pairs(document, 40, 0.1, 2, random)
            if make == "sop"
            else nsp_pairs(document, documents, 40, 0.1, 2, random)
        )
        labels += [label for _, _, label in pairs]
    deviation = (sum(labels) - len(labels) / 2) / (0.5 * len(labels) ** 0.5)
    assert len(labels) > 500
    assert abs(deviation) < 3


def test_random_texts_come_from_all_documents_or_from_the_last_ones():
    documents = as_documents([[4, 4]] * 10)
    seen = [(one.number, [other.number for other in pool]) for one, pool in with_pool(documents, 20)]
    assert seen == [(number, list(range(10))) for number in range(10)]
    seen = [(one.number, [other.number for other in pool]) for one, pool in with_pool(iter(documents), 4)]
    assert seen == [
        *((number, [0, 1, 2, 3]) for number in range(4)),
        *((number, list(range(number - 3, number + 1))) for number in range(4, 10)),
    ]


def test_documents_in_the_pool_are_few_where_they_are_long(monkeypatch):
    monkeypatch.setattr("effconv.data.pairs.POOLED_TOKENS", 30)
    sizes = [sum(len(other.tokens) for other in pool) for _, pool in with_pool(as_documents([[4, 4]] * 10), 100)]
    assert len(sizes) == 10
    assert max(sizes) <= 30


def test_sentences_without_tokens_are_left_out():
    empty, one = np.empty((0, 2), np.int32), np.ones((3, 2), np.int32)
    (document,) = documents_of([empty, one, empty, one, None, empty, None])
    assert document.ends.tolist() == [3, 6]


@pytest.mark.parametrize(
    ("text", "objective", "what"),
    [
        (" = One = \nthe of\nand to\n", "mlm+nsp", "the text is a single document"),
        (" = One = \nthe of\n = Two = \nand to\n", "mlm+sop", "no document has two sentences"),
        ("the of\nand to\n", "mlm+sop", "no heading found"),
        (" = = Part = = \nthe of\nand to\n", "mlm+sop", "no heading found"),
        ("", "mlm+nsp", "contain no text"),
    ],
)
def test_a_text_without_pairs_is_refused(text, objective, what, tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    options = PretrainingOptions(objective=objective, documents="heading")
    with pytest.raises(BadInputError, match=what) as raised:
        list(pretraining_examples([str(tmp_path / "a.txt")], tokenizer, options))
    assert raised.value.hint
