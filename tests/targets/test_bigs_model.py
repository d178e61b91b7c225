"""The emitted BiGS model as a transformers model, and its convolution against the formula."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from same_models import assert_same_outputs, assert_same_tensors

from effconv.targets.bigs import reference as bigs_reference
from effconv.templates import bigs_ssm, modeling_bigs
from effconv.templates.bigs_ssm import S4D, convolve_both, fast_length, initial_frequencies, plain_convolution
from effconv.templates.configuration_bigs import BiGSConfig

TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_ssm": 4,
    "max_position_embeddings": 60,
}  # fmt: skip
HEADS = (
    "Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction", "ForSequenceClassification",
    "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip


def tiny(head="Model", noise=0.05, **config):
    torch.manual_seed(0)
    model = getattr(modeling_bigs, f"BiGS{head}")(BiGSConfig(**TINY | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return model


def ids(*lengths, seed=0):
    tokens = torch.randint(5, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def close(a, b, tolerance=1e-5):
    assert a.isfinite().all()
    assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()), (a - b).abs().max()


def directions(heads=None, modes=6):
    torch.manual_seed(1)
    found = S4D(modes, heads), S4D(modes, heads)
    for part in found:
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter)
        torch.nn.init.uniform_(part.kernel.log_step, -4, -1)
        torch.nn.init.uniform_(part.kernel.A_re, -1, -0.1)
    return found


@pytest.mark.parametrize("heads", [None, 1, 4])
@pytest.mark.parametrize("length", [1, 2, 37, 129, 1000])
@pytest.mark.parametrize("tile", [1, bigs_ssm.TILE_BYTES])
def test_the_convolution_is_that_of_the_formula(heads, length, tile, monkeypatch):
    monkeypatch.setattr(bigs_ssm, "TILE_BYTES", tile)
    one, other = directions(heads)
    stream, reverse = torch.randn(2, 3, length, 24)
    with torch.no_grad():
        cached = convolve_both(one, other, stream, reverse)
        again = convolve_both(one, other, stream, reverse)
    learning = convolve_both(one, other, stream.requires_grad_(), reverse)
    for part, u, backward, got in ((one, stream, False, 0), (other, reverse, True, 1)):
        values = {name: value.detach().numpy().astype(np.float64) for name, value in part.kernel.named_parameters()}
        taps = bigs_reference.kernel(values["A_re"], values["A_im"], values["C"], values["log_step"], length)
        wanted = bigs_reference.convolve(
            u.detach().double().numpy(), taps, part.D.detach().double().numpy(), backward=backward
        )
        wanted = torch.from_numpy(wanted.copy()).float()
        for found in (cached, again, learning, [plain_convolution(u, part.filter(length), backward=backward)] * 2):
            close(found[got].detach(), wanted, 2e-5)


@pytest.mark.parametrize("heads", [None, 2])
def test_gradients_are_those_of_the_plain_form(heads, monkeypatch):
    monkeypatch.setattr(bigs_ssm, "TILE_BYTES", 1 << 12)
    one, other = directions(heads)
    streams = torch.randn(2, 2, 33, 32)

    def gradients(function):
        u, v = (stream.clone().requires_grad_() for stream in streams)
        a, b = function(u, v)
        inputs = [u, v, *one.parameters(), *other.parameters()]
        return torch.autograd.grad((a.sin().sum() + b.cos().sum()), inputs)

    plain = gradients(
        lambda u, v: (
            plain_convolution(u, one.filter(33), backward=False),
            plain_convolution(v, other.filter(33), backward=True),
        )
    )
    for got, wanted in zip(gradients(lambda u, v: convolve_both(one, other, u, v)), plain, strict=True):
        close(got, wanted, 1e-4)


def test_cached_spectra_follow_every_change_of_a_parameter():
    one, other = directions()
    u = torch.randn(1, 20, 8)
    with torch.no_grad():
        first = convolve_both(one, other, u, u)[0]
        one.D.data.add_(1.0)  # no version counter sees this
        changed = convolve_both(one, other, u, u)[0]
        close(changed, first + u, 1e-5)
        one.load_state_dict(other.state_dict())
        close(convolve_both(one, other, u, u)[0], plain_convolution(u, other.filter(20), backward=False))
        for length in range(1, 40):
            convolve_both(one, other, torch.randn(1, length, 8), torch.randn(1, length, 8))
    assert len(one._held[1]) <= bigs_ssm.CACHED_LENGTHS
    assert pickle.loads(pickle.dumps(one))._held is None
    with torch.inference_mode():
        kept = convolve_both(one, other, u, u)[0].clone()
    close(convolve_both(copy.deepcopy(one), other, u, u)[0].detach(), kept)
    close(convolve_both(one, other, u.clone().requires_grad_(), u)[0].detach(), kept)


def test_transform_sizes_have_small_factors():
    for length in range(1, 3000):
        size = fast_length(length)
        assert length <= size <= 1.25 * length + 1
        for factor in (2, 3, 5):
            while size % factor == 0:
                size //= factor
        assert size == 1


def test_hippo_frequencies_are_the_published_ones():
    assert np.allclose(initial_frequencies("hippo", 8)[4:], [0.4275, 1.9578, 5.3542, 19.8574], atol=1e-4)
    assert np.allclose(initial_frequencies("lin", 3), [0, np.pi, 2 * np.pi])


def test_a_new_model_starts_as_published():
    torch.manual_seed(0)
    model = modeling_bigs.BiGSForMaskedLM(BiGSConfig(**TINY | {"scaling": "lin", "num_hidden_layers": 8}))
    part = model.bigs.encoder.layer[3].fs4
    assert torch.allclose(part.kernel.A_im, torch.pi * torch.arange(4.0))
    assert (part.kernel.A_re == -0.5).all()
    assert part.D.item() == 1
    assert np.log(0.01) <= part.kernel.log_step.item() <= 0
    assert 0.4 < torch.cat([layer.fs4.kernel.C.flatten() for layer in model.bigs.encoder.layer]).std() < 1.0


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("heads", [None, 4])
def test_saved_models_load_as_they_were(head, heads, tmp_path):
    model = tiny(head, num_ssm_heads=heads)
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = ids(20, 13)
    if head == "ForMultipleChoice":
        inputs = {name: value[:, None].expand(-1, 3, -1) for name, value in inputs.items()}
    with torch.no_grad():
        assert_same_tensors(again, model)
        assert_same_outputs(again.eval()(**inputs)[0], model(**inputs)[0])
        plain = model(**inputs, return_dict=False, output_hidden_states=True)
        named = model(**inputs, output_hidden_states=True)
    assert torch.equal(plain[0], named[0])
    assert len(plain[-1]) == len(named.hidden_states) == 3


@pytest.mark.parametrize("tied", [True, False])
def test_word_embeddings_are_tied_as_the_config_says_and_can_be_resized(tied, tmp_path):
    model = tiny("ForMaskedLM", tie_word_embeddings=tied)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared == tied
    model.resize_token_embeddings(60)
    assert model(**ids(9)).logits.shape[-1] == len(model.cls.predictions.bias) == 60
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_same_tensors(again, model)
        assert_same_outputs(again(**ids(9)).logits, model(**ids(9)).logits)


LOSSES = {
    "ForMaskedLM": {"labels": torch.tensor([[-100, 7, 8, -100]])},
    "ForPreTraining": {"labels": torch.tensor([[-100, 7, 8, -100]]), "next_sentence_label": torch.tensor([1])},
    "ForNextSentencePrediction": {"labels": torch.tensor([1])},
    "ForSequenceClassification": {"labels": torch.tensor([1])},
    "ForTokenClassification": {"labels": torch.tensor([[0, 1, -100, 0]])},
    "ForQuestionAnswering": {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([9])},
}


@pytest.mark.parametrize("head", LOSSES)
def test_heads_learn_with_and_without_checkpointing(head):
    model = tiny(head, hidden_dropout_prob=0.0).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(**ids(4), **LOSSES[head]).loss
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 30
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("labels", "config"),
    [(torch.tensor([0.3]), {"num_labels": 1}), (torch.tensor([[1.0, 0.0, 1.0]]), {"num_labels": 3})],
)
def test_classification_takes_numbers_and_several_labels(labels, config):
    model = tiny("ForSequenceClassification", **config)
    assert model(**ids(6), labels=labels).loss.isfinite()


@pytest.mark.parametrize("pooler", ["non_padding_mean", "mean"])
def test_inert_padding_changes_nothing(pooler):
    model = tiny("Model", 0.3, mask_mode="inert", pooler_type=pooler)
    published = tiny("Model", 0.3, pooler_type=pooler)
    inputs = ids(40, 23)
    with torch.no_grad():
        together = model(**inputs)
        alone = model(input_ids=inputs["input_ids"][1:, :23])
        close(together.last_hidden_state[1, :23], alone.last_hidden_state[0])
        close(together.pooler_output[1], alone.pooler_output[0])
        flowing = published(**inputs).last_hidden_state[1, :23]
        whole = {"input_ids": inputs["input_ids"][:1]}
        close(published(**whole).last_hidden_state, model(**whole).last_hidden_state)
    assert (flowing - alone.last_hidden_state[0]).abs().max() > 1e-3


def test_a_row_of_padding_alone_is_finite():
    for mode in ("pooler", "inert"):
        model = tiny("ForSequenceClassification", mask_mode=mode)
        inputs = ids(12, 12)
        inputs["attention_mask"][1] = 0
        loss = model(**inputs, labels=torch.tensor([0, 1])).loss
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_inputs_in_every_form_give_the_same():
    model = tiny()
    inputs = ids(30, 20)
    with torch.no_grad():
        wanted = model(**inputs).pooler_output
        for mask in (inputs["attention_mask"].bool(), inputs["attention_mask"].float()):
            assert torch.equal(model(inputs["input_ids"], mask).pooler_output, wanted)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        close(model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).pooler_output, wanted)
        close(model(**inputs, position_ids=torch.arange(30)[None]).pooler_output, wanted)
        close(model(**inputs, token_type_ids=torch.zeros(2, 30, dtype=torch.long)).pooler_output, wanted)


def test_what_does_not_fit_is_refused():
    model = tiny()
    for words, given in {
        "takes at most 60": {"input_ids": torch.full((1, 61), 7)},
        "exactly one": {"input_ids": torch.full((1, 5), 7), "inputs_embeds": torch.ones(1, 5, 16)},
        "must have the shape of the input": {"input_ids": torch.full((1, 5), 7), "attention_mask": torch.ones(1, 4)},
    }.items():
        with pytest.raises(ValueError, match=words):
            model(**given)
    for field, value in {"layer_gelu": "new", "mask_mode": "x", "num_ssm_heads": 5, "decode": True}.items():
        with pytest.raises(ValueError, match=field):
            BiGSConfig(**TINY | {field: value})


def test_half_precision_keeps_its_convolutions_in_float32(tmp_path):
    tiny("ForMaskedLM").save_pretrained(tmp_path)
    whole = modeling_bigs.BiGSForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    half = modeling_bigs.BiGSForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    layer = half.bigs.encoder.layer[0]
    assert layer.dv.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in layer.fs4.parameters()} == {torch.float32}
    with torch.no_grad():
        wanted = whole(**ids(33)).logits
        got = half(**ids(33)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = whole(**ids(33)).logits
    assert got.dtype == torch.bfloat16
    scale = wanted.abs().max()
    assert (got.float() - wanted).abs().max() < 0.05 * scale
    assert (cast.float() - wanted).abs().max() < 0.05 * scale


def test_compiling_sees_the_plain_form():
    model = tiny("ForMaskedLM")
    inputs = ids(17)
    exported = torch.export.export(model, (inputs["input_ids"],), strict=False)
    with torch.no_grad():
        close(exported.module()(inputs["input_ids"]).logits, model(inputs["input_ids"]).logits)
