"""Names that a wrapper left in the weights, heads beside a known one, and tensors that are left behind on request."""

from __future__ import annotations

import pytest
import torch
from checkpoints import convert, read, rewrite, same
from safetensors.torch import load_file

import effconv
from effconv.convert.errors import BadInputError, UsageError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.families.wrappers import wrapping_of
from effconv.convert.io.source import resolve
from effconv.convert.io.unwrapped import readable_folder
from tiny import save_tiny, tiny_config

SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16}


def wrapped(source, prefix):
    return rewrite(source, lambda tensors: {prefix + name: value for name, value in tensors.items()})


@pytest.mark.parametrize(
    ("family", "head", "prefix"),
    [
        ("bert", "ForMaskedLM", "module."),
        ("bert", "Model", "model."),
        ("roberta", "ForSequenceClassification", "base_model.model."),
        ("electra", "Model", "_orig_mod.module."),
        ("distilbert", "ForMaskedLM", "model._fsdp_wrapped_module."),
        ("bart", "ForConditionalGeneration", "module."),
        ("bart", "ForConditionalGeneration", "model."),
    ],
)
def test_a_wrapper_changes_nothing_but_the_plan(family, head, prefix, tmp_path):
    source = save_tiny(tmp_path / "source", family, head)
    convert(source, tmp_path / "plain")
    result = convert(wrapped(source, prefix), tmp_path / "out")
    assert same(read(tmp_path / "out"), read(tmp_path / "plain"))
    rows = [row for row in result.plan.rows if row.sources and row.action != "new"]
    assert all("of a wrapper" in row.why for row in rows)
    assert "copy" not in result.plan.counts()


def test_a_wrapper_is_recognised_in_a_bin_file_and_inside_a_model(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", safetensors=False)
    convert(source, tmp_path / "plain")
    state = torch.load(source / "pytorch_model.bin")
    inner = {f"module.{name.replace('bert.', 'bert._orig_mod.')}": value for name, value in state.items()}
    torch.save(inner, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    assert same(read(tmp_path / "out"), read(tmp_path / "plain"))


@pytest.mark.parametrize("family", ["bart", "mbart", "pegasus"])
def test_a_base_called_model_keeps_its_name(family):
    config = {**tiny_config(family), "vocab_size": 60}
    config = FAMILIES[family].read_config({**config, "model_type": family})
    names = [f"model.{weight.name}" for weight in FAMILIES[family].base_weights(config)]
    for more in ([], ["lm_head.weight"], ["final_logits_bias"]):
        wrapping = wrapping_of([*names, *more], FAMILIES[family], config)
        assert not any(map(wrapping.removed, [*names, *more]))


def test_a_wrapped_source_is_read_by_transformers_from_a_folder_of_links(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForMaskedLM")
    plain = load_file(source / "model.safetensors")
    assert readable_folder(resolve(source)) == source.resolve()
    wrapped(source, "module._orig_mod.")
    folder = readable_folder(resolve(source))
    assert same(load_file(folder / "model.safetensors"), plain)
    assert (folder / "tokenizer.json").resolve() == (source / "tokenizer.json").resolve()


def test_tensors_are_left_behind_on_request(tmp_path):
    source = rewrite(
        save_tiny(tmp_path / "source"),
        lambda tensors: {**tensors, "cls.chain.weight": torch.ones(2, 32), "head2.bias": torch.ones(3)},
    )
    result = convert(source, tmp_path / "kept")
    assert {"cls.chain.weight", "head2.bias"} <= read(tmp_path / "kept").keys()
    assert result.manifest["carried"] == ["cls.chain.weight", "head2.bias"]
    result = convert(source, tmp_path / "left", drop=["cls.chain.*", "head?.*"])
    assert not {"cls.chain.weight", "head2.bias"} & read(tmp_path / "left").keys()
    dropped = {row.sources[0]: row.why for row in result.plan.rows if row.action == "drop"}
    assert dropped["cls.chain.weight"] == dropped["head2.bias"] == "dropped on request"
    assert result.manifest["settings"]["drop"] == ["cls.chain.*", "head?.*"]
    assert "--drop 'cls.chain.*' --drop 'head?.*'" in (tmp_path / "left" / "README.md").read_text()


def test_a_head_that_is_dropped_is_no_head_of_the_repo(tmp_path):
    source = save_tiny(tmp_path / "source", "bert", "ForPreTraining")
    result = convert(source, tmp_path / "out", architecture="Model", drop="cls.*")
    assert not [name for name in read(tmp_path / "out") if name.startswith("cls.")]
    assert result.manifest["heads"] == ["AutoModel"]


@pytest.mark.parametrize(
    ("drop", "says"),
    [("species.*", "no stored tensor has a name like species"), ("*.layer.1.*", "BertForMaskedLM needs these tensors")],
)
def test_what_cannot_be_left_behind_is_a_usage_error(drop, says, tmp_path):
    with pytest.raises(UsageError, match=says) as caught:
        effconv.plan(save_tiny(tmp_path / "source"), "lsg", drop=(drop,), **SMALL)
    assert caught.value.where == "--drop"


def test_weights_that_hold_an_adapter_say_what_to_do(tmp_path):
    name = "bert.encoder.layer.0.attention.self.query"
    source = rewrite(
        save_tiny(tmp_path / "source"),
        lambda tensors: {
            **{key.replace(f"{name}.", f"{name}.base_layer."): value for key, value in tensors.items()},
            f"{name}.lora_A.default.weight": torch.ones(4, 32),
        },
    )
    with pytest.raises(BadInputError) as caught:
        effconv.plan(wrapped(source, "base_model.model."), "lsg", **SMALL)
    assert "merge_and_unload" in caught.value.hint
