"""`effconv bench`: what rows say, a repo measured from end to end, pictures, and what cannot be used."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

import effconv
from effconv.bench import picture, whole, worker
from effconv.bench.findings import crossing, crossovers, fastest
from effconv.bench.models import Subject, shape, stretched
from effconv.bench.options import bench_options
from effconv.bench.sources import conversion_of, opened, weights_of
from effconv.bench.whole import Case, Row
from effconv.cli import app
from effconv.convert.errors import BadInputError, EffconvError, OutputError, StoppedError, UsageError
from effconv.convert.options import parse_size
from tiny import save_tiny

pytestmark = pytest.mark.xdist_group("bench")  # they share a repo and a run
SMALL = {"max_length": 256, "block_size": 16, "sparse_block_size": 16, "verify": False}


def row(model, length, *seconds, failed="", peak=10**9, **case):
    """A row; one second stands for two rounds that took as long."""
    seconds = seconds * 2 if len(seconds) == 1 else seconds
    return Row(model, "made up", Case(length, **case), 1, "cpu", seconds, peak, peak // 2, failed)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repo, with its source beside it."""
    folder = tmp_path_factory.mktemp("bench")
    source = save_tiny(folder / "source")
    effconv.convert(source, "lsg", output=folder / "lsg", **SMALL)
    return folder / "lsg"


# What rows say.


@pytest.mark.parametrize(
    ("lengths", "ratios", "expected"),
    [
        ((512, 1024, 2048), (0.5, 2.0, 4.0), 724),  # halfway between in logarithms: 512 · √2
        ((512, 1024, 2048), (0.5, 0.8, 1.25), 1448),
        ((512, 1024), (1.5, 2.0), 512),
        ((512, 1024), (0.5, 0.9), None),
        ((512, 1024, 2048), (2.0, 3.0, 0.5), None),  # it wins, and not in the end
        ((512, 1024, 2048, 4096), (2.0, 0.5, 2.0, 3.0), 1448),  # from where on it stays ahead
        ((512,), (1.0,), None),  # as fast is no win
        ((), (), None),
    ],
)
def test_a_crossover_lies_between_the_last_length_that_loses_and_the_next(lengths, ratios, expected):
    assert crossing(lengths, ratios) == expected


def test_a_crossover_is_said_in_words():
    rows = [
        *(row("dense", n, s) for n, s in ((512, 1.0), (1024, 4.0), (2048, 16.0))),
        *(row("early", n, s) for n, s in ((512, 0.5), (1024, 1.0), (2048, 2.0))),
        *(row("usual", n, s) for n, s in ((512, 2.0), (1024, 4.0 / 2), (2048, 8.0))),
        *(row("never", n, 20.0) for n in (512, 1024, 2048)),
        row("short", 512, 3.0), row("short", 1024, failed="takes 512 tokens"),
        row("other", 128, 1.0),
    ]  # fmt: skip
    found = {c.model: c for c in crossovers(rows, ["early", "usual", "never", "short", "other"], ["dense"])}
    assert found["early"].says == "early is faster than dense at every measured length, from 512 tokens"
    assert found["usual"].says == "usual becomes faster than dense at about 724 tokens"
    assert found["never"].says == "never is not faster than dense at any measured length (up to 2,048 tokens)"
    assert found["short"].measured == (512,)
    assert found["short"].length is None
    assert "no measured length in common" in found["other"].says
    rows[6] = row("usual", 512, 0.1)
    rows[8] = row("usual", 2048, 99.0)
    (usual,) = crossovers(rows, ["usual"], ["dense"])
    assert usual.says == "usual is faster than dense at 512, 1,024 tokens, but not at 2,048"
    assert json.loads(json.dumps(usual.described()))["wins"] == [512, 1024]


def test_crossovers_are_kept_apart_by_batch_and_dtype():
    rows = [
        *(row("dense", n, 1.0, batch=b) for n in (64, 128) for b in (1, 8)),
        *(row("lsg", n, 2.0 if b == 1 else 0.5, batch=b) for n in (64, 128) for b in (1, 8)),
    ]
    one, eight = crossovers(rows, ["lsg"], ["dense"])
    assert (one.case.batch, one.length, eight.case.batch, eight.length) == (1, None, 8, 64)


def test_the_fastest_is_named_with_its_lead_and_whether_the_spread_allows_it():
    rows = [
        row("a", 64, 1.0, 1.2, 1.4), row("b", 64, 1.3, 1.8, 2.0), row("c", 64, failed="takes 32 tokens"),
        row("a", 128, 1.0, 1.0, 1.1), row("b", 128, 2.0, 2.1, 2.2),
        row("a", 256, failed="out of memory"), row("b", 256, 3.0),
        row("a", 512, failed="out of memory"), row("b", 512, failed="out of memory"),
    ]  # fmt: skip
    near, clear, alone, none = fastest(rows)
    assert (near.model, near.than, near.times, near.clear) == ("a", "b", pytest.approx(1.5), False)
    assert (clear.model, clear.times, clear.clear) == ("a", pytest.approx(2.1), True)
    assert (alone.model, alone.than) == ("b", None)
    assert none.model is None
    assert [found.says for found in (near, clear, alone, none)] == [
        "a is fastest, 1.50 × the speed of b, within the spread", "a is fastest, 2.10 × the speed of b",
        "only b could run it", "no model could run it"
    ]  # fmt: skip
    assert fastest([row("a", 64, 1.0), row("a", 128, failed="out of memory")]) == []  # nothing is compared


def test_a_length_that_only_the_dense_model_can_do_is_told_with_the_verdict():
    rows = [
        *(row("dense", n, s) for n, s in ((512, 1.0), (1024, 4.0), (2048, 16.0))),
        row("dense", 4096, failed="out of memory"),
        row("short", 512, 0.5), *(row("short", n, failed="takes 512 tokens") for n in (1024, 2048, 4096)),
        *(row("able", n, 0.5) for n in (512, 1024, 2048, 4096)),
    ]  # fmt: skip
    short, able = crossovers(rows, ["short", "able"], ["dense"])
    assert (short.measured, short.beyond) == ((512,), (1024, 2048))
    assert short.says == (
        "short is faster than dense at every measured length, from 512 tokens; it could not run 1,024, 2,048 tokens"
    )
    assert short.described()["beyond"] == (1024, 2048)
    assert able.beyond == ()
    assert "could not" not in able.says


def test_one_round_gives_no_verdict():
    one = [replace(row(name, n, s), seconds=(s,)) for n in (512, 1024) for name, s in (("lsg", 1.0), ("dense", 9.0))]
    found = fastest(one)
    assert [(f.clear, f.says) for f in found] == [(None, "not enough rounds to tell which is fastest")] * 2
    (crossover,) = crossovers(one, ["lsg"], ["dense"])
    assert (crossover.enough, crossover.length, crossover.wins, crossover.measured) == (False, None, (), (512, 1024))
    assert crossover.says == "not enough rounds to tell whether lsg is faster than dense"
    assert one[0].says == "1.000"
    assert row("lsg", 512, 1.0, 2.0, 4.0).says == "2.000 (1.000 to 4.000)"
    # An interrupt in the last case leaves it with one round: it is left out, and the others still tell.
    (crossover,) = crossovers([row("lsg", 512, 1.0), row("dense", 512, 9.0), *one[2:]], ["lsg"], ["dense"])
    assert (crossover.measured, crossover.wins, crossover.enough) == ((512,), (512,), True)


# Rows from workers, without processes.


class Made:
    """A worker that answers as told, and writes down what it was asked."""

    def __init__(self, subject, log, seconds=1.0, dies_at=None, interrupted_at=None):
        self.subject, self.log, self.loaded = subject, log, {}
        self.seconds, self.dies_at, self.interrupted_at, self.length = seconds, dies_at, interrupted_at, 0

    def ask(self, message):
        if isinstance(message, dict):
            self.length = message["length"]
            return {"failed": "out of memory"} if self.length == self.dies_at else {"peak": 7, "working": 3}
        self.log.append((self.subject.name, message))
        if message == "go" and self.length == self.interrupted_at:
            raise KeyboardInterrupt
        return {"seconds": self.seconds} if message == "go" else {}

    def close(self):
        self.log.append((self.subject.name, "closed"))


def run_made(monkeypatch, workers, lengths, rounds=2):
    class Group(whole.Workers):
        def __enter__(self):
            self._all = workers
            return workers

    monkeypatch.setattr(whole, "Workers", Group)
    rows = []
    cases = [Case(length) for length in lengths]
    try:
        whole.measure([w.subject for w in workers], cases, rows, rounds=rounds, threads=1)
    except KeyboardInterrupt:
        rows.append("interrupted")
    return rows


def test_models_take_turns_in_every_round(monkeypatch):
    log = []
    workers = [Made(Subject(name, ""), log) for name in "ab"]
    rows = run_made(monkeypatch, workers, [64])
    assert log == [(n, "go") for n in "abab"] + [(n, "end") for n in "ab"] + [(n, "closed") for n in "ab"]
    assert [(r.model, r.seconds, r.peak, r.working) for r in rows] == [(n, (1.0, 1.0), 7, 3) for n in "ab"]


def test_what_a_model_cannot_do_is_a_row(monkeypatch):
    workers = [
        Made(Subject("short", "", reach=64), []),
        Made(Subject("large", ""), [], dies_at=128),
        Made(Subject("able", ""), []),
    ]
    rows = run_made(monkeypatch, workers, [64, 128, 256])
    assert {(r.model, r.case.length): r.failed for r in rows} == {
        ("short", 64): "", ("short", 128): "takes at most 64 tokens", ("short", 256): "takes at most 64 tokens",
        ("large", 64): "", ("large", 128): "out of memory", ("large", 256): "out of memory already at 128 tokens",
        ("able", 64): "", ("able", 128): "", ("able", 256): "",
    }  # fmt: skip


def test_an_interrupt_keeps_what_was_measured(monkeypatch):
    log = []
    workers = [Made(Subject("a", ""), log), Made(Subject("b", ""), log, interrupted_at=128)]
    rows = run_made(monkeypatch, workers, [64, 128, 256])
    assert [(r.model, r.case.length) for r in rows[:-1]] == [("a", 64), ("b", 64), ("a", 128)]
    assert rows[-1] == "interrupted"
    assert log[-2:] == [("a", "closed"), ("b", "closed")]


def test_mixed_lengths_end_with_the_whole_length_and_rise():
    case = Case(4096, 8, mixed=True)
    assert case.real == sorted(case.real)
    assert case.real[-1] == 4096
    assert 0.3 < sum(case.real) / (8 * 4096) < 0.45
    assert row("a", 4096, 2.0, batch=8, mixed=True).tokens_per_second == sum(case.real) / 2
    assert Case(16, 3).real == [16, 16, 16]


def test_running_out_of_memory_has_one_name():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55)
    assert worker.reason(error.value) == "out of memory"
    assert worker.reason(MemoryError()) == "out of memory"
    assert worker.reason(ValueError("no such\nthing")) == "ValueError: no such"


# Subjects.


def test_a_dense_source_is_stretched_and_peers_have_its_size():
    roberta = {
        "model_type": "roberta", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 514, "auto_map": {"AutoModel": "x.Y"},
    }  # fmt: skip
    long = stretched("r", roberta, 4096, 512)
    assert (long.reach, long.dense, long.config["max_position_embeddings"]) == (4096, True, 4098)
    assert "auto_map" not in long.config
    assert stretched("r", roberta, 128, 512).reach == 512
    for kind in ("longformer", "bigbird", "modernbert"):
        peer = shape(kind, roberta, 1024)
        assert [peer.config[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")] == [32, 4, 2]
        assert peer.config["vocab_size"] == 99
        assert peer.reach >= 1024
    base = {**roberta, "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
    published = shape("modernbert", base, 1024).config
    assert (published["num_hidden_layers"], published["intermediate_size"]) == (22, 1152)


# From end to end, on tiny models.


@pytest.fixture(scope="module")
def report(repo, tmp_path_factory):
    """The JSON of one run, and the folder of its plots."""
    import contextlib
    import io

    folder, said = tmp_path_factory.mktemp("plots"), io.StringIO()
    words = ["bench", str(repo), "--lengths", "64,128,512", "--rounds", "2", "--threads", "1", "--json"]
    words += ["--with", "longformer,bigbird,modernbert", "--plot", folder / "r.png", "--plot", folder / "r.svg"]
    with contextlib.redirect_stdout(said):
        app([str(word) for word in words], standalone_mode=False)
    return json.loads(said.getvalue()), folder


def test_a_repo_is_measured_beside_its_source_and_peers(report):
    found, _ = report
    rows = {(r["model"], r["length"]): r for r in found["rows"]}
    names = ["lsg", "source (source)", "Longformer", "BigBird", "ModernBERT"]
    assert list(rows) == [(name, length) for length in (64, 128, 512) for name in names]
    for (name, length), r in rows.items():
        if (name, length) == ("lsg", 512):
            assert r["failed"] == "takes at most 256 tokens"
            continue
        assert r["failed"] is None, r
        assert len(r["seconds"]["rounds"]) == 2
        assert r["clock"] == "cpu"
        assert r["tokens_per_second"] == pytest.approx(length / r["seconds"]["median"])
        if os.path.exists("/proc/self/clear_refs"):
            assert r["peak_bytes"] > r["working_bytes"] >= 0
    assert rows["source (source)", 128]["what"] == "dense (SDPA), random weights, positions extended from 64"
    assert [f["length"] for f in found["fastest"]] == [64, 128, 512]
    (crossover,) = found["crossovers"]
    assert (crossover["model"], crossover["against"], crossover["measured"]) == ("lsg", "source (source)", [64, 128])
    assert found["machine"]["processor"]
    assert found["interrupted"] is False


def test_the_conversions_own_cost_is_in_the_report(report):
    cost = report[0]["conversion"]["lsg"]
    assert cost["command"].startswith("effconv lsg source --max-len 256 --block-size 16 --sparse-block-size 16")
    assert cost["peak_bytes"] > 1 << 20
    assert cost["ratio"]["low"] <= cost["ratio"]["median"] <= cost["ratio"]["high"]


def test_the_source_of_a_conversion_is_looked_for_in_the_cache_and_beside_the_repo(repo, monkeypatch):
    import huggingface_hub

    def cached(hub_id, *, revision, local_files_only):
        assert (hub_id, revision, local_files_only) == ("me/source", "abc", True)
        if "there" not in asked:
            raise FileNotFoundError("not in the cache")
        return str(repo.parent / "source")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    options, asked = bench_options({}), set()
    model = opened(str(repo), options)
    assert conversion_of(model, options)[0].folder == (repo.parent / "source").resolve()
    stated = {"name": "source", "hub_id": "me/source", "commit": "abc"}
    model = replace(model, manifest={**model.manifest, "source": stated})
    with pytest.raises(BadInputError, match="not on this machine") as error:
        conversion_of(model, options)
    assert "--against" in error.value.hint
    asked.add("there")
    source, command = conversion_of(model, options)
    assert [path.name for path in weights_of(source)] == ["model.safetensors"]
    assert command == ["lsg", "--max-len", "256", "--block-size", "16", "--sparse-block-size", "16"]
    model = replace(
        model, manifest={**model.manifest, "source": {"name": "source", "sha256": {"config.json": "other"}}}
    )
    with pytest.raises(BadInputError, match="not on this machine"):  # a folder of that name that is something else
        conversion_of(model, options)


def test_code_from_the_hub_runs_only_when_asked_for(repo, monkeypatch):
    from effconv.bench import sources

    found = sources.resolve(repo)
    monkeypatch.setattr(sources, "resolve", lambda *args, **kwargs: replace(found, hub_id="me/lsg", commit="abc"))
    with pytest.raises(UsageError, match="which would run") as error:
        opened("me/lsg", bench_options({}))
    assert "--trust-remote-code" in error.value.hint
    assert opened("me/lsg", bench_options({"trust_remote_code": True})).subject.own_code


def test_the_pictures_stand_alone(report):
    _, folder = report
    assert (folder / "r.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    svg = (folder / "r.svg").read_text(encoding="utf-8")
    assert not re.findall(r"<script|<image|href=\"http|@import", svg)
    found = ElementTree.fromstring(svg)
    words = [text for text in map(str.strip, found.itertext()) if text]
    for text in ("source (source)", "lsg", "ModernBERT"):
        assert words.count(text) == 2, text  # in the chart of seconds and in that of memory
    assert any("B beyond the loaded model" in text for text in words)


def test_the_table_says_which_is_fastest_and_where_the_repo_starts_to_win(repo, capsys):
    words = [
        "bench",
        repo,
        repo.parent / "source",
        "--lengths",
        "64,128",
        "--rounds",
        "2",
        "--no-conversion",
        "--train",
    ]
    app([str(word) for word in words], standalone_mode=False)
    text = capsys.readouterr().out
    assert "training step" in text
    assert "median of 2 rounds in turn (minimum to maximum)" in text
    assert "not enough rounds" not in text
    assert re.search(r"^128 tokens: (lsg|source) is fastest", text, re.MULTILINE)
    assert re.search(r"^lsg .*faster than source\b", text, re.MULTILINE)
    assert text.count("dense (SDPA)") == 2  # the source was named: it stands there once a length


def measured_as(monkeypatch, *rows):
    from effconv.bench import run

    monkeypatch.setattr(run, "measure", lambda subjects, cases, into, **_: into.extend(rows))


def test_one_round_is_said_to_tell_nothing(repo, monkeypatch, capsys):
    rows = [replace(row(name, 64, s), seconds=(s,)) for name, s in (("lsg", 1.0), ("source (source)", 9.0))]
    measured_as(monkeypatch, *rows)
    app(["bench", str(repo), "--rounds", "1", "--threads", "1", "--no-conversion"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "forward, CPU time of one thread, one round\n" in text
    assert "64 tokens: not enough rounds to tell which is fastest" in text
    assert "One round has no spread. Give --rounds 3 or more." in text
    assert not re.search(r"is fastest,|is faster than source \(source\) at", text)


def test_a_model_alone_is_compared_with_nothing_and_has_no_conversion(repo, monkeypatch, capsys):
    measured_as(monkeypatch, row("source", 64, 1.0))
    app(["bench", str(repo.parent / "source"), "--lengths", "64", "--threads", "1"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "dense" in text or "made up" in text
    assert "a million documents of the measured lengths" in text
    assert not re.search(r"only|fastest|conversion|cp \+ sync", text)


def test_a_named_source_that_is_none_is_refused_before_anything_runs(repo, monkeypatch, tmp_path):
    from effconv.bench import run

    monkeypatch.setattr(run, "measure", lambda *_, **__: pytest.fail("it was measured"))
    (tmp_path / "docs").mkdir()
    with pytest.raises(EffconvError, match="config"):
        effconv.bench(repo, against=tmp_path / "docs")
    other = save_tiny(tmp_path / "other", "roberta")
    with pytest.raises(UsageError, match="not the source of lsg") as error:
        effconv.bench(repo, against=other)
    assert error.value.where == f"--against {other}"
    with pytest.raises(UsageError, match="none of these models was converted"):
        effconv.bench(repo.parent / "source", against=repo.parent / "source")


def test_help_names_files_and_models_without_types_of_lists(capsys):
    app(["bench", "--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "list[" not in text
    for words in ("MODEL...", "  MODEL ", "--plot FILE", "--data FILE"):
        assert words in text


def test_an_interrupted_command_shows_its_rows_and_says_so(repo, monkeypatch, capsys):
    from effconv.bench import run

    def interrupted(subjects, cases, rows, **_):
        rows.append(row("lsg", 64, 1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", interrupted)
    with pytest.raises(StoppedError) as error:
        app(["bench", str(repo), "--json"], standalone_mode=False)
    assert error.value.exit_code == 130
    found = json.loads(capsys.readouterr().out)
    assert found["interrupted"] is True
    assert [r["length"] for r in found["rows"]] == [64]


def test_a_model_that_cannot_be_loaded_is_a_clear_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(BadInputError, match="cannot load the model"):
        effconv.bench(tmp_path, lengths=[64], rounds=1, conversion=False)


def test_a_repo_that_was_changed_is_not_run(repo, tmp_path):
    import shutil

    copy = shutil.copytree(repo, tmp_path / "copy")
    code = next(copy.glob("modeling_*.py"))
    code.write_text(code.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    with pytest.raises(EffconvError) as error:
        effconv.bench(copy)
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"lengths": "many"}, "--lengths"), ({"lengths": [4]}, "--lengths"), ({"batch": "0"}, "--batch"),
        ({"dtype": "float8"}, "--dtype"), ({"with_": "reformer"}, "--with"), ({"threads": "some"}, "--threads"),
        ({"device": "tpu"}, "--device"), ({"device": "cpu:0"}, "--device"), ({"device": "cuda:x"}, "--device"),
        ({"lines": True}, "--lines"), ({"text_column": "body"}, "--text-column"),
        ({"against": "nowhere"}, "--against must be the folder of the source, got 'nowhere'"),
        ({"against": ".", "conversion": False}, "--against"), ({"against": ".", "data": "y"}, "--against"),
        ({"rounds": 0}, "--rounds"), ({"mixed": True}, "--mixed"),
        ({"plot": "x.pdf"}, "--plot"), ({"memory": "16G"}, "--memory"),
        ({"memory": "plenty", "data": "x"}, "plenty"), ({"colour": "red"}, "colour"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_before_anything_runs(options, flag):
    with pytest.raises(UsageError) as error:
        effconv.bench("nowhere", **options)
    assert flag in str(error.value)


def test_every_fault_of_the_options_is_named_at_once():
    with pytest.raises(UsageError) as error:
        bench_options({"lengths": "x", "rounds": 0, "device": "tpu"})
    assert all(flag in str(error.value) for flag in ("--lengths", "--rounds", "--device"))


def test_sizes_of_memory():
    for text, size in (
        ("16G", 16 * 10**9),
        ("16GB", 16 * 10**9),
        ("2GiB", 2**31),
        ("500m", 5 * 10**8),
        ("1.5T", 15 * 10**11),
    ):
        assert parse_size(text, "--memory") == size
    for text in ("", "G", "16X", "-1G", "0"):
        with pytest.raises(UsageError, match="is not a size") as error:
            parse_size(text, "--memory")
        assert error.value.where == "--memory"


def test_a_picture_that_cannot_be_drawn_is_said_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(OutputError):
        picture.require_drawable([tmp_path / "nowhere" / "x.svg"])
    picture.require_drawable([tmp_path / "x.svg"])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as error:
        picture.require_drawable([tmp_path / "x.png"])
    assert "effconv[adapt]" in error.value.hint


def test_charts_of_memory_show_what_a_run_takes_beyond_the_loaded_model():
    rows = [replace(row("a", n, 1.0, peak=6 * 10**8), working=n * 10**5) for n in (64, 128)]
    seconds, memory = picture.charts(rows)
    assert (seconds.linear, memory.linear) == (False, True)
    assert memory.unit == "peak MB beyond the loaded model"
    assert memory.lines[0].points == ((64, pytest.approx(6.4)), (128, pytest.approx(12.8)))
    _, large = picture.charts([replace(rows[0], working=2 * 10**9)])
    assert large.unit.startswith("peak GB")
    assert len(picture.charts([replace(rows[0], peak=None, working=None)])) == 1  # where memory is not told
