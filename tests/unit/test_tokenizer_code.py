"""Which files belong to a tokenizer with Python code of its own: read as text, never run."""

from __future__ import annotations

import pytest

from effconv.convert.errors import BadInputError
from effconv.convert.io.tokenizer_code import code_files, may_read, own_references

TEXTS = {
    "own.py": "from .one import a\nimport .two\nfrom . import three\nfrom .absent import b\nfrom ..up import c\n",
    "one.py": "from .own import Own\n    from .four import d\n",
    "two.py": "from .one import a\n",
    "three.py": "",
    "four.py": "from four import e\n",
    "up.py": "",
}


def test_relative_imports_are_followed_as_transformers_does():
    found = code_files(["own.Own", "own.OwnFast"], TEXTS.__contains__, TEXTS.__getitem__)
    assert sorted(found) == ["four.py", "one.py", "own.py", "two.py"]


def test_the_installed_transformers_finds_the_same_files(tmp_path):
    from transformers.dynamic_module_utils import get_relative_import_files

    texts = {**TEXTS, "own.py": "from .one import a\nfrom .two import b\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    theirs = {path.rpartition("/")[2] for path in get_relative_import_files(tmp_path / "own.py")}
    ours = set(code_files(["own.Own"], texts.__contains__, texts.__getitem__))
    assert ours == theirs | {"own.py"} == {"own.py", "one.py", "two.py", "four.py"}


def test_a_missing_file_is_named_and_one_in_another_repo_is_not_looked_for():
    with pytest.raises(BadInputError, match=r"the class other.Own, but other.py is missing"):
        code_files(["other.Own"], TEXTS.__contains__, TEXTS.__getitem__)
    assert code_files(["user/repo--other.Own"], TEXTS.__contains__, TEXTS.__getitem__) == []


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, {}, ["a.B"]),
        ({"auto_map": {"AutoTokenizer": ["a.B", "a.BFast"]}}, {}, ["a.B", "a.BFast"]),
        ({"auto_map": ["a.B", None]}, {}, ["a.B"]),  # as transformers wrote it at first
        ({"auto_map": {"AutoTokenizer": "a.B"}}, {}, ["a.B"]),
        ({"auto_map": {"AutoProcessor": "a.B"}}, {}, []),
        ({}, {"auto_map": {"AutoTokenizer": ["a.B", None], "AutoModel": "m.M"}}, ["a.B"]),
        ({"tokenizer_class": "BertTokenizer"}, {"auto_map": {"AutoTokenizer": ["a.B", None]}}, []),
        ({"auto_map": 3}, {"auto_map": []}, []),
        ({}, {}, []),
    ],
)
def test_references_are_read_where_transformers_reads_them(settings, config, expected):
    assert own_references(settings, config) == expected


def test_files_of_the_model_of_its_training_and_of_the_page_are_left_out():
    carried = ["vocab.txt", "model_vocab.json", "tokenizer_78b3253a26.model", "dict.bin2", "data/table.csv", "named.md"]
    others = [
        *("config.json", "pytorch_model.bin", "model.safetensors", "model.safetensors.index.json", "README.md"),
        *("training_args.bin", "optimizer.pt", "trainer_state.json", "eval_results.json", ".gitattributes"),
        *("modeling_own.py", "LICENSE", "modules.json", "sentence_bert_config.json", "tokenizer_config.json"),
        *("1_Pooling/config.json", "onnx/model.onnx", ".env", "logo.png", "effconv.json", "data/other.csv"),
    ]
    code = ["A = {'a': 'table.csv', 'b': 'named.md'}", 'B = ["config.json", "pytorch_model.bin", ".env"]']
    assert may_read([*carried, *others], code) == carried
