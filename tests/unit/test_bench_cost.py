"""What documents cost: interpolated times, texts that are too long, hours and money. On made-up timings."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from effconv.bench.choices import Lengths
from effconv.bench.cost import Cost, Curve, costs_of_texts, lengths_for, measured_costs, pieces
from effconv.bench.models import Subject
from effconv.bench.options import bench_options
from effconv.bench.whole import Case, Row
from effconv.convert.errors import UsageError
from effconv.report.costs import print_costs

SETTINGS = {"threads": 1, "device": "cpu"}


def row(model, length, *seconds, **case):
    return Row(model, "", Case(length, **case), 1, "cpu", seconds)


def at(curve, *tokens):
    return curve(np.array(tokens)).tolist()


def test_times_that_are_powers_of_the_length_are_met_between_and_beyond_measured_lengths():
    square = Curve((512, 1024, 2048), (1.0, 4.0, 16.0))
    assert at(square, 512, 700, 1500, 4096) == pytest.approx([1.0, (700 / 512) ** 2, (1500 / 512) ** 2, 64.0])
    assert at(square, 256) == pytest.approx([0.5])  # below, no more than in proportion is saved
    line = Curve((512, 1024), (1.0, 2.0))
    assert at(line, 128, 768, 8192) == pytest.approx([0.25, 1.5, 16.0])
    noisy = Curve((512, 1024), (2.0, 1.0))
    assert at(noisy, 128, 2048) == pytest.approx([2.0, 2.0])  # longer documents never get cheaper, nor shorter dearer
    assert at(Curve((100,), (1.0,)), 50, 100, 300) == pytest.approx([0.5, 1.0, 3.0])


def test_the_interpolation_is_close_to_a_sum_of_a_line_and_a_square():
    def time(n):
        return 0.01 + 1e-3 * n + 1e-6 * n**2

    lengths = (128, 256, 512, 1024, 2048)
    tokens = np.arange(128, 2049)
    found = Curve(lengths, tuple(time(n) for n in lengths))(tokens)
    assert np.abs(found / time(tokens) - 1).max() < 0.02


def test_a_long_text_is_cut_into_pieces_that_have_special_tokens_of_their_own():
    tokens, repeats = pieces(np.array([12, 32, 33, 100]), 32, 2)  # 10, 30, 31 and 98 tokens of text, 30 a piece
    runs = sorted(size for size, times in zip(tokens, repeats, strict=True) for _ in range(times))
    assert runs == sorted([12, 32, 32, 3, 32, 32, 32, 10])


def test_costs_are_those_of_the_texts_with_each_model_and_precision():
    lengths = Lengths(np.array([128, 256, 512, 1024]))
    rows = [row("lsg", n, n / 1000) for n in (128, 512, 1024)] + [row("dense", n, n / 2000) for n in (128, 512, 1024)]
    rows += [row("lsg", n, n / 4000, dtype="int8") for n in (128, 512, 1024)]
    rows.append(Row("failed", "", Case(128), 1, "cpu", failed="out of memory"))
    subjects = [Subject("lsg", "", reach=1024), Subject("dense", "", reach=1024, had=512), Subject("failed", "")]
    found = {(c.model, c.case.dtype, c.reading): c for c in costs_of_texts(rows, subjects, lengths, 2, 0.5)}
    assert list(found) == [
        ("lsg", "float32", "whole"), ("lsg", "int8", "whole"),
        ("dense", "float32", "truncated"), ("dense", "float32", "in pieces"),
    ]  # fmt: skip
    whole, cut, parts = (found[key] for key in [*list(found)[:1], *list(found)[2:]])
    assert whole.seconds == pytest.approx(1.920 / 4)
    assert whole.documents_per_second == pytest.approx(4 / 1.920)
    assert whole.hours == pytest.approx(1e6 * 0.48 / 3600)
    assert whole.money == pytest.approx(0.5 * whole.hours)
    assert (cut.seconds, cut.beyond, cut.limit) == (pytest.approx((128 + 256 + 512 + 512) / 2000 / 4), 1, 512)
    assert parts.seconds == pytest.approx((128 + 256 + 512 + 512 + 512 + 4) / 2000 / 4)  # 1,022 = 510 + 510 + 2
    assert (cut.outside, parts.outside) == (0, 1)  # the last piece has 4 tokens
    described = json.loads(json.dumps(parts.described()))
    assert (described["reading"], described["beyond"], described["length"]) == ("in pieces", 1, None)
    assert described["million_price"] == pytest.approx(described["million_hours"] / 2)


def test_without_texts_every_measured_row_is_a_cost():
    rows = [row("a", 512, 1.0, 4.0, 2.0, batch=4), Row("b", "", Case(512), 1, "cpu", failed="takes 32 tokens")]
    (cost,) = measured_costs(rows, None)
    assert (cost.seconds, cost.money, cost.described()["length"]) == (0.5, None, 512)


@pytest.mark.parametrize(
    ("counts", "limits", "expected"),
    [
        ([100] * 9 + [3000], [4096], [64, 128, 256, 512, 1024, 2048, 4096]),
        ([100] * 9 + [3000], [2500], [64, 128, 256, 512, 1024, 2048, 2500]),
        ([600] * 9 + [3000], [4096, 514], [128, 256, 512, 514, 1024, 2048, 4096]),  # and its pieces
        ([100, 3000], [None], [256, 512, 1024, 2048, 4096]),
        ([50], [512], [32, 64]),
        ([3], [512], [32]),
    ],
)
def test_measured_lengths_cover_the_texts(counts, limits, expected):
    assert lengths_for(Lengths(np.array(counts)), limits) == expected


def printed(costs, cores=2):
    console = Console(file=io.StringIO(), width=150)
    print_costs(console, costs, SETTINGS, cores)
    return console.file.getvalue()


def test_the_table_says_how_many_texts_are_truncated_and_has_a_price_only_where_one_was_given():
    whole = Cost("lsg", Case(512), 0.36, "whole", 4096, 0, 0, 20)
    cut = Cost("dense", Case(512), 0.036, "truncated", 512, 7, 4, 20)
    text = printed([whole, cut])
    assert "a million documents as long as the 20 texts, 1 thread of 2" in text
    assert "truncated to 512 (7 texts)" in text
    assert "100" in text.split("lsg")[1].splitlines()[0]  # hours
    assert "price " not in text.split("Time of the model")[0]
    assert "--price-per-hour" in text
    assert "Up to 0.20 runs a text are shorter or longer than all measured lengths" in text
    assert "1 of 2 hardware threads" in text
    priced = printed([Cost("lsg", Case(512), 0.36, price=0.2)])
    assert "20.00" in priced
    assert "--price-per-hour" not in priced
    assert printed([]) == ""


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"price_per_hour": 0}, "--price-per-hour"), ({"price_per_hour": float("nan")}, "--price-per-hour"),
        ({"advice": False}, "--no-advice applies only with --data"),
        ({"advice": False, "data": "x", "memory": "1G"}, "--memory applies only to advice"),
        ({"mixed": True, "batch": "4", "data": "x"}, "--mixed and --data exclude each other"),
    ],
)  # fmt: skip
def test_options_of_costs_that_mean_nothing_are_refused(options, flag):
    with pytest.raises(UsageError) as error:
        bench_options(options)
    assert flag in str(error.value)
