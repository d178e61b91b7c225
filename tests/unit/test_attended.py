"""The prototypes of benchmarks.attended: a window over the whole text is the source, and so are summaries of one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import transformers

import effconv
from benchmarks.attended import (
    Pattern,
    Row,
    attend,
    frontier,
    grouped,
    keys_seen,
    lsg_keys,
    patterned,
    repeated,
    start_global_from_text,
)
from tiny import save_tiny

TOKENS = 44


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("attended"), "bert", "Model")


@pytest.fixture(scope="module")
def source(folder):
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def lsg(folder, source):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return effconv.lsgify(source, tokenizer, max_length=64, block_size=8, sparse_block_size=8)


@pytest.fixture
def ids(source):
    return torch.randint(5, source.config.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def states(model, ids):
    return model(ids).last_hidden_state


def close(a, b):
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("ends", [0, 1, 2])
@pytest.mark.parametrize("group", [0, 4])
def test_a_window_over_the_whole_text_gives_the_source(source, ids, ends, group):
    for block in (32, 64):
        assert close(states(patterned(source, Pattern(block, ends, group)), ids), states(source, ids))
    if group == 0:
        assert not close(states(patterned(source, Pattern(8, ends, group)), ids), states(source, ids))


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_summaries_of_one_token_give_the_source(source, ids, ends):
    assert close(states(patterned(source, Pattern(8, ends, 1)), ids), states(source, ids))
    assert not close(states(patterned(source, Pattern(8, ends, 4)), ids), states(source, ids))


def test_summaries_of_equal_tokens_are_the_tokens():
    q = torch.randn(1, 2, TOKENS, 6)
    k, v = (torch.randn(1, 2, TOKENS // 4, 6).repeat_interleave(4, 2) for _ in range(2))
    assert close(attend(q, k, v, Pattern(8, 0, 4)), F.scaled_dot_product_attention(q, k, v))


def test_local_attention_is_that_of_lsg_without_globals(source, lsg, ids):
    for block in (4, 8):
        bare = copy.deepcopy(lsg)
        bare.config.update({"block_size": block, "sparsity_type": "none", "num_global_tokens": 0})
        assert close(states(patterned(source, Pattern(block)), ids), states(bare, ids))


def test_a_longer_text_gets_sharper_scores():
    q, k, v = torch.randn(3, 1, 2, TOKENS, 6)
    sharper = F.scaled_dot_product_attention(q, k, v, scale=6**-0.5 * math.log(TOKENS) / math.log(20))
    assert close(attend(q, k, v, Pattern(trained=20)), sharper)
    assert close(attend(q, k, v, Pattern(trained=64)), F.scaled_dot_product_attention(q, k, v))


def test_keys_are_counted():
    assert keys_seen(Pattern(), 40) == 40
    assert keys_seen(Pattern(8), 40) == (2 * 16 + 3 * 24) / 5
    assert keys_seen(Pattern(8, 0, 4), 40) == (2 * (16 + 6) + 3 * (24 + 4)) / 5
    # Of each token: one key more where the first is not in sight (3 blocks), and 40 for the first itself.
    assert keys_seen(Pattern(8, 1), 40) == pytest.approx((7 * 16 + 40 + 8 * (24 + 25 + 25 + 17)) / 40)


def test_keys_of_lsg_are_counted(lsg):
    config = copy.deepcopy(lsg.config)
    assert lsg_keys(config, 40) == 1 + (2 * (16 + 8) + 2 * (24 + 8) + 24 + 8) / 5
    config.update({"sparse_block_size": 4})
    assert lsg_keys(config, 40) == 1 + (2 * (16 + 4) + 2 * (24 + 4) + 24 + 8) / 5
    config.update({"sparsity_type": "none"})
    assert lsg_keys(config, 40) == 1 + (2 * 16 + 3 * 24) / 5


def test_a_global_token_starts_from_the_text(lsg, ids):
    model = copy.deepcopy(lsg)
    seen = []
    start_global_from_text(model)
    model.encoder.layer[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    states(model, ids)
    tokens = model.embeddings(ids)
    wanted = torch.cat([model.embeddings.LayerNorm(tokens.mean(1, keepdim=True)), tokens], 1)
    assert close(seen[0], wanted)


def test_positions_repeat_and_group(source, ids):
    longer = repeated(copy.deepcopy(source), 128)
    torch.testing.assert_close(states(longer, ids), states(source, ids))
    assert longer(ids.repeat(1, 2)).last_hidden_state.shape[1] == 2 * TOKENS
    assert grouped(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_frontier_has_no_row_that_costs_more_for_less():
    rows = [Row("a", 8, 10, 0.9, 0.9), Row("b", 8, 20, 0.8, 0.8), Row("c", 8, 20, 0.9, 0.95), Row("d", 8, 5, 0.7, 0.7)]
    assert [row.name for row in frontier(rows)] == ["d", "a", "c"]
