"""An emitted LSG repo under torch.compile, torch.export and ONNX, as a user of the repo would do it."""

from __future__ import annotations

import pytest
import torch
from lsg_cases import options, qkv
from lsg_goldens import convert
from tiers import daily
from torch.export import Dim, export
from transformers import AutoModel

from effconv.templates import lsg_attention as lsg
from tiny import save_tiny

torch.set_num_threads(1)
BLOCK, GLOBALS = 8, 1
together = pytest.mark.xdist_group("lsg-export")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    source = save_tiny(folder / "source", "bert", "Model", 64)
    repo = convert(source, folder / "repo", 256, {"block_size": BLOCK, "sparse_block_size": BLOCK})
    return AutoModel.from_pretrained(repo, trust_remote_code=True).eval()


def batch(model, blocks):
    """Two items, one of them half padding: outside of a graph the model would unpad them."""
    ids = torch.randint(
        5, model.config.vocab_size, (2, blocks * BLOCK), generator=torch.Generator().manual_seed(blocks)
    )
    mask = torch.ones_like(ids)
    mask[1, blocks * BLOCK // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def last_state(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=True).last_hidden_state * inputs["attention_mask"][..., None]


def assert_same_states(found, model, inputs):
    torch.testing.assert_close(
        found * inputs["attention_mask"][..., None], last_state(model, inputs), rtol=0, atol=1e-5
    )


@together
def test_exported_for_one_length_it_gives_the_same_states(model):
    inputs = batch(model, 10)
    program = export(model, (), kwargs=inputs)
    assert_same_states(program.module()(**inputs).last_hidden_state, model, inputs)


@together
@pytest.mark.nightly
def test_exported_for_whole_blocks_it_takes_other_lengths(model):
    blocks = Dim("blocks", min=3, max=32)
    shapes = {name: {1: BLOCK * blocks} for name in ("input_ids", "attention_mask")}
    program = export(model, (), kwargs=batch(model, 10), dynamic_shapes=shapes)
    for count in (4, 10, 17):
        inputs = batch(model, count)
        assert_same_states(program.module()(**inputs).last_hidden_state, model, inputs)


@together
@pytest.mark.nightly
def test_onnxruntime_gives_the_same_states(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    blocks = Dim("blocks", min=3, max=32)
    shapes = {name: {1: BLOCK * blocks} for name in ("input_ids", "attention_mask")}
    program = torch.onnx.export(
        model, (), kwargs=batch(model, 10), dynamic_shapes=shapes, dynamo=True, opset_version=18, verbose=False
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (10, 5):
        inputs = batch(model, count)
        feeds = {x.name: inputs[x.name].numpy() for x in session.get_inputs()}
        assert_same_states(torch.from_numpy(session.run(None, feeds)[0]), model, inputs)


@together
@pytest.mark.parametrize("backend", daily(["aot_eager"], of=["aot_eager", "inductor"]))
def test_compiled_it_gives_the_same_states_and_gradients(model, backend):
    inputs = batch(model, 10)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same_states(compiled(**inputs).last_hidden_state.detach(), model, inputs)
    if backend == "aot_eager":
        found = []
        for form in (compiled, model):
            model.zero_grad()
            (form(**inputs).last_hidden_state * inputs["attention_mask"][..., None]).square().mean().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert found[0].keys() >= found[1].keys()
        for name, gradient in found[0].items():
            expected = found[1].get(name, torch.zeros_like(gradient))  # one graph gives the unused pooler zeros
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# One that gathers by a mask of its own in every head, one that hashes, one that pools: the others do less.
@pytest.mark.parametrize("sparsity_type", ["norm", "lsh", "bos_pooling"])
def test_sparse_keys_export_with_a_dynamic_length(sparsity_type):
    config = options(sparsity_type=sparsity_type, is_decoder=False, attention_probs_dropout_prob=0.0)
    mix = lsg.LSGAttention(config, 0).eval()
    first, blocks = config.num_global_tokens, Dim("blocks", min=3, max=64)
    shape = {2: config.block_size * blocks + first}
    inputs = (*qkv(config, 40), None)
    program = export(mix, inputs, dynamic_shapes=(shape, shape, shape, None))
    other = (*qkv(config, 64, seed=1), None)
    torch.testing.assert_close(program.module()(*other), mix(*other), rtol=0, atol=1e-9)
