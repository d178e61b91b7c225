"""Real exports of every target and kind of head; the command compares each graph with its repo, at every length."""

from __future__ import annotations

import pytest
from places import TESTS
from tiers import daily

import effconv
from tiny import save_tiny

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BLOCKS = {"block_size": 8, "sparse_block_size": 8}
LAST, POOLED = "last_hidden_state", "pooler_output"
# The target, the source's family and head, options, and what the graph returns.
CASES = {
    "linformer": ("linformer", "bert", "ForSequenceClassification", {"proj_dim": 16}, ["logits"]),
    "published linformer": (
        "linformer",
        "bert",
        "ForPreTraining",
        {"proj_dim": 16, "mask_mode": "published"},
        ["prediction_logits", "seq_relationship_logits"],
    ),
    "lambda": ("lambda", "bert", "Model", {}, [LAST, POOLED]),
    "transnormer": ("transnormer", "distilbert", "ForTokenClassification", {}, ["logits"]),
    "bigs": ("jax2torch", None, None, {}, [LAST, POOLED]),
    "pooled keys": (
        "lsg",
        "roberta",
        "ForQuestionAnswering",
        {**BLOCKS, "sparsity_type": "bos_pooling"},
        ["start_logits", "end_logits"],
    ),
    "padding that is seen": (
        "lsg",
        "electra",
        "Model",
        {
            **{**BLOCKS, "sparsity_type": "bos_pooling", "bos_pooling_padding": "published"},
            **{"num_global_tokens": 2, "mask_first_token": True},
        },
        [LAST],
    ),
    "choices": ("lsg", "bert", "ForMultipleChoice", {**BLOCKS, "sparsity_type": "none"}, ["logits"]),
    "words": ("lsg", "albert", "ForMaskedLM", {**BLOCKS, "sparsity_type": "block_stride"}, ["logits"]),
    "causal": ("lsg", "bert", "LMHeadModel", {**BLOCKS, "sparsity_type": "stride"}, ["logits"]),
    "mpnet's bias": ("lsg", "mpnet", "Model", {**BLOCKS, "sparsity_type": "pooling"}, [LAST, POOLED]),
    "t5's bias": ("lsg", "t5", "Model", BLOCKS, [LAST]),
    "languages": ("lsg", "xmod", "Model", BLOCKS, [LAST, POOLED]),
}


@pytest.mark.parametrize("name", daily(["linformer", "bigs"], of=CASES))
def test_a_graph_gives_the_outputs_of_its_repo(name, tmp_path):
    target, family, head, options, outputs = CASES[name]
    source = TESTS / "goldens" / "bigs" / "base_lin_L37"
    if family is not None:
        source = save_tiny(tmp_path / "source", family, head, 64)
        options = {**options, "max_length": 128}
    effconv.convert(source, target, output=tmp_path / "repo", verify=False, **options)
    program = name in ("linformer", "bigs", "lambda", "transnormer")
    result = effconv.export(tmp_path / "repo", output=tmp_path / "out", onnx=True, torch=program)
    assert result.record["outputs"] == outputs
    assert set(result.record["checks"]) == {"onnx/model.onnx", *(["model.pt2"] if program else [])}
    assert all(check["difference"] < 1e-4 for check in result.record["checks"].values())
