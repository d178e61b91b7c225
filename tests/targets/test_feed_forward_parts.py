"""The feed-forward of many rows runs a part at a time: what it gives, and a model that can still be copied and sent."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import transformers
from torch.testing import assert_close

import effconv
from tiny import save_tiny

torch.set_num_threads(1)


def in_parts_of(model) -> list[functools.partial]:
    found = [getattr(module, name, None) for module in model.modules() for name in ("feed_forward_chunk", "ff_chunk")]
    return [each for each in found if isinstance(each, functools.partial)]


@pytest.mark.parametrize(
    ("family", "target", "options"),
    [
        ("bert", "lsg", {"block_size": 16, "sparse_block_size": 16}),
        ("albert", "lsg", {"block_size": 16, "sparse_block_size": 16}),
        ("distilbert", "lsg", {"block_size": 16, "sparse_block_size": 16}),
        ("xlm-roberta-xl", "linformer", {"proj_dim": 8}),
        ("xmod", "lsg", {"block_size": 16, "sparse_block_size": 16}),  # whose part of the layer ends at the inner size
        ("bert", "transnormer", {"block_size": 16, "ffn": "glu"}),
        ("albert", "transnormer", {"ffn": "glu"}),  # whose gate is in a layer of its own
    ],
)
def test_parts_give_what_the_whole_gives(family, target, options, tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source", family, "ForMaskedLM", 64)
    repo = effconv.convert(source, target, max_length=128, verify=False, output=tmp_path / "repo", **options).output
    model = transformers.AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
    wrapped = in_parts_of(model)
    assert wrapped
    settings = wrapped[0].func.__globals__  # of the emitted file that the model was loaded from
    calls: list[int] = []
    ids = torch.randint(5, 60, (3, 100), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(100) < torch.tensor([100, 41, 7])[:, None]).long()

    def run(model, **changes):
        with torch.no_grad():
            return model(ids, attention_mask=mask).last_hidden_state * mask[..., None]

    whole = run(model)
    monkeypatch.setitem(settings, "PART", 8)
    own = wrapped[0].args[0]

    def counted(x):
        calls.append(x.shape[-2])
        return own(x)

    part = settings["in_parts"]
    with torch.no_grad():
        x = torch.randn(1, 37, model.config.hidden_size if family != "distilbert" else model.config.dim)
        assert_close(part(counted, x), own(x))
    assert calls == [8, 8, 8, 8, 5]
    assert_close(run(model), whole, atol=1e-5, rtol=1e-5)
    # Copies and models that were sent to another process run their own weights.
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert run(other).abs().max() == 0
        assert_close(run(model), whole, atol=1e-5, rtol=1e-5)
        assert all(each.args[0].__self__ in list(other.modules()) for each in in_parts_of(other))


def test_gradients_and_graphs_take_the_whole(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", 64)
    repo = effconv.convert(source, "lsg", max_length=128, verify=False, output=tmp_path / "repo").output
    model = transformers.AutoModel.from_pretrained(repo, trust_remote_code=True).eval()
    part = in_parts_of(model)[0].func
    monkeypatch.setitem(part.__globals__, "PART", 4)
    seen: list[int] = []

    def counted(x):
        seen.append(x.shape[-2])
        return x

    part(counted, torch.randn(1, 64, 4))
    with torch.no_grad():
        torch.jit.trace(lambda x: part(counted, x), torch.randn(1, 64, 4), check_trace=False)
        part(counted, torch.randn(1, 16, 4))  # not many rows
        part(counted, torch.randn(2, 9, 4))  # they are counted over the batch
    assert seen == [64, 64, 16, 4, 4, 4, 4, 2]
