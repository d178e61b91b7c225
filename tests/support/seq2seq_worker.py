"""Check emitted LSG repos with an encoder and a decoder from outside, as repo_worker does for encoders.

    python seq2seq_worker.py JOBS.json

A job is {"repo", "source", "save", "heads": {suffix: Auto class}}; `source` is the dense checkpoint with the head
ForConditionalGeneration. The repo takes 256 tokens, with blocks of 8.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import repo_worker
import torch
import transformers
from repo_worker import SPARSITY_TYPES, close, ids, main, raises
from same_models import assert_same_outputs, assert_same_tensors
from unpadding_checks import compare_unpadded

CG = "ForConditionalGeneration"
check_nothing_loads_without_trust_remote_code = repo_worker.check_nothing_loads_without_trust_remote_code


def load(job, head=CG, **options):
    return repo_worker.load(job, head, **options)


def both_inputs(model, *lengths):
    """Ids and mask for the encoder, as long as asked, and nine ids a text for the decoder."""
    return {**ids(model, *lengths), "decoder_input_ids": ids(model, *[9] * len(lengths), seed=1)["input_ids"]}


def without_dropout(model):
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    return model


def check_generate_on_long_inputs(job):
    for passed in (True, False):
        model = load(job, num_global_tokens=3, pass_global_tokens_to_decoder=passed)
        assert model.config.use_cache is True
        inputs = ids(model, 200, 131)
        settings = {"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12}
        for beams in (1, 3):
            cached = model.generate(**inputs, **settings, num_beams=beams)
            assert torch.equal(cached, model.generate(**inputs, **settings, num_beams=beams, use_cache=False))
            alone = model.generate(inputs["input_ids"][1:, :131], **settings, num_beams=beams)
            assert torch.equal(alone[0], cached[1]), "padding or the other text changed what was generated"
            if beams == 1:
                assert torch.equal(cached, greedy(model, inputs, 12))


def greedy(model, inputs, steps):
    """Greedy search without generate() and without a cache; the end of the sequence is never chosen."""
    tokens = torch.full((len(inputs["input_ids"]), 1), model.config.decoder_start_token_id or 0)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits[:, -1:]
            logits[..., model.config.eos_token_id] = -torch.inf
            tokens = torch.cat([tokens, logits.argmax(-1)], dim=1)
    return tokens


def check_short_inputs_without_globals_generate_what_the_source_does(job):
    model = load(job, num_global_tokens=0, block_size=16, sparse_block_size=16)
    stock = transformers.AutoModelForSeq2SeqLM.from_pretrained(job["source"]).eval()
    inputs = ids(model, 32, 20)
    for beams in (1, 3):
        settings = {"num_beams": beams, "do_sample": False, "min_new_tokens": 8, "max_new_tokens": 20}
        assert torch.equal(model.generate(**inputs, **settings), stock.generate(**inputs, **settings))


def check_a_small_window_changes_the_logits(job):
    wide, narrow = (load(job, block_size=size, sparse_block_size=size, sparsity_type="none") for size in (64, 4))
    inputs = both_inputs(wide, 100)
    with torch.no_grad():
        assert (wide(**inputs).logits - narrow(**inputs).logits).abs().max() > 1e-3


def check_padding_and_batch_mates_change_nothing(job):
    for sparsity_type in SPARSITY_TYPES:
        for length in (10, 33, 70):
            model = load(job, sparsity_type=sparsity_type, num_global_tokens=3)
            inputs = both_inputs(model, 100, length)
            with torch.no_grad():
                together = model(**inputs).logits[1:]
                del inputs["attention_mask"]
                inputs = {name: tensor[1:, :length] for name, tensor in inputs.items()}
                close(model(**inputs).logits, together)


def check_unpadding_changes_no_real_token(job):
    for passed in (True, False):
        model = load(job, num_global_tokens=3, pass_global_tokens_to_decoder=passed)
        inputs = both_inputs(model, 100, 33, 9)
        compare_unpadded(model, inputs, "encoder_hidden_states")
        compare_unpadded(model, inputs, "decoder_hidden_states")


def check_global_tokens_reach_the_decoder_if_they_are_passed(job):
    for passed in (True, False):
        model = load(job, num_global_tokens=5, pass_global_tokens_to_decoder=passed, pool_with_global=False)
        inputs = both_inputs(model, 50, 30)
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        rows = 50 + 5 * passed
        assert outputs.encoder_last_hidden_state.shape == (2, rows, 32)
        layers = model.config.encoder_layers + 1
        assert [states.shape[1] for states in outputs.encoder_hidden_states] == [rows] * layers
        assert torch.equal(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
        assert outputs.encoder_attentions is None
        # The decoder's own view: with the global rows of the encoder's output changed.
        encoded = model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
        inputs["encoder_outputs"] = encoded
        with torch.no_grad():
            close(model(**inputs).logits, outputs.logits, 1e-6)
            encoded.last_hidden_state[:, :5] += 1.0
            assert (model(**inputs).logits - outputs.logits).abs().max() > 1e-4


def check_a_mask_of_ones_is_no_mask(job):
    for options in ({}, {"mask_first_token": True}, {"num_global_tokens": 0}):
        for passed in (True, False):
            model = load(job, pass_global_tokens_to_decoder=passed, **options)
            inputs = both_inputs(model, 50)
            with torch.no_grad():
                expected = model(**inputs).logits
                assert inputs["attention_mask"].all()
                del inputs["attention_mask"]
                close(model(**inputs).logits, expected)


def check_a_masked_first_token_is_hidden_from_the_decoder_if_asked(job):
    logits = {}
    for choice in ("seen", "published"):
        model = load(job, mask_first_token=True, decoder_first_token=choice)
        inputs = both_inputs(model, 50)
        with torch.no_grad():
            logits[choice] = model(**inputs).logits
    assert (logits["seen"] - logits["published"]).abs().max() > 1e-5
    raises(ValueError, "decoder_first_token must be", lambda: load(job, decoder_first_token="no"))
    raises(ValueError, "pass_global_tokens_to_decoder must be", lambda: load(job, pass_global_tokens_to_decoder=1))


def check_inputs_and_outputs_in_every_form(job):
    for head in job["heads"]:
        if head == "ForCausalLM":
            continue
        model = load(job, head)
        inputs = both_inputs(model, 60, 60)
        inputs["decoder_input_ids"] = inputs["input_ids"]
        inputs["input_ids"][:, -1] = model.config.eos_token_id  # which the classifiers look for
        with torch.no_grad():
            named = model(**inputs, output_hidden_states=True)
            plain = model(**inputs, output_hidden_states=True, return_dict=False)
            assert torch.equal(plain[0], named[0])
            assert len(plain) == len(named.to_tuple())
            for mask in (inputs["attention_mask"].bool(), inputs["attention_mask"].float()):
                close(model(**{**inputs, "attention_mask": mask})[0], named[0], 1e-6)
    model = load(job)
    inputs = both_inputs(model, 60, 41)
    with torch.no_grad():
        encoder = model.model.encoder  # Pegasus scales outside of its table
        embeds = encoder.embed_tokens(inputs["input_ids"]) * getattr(encoder, "embed_scale", 1.0)
        other = {**inputs, "inputs_embeds": embeds}
        del other["input_ids"]
        close(model(**other).logits, model(**inputs).logits)


def check_what_is_not_supported_is_refused(job):
    model = load(job, num_global_tokens=2)
    inputs = both_inputs(model, 20)
    tokens = inputs["input_ids"]
    refused = {
        "3 dimensions": {"attention_mask": torch.ones(1, 20, 20)},
        "must have the shape of the input": {"attention_mask": torch.ones(1, 19)},
        "head_mask": {"head_mask": torch.ones(2, 4)},
        "exactly one": {"inputs_embeds": torch.ones(1, 20, 32)},
        "the encoder returned": {
            "encoder_outputs": (torch.ones(1, 27, 32),),
            "attention_mask": inputs["attention_mask"],
        },
    }
    for words, arguments in refused.items():
        given = {**inputs, "attention_mask": None, **arguments}
        raises(ValueError, words, lambda given=given: model(**given))
    long = {**inputs, "input_ids": torch.full((1, 257), 7), "attention_mask": None}
    raises(ValueError, "takes at most 256", lambda: model(**long))
    encoder = model.get_encoder()
    raises(ValueError, "position_ids", lambda: encoder(tokens, position_ids=torch.arange(20)[None]))
    assert encoder(torch.full((1, 256), 7)).last_hidden_state.shape[1] == 258
    raises(ValueError, "Flash Attention 2", lambda: load(job, attn_implementation="flash_attention_2"))
    for name in ("eager", "sdpa"):
        close(load(job, num_global_tokens=2, attn_implementation=name)(**inputs).logits, model(**inputs).logits)


def check_the_decoder_alone_is_the_sources(job):
    model, report = getattr(transformers, job["heads"]["ForCausalLM"]).from_pretrained(
        job["repo"], trust_remote_code=True, output_loading_info=True
    )
    assert not report["missing_keys"], report["missing_keys"]
    assert type(model).__name__.startswith("LSG")
    whole = load(job)
    assert torch.equal(model.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    assert torch.equal(model.get_output_embeddings().weight, whole.get_output_embeddings().weight)
    stock = transformers.AutoModelForSeq2SeqLM.from_pretrained(job["source"]).eval()
    inputs = ids(model, 60)
    with torch.no_grad():
        states = stock.get_decoder()(inputs["input_ids"]).last_hidden_state
        close(model.eval()(**inputs).logits, stock.lm_head(states))
    settings = {"do_sample": False, "min_new_tokens": 4, "max_new_tokens": 4}
    cached = model.generate(**inputs, **settings)
    assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))
    folder = f"{job['save']}-decoder"
    model.save_pretrained(folder)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    with torch.no_grad():
        assert_same_tensors(again, model)
        assert_same_outputs(again.eval()(**inputs).logits, model(**inputs).logits)


def check_checkpointing_gives_the_same_gradients(job):
    def gradients(**checkpointing):
        torch.manual_seed(0)
        model = without_dropout(load(job, num_global_tokens=3, attention_dropout=0.0).train())
        calls = []
        for name, module in model.named_modules():
            if name.endswith(".mix"):
                module.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        inputs = ids(model, 40, 10)
        groups = 2  # the batch is unpadded, and attention takes one text after the other
        model(**inputs, labels=inputs["input_ids"][:, :9].clone()).loss.backward()
        assert len(calls) == groups * model.config.encoder_layers * (2 if checkpointing else 1)
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    assert expected["model.encoder.global_embeddings.weight"][:3].abs().sum() > 0
    for reentrant in (False, True):
        actual = gradients(use_reentrant=reentrant)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            close(actual[name], gradient)


def check_layerdrop_leaves_layers_out_in_training_only(job):
    model = load(job, encoder_layerdrop=1.0)
    calls = []
    for name, module in model.named_modules():
        if name.endswith(".mix"):
            module.register_forward_hook(lambda *_: calls.append(1))
    model(**both_inputs(model, 20))
    assert len(calls) == model.config.encoder_layers
    model.train()(**both_inputs(model, 20))
    assert len(calls) == model.config.encoder_layers


def check_half_precision_and_autocast(job):
    model = load(job)
    inputs = both_inputs(model, 60, 41)
    with torch.no_grad():
        expected = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            results = {"autocast": model(**inputs).logits}
        for dtype in (torch.bfloat16, torch.float16):
            half = load(job, torch_dtype=dtype)
            assert half.dtype == dtype
            results[dtype] = half(**inputs).logits
            half.generate(inputs["input_ids"], max_new_tokens=3)
    for name, logits in results.items():
        assert logits.isfinite().all(), name
        assert (logits.float() - expected).abs().median() / expected.abs().median() < 0.05, name


def check_tied_weights_and_resizing(job):
    model = load(job)
    shared = model.get_input_embeddings().weight
    parts = (model.get_output_embeddings(), model.model.encoder.embed_tokens, model.model.decoder.embed_tokens)
    assert all(part.weight.data_ptr() == shared.data_ptr() for part in parts)
    size = len(shared)
    model.resize_token_embeddings(size + 3)
    assert model(**both_inputs(model, 40)).logits.shape[-1] == size + 3
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def check_models_are_copied_and_pickled(job):
    model = load(job)
    inputs = both_inputs(model, 40)
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_tensors(other, model)
        assert_same_outputs(other(**inputs).logits, expected)


def check_trainer_trains_and_generates(job):
    torch.manual_seed(0)
    model = load(job, num_global_tokens=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = transformers.Seq2SeqTrainingArguments(
        output_dir=f"{job['save']}-trainer",
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=True,
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        predict_with_generate=True,
        generation_max_length=5,
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row[:9]} for row in ids(model, *[60] * 4)["input_ids"]]
    trainer = transformers.Seq2SeqTrainer(model=model, args=settings, train_dataset=data, eval_dataset=data[:2])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(torch.tensor(losses).isfinite()), losses
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter.cpu(), before[name])]
    computed = ("embed_positions.weight",) if "Pegasus" in type(model).__name__ else ()
    assert not [name for name in still if not name.endswith(("k_proj.bias", *computed))], still
    assert trainer.predict(data[:2]).predictions.shape[0] == 2


def check_a_saved_model_carries_its_code(job):
    model = load(job, num_global_tokens=2)
    inputs = both_inputs(model, 60, 40)
    model.save_pretrained(job["save"])
    with torch.no_grad():
        torch.save({**inputs, "logits": model(**inputs).logits}, Path(job["save"]) / "expected.pt")
    code = {path.name for path in Path(job["repo"]).glob("*.py")}
    assert code <= {path.name for path in Path(job["save"]).glob("*.py")}, sorted(Path(job["save"]).glob("*.py"))


def check_a_saved_model_loads_again(job):
    expected = torch.load(Path(job["save"]) / "expected.pt")
    logits = expected.pop("logits")
    model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        job["save"], trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        assert_same_outputs(model.eval()(**expected).logits, logits)


if __name__ == "__main__":
    main(globals())
