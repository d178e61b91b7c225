"""`benchmarks.pieces`: its command ranks documents."""

from __future__ import annotations

from adapt_text import write_wiki

from benchmarks import pieces
from tiny import save_tiny_sentence_encoder


def test_the_command_prints_a_row_for_each_way(tmp_path, capsys):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    text = write_wiki(tmp_path / "text.txt", count=6, words=400)
    sizes = ["--tokens", "202", "--reach", "64", "--queries", "2", "--piece", "20", "--vectors", "1", "2", "1"]
    pieces.main([str(text), "--fit", str(text), "--source", str(source), *sizes])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 4 * 2
    assert all(0 <= float(row.split("|")[3].split("±")[0]) <= 1 for row in rows[1:])
