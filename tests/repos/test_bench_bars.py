"""`make bench`: bars are met or missed by their medians, the forms can be run, and one table holds all of it."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as command
from benchmarks import bars, bigs, layers, lsg, mixed
from effconv.bench.timing import Spread, interleaved, ratio
from effconv.convert.repo.card_blocks import blocks


def test_ratios_are_taken_round_by_round():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2.0, 1.0, 3.0)


def test_a_bar_is_met_or_missed_by_its_median():
    least = bars.Bar("x", Spread(3.0, 1.0, 9.0), 2.5, aim=3.5)
    assert (least.met, least.verdict, least.wanted) == (True, "met", "at least 2.5 ×, aim 3.5")
    assert bars.Bar("x", Spread(4.0, 1.0, 9.0), 2.5, aim=3.5).verdict == "met, and the aim too"
    assert bars.Bar("x", Spread(2.4, 1.0, 9.0), 2.5).verdict == "missed"
    assert bars.Bar("x", Spread(0.2, 0.1, 0.9), 0.3, at_most=True).verdict == "met"
    assert bars.Bar("x", Spread(0.4, 0.1, 0.9), 0.3, at_most=True).verdict == "missed"
    absent = bars.Bar("x", None, 4.0, why="name the file")
    assert (absent.met, absent.verdict) == (None, "not measured: name the file")
    times = {"slow": [4.0, 6.0], "fast": [1.0, 2.0]}
    section = bars.Section("title", times, [*bars.faster("a against b", times, "slow", "fast", 3), absent])
    table = bars.markdown([("1 thread", section)]).splitlines()
    assert table[2] == "| a against b | 1 thread | 3.50 × (3.00 to 4.00) | at least 3 × | met |"
    assert "not measured" in table[3]
    assert not list(bars.faster("x", times, "slow", "absent", 3))


def test_forms_take_turns_and_the_first_round_is_not_counted():
    log = []
    times = interleaved({name: lambda name=name: log.append(name) for name in "ab"}, rounds=2)
    assert log == list("ababab")
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_the_layers_bars_say_which_way_they_are_meant():
    times = {lsg.SDPA: [60.0], lsg.LSG: [10.0], lsg.FLOOR: [8.0]}
    found = {bar.what: bar for bar in lsg._bars(times, 4096, backward=False)}
    sdpa, floor = found["LSG layer against SDPA, forward, 4,096"], found["LSG layer against its floor, forward, 4,096"]
    published = found["LSG layer against the published one, forward, 4,096"]
    assert (sdpa.measured.median, sdpa.limit, sdpa.verdict) == (6.0, 5.0, "met")
    assert (floor.measured.median, floor.verdict) == (1.25, "met, and the aim too")
    assert (published.met, published.limit) == (None, 4.0)
    assert "--published" in published.verdict


def test_every_form_of_the_layers_can_be_run():
    (section,) = layers.sections(1, 1, 384)
    assert len(section.bars) == 4
    (section,) = bigs.sections(1, 1, 64)
    assert len(section.bars) == 4
    assert all(value > 0 for values in section.times.values() for value in values)
    (section,) = mixed.sections(1, 1, (300, 40))
    assert len(section.times) == 3
    forward, training, half = [s for s in lsg.sections(1, 1, (896,)) if s.unit == "ms"]
    assert set(forward.times) == set(half.times) == {lsg.SDPA, lsg.LSG, lsg.FLOOR}
    assert set(training.times) == {lsg.SDPA, lsg.LSG}


def test_the_command_prints_one_table_and_keeps_it_where_it_was(tmp_path, capsys):
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text("before\n\n<!-- effconv:bars -->\nold\n<!-- /effconv:bars -->\n\nafter\n", encoding="utf-8")
    asked = ["--only", "startup", "--rounds", "1", "--json", str(figures), "--markdown", str(page)]
    assert command.main(asked) == 0
    printed = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `effconv --help` | whole process |" in blocks(text)["bars"]
    assert "old" not in text
    assert blocks(text)["bars"].splitlines()[-1] in printed
    (section,) = json.loads(figures.read_text())["sections"]
    assert set(section["times"]) >= {"python -c pass", "effconv --help"}


def test_an_interrupted_command_still_prints_its_table(monkeypatch, capsys):
    from benchmarks import startup

    def sections(rounds):
        yield bars.Section("first", {"a": [1.0]}, [bars.Bar("a bar", Spread(2.0, 1.0, 3.0), 1.0)])
        raise KeyboardInterrupt

    monkeypatch.setattr(startup, "sections", sections)
    assert command.main(["--only", "startup"]) == 130
    assert "| a bar | whole process | 2.00 × (1.00 to 3.00) | at least 1 × | met |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--only", "nothing"], ["--threads", "0"], ["--rounds", "0"], ["--published", "none"]]
)
def test_what_cannot_be_meant_is_refused(words):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_every_section_that_can_be_asked_for_is_there(quick):
    found = [run for _, run in command._runs(command._arguments(["--threads", "1", *quick]))]
    assert len(found) == len(command.SECTIONS)
    assert all(run.func.__module__.startswith("benchmarks.") for run in found)
