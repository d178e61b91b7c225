"""Repos of T5 encoders: what loads them loads our attention, and up to two blocks they equal their source."""

from __future__ import annotations

import pytest
import torch
import transformers

import effconv
from tiny import save_tiny, save_tiny_sentence_encoder

NO_GLOBALS = {"num_global_tokens": 0, "pool_with_global": False}
WIDE = {"feed_forward_proj": "gated-gelu", "d_kv": 16}  # heads that are wider together than a state


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A sentence encoder and its repo."""
    folder = tmp_path_factory.mktemp("t5")
    source = save_tiny_sentence_encoder(folder / "source", "t5", positions=96, d_model=48, **WIDE)
    options = {"max_length": 256, "block_size": 16, "sparse_block_size": 16, "verify": False}
    effconv.convert(source, "lsg", output=folder / "repo", **options)
    return source, folder / "repo"


def loaded(repo, **fields):
    return transformers.AutoModel.from_pretrained(repo, trust_remote_code=True, **fields).eval()


def test_its_config_is_not_the_stock_one(places):
    """sentence-transformers takes every T5Config for a stock T5EncoderModel, whatever code the repo names."""
    config = loaded(places[1]).config
    assert not isinstance(config, (transformers.T5Config, transformers.MT5Config))
    sizes = (config.hidden_size, config.num_attention_heads, config.head_dim)
    assert (*sizes, config.attention_dropout) == (48, 4, 16, 0.1)
    assert not config.is_encoder_decoder


def test_sentence_transformers_runs_our_attention_and_gives_the_source_s_embedding(places):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source, repo = places
    ours = sentence_transformers.SentenceTransformer(
        str(repo), device="cpu", trust_remote_code=True, config_kwargs=NO_GLOBALS
    )
    theirs = sentence_transformers.SentenceTransformer(str(source), device="cpu")
    assert type(ours[0].auto_model).__name__ == "LSGT5EncoderModel"
    calls = []
    ours[0].auto_model.encoder.block[0].layer[0].SelfAttention.mix.register_forward_hook(lambda *_: calls.append(1))
    text = "the of and to in a is that"
    assert abs(ours.encode(text) - theirs.encode(text)).max() <= 1e-5
    assert calls
    assert ours.encode("that it was for on " * 40).shape == (48,)


def test_up_to_two_blocks_it_equals_its_source_and_beyond_it_does_not(places):
    source, repo = places
    ours, theirs = loaded(repo, **NO_GLOBALS), transformers.T5EncoderModel.from_pretrained(source).eval()
    with torch.no_grad():
        for tokens, equal in ((32, True), (90, False)):
            ids = torch.randint(5, 60, (2, tokens), generator=torch.Generator().manual_seed(0))
            difference = (ours(ids).last_hidden_state - theirs(ids).last_hidden_state).abs().max()
            assert (difference <= 1e-5) == equal


def test_checkpointed_training_gives_the_same_gradients(places):
    model = loaded(places[1], dropout_rate=0.0).train()
    ids = torch.randint(5, 60, (2, 70), generator=torch.Generator().manual_seed(0))
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(ids).last_hidden_state.pow(2).mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("stock", ["T5ForConditionalGeneration", "T5Model"])
def test_a_whole_model_in_memory_becomes_an_encoder(stock, tmp_path):
    source = save_tiny(tmp_path / "source", "t5", stock, **WIDE)
    model = getattr(transformers, stock).from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    made = effconv.lsgify(model, tokenizer, max_length=256, block_size=16, sparse_block_size=16)
    assert type(made).__name__ == "LSGT5EncoderModel"
    table = made.encoder.global_embeddings.weight
    end, sentinel = tokenizer.convert_tokens_to_ids(["</s>", "<extra_id_0>"])
    assert torch.equal(table[:2], model.shared.weight[[end, sentinel]])  # there are no positions to add
    with torch.no_grad():
        assert made(torch.randint(5, 60, (1, 200))).last_hidden_state.shape == (1, 200, 32)
