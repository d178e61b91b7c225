"""Files with columns: a damaged row is an error that names file and row, in every reader of data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from effconv.convert.errors import BadInputError, UsageError
from effconv.convert.text import joined
from effconv.data.documents import read_corpus
from effconv.data.files import require_files
from effconv.data.named import read_named
from effconv.data.pretraining_options import PretrainingOptions
from effconv.data.rows import plain_table, read_tables
from effconv.data.sentences import read_sentences
from effconv.data.tables import rows_of
from effconv.data.texts import read_texts
from effconv.data.texts import require_files as require_texts

READERS = {
    "embed, pieces, retrieval --whole": lambda file: list(read_named([file])),
    "bench, retrieval": lambda file: list(read_texts([file])),
    "pretrain, prepare": lambda file: list(read_sentences([file], PretrainingOptions())),
    "adapt": lambda file: read_corpus([file], [], SimpleNamespace(), 10, seed=0),
    "adapt --streaming": lambda file: read_corpus([file], [], SimpleNamespace(), 10, seed=0, streaming=True),
    "finetune": lambda file: read_tables([file], ["text", "label"], "label", "--data"),
    "finetune without datasets": lambda file: plain_table(Path(file)),
    "fidelity, --calibrate": lambda file: joined([Path(file)], "--data"),
}
TEXTS = [name for name in READERS if not name.startswith("finetune")]
DAMAGED = {
    "comma.csv": (
        b"text,label\nHello there, my friend,1\n",
        "row 1 has 3 values, the header has 2",
        "",
        "quotes around",
    ),
    "ragged.csv": (b'text,label\n"a, b",1\nb\n', "row 2 has 1 value, the header has 2", "", "a value for each"),
    "unclosed.csv": (b'text,label\n"a,1\nb,2\n', "no closing quote", ", line 3", "quotes"),
    "latin.csv": (b"text,label\na,1\ncaf\xe9,2\n", "not valid UTF-8", ", line 3", "UTF-8"),
    "latin.jsonl": (
        b'{"text": "a", "label": 1}\n{"text": "caf\xe9", "label": 1}\n',
        "not valid UTF-8",
        ", line 2",
        "UTF-8",
    ),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n\n{"text": "b"\n', "not valid JSON: Expecting", ", line 3", "JSON"),
    "array.jsonl": (b'["a"]\n', 'line 1 is not an object but ["a"]', ", line 1", "name a file with one array .json"),
    "number.jsonl": (b'{"text": "a"}\n3\n', "line 2 is not an object but 3", ", line 2", "object"),
    "half.jsonl": (b'{"text": "\\ud800", "label": 1}\n', "half a character", ", line 1", "JSON"),
    "broken.json": (b'[{"text": "a"},\n{"text"]\n', "not valid JSON", ", line 2", "JSON"),
    "strings.json": (b'["a"]', 'row 1 is not an object but "a"', ", row 1", "object"),
    "empty.jsonl": (b"\n", "the file has no rows", "", "give"),
    "header.csv": (b"text,label\n", "the file has no rows", "", "give"),
}


def refused(reader: str, path: Path) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        READERS[reader](str(path))
    assert caught.value.exit_code == 4
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_row_is_an_error_with_its_place(reader, name, tmp_path):
    content, what, place, hint = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    error = refused(reader, tmp_path / name)
    assert what in error.what
    if error.where == "--data":  # the first bytes of a file are looked at before any is read
        assert f"{tmp_path / name}: " in error.what
        assert place in error.what
    else:
        assert error.where == f"{tmp_path / name}{place}"
        assert hint in error.hint


NO_TEXTS = {
    "number.jsonl": ('{"text": "a"}\n{"text": 3}\n', "numbers", "line 2"),
    "list.jsonl": ('{"text": ["a"]}\n', "lists", "line 1"),
    "true.json": ('[{"text": true}]', "true and false", "row 1"),
    "numbers.csv": ("text,label\n3,a\n,b\n4.5,c\n", "numbers", "row 1"),
}


@pytest.mark.parametrize("reader", TEXTS)
@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_value_that_is_not_a_text_is_an_error(reader, name, tmp_path):
    content, kind, place = NO_TEXTS[name]
    (tmp_path / name).write_text(content)
    error = refused(reader, tmp_path / name)
    assert error.what == f"column 'text' holds {kind}, not text"
    assert error.where == f"{tmp_path / name}, {place}"


@pytest.mark.parametrize("reader", TEXTS)
def test_a_parquet_file_is_checked_too(reader, tmp_path):
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [None, 3]}), path)
    error = refused(reader, path)
    assert (error.what, error.where) == ("column 'text' holds numbers, not text", f"{path}, row 2")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    assert refused(reader, path).what == "no column 'text', found body"
    path.write_bytes(b"PAR")
    assert "cannot read the file" in refused(reader, path).what


@pytest.mark.parametrize("reader", TEXTS)
def test_a_column_that_no_row_has_is_an_error(reader, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n{"label": 1}\n')
    assert refused(reader, tmp_path / "a.jsonl").what == "no column 'text', found body, label"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_a_file_that_cannot_be_opened_is_an_error(reader, name, tmp_path, monkeypatch):
    if name.endswith("parquet") and reader == "finetune without datasets":
        pytest.skip("it reads no parquet")
    path, opened = tmp_path / name, Path.open
    path.write_text("x")

    def denied(self: Path, *rest: object, **named: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *rest, **named)

    monkeypatch.setattr(Path, "open", denied)
    if name.endswith("parquet"):  # which another library opens, so the look before is what tells
        with pytest.raises(BadInputError) as caught:
            (require_texts if reader.startswith("bench") else lambda names: require_files(names, "--data"))([str(path)])
        assert "Permission denied" in caught.value.what
    else:
        assert "Permission denied" in refused(reader, path).what


def test_rows_are_read_as_they_are(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"a, ""b""\nc",1\n\nNA,007\n3,x\n', encoding="utf-8")
    assert [row for _, row in rows_of(tmp_path / "a.csv")] == [
        {"text": 'a, "b"\nc', "label": "1"}, {"text": "NA", "label": "007"}, {"text": "3", "label": "x"},
    ]  # fmt: skip
    assert list(read_texts([str(tmp_path / "a.csv")])) == ['a, "b"\nc', "NA", "3"]  # a number among texts is a text
    long = "x" * 200_000
    (tmp_path / "long.csv").write_text(f"text,label\n{long},1\n")
    assert list(read_texts([str(tmp_path / "long.csv")])) == [long]
    (tmp_path / "A.JSONL").write_text('\ufeff{"text": "é"}\n\n{"text": "b"}', encoding="utf-8")
    assert list(read_texts([str(tmp_path / "A.JSONL")])) == ["é", "b"]
    for content in ('[{"text": "a"},\n {"text": "b"}]', '{"text": "a"}\n{"text": "b"}\n'):
        (tmp_path / "a.json").write_text(content)
        assert list(read_texts([str(tmp_path / "a.json")])) == ["a", "b"]
    (tmp_path / "a.json").write_text(json.dumps({"text": "a"}, indent=2))
    assert joined([tmp_path / "a.json", tmp_path / "A.JSONL"], "--data") == "a\né\nb"


def test_rows_without_text_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "a"}\n{"text": " "}\n{"title": "b"}\n')
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    texts = read_named([str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")], lines=True)
    assert [text.id for text in texts] == ["a.jsonl#1", "b.txt#0", "b.txt#2"]
    assert texts.rows_without_text == 3


def test_all_tables_are_checked_before_the_first_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n{"text": 3}\n')
    with pytest.raises(BadInputError, match="holds numbers"):
        next(read_named([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))


@pytest.mark.parametrize("name", ["a.tsv", "a.TSV", "a.ndjson"])
def test_tables_of_other_forms_are_refused(name, tmp_path):
    (tmp_path / name).write_text("text\ttag\na\t1\n")
    for require in (lambda names: require_files(names, "--data"), require_texts):
        with pytest.raises(BadInputError, match="a form that is not read") as caught:
            require([str(tmp_path / name)])
        assert ".parquet files are read" in caught.value.hint
    with pytest.raises(UsageError, match="is a folder"):
        require_files([str(tmp_path)], "--data")
