"""Parts of `effconv finetune` by themselves: batches, labels, metrics, and the spans of answers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effconv.convert.errors import BadInputError
from effconv.data.rows import Rows
from effconv.finetune.buckets import Buckets, epoch_order
from effconv.finetune.features import IGNORED, Features, Texts, _span
from effconv.finetune.labels import read_labels
from effconv.finetune.metrics import answers_of, entities, metrics_for
from effconv.finetune.options import FinetuneOptions
from effconv.finetune.tasks import TASKS, metrics_of
from effconv.finetune.trainer import out_of_patience, plan_of

# Batches


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_has_every_row_and_its_last_batch_is_filled_up(lengths, batch, seed):
    order = epoch_order(lengths, batch, seed, 0)
    assert len(order) == len(Buckets(lengths, batch, seed)) == -(-len(lengths) // batch) * batch
    assert set(order) == set(range(len(lengths)))
    assert max(lengths) in [lengths[i] for i in order[:batch]]


def test_texts_of_a_batch_have_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 2000, 3000).tolist()
    padded = {
        name: sum(16 * max(lengths[i] for i in order[start : start + 16]) for start in range(0, len(order), 16))
        for name, order in (("sorted", epoch_order(lengths, 16, 0, 0)), ("as they are", list(range(3000))))
    }
    assert padded["sorted"] < 1.1 * sum(lengths)
    assert padded["as they are"] > 1.7 * sum(lengths)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 65))
    orders = [tuple(epoch_order(lengths, 8, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    sampler = Buckets(lengths, 8, 1)
    sampler.set_epoch(2)
    assert tuple(sampler) == orders[5] == tuple(sampler)


def test_a_run_has_the_steps_that_were_asked_for():
    def steps(**options):
        plan = plan_of(FinetuneOptions(**options), 100)
        return plan.steps, plan.every

    assert steps() == (21, 7)
    assert steps(epochs=0.5) == (4, 4)
    assert steps(steps=30, evaluate_every=10) == (30, 10)


@pytest.mark.parametrize(
    ("values", "metric", "patience", "stops"),
    [
        ([0.5, 0.6], "f1", None, False),
        ([0.9, 0.5, 0.6, 0.6], "f1", 1, True),
        ([0.9, 0.5, 0.6, 0.6], "f1", 2, False),
        ([0.9, 0.5, 0.4, 0.6], "f1", 1, False),
        ([0.1, 0.5, 0.4, 0.6, 0.5], "mse", 2, True),
    ],
)
def test_patience_ends_where_nothing_was_better_than_the_best(values, metric, patience, stops):
    """The first value is of the untrained model."""
    history = [entry for i, value in enumerate(values) for entry in ({"step": i, f"eval_{metric}": value}, {"loss": 1})]
    assert out_of_patience(history, metric, patience) == stops


# Labels


def rows(*labels, names=()):
    return Rows({"label": list(labels)}, names, ("rows.jsonl",), {})


def labels_of(train, heldout=None, config=None, task="classification", trained=False, new_head=False):
    return read_labels(TASKS[task], "label", train, heldout or train, config or {}, trained=trained, new_head=new_head)


@pytest.mark.parametrize(
    ("train", "names", "ids"),
    [
        (rows("no", "yes", "no"), ("no", "yes"), [0, 1, 0]),
        (rows(1, 0, 2), ("LABEL_0", "LABEL_1", "LABEL_2"), [1, 0, 2]),
        (rows(5, 3), ("3", "5"), [1, 0]),
        (rows(False, True), ("False", "True"), [0, 1]),
        (rows(1.0, 0.0), ("LABEL_0", "LABEL_1"), [1, 0]),
        (rows(1, 1, 0, names=("bad", "good", "unseen")), ("bad", "good", "unseen"), [1, 1, 0]),
    ],
)
def test_labels_are_outputs_of_a_new_head(train, names, ids):
    found = labels_of(train)
    assert found.names == names
    assert found.train == ids


def test_a_trained_head_keeps_its_outputs():
    config = {"id2label": {"0": "neg", "1": "neutral", "2": "pos"}}
    assert labels_of(rows("pos", "neg"), config=config, trained=True).train == [2, 0]
    assert labels_of(rows(2, 0), config=config, trained=True).names == ("neg", "neutral", "pos")
    with pytest.raises(BadInputError, match="the data has bad, neg, and the head has neg, neutral, pos"):
        labels_of(rows("bad", "neg"), config=config, trained=True)
    with pytest.raises(BadInputError, match="the data has 0, 3"):
        labels_of(rows(0, 3), config=config, trained=True)
    found = labels_of(rows(0, 1), config=config, trained=True, new_head=True)
    assert found.replaced
    assert found.names == ("LABEL_0", "LABEL_1")


def test_lists_of_labels_are_encoded_item_by_item():
    found = labels_of(rows(["a", "c"], [], ["b"]), task="multilabel")
    assert found.names == ("a", "b", "c")
    assert found.train == [[0, 2], [], [1]]


def test_all_labels_that_are_none_are_listed():
    with pytest.raises(BadInputError, match=r"(?s)not numbers.*row 1: 'x'.*row 3: 'y'"):
        labels_of(rows("x", 1.5, "y"), task="regression")


# Metrics


def computed(task, predictions, label_ids, names=(), labels=(), texts=None, features=None):
    compute = metrics_for(TASKS[task], names or metrics_of(TASKS[task], None), labels, None)(features, texts)
    return compute(SimpleNamespace(predictions=predictions, label_ids=label_ids))


def test_classes_are_counted():
    found = computed(
        *("classification", np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])),
        names=("accuracy", "f1", "matthews", "f1_macro", "loss"),
        labels=("a", "b"),
    )
    assert found == pytest.approx(
        {"accuracy": 3 / 4, "f1": 2 / 3, "matthews": 2 / (1 * 3 * 2 * 2) ** 0.5, "f1_macro": (2 / 3 + 4 / 5) / 2}
    )


def test_numbers_are_compared():
    stated = np.array([1.0, 2.0, 3.0])
    found = computed("regression", np.array([[2.0], [4.0], [6.0]]), stated)
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "mse": 14 / 3})
    assert computed("regression", np.ones((3, 1)), stated)["pearson"] == 0


def test_sets_of_labels_are_compared():
    found = computed("multilabel", np.array([[2.0, -1.0], [-1.0, 3.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert found == pytest.approx({"f1": 2 * 2 / 5, "f1_macro": (2 / 3 + 1) / 2, "accuracy": 0.5})


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("O B-PER I-PER O", {("PER", 1, 3)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-LOC I-LOC B-LOC I-PER", {("LOC", 0, 2), ("LOC", 2, 3), ("PER", 3, 4)}),
        ("noun O verb verb", {("noun", 0, 1), ("verb", 2, 3), ("verb", 3, 4)}),
    ],
)
def test_entities_are_spans(labels, spans):
    assert entities(labels.split()) == spans


def test_entities_are_counted_whole_and_words_that_are_not_labelled_are_left_out():
    labels = ("O", "B-X", "I-X")
    stated = np.array([[1, 2, 0, IGNORED], [0, 1, IGNORED, IGNORED]])
    found = computed("tokens", np.array([[1, 0, 0, 1], [0, 1, 1, 1]]), stated, labels=labels)
    assert found == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 4 / 5})


def test_the_best_answer_is_found_in_the_windows_of_its_context():
    context = "he was in the garden"
    spans = [(0, 2), (3, 6), (7, 9), (10, 13), (14, 20)]
    windows = Features(rows=[0, 0, 1], offsets=[[None, *spans[:3]], [None, *spans[2:]], [None, *spans[:3]]])
    start, end = np.zeros((3, 4)), np.zeros((3, 4))
    start[1, 2], end[1, 3] = 5, 4  # "the garden"
    start[0, 1], end[0, 1] = 3, 3
    start[2, 0] = end[2, 0] = 2  # no answer
    assert answers_of((start, end), windows, 2, [context, context]) == ["the garden", ""]
    texts = Texts([context, context], ["where"] * 2, None, [[(10, "The garden.")], []])
    found = computed("question", (start, end), None, texts=texts, features=windows)
    assert found == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize(
    ("answer", "span"),
    [((3, "was in"), (2, 3)), ((7, "in"), (3, 3)), ((0, "he"), (1, 1)), ((7, "in the"), (0, 0)), (None, (0, 0))],
)
def test_an_answer_is_the_tokens_that_have_it_and_none_where_a_window_ends_in_it(answer, span):
    offsets = [None, (0, 2), (3, 6), (7, 9), None]
    assert _span(offsets, [answer] if answer else []) == span


def test_summaries_are_compared_by_words():
    class Words:
        pad_token_id = 0

        def batch_decode(self, ids, **_):
            return [" ".join("abcdefg"[i - 1] for i in row if i) for row in ids]

    compute = metrics_for(TASKS["summarize"], ("rouge1", "rouge2", "rougeL"), (), Words())(None, None)
    found = compute(SimpleNamespace(predictions=np.array([[1, 2, 3, 4]]), label_ids=np.array([[1, 3, 2, IGNORED]])))
    assert found == pytest.approx({"rouge1": 6 / 7, "rouge2": 0.0, "rougeL": 4 / 7})
