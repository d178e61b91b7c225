"""Whatever form a checkpoint has, the same weights come out, stored twice, once or under another name."""

from __future__ import annotations

import os

import pytest
import torch
import transformers
from checkpoints import bits, convert, edit_config, emitted, read, read_json, rewrite, same, write, write_json

from effconv.convert.errors import BadInputError
from effconv.convert.families.registry import FAMILIES as EVERY_FAMILY
from tiny import save_tiny, save_tiny_sentence_encoder

FAMILIES = ("bert", "roberta")
WORDS = "embeddings.word_embeddings.weight"
DECODER = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder"}
DECODER_BIAS = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def source(family, tmp_path):
    return save_tiny(tmp_path / "source", family)


@pytest.fixture
def plain(source, tmp_path):
    """What the untouched source becomes."""
    return emitted(source, tmp_path / "plain")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy"])
def test_every_file_format_gives_the_same_tensors(form, shards, source, plain, tmp_path):
    write(source, read(source), form, shards)
    assert same(emitted(source, tmp_path / "out"), plain)


def test_a_checkpoint_as_transformers_itself_saves_it_to_bin_is_read(tmp_path):
    plain = emitted(save_tiny(tmp_path / "source"), tmp_path / "plain")
    state_dict = save_tiny(tmp_path / "bin", safetensors=False)
    assert not list(state_dict.glob("*.safetensors"))
    assert same(emitted(state_dict, tmp_path / "out"), plain)


def test_safetensors_are_preferred_to_a_bin_beside_them(source, plain, tmp_path):
    torch.save({"junk": torch.zeros(3)}, source / "pytorch_model.bin")
    assert same(emitted(source, tmp_path / "out"), plain)


def test_gamma_and_beta_are_weight_and_bias(source, plain, tmp_path):
    def old_names(tensors):
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for name, value in tensors.items()
        }

    rewrite(source, old_names)
    assert any(name.endswith("gamma") for name in read(source))
    assert same(emitted(source, tmp_path / "out"), plain)


def test_the_prefix_of_the_base_model_may_be_missing(family, source, plain, tmp_path):
    rewrite(source, lambda tensors: {name.removeprefix(f"{family}."): value for name, value in tensors.items()})
    assert same(emitted(source, tmp_path / "out"), plain)


def test_a_base_model_may_carry_the_prefix(family, tmp_path):
    source = save_tiny(tmp_path / "source", family, "Model")
    plain = emitted(source, tmp_path / "plain")
    assert not any(name.startswith(f"{family}.") for name in plain)
    rewrite(source, lambda tensors: {f"{family}.{name}": value for name, value in tensors.items()})
    assert same(emitted(source, tmp_path / "out"), plain)


def test_stored_position_ids_are_dropped_with_a_reason(family, source, plain, tmp_path):
    ids = {f"{family}.embeddings.position_ids": torch.arange(64)[None]}
    rewrite(source, lambda tensors: {**tensors, **ids})
    result = convert(source, tmp_path / "out")
    assert same(read(tmp_path / "out"), plain)
    (row,) = [row for row in result.plan.rows if row.action == "drop"]
    assert (row.sources, row.target) == ((f"{family}.embeddings.position_ids",), None)
    assert "buffer" in row.why


def test_a_tied_decoder_is_stored_once_whether_or_not_the_source_repeats_it(family, source, plain, tmp_path):
    tensors = read(source)
    twin = {
        f"{DECODER[family]}.weight": tensors[f"{family}.{WORDS}"],
        f"{DECODER[family]}.bias": tensors[DECODER_BIAS[family]],
    }
    write(source, {**tensors, **twin})
    assert same(emitted(source, tmp_path / "out"), plain)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_decoder_that_differs_from_its_twin_is_an_error_that_names_both(form, family, source, tmp_path):
    tensors = read(source)
    other = tensors[f"{family}.{WORDS}"].clone()
    other[3, 3] += 1
    write(source, {**tensors, f"{DECODER[family]}.weight": other}, form)
    with pytest.raises(BadInputError, match=DECODER[family]) as caught:
        convert(source, tmp_path / "out")
    assert WORDS in str(caught.value)
    assert "tie_word_embeddings" in str(caught.value)


def test_words_may_be_stored_under_the_decoders_name_only(family, source, plain, tmp_path):
    names = {f"{family}.{WORDS}": f"{DECODER[family]}.weight", DECODER_BIAS[family]: f"{DECODER[family]}.bias"}
    rewrite(source, lambda tensors: {names.get(name, name): value for name, value in tensors.items()})
    assert f"{family}.{WORDS}" not in read(source)
    assert same(emitted(source, tmp_path / "out"), plain)


def test_an_untied_decoder_stays_a_tensor_of_its_own(family, tmp_path):
    source = save_tiny(tmp_path / "source", family, tie_word_embeddings=False)
    stored, out = read(source), emitted(source, tmp_path / "out")
    assert bits(stored[f"{DECODER[family]}.weight"]) != bits(stored[f"{family}.{WORDS}"])
    for name in (f"{family}.{WORDS}", f"{DECODER[family]}.weight", f"{DECODER[family]}.bias"):
        assert bits(out[name]) == bits(stored[name])


def test_a_config_without_architectures_gets_the_richest_head_that_is_stored(tmp_path):
    source = save_tiny(tmp_path / "pretraining", "bert", "ForPreTraining")
    assert convert(edit_config(source, architectures=None), tmp_path / "a").plan.architecture == "LSGBertForPreTraining"
    source = save_tiny(tmp_path / "lm", "roberta", "ForMaskedLM")
    assert convert(edit_config(source, architectures=None), tmp_path / "b").plan.architecture == "LSGRobertaForMaskedLM"
    source = save_tiny(tmp_path / "base", "bert", "Model")
    assert convert(edit_config(source, architectures=None), tmp_path / "c").plan.architecture == "LSGBertModel"


def test_tensors_of_an_unknown_class_are_carried_over_as_they_are(tmp_path):
    source = edit_config(save_tiny(tmp_path / "source", "bert", "Model"), architectures=["HF_ColBERT"])
    linear = torch.randn(8, 32)
    rewrite(
        source, lambda tensors: {f"bert.{name}": value for name, value in tensors.items()} | {"linear.weight": linear}
    )
    result = convert(source, tmp_path / "out")
    out = read(tmp_path / "out")
    assert bits(out["linear.weight"]) == bits(linear)
    assert "bert.encoder.layer.0.attention.self.query.weight" in out
    assert result.plan.architecture == "LSGBertModel"
    (row,) = [row for row in result.plan.rows if row.target == "linear.weight"]
    assert "HF_ColBERT" in row.why


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_unknown_class_of_any_family_is_its_encoder_and_named_rows(family, tmp_path):
    source = edit_config(save_tiny(tmp_path / "source", family, "Model"), architectures=["MyRetriever"])
    prefix, extra = EVERY_FAMILY[family].prefix, {"linear.weight": torch.randn(8, 32), "colour": torch.randn(3)}
    rewrite(source, lambda tensors: {f"{prefix}.{name}": value for name, value in tensors.items()} | extra)
    result = convert(source, tmp_path / "out")
    out = read(tmp_path / "out")
    assert all(bits(out[name]) == bits(value) for name, value in extra.items())
    assert {row.target: row.why for row in result.plan.rows if row.target in extra} == dict.fromkeys(
        extra, "part of MyRetriever, copied unchanged"
    )
    assert result.plan.architecture == f"LSG{EVERY_FAMILY[family].code.class_prefix}Model"
    assert set(result.manifest["carried"]) >= extra.keys()
    assert "**Also stored**" in (tmp_path / "out" / "README.md").read_text()
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).state_dict()
    assert all(torch.equal(loaded[name.removeprefix(f"{prefix}.")], out[name]) for name in out.keys() - extra.keys())


def test_tensors_of_another_head_are_kept_for_it(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForPreTraining")
    result = convert(source, tmp_path / "out", architecture="ForMaskedLM")
    kept = [row for row in result.plan.rows if row.target == "cls.seq_relationship.weight"]
    assert [row.action for row in kept] == ["copy"]
    assert "ForNextSentencePrediction" in kept[0].why
    assert bits(read(tmp_path / "out")["bert.pooler.dense.weight"]) == bits(read(source)["bert.pooler.dense.weight"])


@pytest.mark.parametrize("layout", ["root", "0_Transformer"])
def test_a_sentence_encoder_keeps_its_modules_and_gets_the_new_length(layout, tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (source / "2_Dense").mkdir()
    write_json(source / "2_Dense" / "config.json", dense)
    torch.save({"linear.weight": torch.randn(8, 32)}, source / "2_Dense" / "pytorch_model.bin")
    write_json(source / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    modules = read_json(source / "modules.json")
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    if layout == "0_Transformer":  # as it was before sentence-transformers 2
        modules[0]["path"] = layout
        (source / layout).mkdir()
        for path in source.iterdir():
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(source / layout / path.name)
    write_json(source / "modules.json", modules)
    convert(source, tmp_path / "out")
    out = tmp_path / "out"
    assert [module["path"] for module in read_json(out / "modules.json")] == ["", "1_Pooling", "2_Dense", "2_Normalize"]
    assert read_json(out / "sentence_bert_config.json") == {"max_seq_length": 128, "do_lower_case": False}
    assert read_json(out / "config_sentence_transformers.json")["prompts"] == {"query": "query: "}
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert not (out / layout).is_dir()


def test_links_in_a_source_become_plain_files(tmp_path):
    real = save_tiny(tmp_path / "real")
    source = tmp_path / "source"  # as the Hub client's cache is laid out
    source.mkdir()
    for path in real.iterdir():
        (source / path.name).symlink_to(path)
    assert same(emitted(source, tmp_path / "out"), emitted(real, tmp_path / "plain"))
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_tensors_of_any_alignment_are_read(source, plain, tmp_path):
    """Files of other writers may put an odd number of bytes before a tensor."""
    path = source / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" "
    header += b" " * (1 - len(header) % 2)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    assert len(header) % 2
    assert same(emitted(source, tmp_path / "out"), plain)


def test_a_folder_may_have_any_name_that_the_system_takes(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source")
    odd = tmp_path / os.fsdecode(b"m\xff \xc3\xa9'$(x)")
    source.rename(odd)
    monkeypatch.chdir(tmp_path)
    result = convert(odd, None)
    assert read_json(result.output / "effconv.json")["source"]["name"] == "m\ufffd é'$(x)"
    assert result.output.name == "lsg-m\ufffd é'$(x)-128"
