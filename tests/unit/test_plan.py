"""The plan says what happens to every tensor before anything is written: every head, every fault, nothing silent."""

from __future__ import annotations

import re

import pytest
import torch
from checkpoints import bits, convert, edit_config, read, rewrite, snapshot

import effconv
from effconv.convert.errors import BadInputError, UnsupportedError, UsageError
from effconv.convert.families.registry import FAMILIES
from tiny import save_tiny

HEADS = [(family, head.suffix) for family in ("bert", "roberta") for head in FAMILIES[family].heads]
WORDS = "bert.embeddings.word_embeddings.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
GLOBALS = "bert.embeddings.global_embeddings.weight"


def plan(source, **options):
    return effconv.plan(source, "lsg", max_length=128, block_size=16, sparse_block_size=16, **options)


def faults(source, **options):
    with pytest.raises(BadInputError) as caught:
        plan(source, **options)
    return str(caught.value)


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_every_head_keeps_its_tensors_bit_for_bit(family, head, tmp_path):
    source = save_tiny(tmp_path / "source", family, head)
    result = convert(source, tmp_path / "out")
    stored, out = read(source), read(tmp_path / "out")
    changed = {name for name in out if "position_embeddings" in name or "global_embeddings" in name}
    assert len(changed) == 2
    assert {name: bits(value) for name, value in out.items() if name not in changed} == {
        name: bits(value) for name, value in stored.items() if name not in changed
    }
    assert result.plan.architecture == f"LSG{type_name(family, head)}"
    assert "new" not in result.plan.counts()


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_a_head_that_the_source_lacks_is_new_and_says_so(family, head, tmp_path):
    source = save_tiny(tmp_path / "source", family, "ForQuestionAnswering")
    made = plan(source, architecture=head)
    new = [row for row in made.rows if row.action == "new"]
    own = {weight.name for weight in FAMILIES[family].head_weights(FAMILIES[family].head(head))}
    assert {row.target.removeprefix(f"{family}.") for row in new} == own - {"qa_outputs.weight", "qa_outputs.bias"}
    assert all("needs training" in row.why for row in new)
    assert made.architecture == f"LSG{type_name(family, head)}"


def type_name(family, head):
    return {"bert": "Bert", "roberta": "Roberta"}[family] + head


def test_a_classifier_of_another_shape_is_an_error_not_a_new_tensor(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForTokenClassification", num_labels=5)
    message = faults(source, architecture="ForMultipleChoice")
    assert "classifier.weight: shape (5, 32), but config.json requires (1, 32)" in message


def test_a_new_head_is_drawn_as_the_config_says_from_the_seed_alone(tmp_path):
    source = edit_config(save_tiny(tmp_path / "source"), initializer_range=0.5)
    options = {"architecture": "ForSequenceClassification"}
    convert(source, tmp_path / "one", **options)
    convert(source, tmp_path / "again", dtype="float32", max_shard_size="20KB", **options)
    convert(source, tmp_path / "other", seed=7, **options)
    one, again, other = (read(tmp_path / name) for name in ("one", "again", "other"))
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert bits(one[name]) == bits(again[name])
        assert bits(one[name]) != bits(other[name])
    assert one["classifier.bias"].eq(0).all()
    assert one["bert.pooler.dense.weight"].std().item() == pytest.approx(0.5, rel=0.1)
    assert bits(one["cls.predictions.bias"]) == bits(read(source)["cls.predictions.bias"])


def test_a_new_head_has_the_sources_dtype(tmp_path):
    source = save_tiny(tmp_path / "source")
    rewrite(source, lambda tensors: {name: value.bfloat16() for name, value in tensors.items()})
    convert(source, tmp_path / "out", architecture="ForQuestionAnswering")
    assert read(tmp_path / "out")["qa_outputs.weight"].dtype == torch.bfloat16


def test_an_unknown_head_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="ForFun") as caught:
        plan(save_tiny(tmp_path / "source"), architecture="ForFun")
    assert "ForSequenceClassification" in caught.value.hint


@pytest.mark.parametrize("name", ["ForMaskedLM", "BertForMaskedLM", "LSGBertForMaskedLM"])
def test_an_architecture_may_be_named_in_three_ways(name, tmp_path):
    assert plan(save_tiny(tmp_path / "source"), architecture=name).architecture == "LSGBertForMaskedLM"


def test_unmatched_missing_and_misshapen_tensors_are_listed_together(tmp_path):
    def damage(tensors):
        del tensors["bert.encoder.layer.1.output.dense.weight"]
        tensors["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(7)
        tensors["bert.encoder.layer.0.adapter.weight"] = torch.zeros(2)
        return tensors

    message = faults(rewrite(save_tiny(tmp_path / "source"), damage))
    assert "encoder.layer.1.output.dense.weight: missing" in message
    assert "encoder.layer.0.output.dense.bias: shape (7,), but config.json requires (32,)" in message
    assert "bert.encoder.layer.0.adapter.weight: unknown to bert" in message
    assert message.count("\n    ") == 3


def test_heads_that_the_family_has_not_are_left_behind_where_another_is_asked_for(tmp_path):
    source = rewrite(
        save_tiny(tmp_path / "source"),
        lambda tensors: {**tensors, "cls.species.weight": torch.zeros(6, 32), "cls.species.bias": torch.zeros(6)},
    )
    carried = {row.sources[0]: row for row in plan(source).rows if "species" in str(row.target)}
    assert {row.action for row in carried.values()} == {"copy"}
    assert carried["cls.species.bias"].why == "part of a head that bert lacks, copied unchanged"
    rows = {row.sources[0]: row for row in plan(source, architecture="ForMaskedLM").rows if row.action == "drop"}
    why = "part of a head that bert lacks; BertForMaskedLM was requested"
    assert {name: row.why for name, row in rows.items() if "species" in name} == {
        "cls.species.weight": why,
        "cls.species.bias": why,
    }
    rewrite(source, lambda tensors: {**tensors, "bert.encoder.layer.0.adapter.weight": torch.zeros(2, 2)})
    message = faults(source, architecture="ForMaskedLM")  # inside the encoder nothing is left behind
    assert "bert.encoder.layer.0.adapter.weight: unknown to bert" in message
    assert "species" not in message


def test_long_lists_of_faults_end_with_a_count(tmp_path):
    message = faults(rewrite(save_tiny(tmp_path / "source"), lambda tensors: {WORDS: tensors[WORDS]}))
    assert message.count(": missing") == 20
    assert re.search(r"\.\.\. and \d+ more", message)


@pytest.mark.parametrize("layers", [1, 5])
def test_another_number_of_layers_is_one_sentence(layers, tmp_path):
    source = save_tiny(tmp_path / "source")
    stored = 1 + max(int(name.split(".layer.")[1].split(".")[0]) for name in read(source) if ".layer." in name)
    edit_config(source, num_hidden_layers=layers)
    said = faults(source)
    assert f"config.json says {layers} layer{'s' * (layers > 1)}, the weights have {stored}\n" in said
    assert "encoder.layer" not in said


def test_a_tensor_stored_under_two_names_is_an_error(tmp_path):
    source = save_tiny(tmp_path / "source")
    norm = "embeddings.LayerNorm"
    rewrite(source, lambda tensors: {**tensors, f"{norm}.gamma": tensors[f"bert.{norm}.weight"]})
    assert f"{norm}.weight: stored twice" in faults(source)


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("max_position_embeddings", 70, "position_embeddings"),  # a resize would hide it
        ("vocab_size", 90, "word_embeddings"),
        ("type_vocab_size", 3, "token_type_embeddings"),
        ("hidden_size", 64, "LayerNorm"),
        ("intermediate_size", 32, "intermediate"),
        ("num_hidden_layers", 3, "config.json says 3 layers"),
        ("num_hidden_layers", 1, "config.json says 1 layer,"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_an_error_that_names_them(field, value, tensor, tmp_path):
    assert tensor in faults(edit_config(save_tiny(tmp_path / "source"), **{field: value}))


def test_every_stored_tensor_and_every_emitted_one_is_in_exactly_one_row(tmp_path):
    source = save_tiny(tmp_path / "source")
    ids = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    rewrite(source, lambda tensors: {**tensors, **ids, "cls.predictions.decoder.weight": tensors[WORDS].clone()})
    result = convert(source, tmp_path / "out")
    rows = result.plan.rows
    assert sorted(row.target for row in rows if row.target) == sorted(read(tmp_path / "out"))
    assert {name for row in rows for name in row.sources} == set(read(source))
    by_target = {row.target: row for row in rows if row.target}
    assert (by_target[POSITIONS].action, by_target[GLOBALS].action) == ("tile", "derive")
    assert all(row.why for row in rows if row.action in ("new", "drop"))


def test_the_plan_states_the_bytes_that_are_written(tmp_path):
    source = save_tiny(tmp_path / "source")
    result = convert(source, tmp_path / "out")
    assert result.plan.bytes_out == sum(value.nbytes for value in read(tmp_path / "out").values())
    assert plan(source).sha256 == result.plan.sha256
    assert plan(source, num_global_tokens=3).sha256 == result.plan.sha256
    assert plan(source, seed=1).sha256 != result.plan.sha256


def test_planning_touches_neither_the_source_nor_the_working_folder(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = snapshot(source)
    plan(source)
    assert snapshot(source) == before
    assert not list((tmp_path / "empty").iterdir())


def test_an_option_that_no_target_has_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="blocksize") as caught:
        plan(tmp_path, blocksize=3)
    assert "block_size" in caught.value.hint
    with pytest.raises(UnsupportedError, match="lsgg"):
        effconv.plan(tmp_path, "lsgg")


@pytest.mark.parametrize("length", [63, 64, 65, 100, 128, 200])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_positions_repeat_behind_the_rows_that_no_token_uses(family, length, tmp_path):
    source = save_tiny(tmp_path / "source", family)
    convert(source, tmp_path / "out", max_length=length)
    special = FAMILIES[family].special_positions({})
    name = f"{family}.embeddings.position_embeddings.weight"
    old, new = read(source)[name], read(tmp_path / "out")[name]
    rows = [*range(special), *(special + t % 64 for t in range(length))]
    assert bits(new) == bits(old[rows])


@pytest.mark.parametrize("length", [1, 2, 40, 63, 65, 127, 500])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_interpolated_positions_are_what_numpy_makes_of_each_column(family, length, tmp_path):
    import numpy as np

    source = save_tiny(tmp_path / "source", family)
    convert(source, tmp_path / "out", max_length=length, positions="interpolate")
    special = FAMILIES[family].special_positions({})
    name = f"{family}.embeddings.position_embeddings.weight"
    old, new = read(source)[name].numpy(), read(tmp_path / "out")[name].numpy()
    at = np.linspace(0, 63, length)
    columns = [np.interp(at, np.arange(64), column) for column in old[special:].astype(np.float64).T]
    assert new.shape == (special + length, 32)
    assert new[:special].tobytes() == old[:special].tobytes()
    np.testing.assert_allclose(new[special:], np.stack(columns, 1), rtol=0, atol=1e-6)


SIZES = [(60, 4096), (61, 64), (77, 1000), (513, 100), (600, 513), (1025, 60), (8192, 512), (8192, 8192), (8192, 10001)]


@pytest.mark.parametrize(("stored", "length"), SIZES)
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert"])
def test_a_table_of_any_size_becomes_one_of_any_other(family, stored, length, tmp_path):
    source = save_tiny(tmp_path / "source", family, "Model", stored)
    special = FAMILIES[family].special_positions({})
    (old,) = (value for name, value in read(source).items() if name.endswith("position_embeddings.weight"))
    assert old.shape[0] == special + stored
    expected = {
        "repeat": old[special:].repeat(length // stored + 1, 1)[:length],
        "interpolate": torch.nn.functional.interpolate(
            old[special:].double().T[None], size=length, mode="linear", align_corners=True
        )[0].T.float(),
    }
    if stored == length:
        with pytest.raises(UsageError, match="both take"):
            convert(source, tmp_path / "same", max_length=length, positions="interpolate")
        del expected["interpolate"]
    for how, wanted in expected.items():
        result = convert(source, tmp_path / how, max_length=length, positions=how)
        (new,) = (v for name, v in read(tmp_path / how).items() if name.endswith("position_embeddings.weight"))
        assert bits(new[:special]) == bits(old[:special])
        assert new.shape == (special + length, old.shape[1])
        assert (
            torch.equal(new[special:], wanted) if how == "repeat" else torch.allclose(new[special:], wanted, atol=1e-5)
        )
        assert result.manifest["source_max_length"] == stored
        (row,) = (row for row in result.plan.rows if row.target.endswith("position_embeddings.weight"))
        assert row.action == ("copy" if stored == length else "tile" if how == "repeat" else "derive")
        if how == "repeat" and length < stored:
            assert row.why == f"drops the last {stored - length} of {stored} positions"
