"""The stand-alone layers: against the published ones' recordings, and against loops over single rows in float64."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import runpy
import shutil
import sys

import pytest
import torch
from environments import FOUR, strangers_output
from hypothesis import given, settings
from hypothesis import strategies as st
from lsg_goldens import TOLERANCE, golden_folder, read_cases
from lsg_oracle import between, softmax_row, sparse_list
from places import ROOT
from safetensors.torch import load_file

from effconv.layers import BlockLocalSelfAttention, LSGSelfAttention
from effconv.templates.lsg_configuration import SPARSITY_TYPES

torch.set_num_threads(1)
FOLDER = golden_folder("attention_layers")
CASES = {case["name"]: case for case in read_cases(FOLDER)}
# With factor 2 the published layer leaves its sparse keys out, ours has them.
WITHOUT_SPARSE_KEYS = [
    name
    for name, case in CASES.items()
    if case["kwargs"].get("sparsity_factor") == 2 and case["kwargs"]["sparsity_type"] is not None
]
PARITY = [name for name in CASES if name not in WITHOUT_SPARSE_KEYS]
each_type = pytest.mark.parametrize("sparsity_type", SPARSITY_TYPES)


def recorded(name, **changes):
    """The layer of a case, its inputs, and its output with the real tokens."""
    case, tensors = CASES[name], load_file(FOLDER / f"case_{name}.safetensors")
    cls = {"BlockLocal": BlockLocalSelfAttention, "LSG": LSGSelfAttention}[case["layer"]]
    inputs = [tensors[key] for key in ("query", "key", "value", "attention_mask")]
    return cls(**{**case["kwargs"], **changes}), inputs, tensors["output"], inputs[3][:, 0, 0] == 0


def difference(actual, expected, real):
    """The largest over real tokens, relative to the largest number if that is above one."""
    actual, expected = (x.transpose(1, 2)[real].double() for x in (actual, expected))
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def oracle(layer, query, key, value, mask):
    """The layer as its docstring says it, a row at a time; NaN where a row sees nothing."""
    query, key, value = query.double(), key.double(), value.double()
    context = torch.full_like(query, torch.nan)
    for b in range(len(query)):
        for a in range(query.shape[1]):
            seen = [True] * query.shape[2] if mask is None else mask[b].bool().tolist()
            context[b, a] = one_head(layer, query[b, a], key[b, a], value[b, a], seen, a, query.shape[1])
    return context


def one_head(layer, query, key, value, seen, head, heads):
    options, causal, length = layer.options, layer.is_causal, len(query)
    block, size, has_global = options.block_size, options.sparse_block_size, layer.compute_global_attention
    real = list(zip(key, value, seen, strict=True))
    zero = torch.zeros_like(key[0])
    padded = real + [(zero, zero, False)] * (-length % block)
    # The first token, if it is the global one, is the first key of every row, and no other key.
    others = [(k, v, s and not (has_global and t == 0)) for t, (k, v, s) in enumerate(padded)]
    listed = []
    if options.sparsity_type != "none" and size > 0 and options.sparsity_factor > 0 and length > 2 * block:
        listed = sparse_list(
            query[0], padded if options.sparsity_type == "bos_pooling" else others, options, head, heads, 0
        )
        if layer.padding_groups == "published" and options.sparsity_factor > 1:
            if options.sparsity_type == "pooling":  # a mean over no token is zero
                listed = [(k, v, True) if s else (zero, zero, True) for k, v, s in listed]
            elif options.sparsity_type == "bos_pooling":
                listed = [(k, v, True) for k, v, _ in listed]
    entries = block // max(options.sparsity_factor, 1)
    rows = []
    for t in range(length):
        i = t // block
        if t == 0 and has_global:
            keys = real[:1] if causal else real
        elif length <= 2 * block:
            keys = real[: t + 1] if causal else real
        else:
            keys = real[:1] if has_global else []
            keys = keys + between(others, (i - 1) * block, t + 1 if causal else (i + 2) * block)
            if listed:
                keys = keys + between(listed, (i - 1) * entries - size, (i - 1) * entries)
                right = (i + 2) * entries if entries > 1 else i
                keys = keys if causal else keys + between(listed, right, right + size)
        rows.append(softmax_row(query[t], keys))
    return torch.stack(rows)


def qkv(length, batch=2, heads=4, size=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkv"]


def mask_of(lengths, length):
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def assert_equals_oracle(layer, inputs, mask, tolerance=1e-9):
    actual, expected = layer(*inputs, mask).double(), oracle(layer, *inputs, mask)
    assert actual.isfinite().all()
    defined = ~expected.isnan()
    torch.testing.assert_close(actual[defined], expected[defined], rtol=0, atol=tolerance)


PUBLISHED = {  # the published layers' options and their defaults, and what each is called here (None: there is none)
    "block_size": (128, "block_size"),
    "sparsity_factor": (8, "sparsity_factor"),
    "sparsity_type": (None, "sparsity_type"),
    "compute_global_attention": (True, "compute_global_attention"),
    "is_causal": (False, "is_causal"),
    "attention_dropout_prob": (0.1, "dropout"),
    "config": (None, None),
    "preprocessing_function": (None, None),
}


def test_the_docs_name_the_options_as_they_are_called_here_and_in_the_published_layers():
    page = (ROOT / "docs" / "how-to" / "layers.md").read_text()
    table, differences = page.split("| option | default |")[1].split("\n\n")[0], page.split("## Differences")[1]
    documented = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    options = inspect.signature(LSGSelfAttention).parameters
    assert sorted(documented) == sorted(options)
    for published, (default, ours) in PUBLISHED.items():
        assert f"`{published}`" in differences
        if published != ours:
            with pytest.raises(TypeError, match=published):
                LSGSelfAttention(**{published: default})
        else:
            stated = options[ours].default
            assert (None if stated == "none" else stated) == default
    local = inspect.signature(BlockLocalSelfAttention).parameters
    assert set(local) < set(options)
    assert all(parameter.default == options[name].default for name, parameter in local.items())


@pytest.mark.parametrize("name", PARITY)
def test_a_layer_gives_the_published_numbers(name):
    published = {"padding_groups": "published"} if CASES[name]["layer"] == "LSG" else {}
    layer, inputs, output, real = recorded(name, **published)
    assert difference(layer(*inputs), output, real) <= TOLERANCE


@pytest.mark.parametrize("name", PARITY)
def test_the_loops_give_the_published_numbers(name):
    published = {"padding_groups": "published"} if CASES[name]["layer"] == "LSG" else {}
    layer, inputs, output, real = recorded(name, **published)
    assert difference(oracle(layer, *inputs[:3], real), output, real) <= TOLERANCE


@pytest.mark.parametrize("name", WITHOUT_SPARSE_KEYS)
def test_sparse_keys_are_attached_whatever_the_factor(name):
    layer, inputs, output, real = recorded(name)
    assert difference(layer(*inputs), oracle(layer, *inputs[:3], real), real) <= TOLERANCE
    assert difference(layer(*inputs), output, real) > 0.1  # the published layer has none


@st.composite
def cases(draw, sparsity_type):
    block = draw(st.sampled_from([4, 2, 6, 3, 1]))
    factor = draw(st.sampled_from([f for f in range(1, block + 1) if block % f == 0]))
    sparse = draw(st.sampled_from([None, 0, factor, 2 * block]))
    layer = LSGSelfAttention(
        block_size=block,
        sparsity_type=sparsity_type,
        sparsity_factor=factor,
        sparse_block_size=sparse,
        compute_global_attention=draw(st.booleans()),
        is_causal=draw(st.booleans()),
        lsh_num_pre_rounds=draw(st.integers(0, 2)),
        lsh_seed=draw(st.integers(0, 9)),
        padding_groups=draw(st.sampled_from(["masked", "published"])),
    )
    length = draw(st.sampled_from([5 * block - 1, 4 * block, 3 * block + 1, 2 * block + 1, 2 * block, 1]))
    seed = draw(st.integers(0, 99))
    shown = draw(st.sampled_from([0.3, 0.8, None]))
    mask = None if shown is None else torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < shown
    return layer, length, mask, seed


@each_type
def test_a_layer_equals_the_loops_for_any_shape_and_mask(sparsity_type):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(cases(sparsity_type))
    def check(case):
        layer, length, mask, seed = case
        assert_equals_oracle(layer, qkv(length, heads=3, size=3, seed=seed), mask)

    check()


@each_type
@pytest.mark.parametrize("compute_global_attention", [False, True])
def test_a_causal_row_does_not_depend_on_later_tokens(sparsity_type, compute_global_attention):
    layer = LSGSelfAttention(4, sparsity_type, 2, compute_global_attention=compute_global_attention, is_causal=True)
    inputs = qkv(30)
    before = layer(*inputs)
    for cut in (1, 6, 13, 21, 29):
        changed = [torch.cat([x[:, :, :cut], torch.randn_like(x[:, :, cut:])], dim=2) for x in inputs]
        torch.testing.assert_close(layer(*changed)[:, :, :cut], before[:, :, :cut], rtol=0, atol=1e-9)


@each_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(sparsity_type, dtype):
    layer, inputs, mask = LSGSelfAttention(8, sparsity_type, 4), qkv(61, dtype=dtype), mask_of([61, 40], 61)
    context = layer(*inputs, mask)
    expected = layer(*(x.float() for x in inputs), mask)
    assert context.dtype == dtype
    torch.testing.assert_close(context.float(), expected, rtol=0, atol=8e-2 if dtype == torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kind_of_padding_mask_means_the_same_and_none_is_modified(dtype):
    layer, inputs = LSGSelfAttention(8, "norm", 4), qkv(61, dtype=dtype)
    integers = mask_of([61, 40], 61)
    additive = (1 - integers)[:, None, None].to(dtype) * torch.finfo(dtype).min
    expected = layer(*inputs, integers)
    for mask in (integers.bool(), integers.bool()[:, None, None], additive, additive.masked_fill(additive < 0, -1e4)):
        kept = mask.clone()
        assert torch.equal(layer(*inputs, mask), expected)
        assert torch.equal(mask, kept)
    torch.testing.assert_close(layer(*inputs, integers[:1]), layer(*inputs), rtol=0, atol=1e-9)  # one mask for all


def test_a_first_token_that_is_padding_is_not_seen():
    layer, (query, key, value) = LSGSelfAttention(4, "bos_pooling", 2), qkv(30)
    mask = mask_of([30, 30], 30)
    mask[:, 0] = 0
    other = key.clone()
    other[:, :, 0] += 1
    assert torch.equal(layer(query, key, value, mask), layer(query, other, value, mask))


def test_keys_and_values_may_have_fewer_heads():
    layer, (query, key, value) = LSGSelfAttention(4, "norm", 2), qkv(30)
    repeated = [x[:, :2].repeat_interleave(2, dim=1) for x in (key, value)]
    torch.testing.assert_close(layer(query, key[:, :2], value[:, :2]), layer(query, *repeated), rtol=0, atol=1e-9)


def test_dropout_acts_in_training_only():
    layer, inputs = BlockLocalSelfAttention(4, dropout=0.5), qkv(30)
    assert not torch.equal(layer(*inputs), layer(*inputs))
    assert torch.equal(layer.eval()(*inputs), layer(*inputs))


def test_a_layer_adds_nothing_to_a_checkpoint():
    assert not LSGSelfAttention().state_dict()
    assert not list(LSGSelfAttention().parameters())


def test_gradients_are_those_of_finite_differences():
    layer = LSGSelfAttention(2, "bos_pooling", 2)
    inputs = [x.requires_grad_() for x in qkv(7, batch=1, heads=2, size=2)]
    assert torch.autograd.gradcheck(lambda *x: layer(*x, mask_of([6], 7)), inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ({"sparsity_type": "bigbird"}, "must be one of none, norm"),
        ({"sparsity_type": "norm", "sparsity_factor": 3}, "block_size 128 must be divisible by sparsity_factor 3"),
        ({"is_causal": 1}, "is_causal must be True or False, got 1"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1, got 1.5"),
        ({"padding_groups": "all"}, "must be masked or published"),
    ],
)
def test_options_without_a_meaning_are_refused(options, words):
    with pytest.raises(ValueError, match="these options cannot be used") as error:
        LSGSelfAttention(**options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(2, 9, 24)] * 3, "give \\(batch, heads, tokens, head size\\) for each"),
        ([(2, 4, 9, 6), (2, 4, 8, 6), (2, 4, 8, 6)], "use_cache=False"),
        ([(2, 4, 9, 6), (2, 4, 9, 6), (2, 4, 9, 5)], "all must be of one shape"),
        ([(2, 4, 9, 6), (2, 3, 9, 6), (2, 3, 9, 6)], "a number of heads that those of key and value divide"),
        ([(2, 4, 0, 6)] * 3, "at least one token"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, words):
    with pytest.raises(ValueError, match=words):
        LSGSelfAttention()(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 1, 9, 9), "masks with a row for each query are not supported"),
        (torch.ones(2, 9, 9), "give a padding mask of shape \\(2, 9\\) or \\(2, 1, 1, 9\\)"),
        (torch.ones(2, 8), "which is what query, key and value are"),
        (torch.ones(2, 9), "must be bool or integer"),
        (torch.ones(3, 9, dtype=torch.long), "which is what query, key and value are"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, words):
    if mask.shape == (2, 8):
        mask = mask.bool()
    with pytest.raises(ValueError, match=words):
        LSGSelfAttention()(*qkv(9), mask)


@pytest.fixture
def copied(tmp_path):
    """A folder with a package `copied` of the files that the docs say to copy, and no others."""
    text = (ROOT / "docs" / "how-to" / "layers.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("cp ")]
    package = tmp_path / "copied"
    package.mkdir()
    for name in line[line.index("{") + 1 : line.index("}")].split(","):
        shutil.copy(ROOT / "templates" / f"{name}.py", package)
    return tmp_path


def test_the_files_that_the_docs_name_work_as_a_copy(copied, monkeypatch):
    monkeypatch.syspath_prepend(copied)
    monkeypatch.setitem(sys.modules, "effconv", None)  # an import of it fails
    module = importlib.import_module("copied.lsg_layers")
    inputs = qkv(61)
    options = {"block_size": 8, "sparsity_type": "lsh", "sparsity_factor": 4}
    assert torch.equal(module.LSGSelfAttention(**options)(*inputs), LSGSelfAttention(**options)(*inputs))


@pytest.mark.parametrize("python", [FOUR])
def test_the_copy_gives_the_published_numbers_on_transformers_4(python, copied):
    script = """
import sys
from copied.lsg_layers import LSGSelfAttention
from safetensors.torch import load_file
case = load_file(sys.argv[1])
context = LSGSelfAttention(8, "norm", 4)(case["query"], case["key"], case["value"], case["attention_mask"])
real = (case["attention_mask"] == 0).transpose(-1, -2)
print(((context - case["output"]) * real).abs().max().item() / case["output"].abs().max().item())
"""
    said = strangers_output("-c", script, FOLDER / "case_LSG_14.safetensors", folder=copied, python=python)
    assert float(said) <= TOLERANCE


@functools.cache
def example():
    return runpy.run_path(str(ROOT / "examples" / "patch_another_model.py"), run_name="example")


def protein_model():
    torch.manual_seed(0)
    return example()["tiny_protein_encoder"]().eval()


def test_the_example_equals_the_stock_model_up_to_two_blocks():
    model, ids, mask = protein_model(), torch.randint(4, 24, (2, 16)), mask_of([16, 11], 16)
    with torch.no_grad():
        stock = model(ids, attention_mask=mask).last_hidden_state
        example()["use_lsg"](model, block_size=8, sparsity_type="norm", sparsity_factor=4)
        patched = model(ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(patched[real], stock[real], rtol=0, atol=2e-5)


def test_the_example_ignores_padding_and_trains_beyond_two_blocks():
    model, ids = protein_model(), torch.randint(4, 24, (1, 90))
    example()["use_lsg"](model, block_size=8, sparsity_type="norm", sparsity_factor=4)
    alone = model(ids[:, :61]).last_hidden_state
    padded = model(ids, attention_mask=mask_of([61], 90)).last_hidden_state[:, :61]
    torch.testing.assert_close(padded, alone, rtol=0, atol=2e-5)
    alone.sum().backward()
    assert model.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
