"""What sentence-transformers reads comes along whole: settings under any name, nested modules, code, lengths."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from checkpoints import convert, edit_config, read, rewrite

from effconv.convert.errors import BadInputError
from effconv.convert.repo.sentence import SETTINGS_NAMES, sentence_class
from tiny import save_tiny, save_tiny_sentence_encoder


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def with_module(source, path, kind):
    modules = read_json(source / "modules.json")
    write(source / "modules.json", [*modules, {"idx": len(modules), "name": "x", "path": path, "type": kind}])


@pytest.fixture
def source(tmp_path):
    return save_tiny_sentence_encoder(tmp_path / "source")


@pytest.mark.parametrize("name", SETTINGS_NAMES[1:])
def test_settings_of_every_name_are_those_of_the_repo(name, source, tmp_path):
    (source / "sentence_bert_config.json").unlink()
    write(source / name, {"max_seq_length": 40, "do_lower_case": True})
    convert(source, tmp_path / "out")
    assert read_json(tmp_path / "out" / "sentence_bert_config.json") == {"max_seq_length": 128, "do_lower_case": True}


@pytest.mark.slow  # imports sentence-transformers
def test_the_names_are_those_of_sentence_transformers():
    transformer = pytest.importorskip("sentence_transformers.models").Transformer
    text = Path(inspect.getsourcefile(transformer)).read_text(encoding="utf-8")
    assert set(re.findall(r'"(sentence_[\w-]+_config\.json)"', text)) == set(SETTINGS_NAMES)


def test_a_module_keeps_its_whole_folder(source, tmp_path):
    with_module(source, "3_Router/inner", "sentence_transformers.models.Router")
    write(source / "3_Router/inner/router_config.json", {"types": {"a_0_Dense": "x.Dense"}})
    write(source / "3_Router/inner/a_0_Dense/config.json", {"in_features": 32})
    write(source / "3_Router/inner/a_0_Dense/more/than/that.txt", "deep")
    write(source / "other/folder.txt", "of nobody")
    convert(source, tmp_path / "out")
    out = tmp_path / "out" / "3_Router"
    assert (out / "inner/a_0_Dense/more/than/that.txt").read_text() == "deep"
    assert read_json(out / "inner/a_0_Dense/config.json") == {"in_features": 32}
    assert not (tmp_path / "out/other").exists()


def test_an_encoder_deep_in_a_folder_moves_to_the_root(source, tmp_path):
    modules = read_json(source / "modules.json")
    inner = source / "models" / "text" / "0_Transformer"
    inner.mkdir(parents=True)
    for path in [path for path in source.iterdir() if path.is_file()]:
        path.rename(inner / path.name)
    write(source / "modules.json", [{**modules[0], "path": "models/text/0_Transformer"}, *modules[1:]])
    convert(source, tmp_path / "out")
    assert read_json(tmp_path / "out" / "modules.json")[0]["path"] == ""
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out" / "models").exists()


def test_code_of_modules_comes_along_with_what_it_imports(source, tmp_path):
    with_module(source, "3_Scale", "scale.Scale")
    with_module(source, "4_Far", "far.away.Module")
    write(source / "scale.py", "from .parts.factor import FACTOR\nimport json\nraise SystemExit('ran')\n")
    write(source / "parts/factor.py", "FACTOR = 2\n")
    write(source / "unused.py", "")
    result = convert(source, tmp_path / "out")
    assert (tmp_path / "out/scale.py").read_bytes() == (source / "scale.py").read_bytes()
    assert (tmp_path / "out/parts/factor.py").is_file()
    assert not (tmp_path / "out/unused.py").exists()
    assert any("scale.py, parts/factor.py" in finding for finding in result.findings)
    assert any("far.away.Module: the package" in finding for finding in result.findings)


def test_code_that_is_not_there_or_has_our_names_is_refused(source, tmp_path):
    with_module(source, "3_Scale", "scale.Scale")
    write(source / "scale.py", "from .missing import FACTOR\n")
    with pytest.raises(BadInputError, match=r"scale\.py imports missing\.py"):
        convert(source, tmp_path / "out")
    write(source / "scale.py", "from .lsg_attention import FACTOR\n")
    write(source / "lsg_attention.py", "FACTOR = 2\n")
    with pytest.raises(BadInputError, match="has the name of a file of the new repo"):
        convert(source, tmp_path / "out")


def test_documents_get_the_new_length_and_queries_keep_theirs(source, tmp_path):
    write(source / "sentence_bert_config.json", {"document_length": 40, "query_length": 12})
    write(
        source / "config_sentence_transformers.json",
        {"model_type": "ColBERT", "document_length": None, "query_length": 8},
    )
    result = convert(source, tmp_path / "out")
    settings = read_json(tmp_path / "out" / "sentence_bert_config.json")
    assert settings == {"document_length": 128, "query_length": 12, "max_seq_length": 128}
    assert read_json(tmp_path / "out/config_sentence_transformers.json")["document_length"] is None
    assert "sentence_bert_config.json: document_length 40 is now 128; query_length stays 12" in result.findings
    assert result.manifest["sentence_class"] == sentence_class(source) == "MultiVectorEncoder"
    assert "import MultiVectorEncoder" in (tmp_path / "out/README.md").read_text()


def colbert(folder):
    source = rewrite(
        save_tiny(folder, "bert", "Model"), lambda tensors: {**tensors, "linear.weight": torch.ones(8, 32)}
    )
    edit_config(source, architectures=["HF_ColBERT"])
    write(source / "artifact.metadata", {"doc_maxlen": 50, "query_maxlen": 24, "collection": "/home/a/b.tsv"})
    return source


def test_a_colbert_stays_one(tmp_path):
    source, out = colbert(tmp_path / "source"), tmp_path / "out"
    result = convert(source, out)
    assert read_json(out / "config.json")["architectures"] == ["LSGBertModel", "HF_ColBERT"]
    assert read(out)["linear.weight"].shape == (8, 32)
    assert read_json(out / "artifact.metadata") == {"doc_maxlen": 128, "query_maxlen": 24}
    assert result.manifest["sentence_class"] == "MultiVectorEncoder"
    convert(out, tmp_path / "longer", max_length=256)  # and once more
    assert read_json(tmp_path / "longer/config.json")["architectures"] == ["LSGBertModel", "HF_ColBERT"]
    convert(source, tmp_path / "base", drop="linear.weight")
    assert read_json(tmp_path / "base/config.json")["architectures"] == ["LSGBertModel"]
