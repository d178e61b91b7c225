"""Sentences, documents, packing and masks: what goes in comes out, in the promised lengths and shares."""

from __future__ import annotations

import itertools
import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from effconv.convert.errors import BadInputError, UsageError
from effconv.data.masking import IGNORED, mask_tokens
from effconv.data.packing import packed
from effconv.data.pretraining import pretraining_examples, shuffled
from effconv.data.pretraining_options import PretrainingOptions
from effconv.data.sentences import read_sentences, sentences_by_rule
from tiny import WORDS, save_tokenizer

DOCUMENTS = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=5)
SEPARATOR = -7


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_tokenizer(folder, "bert", 64)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return AutoTokenizer.from_pretrained(folder)


def read(path, **options):
    """The documents of a file, as lists of sentences."""
    documents = [[]]
    for sentence in read_sentences([str(path)], PretrainingOptions(**options)):
        if sentence is None:
            documents.append([])
        else:
            documents[-1].append(sentence)
    assert documents.pop() == []  # the last document is ended, too
    return documents


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# Documents and sentences


@pytest.mark.parametrize(
    ("text", "options", "documents"),
    [
        ("a\nb\n\n \n\nc\n", {}, [["a", "b"], ["c"]]),
        ("a\n\nb", {"documents": "file"}, [["a", "b"]]),
        ("a\n[SEP]\nb\n\nc\n[SEP]\n", {"multiple_docs_separator": "[SEP]"}, [["a"], ["b", "c"]]),
        ("a\n\nb\n", {"multiple_docs_separator": "\\n"}, [["a"], ["b"]]),
        (
            "\n = One = \n\n a \n = = Part = = \n b \n = Two = \n c",
            {"documents": "heading"},
            [["= One =", "a", "= = Part = =", "b"], ["= Two =", "c"]],
        ),
        (
            " = One = \n a \n = = Part = = \n b \n = Two = \n c",
            {"documents": "heading", "objective": "mlm+sop"},  # as LambdaBERT's script: without the heading
            [["a", "= = Part = =", "b"], ["c"]],
        ),
        ("One. Two!\nThree", {"sentences": "split"}, [["One.", "Two!", "Three"]]),
        ("One. Two!\nThree", {"sentences": "line"}, [["One. Two!", "Three"]]),
    ],
)
def test_documents_and_sentences_of_a_text_file(text, options, documents, tmp_path):
    assert read(written(tmp_path / "a.txt", text), **options) == documents


def test_a_row_of_a_table_is_a_document(tmp_path):
    rows = [{"body": "a\nb\n\nc"}, {"body": " "}, {"body": "d"}]
    path = written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, text_column="body", documents="heading") == [["a", "b", "c"], ["d"]]


def test_a_line_without_end_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("effconv.data.sentences.PIECE", 10)
    assert read(written(tmp_path / "a.txt", "x" * 25 + "\ny")) == [["x" * 10, "x" * 10, "x" * 5, "y"]]


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("He came. She went.", ["He came.", "She went."]),
        ("Dr. Smith of the U.S. Army met J. F. Kennedy.", ["Dr. Smith of the U.S. Army met J. F. Kennedy."]),
        ('"Was it so?" she asked. (It was.) Then 3 went!', ['"Was it so?" she asked.', "(It was.)", "Then 3 went!"]),
        ("See e.g. Fig. 3, vol. 2 etc. and so on.", ["See e.g. Fig. 3, vol. 2 etc. and so on."]),
        ("It is 0.5 m. long", ["It is 0.5 m. long"]),
        ("in the North Sea . In life , they are blue .", ["in the North Sea .", "In life , they are blue ."]),
        ("今日は。いい天気。「はい。」", ["今日は。", "いい天気。", "「はい。」"]),
        ("Он пришёл. Она ушла… Всё.", ["Он пришёл.", "Она ушла…", "Всё."]),
        ("   ", []),
    ],
)
def test_the_rule_for_sentences(line, sentences):
    assert list(sentences_by_rule(line)) == sentences


@given(st.text(alphabet=st.sampled_from("ab AB.?!。 \"'()1"), max_size=60))
def test_no_character_of_a_line_is_lost_between_sentences(line):
    assert "".join("".join(sentences_by_rule(line)).split()) == "".join(line.split())


@pytest.mark.parametrize(
    ("content", "options", "what"),
    [
        (b"", {}, "contain no text"),
        (b" \n\n", {"documents": "heading"}, "no heading found|contain no text"),
        (b"caf\xe9", {}, "not valid UTF-8"),
        (b"a\nb", {"documents": "heading"}, "no heading found"),
        (b"a\nb", {"multiple_docs_separator": "---"}, "no line of the text is the separator '---'"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(content, options, what, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadInputError, match=what) as raised:
        read(tmp_path / "a.txt", **options)
    assert str(tmp_path / "a.txt") in str(raised.value)
    assert raised.value.hint


# Packing


def stream_of(documents):
    """Sentences of these lengths: every token is another number."""
    numbers = itertools.count()
    for document in documents:
        for size in document:
            yield np.array([[next(numbers), 1] for _ in range(size)], np.int32)
        yield None


@settings(deadline=None, max_examples=200)
@given(
    documents=DOCUMENTS,
    size=st.integers(2, 30),
    overlap=st.integers(0, 12),
    across=st.booleans(),
    short=st.sampled_from([0.0, 0.5, 1.0]),
    shortest=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_token_is_kept_in_examples_of_the_promised_length(
    documents, size, overlap, across, short, shortest, seed
):
    overlap = min(overlap, size - 1)
    found = [
        text[:, 0].tolist()
        for text in packed(
            stream_of(documents),
            size,
            across=across,
            separator=SEPARATOR if across else None,
            overlap=overlap,
            short_share=short,
            shortest=shortest,
            random=Random(seed),
        )
    ]
    assert all(0 < len(text) <= size for text in found)
    ends = np.cumsum([sum(document) for document in documents])
    wanted = list(range(ends[-1]))
    if across:
        for end in reversed(ends[:-1]):
            wanted.insert(end, SEPARATOR)
    owner = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    assert across or all(len({owner[token] for token in text}) == 1 for text in found)
    kept = found[0]
    for before, text in itertools.pairwise(found):
        repeated = min(overlap, len(before) - 1) if across or owner[before[0]] == owner[text[0]] else 0
        assert text[:repeated] == before[len(before) - repeated :]
        assert len(text) > repeated
        kept = kept + text[repeated:]
    assert kept == wanted
    if not short and not overlap and across:
        assert {len(text) for text in found[:-1]} <= {size}


def test_a_share_of_the_examples_is_short(tokenizer, tmp_path):
    path = written(tmp_path / "a.txt", "\n".join(" ".join(WORDS) for _ in range(1500)))
    options = PretrainingOptions(length=34, short_share=0.2, shortest=6, across_documents=True)
    sizes = [len(example["input_ids"]) - 2 for example in pretraining_examples([str(path)], tokenizer, options)][:-1]
    short = [size for size in sizes if size < 32]
    assert min(short) == 6
    assert max(sizes) == 32
    assert abs(len(short) / len(sizes) - 0.2 * 26 / 27) < 0.04


def test_examples_repeat_a_part_of_the_one_before(tokenizer, tmp_path):
    path = written(tmp_path / "a.txt", "\n".join(" ".join(WORDS) for _ in range(9)))
    options = PretrainingOptions(length=32, short_share=0, overlap=8)
    bodies = [example["input_ids"][1:-1] for example in pretraining_examples([str(path)], tokenizer, options)]
    assert all(after[:8] == before[-8:] for before, after in itertools.pairwise(bodies))
    with pytest.raises(BadInputError, match="an overlap of 30 tokens leaves nothing new"):
        next(pretraining_examples([str(path)], tokenizer, PretrainingOptions(length=32, overlap=30)))


def test_a_separator_stands_between_documents(tokenizer, tmp_path):
    path = written(tmp_path / "a.txt", "the of\n\nand to in\n\nis")
    for options, between in (({}, "[SEP]"), ({"separator_token": "[MASK]"}, "[MASK]")):
        across = PretrainingOptions(across_documents=True, short_share=0, **options)
        (example,) = pretraining_examples([str(path)], tokenizer, across)
        wanted = ["[CLS]", "the", "of", between, "and", "to", "in", between, "is", "[SEP]"]
        assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == wanted
        assert example["special_tokens_mask"] == [int(token.startswith("[")) for token in wanted]
        assert example["token_type_ids"] == [0] * len(wanted)
    causal = PretrainingOptions(objective="clm", across_documents=True)
    (example,) = pretraining_examples([str(path)], tokenizer, causal)
    assert tokenizer.convert_ids_to_tokens(example["input_ids"])[:4] == ["the", "of", "[SEP]", "and"]
    with pytest.raises(BadInputError, match="has no token '<none>'"):
        next(
            pretraining_examples(
                [str(path)], tokenizer, PretrainingOptions(across_documents=True, separator_token="<none>")
            )
        )


def test_the_same_options_give_the_same_examples_and_an_epoch_gives_others(tokenizer, tmp_path):
    path = written(tmp_path / "a.txt", "\n".join(" ".join(WORDS) for _ in range(40)))
    options = PretrainingOptions(length=16, masks="static", shuffle=20, short_share=0.5)
    first, again = (list(pretraining_examples([str(path)], tokenizer, options)) for _ in range(2))
    other = list(pretraining_examples([str(path)], tokenizer, options, epoch=1))
    assert first == again != other


def test_documents_are_held_out_by_their_beginning(tokenizer, tmp_path):
    lines = [
        [f"{a} {b}", *[WORDS[i % 9]] * (i % 12)] for i, (a, b) in enumerate(itertools.product(WORDS[:15], repeat=2))
    ]
    path = written(tmp_path / "a.txt", "\n\n".join("\n".join(document) for document in lines))
    options = PretrainingOptions(heldout_share=0.3, short_share=0)
    parts = {
        part: [tokenizer.decode(example["input_ids"], skip_special_tokens=True) for example in found]
        for part in ("train", "heldout")
        for found in [pretraining_examples([str(path)], tokenizer, options, part=part)]
    }
    assert sorted(parts["train"] + parts["heldout"]) == sorted(" ".join(document) for document in lines)
    assert 0.2 < len(parts["heldout"]) / len(lines) < 0.4
    written(path, "\n\n".join("\n".join(document) for document in reversed(lines)))
    again = pretraining_examples([str(path)], tokenizer, options, part="heldout")
    assert {tokenizer.decode(example["input_ids"], skip_special_tokens=True) for example in again} == set(
        parts["heldout"]
    )


@given(st.integers(0, 40), st.integers(0, 30), st.integers(0, 9))
def test_a_bounded_buffer_shuffles_and_loses_nothing(count, size, seed):
    found = list(shuffled(iter(range(count)), size, Random(seed)))
    assert sorted(found) == list(range(count))
    assert size or found == list(range(count))
    assert all(at >= number - size for at, number in enumerate(found))  # none comes before it was read


# Masks


@settings(deadline=None)
@given(
    words=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=30), min_size=1, max_size=4),
    share=st.floats(0.05, 0.6),
    most=st.none() | st.integers(1, 12),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masks_keep_to_share_cap_and_words(words, share, most, whole, seed):
    length = max(map(sum, words)) + 3
    ids, special, begins = np.zeros((len(words), length), np.int64), np.ones((len(words), length), bool), []
    for row, sizes in enumerate(words):
        count = sum(sizes)
        ids[row, 1 : count + 1] = np.arange(10, 10 + count)
        special[row, 1 : count + 1] = False
        starts = np.concatenate([[1, *[0] * (size - 1)] for size in sizes])
        begins.append(np.pad(starts, (1, length - count - 1), constant_values=1))
    masked, labels = mask_tokens(
        ids,
        special,
        np.stack(begins),
        share=share,
        mask_id=4,
        vocabulary=500,
        random=np.random.default_rng(seed),
        whole_words=whole,
        most=most,
    )
    chosen = labels != IGNORED
    assert not (chosen & special).any()
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked[~chosen] == ids[~chosen]).all()
    for row, sizes in enumerate(words):
        picked = np.split(chosen[row, 1 : sum(sizes) + 1], np.cumsum(sizes)[:-1])
        if whole:
            assert all(word.all() or not word.any() for word in picked)
        units = len(sizes) if whole else sum(sizes)
        wanted = max(1, round(share * units))
        got = sum(bool(word.any()) for word in picked) if whole else int(chosen[row].sum())
        assert most is None or chosen[row].sum() <= most
        assert got <= wanted
        if most is None or sum(sizes) <= most:
            assert got == wanted
        elif not whole:
            assert got == min(wanted, most)


def test_a_word_does_not_reach_over_a_special_token():
    ids, special = np.array([[2, 10, 11, 3, 12, 13, 3]]), np.array([[1, 0, 0, 1, 0, 0, 1]])
    begins = np.array([[1, 1, 0, 1, 0, 1, 1]])  # the second text was trimmed inside a word
    seen = set()
    for seed in range(40):
        random = np.random.default_rng(seed)
        _, labels = mask_tokens(
            ids, special, begins, share=0.3, mask_id=4, vocabulary=50, random=random, whole_words=True
        )
        seen.add(tuple(np.flatnonzero(labels[0] != IGNORED)))
    assert seen == {(1, 2), (4,), (5,)}


@pytest.mark.parametrize("objective", ["mlm", "mlm+sop"])
def test_static_masks_are_written_and_dynamic_ones_have_what_they_need(objective, tokenizer, tmp_path):
    path = written(tmp_path / "a.txt", "\n".join(" ".join(WORDS[i % 20 :]) for i in range(60)))
    more = {"objective": objective, "length": 64}
    names = [str(path)]
    plain = list(pretraining_examples(names, tokenizer, PretrainingOptions(**more)))
    capped = PretrainingOptions(masks="static", max_predictions=5, **more)
    static = list(pretraining_examples(names, tokenizer, capped))
    assert len(plain) == len(static)
    for bare, example in zip(plain, static, strict=True):
        labels = np.array(example["labels"])
        original = np.where(labels == IGNORED, example["input_ids"], labels)
        assert original.tolist() == bare["input_ids"]
        assert 1 <= (labels != IGNORED).sum() <= 5
    words = list(pretraining_examples(names, tokenizer, PretrainingOptions(whole_words=True, **more)))
    for bare, example in zip(plain, words, strict=True):
        pieces = tokenizer.convert_ids_to_tokens(example["input_ids"])
        assert example["input_ids"] == bare["input_ids"]
        assert example["word_starts"] == [int(not piece.startswith("##")) for piece in pieces]
    assert "word_starts" not in plain[0]
    assert "labels" not in plain[0]


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path):
    save_tokenizer(tmp_path, "t5", 64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    path = written(tmp_path / "a.txt", "the of and\n\nto in a")
    with pytest.raises(BadInputError, match="no mask token, which objective mlm needs"):
        next(pretraining_examples([str(path)], tokenizer, PretrainingOptions()))
    (example,) = pretraining_examples(
        [str(path)], tokenizer, PretrainingOptions(objective="clm", across_documents=True)
    )
    assert sum(example["special_tokens_mask"]) == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"length": 4}, "--length must be at least 8"),
        ({"short_share": 1.5}, "--short-share must be from 0 to 1"),
        ({"mask_share": 0}, "--mask-share must be between 0 and 1"),
        ({"documents": "separator"}, "--multiple-docs-separator names none"),
        ({"documents": "file", "multiple_docs_separator": "x"}, "no meaning"),
        ({"objective": "mlm+nsp", "overlap": 4}, "without --overlap"),
        ({"objective": "clm", "masks": "static"}, "no masks"),
        ({"objective": "nsp"}, "must be one of"),
        ({"separator_token": "[SEP]"}, "needs --across-documents"),
    ],
)
def test_options_without_meaning_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        PretrainingOptions(**options)
