"""`effconv bench MODEL --data TEXTS`: lengths are counted right, rules do what the docs say, commands can be run."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

import effconv
from effconv.bench import advice, choices
from effconv.bench.advice import _none_fits, check_of, require_room
from effconv.bench.choices import Candidate, Lengths, Probe
from effconv.bench.reasons import check_in_words
from effconv.bench.whole import Case, Row
from effconv.cli import app
from effconv.convert.errors import BadInputError, EffconvError, UsageError
from effconv.data.texts import count_tokens, read_texts
from tiny import WORDS, save_tiny

pytestmark = pytest.mark.xdist_group("bench-advice")
MEGA = 10**6


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("advice") / "source")


@pytest.fixture(scope="module")
def tokenizer(source):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(source)


def words(count):
    """A text of so many tokens of the tiny tokenizer: each of these words is one."""
    return " ".join(WORDS[i % 20] for i in range(count))


# Lengths of texts.


def test_tokens_are_counted_with_the_special_ones(tokenizer, tmp_path):
    counts = [5, 1, 300, 17]
    paths = []
    for i, count in enumerate(counts):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(words(count), encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    texts = read_texts([*map(str, paths), str(tmp_path / "empty.txt")])
    assert count_tokens(texts, tokenizer, 1000, "here").tolist() == [count + 2 for count in counts]


def test_what_a_text_is_depends_on_the_file(tmp_path):
    plain, wiki, rows, table = (tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl", "d.csv"))
    plain.write_text("one\n\ntwo\n")
    wiki.write_text(" = First = \n\nbody\n\n = Second = \n\n = = Part = = \n\nmore\n")
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in ("x", "  ", "y z")))
    table.write_text("text,other\nleft,right\n")
    assert len(list(read_texts([str(plain)]))) == 1
    assert list(read_texts([str(plain)], lines=True)) == ["one", "two"]
    assert len(list(read_texts([str(wiki)]))) == 2
    assert list(read_texts([str(rows)], column="body")) == ["x", "y z"]
    assert list(read_texts([str(table)])) == ["left"]


def test_percentiles_and_shares_are_those_of_the_lengths():
    random = np.random.default_rng(0)
    counts = np.sort(random.integers(1, 5000, 997))
    lengths = Lengths(random.permutation(counts))
    for share in (50, 90, 95, 99):  # position (n - 1) · p / 100 in the sorted lengths, interpolated
        place = 996 * share / 100
        low, part = int(place), place - int(place)
        assert lengths.percentile(share) == pytest.approx(counts[low] * (1 - part) + counts[low + 1] * part)
    kept = sum(min(int(count), 1024) for count in counts) / sum(int(count) for count in counts)
    assert lengths.covered(1024) == pytest.approx(kept)
    assert lengths.longer(1024) == pytest.approx(sum(count > 1024 for count in counts) / 997)
    assert lengths.covered(5000) == 1


def test_the_length_is_the_shortest_that_keeps_enough():
    lengths = Lengths(np.array([100] * 9 + [5000]))  # 5,900 tokens
    assert choices.needed_length(lengths) == 8192  # at 4,096 84.7 % are kept
    assert choices.needed_length(lengths, [256, 4096]) == 4096  # the longest that is allowed
    assert choices.needed_length(Lengths(np.array([500, 512]))) == 512
    one = Lengths(np.array([100_000] + [1] * 10))
    assert choices.needed_length(one) == choices.LENGTHS[-1]


# Rules, on made-up measurements.


def probe(candidate, seconds, working=(10 * MEGA, 20 * MEGA), held=100 * MEGA):
    return Probe(candidate, (1024, 2048), seconds, working, held, (0.9 * seconds[1], 1.2 * seconds[1]))


NARROW, WIDE, FULL = Candidate(64, 0, 0, "none"), Candidate(128, 128, 4), Candidate(2048, 0, 0, "none")


def test_reach_is_what_a_token_sees():
    assert NARROW.reach(4096) == 3 * 64
    assert WIDE.reach(4096) == 3 * 128 + 2 * 128 * 4
    assert (FULL.reach(4096), FULL.full(4096), FULL.full(4097)) == (4096, True, False)
    assert WIDE.reach(1000) == 1000  # no more than there is


@pytest.mark.parametrize("length", [16, 64, 512, 600, 4096, 65536])
def test_candidates_are_options_that_lsg_takes(length):
    from effconv.lsgify.options import LSGOptions

    found = choices.candidates(length)
    assert [candidate.full(length) for candidate in found].count(True) == 1
    for candidate in found:
        LSGOptions(max_length=length, **{name: getattr(candidate, name) for name in Candidate.__dataclass_fields__})


def test_memory_and_time_of_blocks_are_lines_and_those_of_full_attention_a_square():
    lsg = probe(WIDE, (1.0, 2.0))
    assert lsg.memory(8192) == (100 + 80) * MEGA
    assert lsg.time(8192) == pytest.approx(8.0)
    assert lsg.time(1024) == 1.0
    full = probe(FULL, (1024 * 1e-3 + 1024**2 * 1e-6, 2048 * 1e-3 + 2048**2 * 1e-6))
    assert full.time(4096) == pytest.approx(4096 * 1e-3 + 4096**2 * 1e-6)
    noisy = probe(WIDE, (2.0, 1.0), working=(30 * MEGA, 20 * MEGA))
    assert noisy.time(8192) > noisy.time(2048)  # noise does not make longer texts cheaper
    assert noisy.memory(8192) > noisy.memory(2048)


def test_the_widest_is_chosen_of_those_that_are_quick_enough_and_fit():
    narrow, wide, full = probe(NARROW, (1.0, 2.0)), probe(WIDE, (1.5, 3.0)), probe(FULL, (2.0, 8.0))
    assert choices.choose([narrow, wide, full], 4096, 10**9) is wide  # full attention would take 16 times as long
    slow = probe(WIDE, (2.5, 5.0))
    assert choices.choose([narrow, slow, full], 4096, 10**9) is narrow
    large = probe(WIDE, (1.5, 3.0), working=(600 * MEGA, 1200 * MEGA))
    assert choices.choose([narrow, large], 4096, 10**9) is narrow
    quick = probe(FULL, (1.0, 2.1))
    assert choices.choose([narrow, wide, quick], 4096, 10**9) is quick  # where dense attention is quick enough, it wins
    assert choices.choose([narrow], 4096, 100 * MEGA) is None


def test_the_batch_fills_the_memory_but_for_the_headroom():
    lsg = probe(WIDE, (1.0, 2.0))  # 100 MB and 40 MB a text of 4,096 tokens
    assert choices.batch_for(lsg, 4096, 10**9) == 16  # 740 of 900 MB; 32 would take 1,380
    assert choices.batch_for(lsg, 4096, 200 * MEGA) == 2
    assert choices.batch_for(lsg, 4096, 10**12) == choices.MOST
    assert choices.batch_for(lsg, 4096, 150 * MEGA) == 0


def test_a_third_measurement_above_the_line_makes_it_steeper():
    lsg = probe(WIDE, (1.0, 2.0))
    assert choices.corrected(lsg, 4096, 39 * MEGA) is lsg
    steeper = choices.corrected(lsg, 4096, 60 * MEGA)
    assert steeper.memory(4096) == pytest.approx(160 * MEGA, rel=1e-3)
    assert steeper.memory(8192) == pytest.approx(240 * MEGA, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "within", "said"),
    [
        ((4.4, 4.7, 5.2), True, None),  # 4.0 are predicted, in rounds 3.6 to 4.8
        ((5.6, 5.8, 6.0), False, "off by more than the spread of the rounds"),
        ((3.0, 3.2, 3.5), False, "off by more than the spread of the rounds"),
        ((5.8,), None, "not enough rounds to tell"),
    ],
)
def test_a_check_that_is_off_by_more_than_the_spread_is_said_to_be(seconds, within, said):
    row = Row("made up", "", Case(4096), 1, "cpu", seconds, 140 * MEGA, 40 * MEGA)
    _, check = check_of(probe(WIDE, (1.0, 2.0)), row)
    assert check["within_spread"] is within
    first, *more = check_in_words(check)
    off = sorted(seconds)[len(seconds) // 2] / 4 - 1
    assert first.startswith(f"Checked at 4,096 tokens: memory +0%, time {off:+.0%} compared with")
    assert [said in sentence for sentence in more] == ([True] if said else [])
    _, failed = check_of(probe(WIDE, (1.0, 2.0)), Row("made up", "", Case(4096), 1, "cpu", failed="out of memory"))
    assert "failed (out of memory)" in check_in_words(failed)[0]


def test_memory_that_the_loaded_model_leaves_no_room_in_is_refused_before_anything_is_run():
    require_room({"resident": 400 * MEGA}, 500 * MEGA, "cpu")
    with pytest.raises(UsageError, match=r"440 MB is not enough memory: the loaded model alone needs 400 MB") as error:
        require_room({"resident": 400 * MEGA}, 440 * MEGA, "cpu")  # of which 396 may be used
    assert (error.value.where, error.value.exit_code) == ("--memory", 2)
    assert "444 MB" in error.value.hint
    require_room({"resident": 400 * MEGA}, 440 * MEGA, "cuda")  # the device's own memory counts there
    with pytest.raises(EffconvError, match="does not report"):
        require_room({"resident": None}, 500 * MEGA, "cpu")


def test_too_little_for_one_text_says_what_it_takes_and_the_floor():
    error = _none_fits([probe(WIDE, (1.0, 2.0))], [], 8192, 150 * MEGA)  # 180 MB, and a tenth is kept free
    assert error.exit_code == 2
    assert error.what == (
        "150 MB is not enough memory: one text of 8,192 tokens needs 200 MB, including 100 MB for the loaded model"
    )
    assert "200 MB" in error.hint


def test_what_no_candidate_can_fit_is_known_from_the_first():
    lsg = probe(WIDE, (1.0, 2.0))  # 100 MB, and 20 MB at 2,048 tokens: at the very least 5 MB of them
    assert choices.hopeless(lsg, 2048, 116 * MEGA)  # of which 104.4 may be used
    assert not choices.hopeless(lsg, 2048, 117 * MEGA)
    assert choices.hopeless(lsg, 65536, 280 * MEGA)
    assert not choices.hopeless(lsg, 65536, 300 * MEGA)


def test_probing_ends_with_the_first_candidate_where_none_can_fit(source, tmp_path, monkeypatch):
    seen = []

    def measure(subjects, cases, rows, *, measured, **_):
        for case in cases:
            seen.append(case)
            rows.append(
                Row("made up", "", case, 1, "cpu", (1.0, 1.0), 400 * MEGA + 10**5 * case.length, 10**5 * case.length)
            )
            measured(case)

    monkeypatch.setattr(advice, "measure", measure)
    text = tmp_path / "text.txt"
    text.write_text(words(3000))
    with pytest.raises(UsageError, match=r"one text of 4,096 tokens needs .* including 400 MB for the loaded model"):
        effconv.bench(source, data=text, memory="500MB")
    assert [case.length for case in seen] == [1024, 2048]


# From end to end.


def test_texts_that_the_source_takes_need_no_conversion(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(advice, "measure", lambda *_, **__: pytest.fail("something was measured"))
    text = tmp_path / "text.txt"
    text.write_text("\n".join([words(30)] * 20 + [words(63)]))
    asked = ["bench", str(source), "--data", str(text), "--lines"]
    app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert "No conversion is needed" in said
    assert (
        "takes 64 tokens, and texts truncated to that length keep 99.9% of their tokens (4.8% of the texts are longer)"
        in said
    )
    assert "21 texts, 705 tokens" in said
    assert "effconv lsg" not in said
    app([*asked, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["conversion_needed"], found["advice"]) == (False, None)


def test_data_that_is_not_there_is_said_before_any_is_read(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xff")  # it would be refused if it were read
    with pytest.raises(BadInputError, match="no such file") as error:
        effconv.bench(source, data=[text, tmp_path / "a", tmp_path / "b"], memory="1G")
    assert all(str(tmp_path / name) in error.value.what for name in "ab")


@pytest.fixture(scope="module")
def advised(source, tmp_path_factory):
    import contextlib
    import io

    folder, said = tmp_path_factory.mktemp("texts"), io.StringIO()
    for i, count in enumerate([20, 50, 400, 900]):
        (folder / f"{i}.txt").write_text(words(count), encoding="utf-8")
    files = sorted(map(str, folder.glob("*.txt")))
    asked = ["bench", str(source), "--memory", "8G", "--rounds", "1", "--threads", "1", "--json", "--data", *files]
    with contextlib.redirect_stdout(said):
        app(asked, standalone_mode=False)  # the files after the first stand alone, as a shell hands them over
    return json.loads(said.getvalue())


def test_advice_tells_lengths_measurements_and_reasons(advised):
    texts = advised["texts"]
    assert (texts["texts"], texts["tokens"], texts["longest"]) == (4, 20 + 50 + 400 + 900 + 8, 902)
    assert texts["percentiles"]["50"] == pytest.approx((52 + 402) / 2)
    assert texts["cut"]["64"]["tokens"] == pytest.approx((402 - 64 + 902 - 64) / 1378)
    assert texts["cut"]["64"]["texts"] == 0.5
    assert advised["source_limit"] == 64
    advice = advised["advice"]
    assert advice["max_length"] == 1024
    assert advice["batch"] >= 1
    assert len(advised["candidates"]) == 7
    assert all(c["measured_lengths"] == [512, 1024] for c in advised["candidates"])
    assert all(seconds > 0 for c in advised["candidates"] for seconds in c["measured_seconds"])
    assert advised["check"]["tokens"] == 2048
    assert advised["check"]["measured_bytes"] > advised["candidates"][0]["model_bytes"]
    assert any("99" in reason or "keep" in reason for reason in advised["reasons"])


def test_advice_ends_with_what_the_texts_cost(advised):
    costs = advised["costs"]
    said = [(c["model"], c["reading"], c["limit"], c["beyond"]) for c in costs]
    assert said[:2] == [("source (source)", "truncated", 64, 2), ("source (source)", "in pieces", 64, 2)]
    assert [(reading, limit, beyond) for _, reading, limit, beyond in said[2:]] == [("whole", 1024, 0)]
    assert said[2][0].endswith("(advised)")
    assert all(c["million_hours"] > 0 and c["million_price"] is None for c in costs)


def test_models_are_compared_by_what_the_texts_cost(source, tmp_path, monkeypatch, capsys):
    from effconv.bench import run

    def measure(subjects, cases, rows, **_):
        rows += [Row(s.name, s.what, case, 1, "cpu", (case.length / 1000,) * 2) for case in cases for s in subjects]

    monkeypatch.setattr(run, "measure", measure)
    text = tmp_path / "text.txt"
    text.write_text("\n".join([words(38)] * 3 + [words(98)]), encoding="utf-8")
    asked = ["bench", str(source), "--data", str(text), "--lines", "--no-advice", "--price-per-hour", "3.6"]
    asked += ["--threads", "1", "--dtype", "float32,bfloat16", "--rounds", "2"]
    app([*asked, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["lengths"] == [32, 64]
    assert (found["texts"]["texts"], found["texts"]["cut"]["64"]["texts"], found["conversion"]) == (4, 0.25, {})
    cut, parts, half, _ = found["costs"]
    assert (cut["reading"], cut["beyond"], parts["reading"], half["dtype"]) == ("truncated", 1, "in pieces", "bfloat16")
    assert cut["million_hours"] == pytest.approx(1e6 * (3 * 40 + 64) / 4000 / 3600)
    assert parts["million_price"] == pytest.approx(1e3 * (3 * 40 + 64 + 38) / 4000)
    app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert "4 texts, 220 tokens" in said
    assert "truncated to 64 (1 text)" in said
    assert "bfloat16" in said
    two = effconv.bench([source, source], data=text, lines=True)  # no advice for two
    assert {cost.model for cost in two.costs} == {"source", "source (2)"}


def test_the_advised_command_can_be_run(advised, source, capsys):
    command = shlex.split(advised["advice"]["command"])
    assert command[:5] == ["effconv", "lsg", str(source), "--max-len", "1024"]
    app([*command[1:], "--plan", "--json"], standalone_mode=False)
    assert "rows" in json.loads(capsys.readouterr().out)


def test_advice_for_a_repo_names_it_and_says_when_memory_is_too_little(source, tmp_path, capsys):
    effconv.convert(
        source, "lsg", output=tmp_path / "lsg", max_length=256, block_size=16, sparse_block_size=16, verify=False
    )
    text = tmp_path / "text.txt"
    text.write_text("\n".join([words(30), words(60)]))
    asked = {"data": text, "lines": True, "lengths": [128], "rounds": 1, "threads": 1}
    steps = []
    found = effconv.bench(tmp_path / "lsg", memory="8G", progress=lambda step, *_: steps.append(step), **asked)
    with pytest.raises(UsageError, match=r"1 MB is not enough memory: the loaded model alone needs \d+ MB") as error:
        effconv.bench(source, memory="1MB", **asked)
    assert error.value.where == "--memory"
    assert "full attention (1 of 1), 64 tokens, float32: round 1 of 1" in steps
    assert "check of full attention, 128 tokens × 2, float32: round 1 of 1" in steps
    command = found.advised.command
    assert command.startswith(f"effconv lsg {tmp_path / 'lsg'} --max-len 128 ")
    assert found.limit == 64
    from effconv.report.bench import show_advice

    show_advice(found, as_json=False)
    said = capsys.readouterr().out
    assert "2 texts, 94 tokens" in said
    assert command in said.replace("\n", "")
    assert "not quality" in said
    assert "a million documents as long as the 2 texts" in said
    assert "One round" in said


@pytest.mark.parametrize("content", [b"", b" \n \n", b"\xff\xfe\x00", None])
def test_data_without_text_is_bad_input(content, source, tmp_path):
    path = tmp_path / "x.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EffconvError) as error:
        effconv.bench(source, data=path, memory="1G")
    assert error.value.exit_code == 4


def test_advice_is_for_one_model_that_has_a_dense_source_and_a_tokenizer(source, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(words(20))
    with pytest.raises(UsageError, match="one dtype") as error:
        effconv.bench(source, data=path, batch="8")
    assert "--no-advice" in error.value.hint
    bare = save_tiny(tmp_path / "bare", tokenizer=False)
    with pytest.raises(BadInputError, match="no tokenizer"):
        effconv.bench(bare, data=path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "modernbert"}')
    with pytest.raises(EffconvError, match="cannot be converted to LSG") as error:
        effconv.bench(tmp_path / "other", data=path)
    assert error.value.exit_code == 3
