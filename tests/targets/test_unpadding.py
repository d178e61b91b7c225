"""Batches that are unpadded in front of the layers: real tokens get what they get in a padded batch.

What LSG attention gives in a padded batch is the oracle's word. That every family and target does so on both versions
of transformers is in the workers of test_lsg_model, test_lsg_seq2seq and test_targets.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lsg_cases import DEFAULTS, qkv
from lsg_oracle import oracle
from torch.testing import assert_close

import effconv
from effconv.templates import efficient_encoder as unpadding
from effconv.templates import lsg_attention as lsg
from effconv.templates.lsg_configuration import SPARSITY_TYPES, lsg_faults
from tiny import dense, save_tiny_sentence_encoder

torch.set_num_threads(1)
LENGTHS = (26, 9, 20, 8, 3)  # in blocks of 4: more than two blocks, two and a piece, two, less than one
KINDS = {kind: {"sparsity_type": kind} for kind in SPARSITY_TYPES}
KINDS |= {f"causal {kind}": {"sparsity_type": kind, "causal": True} for kind in ("none", "norm", "pooling")}
KINDS |= {
    "every token": {"sparsity_factor": 1},
    "short sparse blocks": {"sparsity_type": "pooling", "sparse_block_size": 3},
    "no globals": {"num_global_tokens": 0},
    "three globals": {"num_global_tokens": 3, "sparsity_type": "lsh"},
    "published globals": {"causal": True, "causal_globals": "published"},
    "lsh that pools": {"sparsity_type": "lsh", "sparse_block_size": 2},
}
# What makes a short text's attention depend on the padding behind it.
COUNTED = {
    "one entry a block": {"sparsity_factor": 4},
    "norm, chunks that do not divide the block": {"sparse_block_size": 6, "block_size": 8},
    "lsh, chunks that do not divide the block": {"sparsity_type": "lsh", "sparse_block_size": 12, "block_size": 16},
    "published bos_pooling": {"sparsity_type": "bos_pooling", "bos_pooling_padding": "published"},
    "published bos_pooling in the place of lsh": {
        "sparsity_type": "lsh",
        "sparse_block_size": 2,
        "bos_pooling_padding": "published",
    },
}


def options(causal=False, **changes):
    config = SimpleNamespace(**{**DEFAULTS, **changes}, is_decoder=causal, attention_probs_dropout_prob=0.0)
    assert not lsg_faults(config)
    return config


def padding_counts(config):
    return lsg.LSGEncoderMixin.padding_counts(SimpleNamespace(config=config))


def visible(config, lengths=LENGTHS):
    """Right padding, with a hole in the first item and the second one padded on the left."""
    tokens = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens[0, 5:11] = False
    tokens[1, :2] = False
    return torch.cat([torch.ones(len(lengths), config.num_global_tokens, dtype=torch.bool), tokens], dim=1)


def attend(config, mask, q, k, v):
    """Attention of an unpadded batch, as the layers run it, put back into the batch (b, h, t, d)."""
    kept = unpadding.unpadded(mask)
    flat = [kept.unpad(x.transpose(1, 2).flatten(2)).unflatten(-1, x.shape[1::2]) for x in (q, k, v)]
    context = kept.attend(lsg.LSGAttention(config, 0).eval(), *flat)
    return kept, kept.pad(context.flatten(2)).unflatten(-1, q.shape[1::2]).transpose(1, 2)


@pytest.mark.parametrize("form", ["auto", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_attention_is_the_oracles_in_the_padded_batch(name, form, monkeypatch):
    monkeypatch.setitem(unpadding.GROUP_PADDING, "cpu", 3)
    config = options(**KINDS[name], attention_form=form)
    assert not padding_counts(config)
    mask = visible(config)
    q, k, v = qkv(config, max(LENGTHS), batch=len(LENGTHS))
    expected = oracle(q, k, v, mask, config, causal=config.is_decoder)
    kept, context = attend(config, mask, q, k, v)
    assert [group.items for group in kept.groups] == [1, 1, 2, 1]
    real = mask[:, None].expand(context.shape[:-1])
    assert_close(context[real], expected[real], rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 21), min_size=1, max_size=4),
    kind=st.sampled_from(list(KINDS)),
    padding=st.sampled_from([0, 4, 100]),
)
def test_attention_is_the_oracles_for_all_lengths(lengths, kind, padding):
    config = options(**KINDS[kind])
    rows = max(*lengths, 1) + 7
    mask = torch.arange(rows) < torch.tensor(lengths)[:, None]
    mask = torch.cat([torch.ones(len(lengths), config.num_global_tokens, dtype=torch.bool), mask], dim=1)
    q, k, v = qkv(config, rows, batch=len(lengths), heads=2, size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unpadding.GROUP_PADDING, "cpu", padding)
        patch.setattr(unpadding, "WORTHWHILE", 10)
        _, context = attend(config, mask, q, k, v)
    real = mask[:, None].expand(context.shape[:-1])
    assert context.isfinite().all()
    expected = oracle(q, k, v, mask, config, causal=config.is_decoder)
    assert_close(context[real], expected[real], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", COUNTED)
def test_where_padding_counts_by_the_formula_nothing_is_unpadded(name):
    config = options(**COUNTED[name])
    tokens, rows = 2 * config.block_size, 6 * config.block_size
    mask = torch.arange(config.num_global_tokens + rows)[None] < config.num_global_tokens + tokens
    q, k, v = qkv(config, rows, batch=1)
    padded = oracle(q, k, v, mask, config)[:, :, mask[0]]
    alone = oracle(*(x[:, :, mask[0]] for x in (q, k, v)), None, config)
    assert (padded - alone).abs().max() > 1e-3
    assert padding_counts(config)


def test_where_lengths_must_be_whole_blocks_nothing_is_unpadded():
    assert padding_counts(options(adaptive=False))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(0, 100))
def test_groups_hold_every_item_once_and_little_padding(lengths, padding):
    groups = unpadding.similar(lengths, padding)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[group[0]] - lengths[index] for index in group) <= padding
        assert max(lengths[index] for index in group) == lengths[group[0]]


def test_unpadding_keeps_what_is_visible_and_the_first_token():
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unpadding.GROUP_PADDING, "cpu", 0)
        kept = unpadding.unpadded(mask)
    assert kept.index.tolist() == [0, 1, 2, 3, 12, 13, 6]
    assert [(group.items, group.length) for group in kept.groups] == [(1, 4), (1, 2), (1, 1)]
    x = torch.arange(18.0).view(3, 6, 1) + 1
    expected = x * torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]])[..., None]
    assert torch.equal(kept.pad(kept.unpad(x)), expected)


@pytest.mark.parametrize("lengths", [(40, 40), (40, 37), (40, 33)])
def test_a_batch_with_little_padding_stays_as_it_is(lengths):
    assert unpadding.unpadded(torch.arange(40) < torch.tensor(lengths)[:, None]) is None


def test_an_item_without_holes_needs_no_mask(monkeypatch):
    monkeypatch.setitem(unpadding.GROUP_PADDING, "cpu", 0)
    kept = unpadding.unpadded(visible(options(num_global_tokens=0)))
    masks = {group.length: group.mask for group in kept.groups}
    assert masks[20] is None
    assert masks[26].tolist() == [[True] * 5 + [False] * 6 + [True] * 15]


@pytest.fixture(scope="module")
def model():
    return effconv.lsgify(dense("bert", "Model"), max_length=256, block_size=8, global_init="random").eval()


@pytest.fixture
def layer_inputs(model):
    """The shapes of what the first layer gets."""
    shapes = []
    hook = model.encoder.layer[0].register_forward_hook(lambda layer, inputs, output: shapes.append(inputs[0].shape))
    yield shapes
    hook.remove()


def batch(lengths=(100, 30, 7, 64, 16)):
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


def padded(model, **inputs):
    model.config.unpad_inputs = False
    try:
        return model(**inputs)
    finally:
        model.config.unpad_inputs = True


def test_layers_work_in_proportion_to_real_tokens_and_give_the_same(model, layer_inputs):
    inputs = batch()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
        expected = padded(model, **inputs, output_hidden_states=True)
    global_tokens, group_padding = 5, 30 - 16  # two items are close enough to go together
    assert layer_inputs == [(1, int(real.sum()) + global_tokens + group_padding, 32), (5, 100 + 1, 32)]
    assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    left_out = torch.arange(100) >= torch.tensor([100, 30, 7, 64, 30])[:, None]
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(one[real], other[real], rtol=0, atol=1e-5)
        assert not one[left_out].any()


def test_one_text_alone_is_cut_too(model, layer_inputs):
    inputs = batch((50,))
    inputs["attention_mask"][:, 20:] = 0
    with torch.no_grad():
        found, expected = model(**inputs).last_hidden_state, padded(model, **inputs).last_hidden_state
    assert layer_inputs[0] == (1, 21, 32)
    assert_close(found[:, :20], expected[:, :20], rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_padded_batch_and_dropout_works(model):
    inputs, found = batch(), {}
    real = inputs["attention_mask"].bool()
    for name, run in (("unpadded", model), ("padded", lambda **x: padded(model, **x))):
        model.zero_grad()
        run(**inputs).last_hidden_state[real].square().sum().backward()
        found[name] = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    assert found["unpadded"].keys() == found["padded"].keys()
    for key, gradient in found["padded"].items():
        assert_close(found["unpadded"][key], gradient, rtol=1e-4, atol=1e-4)
    model.train()
    one, other = (model(**inputs).last_hidden_state for _ in range(2))
    model.eval()
    assert one.isfinite().all()
    assert not torch.equal(one, other)


class LastState(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask).last_hidden_state


def test_what_has_no_values_to_look_at_is_left_padded(model, layer_inputs):
    """As in the graphs of torch.compile and torch.export: test_lsg_export."""
    inputs = batch((20, 5))
    with torch.no_grad():
        expected = padded(model, **inputs).last_hidden_state
        traced = torch.jit.trace(LastState(model), tuple(inputs.values()), check_trace=False)
        assert_close(traced(*inputs.values()), expected, rtol=0, atol=1e-5)  # a graph holds the plain form
        copy.deepcopy(model).to("meta")(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    assert len(layer_inputs) >= 3
    assert all(shape[0] == 2 for shape in layer_inputs)


def test_a_decoder_with_cross_attention_is_left_padded():
    config = {"is_decoder": True, "add_cross_attention": True}
    decoder = effconv.lsgify(dense("bert", "LMHeadModel", **config), max_length=256, block_size=8, global_init="random")
    rows = []
    decoder.bert.encoder.layer[0].register_forward_hook(lambda layer, inputs, output: rows.append(len(inputs[0])))
    for more in ({}, {"encoder_hidden_states": torch.zeros(5, 3, 32)}):
        assert decoder(**batch(), **more).logits.isfinite().all()
    assert rows == [1, 5]


def test_other_values_of_the_option_are_refused(model):
    with pytest.raises(ValueError, match="unpad_inputs is 1: give true or false"):
        type(model.config)(unpad_inputs=1)
    config = copy.deepcopy(model.config)
    config.unpad_inputs = "no"  # as from_pretrained sets an override: when the config is made already
    with pytest.raises(ValueError, match="unpad_inputs is 'no': give true or false"):
        type(model)(config)


def test_pipelines_and_encode_take_the_real_tokens_of_long_batches_alone(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from transformers import pipeline

    source = save_tiny_sentence_encoder(tmp_path / "source", num_hidden_layers=1)
    effconv.convert(source, "lsg", output=tmp_path / "lsg", max_length=4096, verify=False)
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "lsg"), trust_remote_code=True, device="cpu")
    model, tokenizer = encoder[0].auto_model, encoder.tokenizer
    texts = ["the of and to " * words for words in (1000, 20, 300, 5)]
    real = sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
    taken = []
    for name, module in model.named_modules():
        if name.endswith(".mix"):
            module.register_forward_hook(lambda mix, given, context: taken.append(len(given[0]) * given[0].shape[2]))
    for call in (lambda: encoder.encode(texts), lambda: extract(texts, batch_size=len(texts), truncation=True)):
        taken.clear()
        call()
        # A global token for each text, and the padding that a group may hold.
        added = len(texts) * (model.config.num_global_tokens + unpadding.GROUP_PADDING["cpu"])
        assert real <= sum(taken) <= real + added
