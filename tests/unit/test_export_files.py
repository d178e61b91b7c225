"""The files of an export: weights beside a large graph, the stock config, the lengths compared, the options."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim

from effconv.export import graphs
from effconv.export.checks import lengths_of
from effconv.export.layout import stock_config
from effconv.export.options import ExportOptions


def test_a_large_graph_has_its_weights_in_a_file_beside_it(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(graphs, "LARGEST_FILE", 1000)
    layer = nn.Linear(64, 64).eval()
    x = torch.randn(2, 3, 64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim("batch"), 1: Dim("tokens")},))
    path = tmp_path / "onnx" / "model.onnx"
    graphs.write_onnx(program, path, ("x",), ("y",))
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx", "model.onnx_data"}
    assert path.stat().st_size < 5000 < (path.parent / "model.onnx_data").stat().st_size
    wanted = layer(x).detach().numpy()
    got = graphs.session(path).run(None, {"x": x.numpy()})[0]
    assert abs(got - wanted).max() < 1e-5


def test_the_config_is_the_stock_familys():
    manifest = {"family": "roberta", "options": {"max_length": 4096, "block_size": 128}}
    config = {
        "model_type": "lsg-roberta",
        "architectures": ["LSGRobertaForSequenceClassification"],
        "auto_map": {"AutoConfig": "configuration_lsg_roberta.LSGRobertaConfig"},
        "dtype": "float32",
        "block_size": 128,
        "max_position_embeddings": 4098,
        "id2label": {"0": "no"},
    }
    assert stock_config(config, manifest) == {
        "model_type": "roberta",
        "architectures": ["RobertaForSequenceClassification"],
        "max_position_embeddings": 4098,
        "id2label": {"0": "no"},
    }


def test_lengths_have_the_borders_of_blocks_and_the_longest():
    found = lengths_of(SimpleNamespace(block_size=128, proj_dim=None, adaptive=True), 4096)
    assert found == [1, 7, 100, 127, 128, 129, 255, 256, 257, 383, 384, 385, 511, 700, 4096]
    whole = lengths_of(SimpleNamespace(block_size=128, adaptive=False), 4096)
    assert all(length <= 256 or length % 128 == 0 for length in whole)
    assert {1, 256, 384, 4096} <= {*whole}
    assert lengths_of(SimpleNamespace(), 12) == [1, 7, 12]


@pytest.mark.parametrize(
    ("given", "onnx"), [({}, True), ({"torch": True}, False), ({"torch": True, "int8": True}, True)]
)
def test_onnx_is_what_is_written_unless_a_program_alone_is_wanted(given, onnx):
    assert ExportOptions(**given).onnx is onnx
