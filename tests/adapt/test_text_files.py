"""Text files: refused early where their first bytes show it, read once, and refused as clearly where the rest does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import effconv
from effconv.convert import text as text_files
from effconv.convert.errors import BadInputError
from effconv.convert.text import LOOKED_AT, joined, read_utf8, require_readable
from effconv.data.documents import read_corpus
from effconv.data.texts import read_texts
from tiny import save_tiny


@pytest.fixture
def late(tmp_path):
    """A file whose first bytes are text and whose last are not."""
    path = tmp_path / "late.txt"
    path.write_bytes(b"the text " * LOOKED_AT + b"\xff\xfe")
    return path


def check(error, path, where):
    assert error.exit_code == 4
    assert "cannot read the text" in error.what
    assert f"{path}: not valid UTF-8" in error.what
    assert error.where == where
    assert "UTF-8" in error.hint


def test_only_the_first_bytes_of_a_file_are_looked_at(late, tmp_path):
    require_readable([late], "--data")
    for start, readable in ((b"\xff", False), (b"\xc3\xa9" * LOOKED_AT, True), (b"x" + b"\xc3\xa9" * LOOKED_AT, True)):
        (tmp_path / "start.txt").write_bytes(start)
        if readable:
            require_readable([tmp_path / "start.txt"], "--data")  # a character that the look cuts is no fault
        else:
            with pytest.raises(BadInputError) as caught:
                require_readable([tmp_path / "start.txt"], "--data")
            check(caught.value, tmp_path / "start.txt", "--data")


def test_all_files_that_cannot_be_opened_are_named_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\x80")
    with pytest.raises(BadInputError) as caught:
        require_readable([tmp_path / name for name in ("missing", "folder", "binary")], "--calibrate")
    assert all(
        says in caught.value.what for says in ("missing: No such file", "folder: Is a directory", "not valid UTF-8")
    )
    assert caught.value.where == "--calibrate"


def test_what_is_no_text_further_on_is_refused_where_it_is_read(late):
    with pytest.raises(BadInputError) as caught:
        read_utf8(late, "--data")
    check(caught.value, late, "--data")
    with pytest.raises(BadInputError) as caught:
        joined([late], "--calibrate")
    check(caught.value, late, "--calibrate")
    with pytest.raises(BadInputError) as caught:
        list(read_texts([str(late)]))
    check(caught.value, late, "--data")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("where", ["--data", "--heldout"])
def test_a_corpus_that_is_no_text_further_on_is_refused(where, streaming, late, tmp_path):
    (tmp_path / "good.txt").write_text("the text\n")
    files = {"--data": [str(tmp_path / "good.txt")], "--heldout": [str(tmp_path / "good.txt")], where: [str(late)]}
    with pytest.raises(BadInputError) as caught:
        read_corpus(files["--data"], files["--heldout"], SimpleNamespace(), 10, seed=0, streaming=streaming)
    check(caught.value, late, where)


def test_a_corpus_is_decoded_once(tmp_path, monkeypatch):
    path, opened = tmp_path / "good.txt", []
    path.write_text("the text\n")
    read = text_files.read_utf8
    monkeypatch.setattr("effconv.data.documents.read_utf8", lambda p, where: opened.append(p) or read(p, where))
    with pytest.raises(BadInputError, match="single document"):
        read_corpus([str(path)], [], SimpleNamespace(), 10, seed=0)
    assert opened == [path]


def test_a_fidelity_on_what_is_no_text_further_on_is_bad_input(late, tmp_path):
    source = save_tiny(tmp_path / "source")
    options = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}
    repo = effconv.convert(source, "lsg", output=tmp_path / "repo", **options).output
    with pytest.raises(BadInputError) as caught:
        effconv.fidelity(repo, against=source, data=late, lengths=[16])
    check(caught.value, late, "--data")


def test_a_calibration_on_what_is_no_text_further_on_is_bad_input(late, tmp_path):
    source = save_tiny(tmp_path / "source")
    before = json.loads((source / "config.json").read_text())
    with pytest.raises(BadInputError) as caught:
        effconv.convert(source, "lambda", output=tmp_path / "out", max_length=64, calibrate=late, verify=False)
    check(caught.value, late, "--calibrate")
    assert json.loads((source / "config.json").read_text()) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ids", "ends"), [({False: [7], True: [1, 7, 2]}, ([1], [2])), ({False: [7], True: [7, 2]}, ([], [2]))]
)
def test_the_special_tokens_around_a_text_are_told(ids, ends):
    assert text_files.special_ends(lambda text, add_special_tokens: {"input_ids": ids[add_special_tokens]}) == ends


@pytest.mark.parametrize("ids", [{False: [], True: []}, {False: [], True: [1, 2]}, {False: [7], True: [1, 8, 2]}])
def test_a_tokenizer_that_drops_or_changes_the_text_is_bad_input(ids):
    with pytest.raises(BadInputError, match="cannot tell the special tokens"):
        text_files.special_ends(lambda text, add_special_tokens: {"input_ids": ids[add_special_tokens]})
