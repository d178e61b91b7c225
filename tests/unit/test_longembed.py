"""The synthetic tasks of LongEmbed: documents of the asked length, a fact in each, and a question that names one."""

from __future__ import annotations

import random
import re

import pytest

from benchmarks.longembed import DOCUMENTS, GRASS, QUERIES, needle, passkey, sentences


class Words:
    """A tokenizer with a token a word, and two special ones."""

    def __call__(self, text, **_):
        return {"input_ids": text.split()}

    def num_special_tokens_to_add(self):
        return 2


FILLER = [f"sentence {i} is about {i % 7} other things ." for i in range(300)]


@pytest.mark.parametrize("make", [passkey, needle])
@pytest.mark.parametrize("length", [64, 200])
def test_each_document_has_one_fact_and_the_length(make, length):
    task = make(random.Random(0), length, FILLER, Words())
    assert len(task.documents) == DOCUMENTS
    assert len(task.queries) == len(set(task.queries)) == len(set(task.answers)) == QUERIES
    for document in task.documents:
        assert length - 12 <= len(document.split()) + 2 <= length
    for query, answer in zip(task.queries, task.answers, strict=True):
        if make is passkey:
            (name,) = re.findall(r"for (.*)\?", query)
            assert [i for i, text in enumerate(task.documents) if f"{name}'s pass key is" in text] == [answer]
        else:
            asked = query.removeprefix("What is the ").removesuffix("?")  # best THING thing to do in CITY
            assert [i for i, text in enumerate(task.documents) if f"The {asked} is to " in text] == [answer]
    assert task == make(random.Random(0), length, FILLER, Words())


def test_facts_stand_anywhere():
    task = passkey(random.Random(1), 400, (), Words())
    places = [document.split().index("pass") / len(document.split()) for document in task.documents]
    assert min(places) < 0.1
    assert max(places) > 0.9
    assert 0.4 < sum(places) / len(places) < 0.6
    assert all(document.count(GRASS[0]) > 10 for document in task.documents)


def test_sentences_of_a_text():
    text = " = Heading = \n One two three four . Five six seven eight nine ten\n\n too short . \n"
    assert sentences(text) == ["One two three four.", "Five six seven eight nine ten."]
