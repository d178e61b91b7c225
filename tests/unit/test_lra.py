"""The data of Long Range Arena: expressions and their values, and files as they were released."""

from __future__ import annotations

import collections
import io
import itertools
import statistics

import numpy as np
import pytest

from benchmarks.lra import images, listops, texts
from benchmarks.lra.examples import FIRST, SPECIAL, Examples, features
from effconv.convert.errors import BadInputError

SMALL = listops.Limits(depth=5, arguments=4, above=5, below=60)


@pytest.fixture(scope="module")
def drawn():
    return list(itertools.islice(listops.expressions(SMALL, 0), 3000))


def evaluated(text):
    """The value of an expression of a released file, by its binary tree: shares nothing with the generator."""
    words = text.split()

    def node(at):
        if words[at] != "(":
            return words[at], at + 1
        left, at = node(at + 1)
        right, at = node(at)
        assert words[at] == ")"
        if right != "]":
            return ([*left, right] if isinstance(left, list) else [left, right]), at + 1
        operator, *rest = left
        values = [int(value) for value in rest]
        if operator == "[MED":
            value = int(statistics.median(values))
        else:
            value = {"[MIN": min(values), "[MAX": max(values), "[SM": sum(values) % 10}[operator]
        return str(value), at + 1

    value, end = node(0)
    assert end == len(words)
    return int(value)


def walked(tokens):
    """Depth of each operation (1 at the root) and its number of arguments."""
    open_ones, found = [], []
    for token in tokens:
        if token == "]":
            found.append((len(open_ones), open_ones.pop()))
        if token in listops.OPERATORS:
            open_ones.append(0)
        elif open_ones:
            open_ones[-1] += 1
    assert not open_ones
    return found


@pytest.mark.parametrize(
    ("expression", "released", "value"),
    [
        ("[MAX 2 9 ]", "( ( ( [MAX 2 ) 9 ) ] )", 9),
        ("[SM 8 7 6 ]", "( ( ( ( [SM 8 ) 7 ) 6 ) ] )", 1),
        ("[MED 1 2 ]", "( ( ( [MED 1 ) 2 ) ] )", 1),  # 1.5, rounded down
        ("[MED 9 0 4 ]", "( ( ( ( [MED 9 ) 0 ) 4 ) ] )", 4),
        ("[MIN 7 [MAX 3 5 ] 6 ]", "( ( ( ( [MIN 7 ) ( ( ( [MAX 3 ) 5 ) ] ) ) 6 ) ] )", 5),
    ],
)
def test_expressions_are_written_as_released_and_have_their_value(expression, released, value):
    assert listops.published_source(tuple(expression.split())) == released
    assert evaluated(released) == value
    if "[MAX 3" not in expression:
        operator, *digits, _ = expression.split()
        assert listops.applied(operator, [int(digit) for digit in digits]) == value


def test_every_drawn_expression_keeps_to_the_limits(drawn):
    assert len({tokens for tokens, _ in drawn}) == len(drawn)
    deepest, most, shortest, longest = 0, set(), 99, 0
    for tokens, value in drawn:
        assert evaluated(listops.published_source(tokens)) == value
        operations = walked(tokens)
        deepest = max(deepest, *(depth for depth, _ in operations))
        most |= {count for _, count in operations}
        shortest, longest = min(shortest, len(tokens)), max(longest, len(tokens))
    assert deepest == SMALL.depth - 1
    assert most == {1, 2, 3, 4} - {1}
    assert SMALL.above < shortest
    assert 50 < longest < SMALL.below


def test_labels_and_operators_are_balanced(drawn):
    labels = collections.Counter(value for _, value in drawn)
    assert set(labels) == set(range(10))
    assert 0.05 < min(labels.values()) / len(drawn) <= max(labels.values()) / len(drawn) < 0.2
    operators = collections.Counter(token for tokens, _ in drawn for token in tokens if token in listops.OPERATORS)
    assert all(abs(count / operators.total() - 0.25) < 0.03 for count in operators.values())


def test_published_limits_are_those_of_the_benchmark():
    assert listops.Limits(depth=10, arguments=10, above=500, below=2000) == listops.PUBLISHED
    assert listops.COUNTS == {"train": 96_000, "valid": 2_000, "test": 2_000}
    found = list(itertools.islice(listops.expressions(listops.PUBLISHED, 1), 5))
    assert all(500 < len(tokens) < 2000 for tokens, _ in found)
    assert all(depth < 10 and 2 <= count <= 10 for tokens, _ in found for depth, count in walked(tokens))


def test_a_data_set_depends_on_its_seed_and_survives_its_files(tmp_path):
    counts = {"train": 20, "valid": 5, "test": 5}
    one, same, other = (listops.generated(SMALL, counts, seed) for seed in (1, 1, 2))
    listops.write(tmp_path, one)
    read = listops.read(tmp_path)
    for part in counts:
        mine = getattr(one, part)
        assert len(mine) == counts[part]
        for again in (getattr(same, part), getattr(read, part)):
            assert list(again.labels) == list(mine.labels)
            assert all((a == b).all() for a, b in zip(again.ids, mine.ids, strict=True))
    assert list(map(bytes, one.train.ids)) != list(map(bytes, other.train.ids))
    assert (read.vocabulary, read.classes) == (15, 10)


@pytest.mark.parametrize("row", ["( [MAX 2 ) ]", "( [AVG 2 ) ]\t1", "1 2 3\tten", "\t1"])
def test_a_row_that_is_no_expression_is_refused_by_its_line(row, tmp_path):
    for file in listops.FILES.values():
        (tmp_path / file).write_text(f"{listops.HEADER}\n( ( ( [MAX 2 ) 9 ) ] )\t9\n{row}\n")
    with pytest.raises(BadInputError, match="not an expression") as caught:
        listops.read(tmp_path)
    assert "line 3" in caught.value.where


def test_reviews_are_bytes_and_a_tenth_of_the_training_ones_validates(tmp_path):
    for part, count in (("train", 10), ("test", 2)):
        for side in ("neg", "pos"):
            folder = tmp_path / "aclImdb" / part / side
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}_1.txt").write_text(f"{part} {side} {i} é", encoding="utf-8")
    found = texts.reviews(tmp_path)
    assert [len(part) for part in (found.train, found.valid, found.test)] == [18, 2, 4]
    assert list(found.test.labels) == [0, 0, 1, 1]
    assert bytes(found.test.ids[3]) == "test pos 1 é".encode()
    learned = {bytes(ids) for ids in (*found.train.ids, *found.valid.ids)}
    assert len(learned) == 20
    assert not learned & {bytes(ids) for ids in found.test.ids}


def test_pairs_are_read_as_released(tmp_path):
    for file in texts.PAIRS.values():
        (tmp_path / file).write_bytes(b'0.0\tA1\tB1\tone "quoted\ttwo\n1.0\tA2\tB2\t' + b"x" * 20_000 + b"\ty\n")
    found = texts.pairs(tmp_path)
    assert list(found.train.labels) == [0, 1]
    assert bytes(found.train.ids[0][0]) == b'one "quoted'
    assert [len(part) for part in found.train.ids[1]] == [10_000, 1]
    table = features(found.test, 64)
    assert table[1]["input_ids"].shape == (2, 64)
    assert table[1]["attention_mask"].sum(axis=1).tolist() == [64, 2]
    (tmp_path / texts.PAIRS["test"]).write_bytes(b"2\tA\tB\tone\ttwo\n")
    with pytest.raises(BadInputError, match="label must be 0 or 1"):
        texts.pairs(tmp_path)


def test_colours_become_grey_as_in_tensorflow():
    """Values of tf.image.rgb_to_grayscale, by its definition: floor of 255.5 times the weighted sum of shares."""
    colours = np.asarray([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [10, 20, 30]], np.uint8)
    assert images.grey(colours).tolist() == [255, 76, 149, 29, 0, 18]


def test_cifar_is_read_from_its_binary_version(tmp_path):
    random = np.random.default_rng(0)
    for i, name in enumerate([*images.TRAIN, *images.TEST]):
        table = random.integers(0, 256, (4, 3073), np.uint8)
        table[:, 0] = np.arange(4) + i
        table[0, 1:] = np.repeat(np.asarray([255, 0, 0], np.uint8), 1024)  # a red image: planes, not pixels
        (tmp_path / name).write_bytes(table.tobytes())
    found = images.cifar(tmp_path)
    assert [len(part) for part in (found.train, found.valid, found.test)] == [18, 2, 4]
    assert list(found.train.labels[:5]) == [0, 1, 2, 3, 1]
    assert (found.train.ids[0] == 76).all()
    assert found.train.ids[0].shape == (1024,)
    (tmp_path / images.TEST[0]).write_bytes(b"short")
    with pytest.raises(BadInputError, match="not a CIFAR-10 batch"):
        images.cifar(tmp_path)


def test_pathfinder_is_read_from_its_metadata_and_leaves_out_empty_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "metadata").mkdir()
    for folder in range(2):
        (tmp_path / "imgs" / str(folder)).mkdir(parents=True)
        lines = []
        for i in range(6):
            stream = io.BytesIO()
            image.fromarray(np.full((4, 4), 10 * folder + i, np.uint8)).save(stream, "png")
            empty = (folder, i) == (1, 5)
            (tmp_path / "imgs" / str(folder) / f"sample_{i}.png").write_bytes(b"" if empty else stream.getvalue())
            lines.append(f"imgs/{folder} sample_{i}.png {i} {i % 2} 1.8 14 1 0 4\n")
        (tmp_path / "metadata" / f"{folder}.npy").write_text("".join(lines))
    found = images.pathfinder(tmp_path)
    assert [len(part) for part in (found.train, found.valid, found.test)] == [8, 1, 2]
    assert [int(ids[0]) for ids in (*found.train.ids, *found.valid.ids, *found.test.ids)] == [*range(6), *range(10, 15)]
    assert list(found.train.labels) == [0, 1, 0, 1, 0, 1, 0, 1]
    (tmp_path / "metadata" / "0.npy").write_text("imgs/0 sample_0.png\n")
    with pytest.raises(BadInputError, match="label of an image"):
        images.pathfinder(tmp_path)


@pytest.mark.parametrize("read", [listops.read, texts.reviews, texts.pairs, images.cifar, images.pathfinder])
def test_a_folder_without_the_data_set_names_what_is_missing(read, tmp_path):
    with pytest.raises(BadInputError, match="not found"):
        read(tmp_path)


def test_a_first_token_stands_before_the_ids_and_long_examples_are_cut():
    examples = Examples([np.asarray([0, 14], np.uint8), np.full(300, 255, np.uint8)], [1, 0])
    found = features(examples, 64)
    assert found[0]["input_ids"].tolist() == [FIRST, SPECIAL, SPECIAL + 14]
    assert found[1]["input_ids"].tolist() == [FIRST] + [SPECIAL + 255] * 63
    assert (found.lengths, found.cut) == ([3, 64], 1)
