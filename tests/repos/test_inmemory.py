"""`effconv.lsgify(model)`: every family and head, a model in memory, which stays as it was unless asked otherwise.

That the result is what the command makes of the same checkpoint is shown in test_families.
"""

from __future__ import annotations

import sys

import matrix
import pytest
import torch
import transformers
from tiers import daily

import effconv
from effconv.convert.errors import EffconvError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.verify.loaded import decoder_inputs
from effconv.lsgify.target import global_bias
from tiny import dense, save_tiny

OPTIONS = {"max_length": 100, "block_size": 16, "sparse_block_size": 16, "global_init": "random"}
WHOLE = {"num_global_tokens": 0, "pool_with_global": False}  # up to two blocks it is the dense model


def inputs(model, head: str, tokens: int = 30) -> dict:
    ids = torch.randint(5, 60, (2, tokens), generator=torch.Generator().manual_seed(1))
    if model.config.is_encoder_decoder:
        ids[:, -1] = model.config.eos_token_id  # which its classifiers look for
    return {"input_ids": ids[None] if head == "ForMultipleChoice" else ids, **decoder_inputs(model, ids)}


def outputs(model, head: str) -> dict:
    with torch.no_grad():
        return {name: value for name, value in model(**inputs(model, head)).items() if isinstance(value, torch.Tensor)}


def same(one: dict, other: dict, tolerance: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(
        (one[name] - other[name]).abs().max() <= tolerance * max(1, other[name].abs().max()) for name in one
    )


# Of every family one head with every change, of BERT all of them.
DAILY = [cell for cell in matrix.CELLS if cell[0] == "bert" or cell[1] == FAMILIES[cell[0]].default_head]


@pytest.mark.parametrize(("family", "head"), daily(DAILY, of=matrix.CELLS))
def test_a_model_gives_its_outputs_and_is_not_touched(family, head):
    model = dense(family, head)
    kind, config = type(model), model.config.to_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = outputs(model, head)
    made = effconv.lsgify(model, **OPTIONS, **WHOLE)
    assert type(made).__name__ == f"LSG{kind.__name__}"
    assert same(outputs(made, head), expected)
    assert made.config.max_position_embeddings == 100 + FAMILIES[family].special_positions(made.config.to_dict())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert (type(model), model.config.to_dict()) == (kind, config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert same(outputs(model, head), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_becomes_lsg_itself_when_asked(family):
    head = FAMILIES[family].default_head
    model = dense(family, head).train()
    held = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = effconv.lsgify(model, **OPTIONS)
    assert effconv.lsgify(model, **OPTIONS, in_place=True) is model
    assert type(model).__name__ == type(other).__name__
    assert model.training
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    changed = [name for name, value in model.named_parameters() if held.get(name) is not value]
    entry = FAMILIES[family]
    expected = [*entry.position_tables(entry.head(head)), entry.global_embeddings]
    expected += [global_bias(entry)] if entry.score_bias else []
    assert sorted(name.removeprefix(f"{entry.prefix}.") for name in changed) == sorted(expected)
    words = model.get_input_embeddings().weight
    before = words.detach().clone()
    model.eval()(**inputs(model, head, 60))[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(words, before)


@pytest.mark.parametrize("head", ["Model", "ForTokenClassification", "ForPreTraining"])
def test_task_types_reach_the_embeddings_of_ernie(head):
    model = dense("ernie", head)
    made = effconv.lsgify(model, **OPTIONS, **WHOLE)
    ids = inputs(model, head)["input_ids"]
    tasks = {"input_ids": ids, "task_type_ids": torch.ones_like(ids)}
    with torch.no_grad():
        got, wanted, without = made(**tasks)[0], model(**tasks)[0], model(ids)[0]
    assert not torch.allclose(wanted, without, atol=1e-3)
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForCausalLM"])
def test_each_text_of_a_batch_gets_the_adapters_of_its_language(head):
    languages = {"languages": ["sw_KE", "et_EE", "qu_PE"], "default_language": "et_EE"}
    model = dense("xmod", head, **languages, is_decoder=head == "ForCausalLM", initializer_range=0.1)
    made = effconv.lsgify(model, **OPTIONS, **WHOLE)
    batch = {"input_ids": torch.randint(5, 60, (3, 30)), "attention_mask": torch.ones(3, 30, dtype=torch.long)}
    batch["attention_mask"][1, 12:] = 0
    batch["input_ids"][1, 12:] = model.config.pad_token_id
    with torch.no_grad():
        for ids in (torch.tensor([2, 0, 2]), torch.tensor([1, 1, 1])):
            got, wanted = (run(**batch, lang_ids=ids)[0] for run in (made, model))
            for text, tokens in enumerate((30, 12, 30)):
                assert torch.allclose(got[text][:tokens], wanted[text][:tokens], atol=1e-5)
        assert torch.allclose(got, made(**batch)[0], atol=1e-5)  # in the default language
        assert not torch.allclose(got, made(**batch, lang_ids=torch.tensor([1, 0, 1]))[0], atol=1e-3)
        made.config.default_language = None
        with pytest.raises(ValueError, match="pass lang_ids"):
            made(**batch)


def test_adapters_learn_with_checkpoints_of_activations():
    made = effconv.lsgify(dense("xmod", "ForMaskedLM", languages=["a", "b"], default_language="a"), **OPTIONS).train()
    made.gradient_checkpointing_enable()
    made(torch.randint(5, 60, (2, 70)), lang_ids=torch.tensor([0, 1]))[0].square().mean().backward()
    adapters = [value.grad for name, value in made.named_parameters() if "adapter_modules" in name]
    assert len(adapters) == 2 * 2 * 4
    assert all(grad is not None and grad.any() for grad in adapters)


@pytest.mark.parametrize(("head", "prefix"), [("ForMaskedLM", "bert."), ("Model", "")])
def test_an_lsg_model_in_memory_keeps_its_options_and_globals(head, prefix):
    first = effconv.lsgify(dense("bert", head), **OPTIONS, num_global_tokens=3)
    again = effconv.lsgify(first, max_length=200)
    assert (again.config.num_global_tokens, again.config.block_size) == (3, 16)
    assert again.config.max_position_embeddings == 200
    old, new = first.state_dict(), again.state_dict()
    assert [name for name in old if not torch.equal(old[name], new[name])] == [
        f"{prefix}embeddings.position_embeddings.weight"
    ]


def test_its_tokenizer_cuts_at_the_new_length(tmp_path):
    source = save_tiny(tmp_path / "source")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModel.from_pretrained(source)
    with pytest.raises(EffconvError):
        effconv.lsgify(model, tokenizer, max_length=-1)
    assert tokenizer.model_max_length == 64
    effconv.lsgify(model, tokenizer, **OPTIONS)
    assert len(tokenizer("the " * 200, truncation=True)["input_ids"]) == 100
    tokenizer.save_pretrained(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == 100


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_a_forward_pass_is_followed_in_four_files(family):
    model = effconv.lsgify(dense(family, FAMILIES[family].default_head), **OPTIONS)
    folder, seen = sys.modules[type(model).__module__].__file__.rpartition("/")[0], set()

    def called(frame, event, argument):
        path, _, name = frame.f_code.co_filename.rpartition("/")
        if event == "call" and path == folder:
            seen.add(name)

    batch = inputs(model, FAMILIES[family].default_head, 90)
    batch["attention_mask"] = torch.arange(90) < torch.tensor([[90], [50]])  # it is unpadded
    sys.setprofile(called)
    try:
        model(**batch)
    finally:
        sys.setprofile(None)
    options = {"lsg_configuration.py"}  # two questions to the config
    files = {f"modeling_lsg_{family}.py", "efficient_encoder.py", "lsg_attention.py", "lsg_kernel_cpu.py"}
    assert seen - options == files


def test_what_it_does_not_take_is_refused_and_left_alone():
    model = transformers.XLNetModel(transformers.XLNetConfig(vocab_size=60, d_model=8, n_head=2, n_layer=1))
    with pytest.raises(EffconvError, match="xlnet is not supported") as caught:
        effconv.lsgify(model, in_place=True)
    assert caught.value.exit_code == 3
    assert type(model) is transformers.XLNetModel
