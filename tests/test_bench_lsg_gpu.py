"""What `python -m effconv.bench.lsg_gpu` counts and compares, as far as that needs no GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from effconv.bench import lsg_gpu
from effconv.templates.lsg_configuration import ATTENTION_FORMS

CONFIGS = [
    {},
    {"sparsity_factor": 4, "num_global_tokens": 0},
    {"sparsity_factor": 1, "sparse_block_size": 5, "num_global_tokens": 3},
    {"sparsity_factor": 2, "sparse_block_size": 7, "block_size": 6},
]
each_config = pytest.mark.parametrize("changes", CONFIGS, ids=str)


def options(changes):
    stock = {"block_size": 4, "sparse_block_size": 4, "sparsity_factor": 2, "num_global_tokens": 1}
    return SimpleNamespace(**{**stock, **changes})


def keys_by_row(length, config):
    """What each row sees, tokens first, as sets of ("token" | "sparse" | "global", number), one row after the other."""
    block, size, step = config.block_size, config.sparse_block_size, config.block_size // config.sparsity_factor
    entries, global_keys = length // config.sparsity_factor, {("global", i) for i in range(config.num_global_tokens)}
    rows = []
    for token in range(length):
        i = token // block
        start = (i + 2) * step if step > 1 else i
        sparse = [*range((i - 1) * step - size, (i - 1) * step), *range(start, start + size)]
        seen = {("token", j) for j in range((i - 1) * block, (i + 2) * block) if 0 <= j < length}
        rows.append(seen | global_keys | {("sparse", e) for e in sparse if 0 <= e < entries})
    return rows + [global_keys | {("token", j) for j in range(length)}] * config.num_global_tokens


@each_config
def test_pairs_are_those_of_the_formula(changes):
    config = options(changes)
    length = 6 * config.block_size
    assert lsg_gpu.pairs(length, config) == sum(len(keys) for keys in keys_by_row(length, config))


def test_products_and_traffic_of_a_layer():
    assert lsg_gpu.products(1024, dense=True) == 2 * 2 * 1025**2 * 64 * 12
    tensor = 1025 * 12 * 64 * 2  # bytes
    assert lsg_gpu.traffic(1024, dense=True, backward=False) == 4 * tensor
    assert lsg_gpu.traffic(1024, dense=True, backward=True) == 12 * tensor
    listed = 256 * 12 * 64 * 2
    assert lsg_gpu.traffic(1024, dense=False, backward=True) == 12 * tensor + 6 * listed


def test_the_layers_to_compare_with_run():
    inputs = lsg_gpu.qkv(1024, "cpu")
    for form in (lsg_gpu.longformer(1024, "cpu"), lsg_gpu.bigbird(1024, "cpu")):
        context = form(*inputs)
        assert context.shape == (1, 1024, 768)
        assert context.isfinite().all()


def test_every_form_is_asked_for_by_the_field():
    assert lsg_gpu.measured("cuda") == list(ATTENTION_FORMS)
    assert lsg_gpu.measured("cpu") == ["auto", "plain"]  # what a CPU runs for the others is neither
    assert [lsg_gpu.asked(form).attention_form for form in ATTENTION_FORMS] == list(ATTENTION_FORMS)
    assert lsg_gpu.CONFIG.attention_form == "auto"


def test_on_a_cpu_the_command_can_be_tried(capsys, monkeypatch):
    monkeypatch.setattr(lsg_gpu, "longformer", lambda length, device: lsg_gpu.sdpa)  # they run in the test above
    monkeypatch.setattr(lsg_gpu, "bigbird", lambda length, device: lsg_gpu.sdpa)
    monkeypatch.setattr(lsg_gpu, "measured", lambda device: ["auto", "plain", "broken"])
    lsg_gpu.main(["--device", "cpu", "300"])
    text = capsys.readouterr().out
    assert text.startswith("a CPU, as a trial")
    differences, timed = text.split("300 tokens")
    for form in ("auto", "plain"):
        (row,) = [line for line in differences.splitlines() if line.startswith(f"| {form} |")]
        far = [float(cell) for cell in row.split("|")[2:6]]
        assert all(0 < x < 3e-2 for x in far)  # bfloat16
        assert f"\n| LSG, attention_form={form} | " in timed
    assert "| broken | ValueError: attention_form must be one of auto" in differences
    assert "| LSG, attention_form=broken | ValueError: attention_form must be" in timed


def test_lengths_of_full_attention_are_refused():
    with pytest.raises(SystemExit, match="from 257 tokens on"):
        lsg_gpu.main(["--device", "cpu", "256"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        lsg_gpu.main([])
