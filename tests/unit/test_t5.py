"""T5 and mT5 encoders: which tensors of which sources are taken, what config.json says, which tokens stand in."""

from __future__ import annotations

import pytest
from checkpoints import edit_config, read, read_json

import effconv
from effconv.convert.errors import UnsupportedError, UsageError
from effconv.convert.families.grammar import NEEDS, SCORE_BIAS
from effconv.targets.registry import TARGETS
from tiny import save_tiny

PAIRS = [("t5", "T5"), ("mt5", "MT5")]
CANNOT = [name for name, target in TARGETS.items() if not target.only and SCORE_BIAS not in target.can]


def converted(source, output, **options):
    options = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False, **options}
    return effconv.convert(source, "lsg", output=output, **options)


@pytest.mark.parametrize(("family", "prefix"), PAIRS)
@pytest.mark.parametrize("whole", ["ForConditionalGeneration", "Model"])
def test_of_a_whole_model_the_encoder_is_taken_and_the_decoder_dropped_with_a_reason(family, prefix, whole, tmp_path):
    source = save_tiny(tmp_path / "source", family, prefix + whole)
    result = converted(source, tmp_path / "out")
    dropped = {row.sources[0]: row.why for row in result.plan.rows if row.action == "drop"}
    assert dropped
    assert all(name.startswith(("decoder.", "lm_head.")) for name in dropped)
    assert set(dropped.values()) == {"part of the decoder: only the encoder is converted"}
    assert [finding for finding in result.findings if f"{prefix}{whole}: " in finding] == result.findings != []
    before, after = read(source), read(tmp_path / "out")
    assert {name for name in before if name.startswith(("encoder.", "shared."))} <= after.keys()
    config = read_json(tmp_path / "out" / "config.json")
    assert config["architectures"] == [f"LSG{prefix}EncoderModel"]
    assert (config["is_encoder_decoder"], config["max_position_embeddings"]) == (False, 128)


def test_what_old_configs_leave_out_has_the_value_of_the_stock_class(tmp_path):
    """As t5-base says neither how far its bias reaches nor that its feed-forward has no gate."""
    fields = {"relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "d_kv": 64}
    source = save_tiny(tmp_path / "source", "t5", "Model", **fields)
    missing = dict.fromkeys((*fields, "feed_forward_proj", "n_positions", "is_gated_act", "dense_act_fn"))
    result = converted(edit_config(source, **missing, tie_word_embeddings=False), tmp_path / "out")
    config = read_json(tmp_path / "out" / "config.json")
    assert {name: config[name] for name in fields} == fields
    assert (config["feed_forward_proj"], config["tie_word_embeddings"]) == ("relu", True)
    assert "encoder.embed_tokens.weight" not in read(tmp_path / "out")
    assert result.manifest["source_max_length"] == 512
    assert result.manifest["max_length"] == 128


def test_an_option_of_the_position_table_is_refused(tmp_path):
    source = save_tiny(tmp_path / "source", "t5", "Model")
    for option in ({"positions": "interpolate"}, {"global_positional_stride": 8}):
        with pytest.raises(UsageError, match="no position table"):
            effconv.plan(source, "lsg", max_length=128, **option)


@pytest.mark.parametrize("target", CANNOT)
def test_targets_that_cannot_add_its_bias_refuse_it_by_name(target, tmp_path):
    source = save_tiny(tmp_path / "source", "t5", "Model")
    with pytest.raises(UnsupportedError, match=f"t5: {NEEDS[SCORE_BIAS]}"):
        effconv.plan(source, target, max_length=512)


def test_umt5_is_refused_because_its_layers_do_not_share_the_bias(tmp_path):
    source = edit_config(save_tiny(tmp_path / "source", "mt5", "Model"), model_type="umt5")
    with pytest.raises(UnsupportedError, match=r"umt5 is not supported: .* in each layer") as refused:
        effconv.plan(source, "lsg", max_length=128)
    assert "an mt5 checkpoint" in refused.value.hint
