"""`effconv export` of a tiny sentence encoder, and what runs its files: onnxruntime, torch, the docs, a server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from environments import stranger, strangers_output
from places import ROOT
from safetensors.torch import save_file
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import CheckFailedError, OutputError, UnsupportedError
from effconv.export import graphs
from tiny import save_tiny, save_tiny_sentence_encoder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("sentence_transformers")

PAGE = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
SECTIONS = [section.partition("\n") for section in PAGE.split("\n## ")[1:]]
BLOCKS = [
    (title, code)
    for title, _, text in SECTIONS
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
]
OPTIONAL = "sentence-transformers"  # needs optimum-onnx
TINY = {"max_length": 128, "block_size": 8, "sparse_block_size": 8, "verify": False}
TEXTS = ["the of and", "to in a is that it was for on with as he " * 20, "at"]

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a repo `lsg-encoder`, with a dense layer, and what the page's commands make of it."""
    folder = tmp_path_factory.mktemp("export")
    source = save_tiny_sentence_encoder(folder / "source", num_hidden_layers=1)
    modules = json.loads((source / "modules.json").read_text())
    kind = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (source / "modules.json").write_text(json.dumps([*modules, kind]))
    (source / "3_Dense").mkdir()
    settings = {"in_features": 32, "out_features": 12, "bias": True, "activation_function": "torch.nn.Tanh"}
    (source / "3_Dense" / "config.json").write_text(
        json.dumps({**settings, "activation_function": "torch.nn.modules.activation.Tanh"})
    )
    torch.manual_seed(0)
    save_file(
        {"linear.weight": torch.randn(12, 32), "linear.bias": torch.randn(12)}, source / "3_Dense" / "model.safetensors"
    )
    effconv.convert(source, "lsg", output=folder / "lsg-encoder", **TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in re.findall(r"^effconv (export .+)$", PAGE, flags=re.M):
            run = CliRunner().invoke(app, [*line.split(), "--quiet"])
            assert run.exit_code == 0, f"effconv {line}\n{run.output}\n{run.exception!r}"
        exec(dict(BLOCKS)["Export from Python"], {})
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder / "lsg-encoder"), trust_remote_code=True, device="cpu")


def session_of(folder, name="model.onnx"):
    return onnxruntime.InferenceSession(folder / "lsg-encoder-export" / "onnx" / name)


def feeds_of(session, encoder, texts):
    tokens = encoder.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
    return {one.name: tokens[one.name] for one in session.get_inputs()}


def test_the_graph_ends_in_the_sentence_embedding_of_every_batch(folder, encoder):
    session = session_of(folder)
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2]):
        got = session.run(["sentence_embedding"], feeds_of(session, encoder, texts))[0]
        np.testing.assert_allclose(got, encoder.encode(texts), rtol=0, atol=1e-4)


def test_the_graph_holds_standard_operators_alone(folder):
    import onnx

    model = onnx.load(folder / "lsg-encoder-export" / "onnx" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [one.name for one in model.graph.output] == ["last_hidden_state", "sentence_embedding"]
    assert [one.type.tensor_type.shape.dim[0].dim_param for one in model.graph.input] == ["batch"] * 3


def test_the_record_says_what_was_compared_and_measured(folder):
    record = json.loads((folder / "lsg-encoder-export" / "effconv-export.json").read_text())
    check = record["checks"]["onnx/model.onnx"]
    assert {"1 tokens", "7 tokens", "8 tokens", "9 tokens", "17 tokens", "100 tokens", "128 tokens"} <= {
        *check["cases"]
    }
    assert any("padded" in case for case in check["cases"])
    assert check["difference"] <= check["tolerance"]
    assert record["repo"]["target"] == "lsg"
    assert {row["tokens"] for row in record["measured"]} == {128}
    assert all(row["cosine"]["int8"] > 0.9 for row in record["measured"])
    assert set(record["files"]) >= {"onnx/model.onnx", "onnx/model_qint8.onnx", "config.json", "modules.json"}


def test_the_folder_has_no_code_and_no_other_weights(folder):
    names = {path.name for path in (folder / "lsg-encoder-export").rglob("*")}
    assert not [name for name in names if name.endswith(".py")]
    assert not (folder / "lsg-encoder-export" / "model.safetensors").exists()
    config = json.loads((folder / "lsg-encoder-export" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertModel"])
    assert not {"auto_map", "effconv"} & config.keys()


def test_the_program_of_torch_gives_the_same(folder, encoder):
    program = torch.export.load(folder / "lsg-encoder-program" / "model.pt2").module()
    for texts in (TEXTS, TEXTS[:1]):
        tokens = encoder.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        got = program(*(tokens[name] for name in graphs.INPUTS))[1]
        torch.testing.assert_close(got, torch.from_numpy(encoder.encode(texts)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, _ in BLOCKS if name not in (OPTIONAL, "Export from Python")])
def test_the_page_runs(name, folder):
    script = folder / "script.py"
    script.write_text(dict(BLOCKS)[name], encoding="utf-8")
    strangers_output(script, folder=folder)


def test_the_page_has_a_block_for_each_way():
    assert len(BLOCKS) == PAGE.count("```python")
    assert OPTIONAL in dict(BLOCKS)


@pytest.mark.nightly
def test_sentence_transformers_loads_the_folder_with_its_onnx_backend(folder, encoder):
    python = os.environ.get("EFFCONV_OPTIMUM_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import optimum.onnxruntime"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs optimum-onnx, which needs transformers < 4.58: name such a Python in EFFCONV_OPTIMUM_PYTHON")
    script = folder / "backend.py"
    code = dict(BLOCKS)[OPTIONAL]
    script.write_text(f"{code}\nimport json\nprint(json.dumps(model.encode({TEXTS!r}).tolist()))", encoding="utf-8")
    run = subprocess.run(
        [python, script], cwd=folder, env=stranger(folder), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    got = np.array(json.loads(run.stdout.splitlines()[-1]), dtype=np.float32)
    np.testing.assert_allclose(got, encoder.encode(TEXTS), rtol=0, atol=1e-4)


def posted(port, body):
    """The JSON answer of the server."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/embed", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="needs the extra serve")
def test_the_example_server_answers_a_client(folder, encoder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--app-dir",
        ROOT / "examples" / "serve",
        "app:app",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "MODEL": str(folder / "lsg-encoder-export")}
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            assert server.poll() is None, server.stdout.read().decode()[-3000:]
            try:
                answer = posted(port, {"inputs": TEXTS})
                break
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:  # it has not opened its port yet
                time.sleep(0.5)
        np.testing.assert_allclose(np.array(answer), encoder.encode(TEXTS), rtol=0, atol=1e-4)
        with pytest.raises(urllib.error.HTTPError, match="422"):
            posted(port, {"texts": 1})
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_a_graph_that_differs_is_not_published(folder, tmp_path, monkeypatch):
    from effconv.export import checks

    monkeypatch.setattr(graphs, "program_of", lambda exported, example, longest: exported)
    monkeypatch.setattr(graphs, "write_onnx", lambda program, path, inputs, outputs: None)
    monkeypatch.setattr(graphs, "session", lambda path: None)
    wrong = lambda session, names: lambda inputs: [torch.zeros(*inputs[0].shape, 32), torch.zeros(len(inputs[0]), 12)]  # noqa: E731
    monkeypatch.setattr(checks, "runner", wrong)
    with pytest.raises(CheckFailedError, match="1 tokens: last_hidden_state differs"):
        effconv.export(folder / "lsg-encoder", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_words(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "Model")
    effconv.convert(source, "lsg", output=tmp_path / "lsh", sparsity_type="lsh", **TINY)
    with pytest.raises(UnsupportedError, match='sparsity_type "lsh" cannot be exported'):
        effconv.export(tmp_path / "lsh", output=tmp_path / "out")
    decoder = save_tiny(tmp_path / "bart", "bart", "Model")
    effconv.convert(decoder, "lsg", output=tmp_path / "seq2seq", **TINY)
    with pytest.raises(UnsupportedError, match="encoder-decoder models cannot be exported"):
        effconv.export(tmp_path / "seq2seq", output=tmp_path / "out")
    (tmp_path / "full").mkdir()
    shutil.copy(source / "config.json", tmp_path / "full")
    effconv.convert(source, "lsg", output=tmp_path / "norm", **TINY)
    with pytest.raises(OutputError, match="not empty"):
        effconv.export(tmp_path / "norm", output=tmp_path / "full")
