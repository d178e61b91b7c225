"""Check emitted LSG repos from outside: without effconv, every class through its Auto class.

    python repo_worker.py JOBS.json

JOBS.json is {"jobs": {name: job}, "checks", "results"}, a job {"repo", "source", "save", "sentence_repo",
"sentence_source", "heads": {suffix: Auto class}}; the file named `results` gets {name: {check: "" or its traceback}}.
`source` is the dense checkpoint with the head ForMaskedLM; the repo takes 256 tokens, with blocks of 8.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import traceback
from pathlib import Path

import torch
import transformers
from same_models import assert_same_outputs, assert_same_tensors
from unpadding_checks import compare_unpadded

SPARSITY_TYPES = ("none", "norm", "lsh", "pooling", "stride", "block_stride", "bos_pooling")


def load(job, head="ForMaskedLM", **options):
    auto = getattr(transformers, job["heads"][head])
    return auto.from_pretrained(job["repo"], trust_remote_code=True, **options).eval()


def ids(model, *lengths, seed=0):
    """Random right-padded ids (b, t) and their mask."""
    generator = torch.Generator().manual_seed(seed)
    size, pad = model.config.vocab_size, model.config.pad_token_id
    tokens = torch.randint(5, size, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}


def close(actual, expected, tolerance=1e-5):
    difference = (actual.float() - expected.float()).abs().max().item()
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert actual.isfinite().all(), "not finite"
    assert difference <= bound, f"differs by {difference}"


def raises(kind, words, call):
    message = f"no {kind.__name__}"
    try:
        call()
    except kind as error:
        message = str(error)
    assert words in message, message


def decoder_head(job):
    """The causal head; None where the family has none."""
    return next((head for head, auto in job["heads"].items() if auto == "AutoModelForCausalLM"), None)


def check_effconv_is_not_needed(job):
    raises(ImportError, "effconv", lambda: __import__("effconv"))
    assert type(load(job)).__module__.startswith("transformers_modules.")


def check_nothing_loads_without_trust_remote_code(job):
    for auto in ("AutoConfig", *job["heads"].values()):
        for options in ({}, {"trust_remote_code": False}):
            read = getattr(transformers, auto).from_pretrained
            raises(
                ValueError, "trust_remote_code=True", lambda read=read, options=options: read(job["repo"], **options)
            )


# transformers 4 ends these families' hidden_states before the last norm, transformers 5 and our code after it.
ENDS_BEFORE_ITS_NORM = ("roberta-prelayernorm",)


def check_every_head_equals_the_source_without_globals_on_short_inputs(job):
    for head, auto_name in job["heads"].items():
        torch.manual_seed(0)
        auto = getattr(transformers, auto_name)
        stock = auto.from_pretrained(job["source"]).eval()
        converted = load(job, head, num_global_tokens=0, block_size=16, sparse_block_size=16)
        assert type(converted).__name__.startswith("LSG")
        converted.load_state_dict(  # heads that the source lacks are random: take the stock ones
            {k: v for k, v in stock.state_dict().items() if "position" not in k}, strict=False
        )
        inputs = ids(converted, 32, 20)
        if head == "ForMultipleChoice":
            inputs = {name: tensor[:, None].repeat(1, 3, 1) for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = stock(**inputs, output_hidden_states=True)
            actual = converted(**inputs, output_hidden_states=True)
        real = inputs["attention_mask"].bool().reshape(-1, 32)  # a row a choice
        for name, tensor in expected.items():
            if name == "hidden_states":
                assert len(actual[name]) == len(tensor)
                pairs = list(zip(actual[name], tensor, strict=True))
                if transformers.__version__ < "5" and stock.config.model_type in ENDS_BEFORE_ITS_NORM:
                    pairs.pop()
            elif isinstance(tensor, torch.Tensor):
                pairs = [(actual[name], tensor)]
            else:
                continue
            for a, b in pairs:
                if b.shape[:2] == real.shape:
                    a, b = a[real], b[real]
                close(a, b)


def check_a_small_window_changes_the_logits(job):
    wide, narrow = (load(job, block_size=size, sparse_block_size=size, sparsity_type="none") for size in (64, 4))
    inputs = ids(wide, 100)
    with torch.no_grad():
        difference = (wide(**inputs).logits - narrow(**inputs).logits).abs().max()
    assert difference > 1e-3


def check_padding_and_batch_mates_change_no_real_token(job):
    for sparsity_type in SPARSITY_TYPES:
        model = load(job, "Model", sparsity_type=sparsity_type, num_global_tokens=3)
        for length in (10, 33, 70):
            inputs = ids(model, 100, length)
            with torch.no_grad():
                together = model(**inputs).last_hidden_state[1, :length]
                alone = model(input_ids=inputs["input_ids"][1:, :length]).last_hidden_state[0]
            close(together, alone)


def check_unpadding_changes_no_real_token(job):
    for options in ({}, {"num_global_tokens": 0}, {"mask_first_token": True}):
        model = load(job, "Model", **options)
        inputs = ids(model, 100, 9, 33, 0)
        inputs["attention_mask"][0, 20:40] = 0
        inputs["attention_mask"][2, :10] = 0
        compare_unpadded(model, inputs)


def check_options_are_overridden_at_loading(job):
    model = load(job, block_size=64, sparsity_type="none", num_global_tokens=16)
    assert (model.config.block_size, model.config.sparsity_type, model.config.num_global_tokens) == (64, "none", 16)
    assert load(job, mask_first_token=True, pool_with_global=False).config.pool_with_global is True
    raises(ValueError, "block_size 8 must be divisible by sparsity_factor 3", lambda: load(job, sparsity_factor=3))
    raises(ValueError, "num_global_tokens must be", lambda: load(job, num_global_tokens=513))
    raises(ValueError, "got 'nrom'", lambda: load(job, sparsity_type="nrom"))


def check_global_tokens_matter_and_stay_inside(job):
    model = load(job, "Model", num_global_tokens=5, pool_with_global=False)
    inputs = ids(model, 50)
    with torch.no_grad():
        before = model(**inputs, output_hidden_states=True)
        table = model.embeddings.global_embeddings.weight
        table[4] += torch.linspace(-1, 1, table.shape[1])
        changed = model(**inputs).last_hidden_state
        table[5] += torch.linspace(-1, 1, table.shape[1])  # not in use
        same = model(**inputs).last_hidden_state
    assert all(state.shape == before.last_hidden_state.shape for state in before.hidden_states)
    assert (changed - before.last_hidden_state).abs().max() > 1e-4
    assert torch.equal(changed, same)


def check_the_first_global_is_returned_for_the_first_token(job):
    plain, pooled = (load(job, "Model", pool_with_global=pool) for pool in (False, True))
    inputs = ids(plain, 50)
    with torch.no_grad():
        a, b = (model(**inputs, output_hidden_states=True) for model in (plain, pooled))
    close(a.last_hidden_state[:, 1:], b.last_hidden_state[:, 1:])
    assert (a.last_hidden_state[:, 0] - b.last_hidden_state[:, 0]).abs().max() > 1e-3
    assert torch.equal(b.hidden_states[-1], b.last_hidden_state)


def check_a_masked_first_token_is_seen_by_none(job):
    model = load(job, "Model", mask_first_token=True)
    for length in (10, 50):
        inputs = ids(model, length)
        other = {**inputs, "input_ids": inputs["input_ids"].clone()}
        other["input_ids"][:, 0] += 1
        with torch.no_grad():
            a, b = model(**inputs).last_hidden_state, model(**other).last_hidden_state
        close(a, b)
        assert inputs["attention_mask"].all()


def check_inputs_in_every_form_give_the_same(job):
    model = load(job, "Model")
    inputs = ids(model, 50, 40)
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        by_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
        for mask in (inputs["attention_mask"].bool(), inputs["attention_mask"].float()):
            assert torch.equal(model(inputs["input_ids"], mask).last_hidden_state, expected.last_hidden_state)
        types = torch.zeros_like(inputs["input_ids"])
        close(model(**inputs, token_type_ids=types).last_hidden_state, expected.last_hidden_state)
        full = ids(model, 50)
        embeds = model.get_input_embeddings()(full["input_ids"])
        close(model(inputs_embeds=embeds).last_hidden_state, model(**full).last_hidden_state)
        start = model.config.max_position_embeddings - 256
        positions = torch.arange(start, start + 50)[None]
        close(model(**full, position_ids=positions).last_hidden_state, model(**full).last_hidden_state)
        shifted = model(**full, position_ids=positions + 1).last_hidden_state
        assert not torch.allclose(shifted, model(**full).last_hidden_state)
    assert torch.equal(by_tuple[0], expected.last_hidden_state)
    assert len(by_tuple[-1]) == len(expected.hidden_states)
    if expected.pooler_output is not None:
        assert torch.equal(by_tuple[1], expected.pooler_output)
    assert expected.attentions is None


def check_heads_return_tuples(job):
    for head in job["heads"]:
        if head in ("Model", "ForMultipleChoice"):
            continue
        model = load(job, head)
        inputs = ids(model, 20)
        with torch.no_grad():
            named = model(**inputs, output_hidden_states=True)
            plain = model(**inputs, output_hidden_states=True, return_dict=False)
        assert torch.equal(named[0], plain[0])
        assert len(plain[-1]) == len(named.hidden_states)


def check_what_is_not_supported_is_refused(job):
    model = load(job, "Model")
    inputs = ids(model, 20)
    tokens = inputs["input_ids"]
    refused = {
        "3 dimensions": {"attention_mask": torch.ones(1, 20, 20)},
        "4 dimensions": {"attention_mask": torch.ones(1, 1, 20, 20)},
        "must have the shape of the input": {"attention_mask": torch.ones(1, 19)},
        "head_mask": {"head_mask": torch.ones(2, 4)},
        "use_cache=False": {"past_key_values": transformers.DynamicCache()},
        "no cross-attention": {"encoder_hidden_states": torch.ones(1, 3, 32)},
        "exactly one": {"inputs_embeds": torch.ones(1, 20, 32)},
    }
    for words, arguments in refused.items():
        raises(ValueError, words, lambda arguments=arguments: model(tokens, **arguments))
    raises(ValueError, "exactly one", lambda: model())
    raises(ValueError, "takes at most 256", lambda: model(torch.full((1, 257), 7)))
    assert model(torch.full((1, 256), 7)).last_hidden_state.shape[1] == 256
    raises(ValueError, "Flash Attention 2", lambda: load(job, attn_implementation="flash_attention_2"))
    for name in ("eager", "sdpa") if model._supports_sdpa else ("eager",):  # transformers 4 has no sdpa for ELECTRA
        assert_same_outputs(load(job, "Model", attn_implementation=name)(**inputs)[0], model(**inputs)[0])
    assert model(tokens, output_attentions=True).attentions is None


def check_checkpointing_gives_the_same_gradients(job):
    def gradients(**checkpointing):
        torch.manual_seed(0)
        model = load(job, num_global_tokens=3).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = model.config.attention_dropout = 0.0
        calls = []
        layers = list(model.base_model.order())  # ALBERT runs one layer several times
        for name, module in model.named_modules():
            if name.endswith(".mix"):
                module.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        inputs = ids(model, 40, 10)
        groups = 2  # the batch is unpadded, and attention takes one text after the other
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert len(calls) == groups * len(layers) * (2 if checkpointing else 1)
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    assert expected[f"{load(job).base_model_prefix}.embeddings.global_embeddings.weight"][:3].abs().sum() > 0
    for reentrant in (False, True):
        actual = gradients(use_reentrant=reentrant)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            close(actual[name], gradient)


def check_half_precision_and_autocast(job):
    for sparsity_type in SPARSITY_TYPES:
        model = load(job, sparsity_type=sparsity_type)
        inputs = ids(model, 60, 41)
        with torch.no_grad():
            expected = model(**inputs).logits
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(**inputs).logits
            results = {"autocast": mixed}
            for dtype in (torch.bfloat16, torch.float16):
                half = load(job, sparsity_type=sparsity_type, torch_dtype=dtype)
                assert half.dtype == dtype
                results[dtype] = half(**inputs).logits
        for name, logits in results.items():
            assert logits.isfinite().all(), name
            error = (logits.float() - expected).abs().median() / expected.abs().median()
            assert error < 0.05, (sparsity_type, name, error)
    model = load(job).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def check_tied_weights_and_resizing(job):
    model = load(job)
    words, decoder = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert words.data_ptr() == decoder.data_ptr()
    size = len(words)
    model.resize_token_embeddings(size + 3)
    assert model.get_output_embeddings().weight.shape[0] == size + 3
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert model(**ids(model, 40)).logits.shape[-1] == size + 3


def check_models_are_copied_and_pickled(job):
    model = load(job, "ForTokenClassification")  # transformers 4 derives a class from masked-LM heads, which cannot be
    inputs = ids(model, 40)
    expected = model(**inputs).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_tensors(other, model)
        assert_same_outputs(other(**inputs).logits, expected)


def check_a_decoder_sees_no_later_token(job):
    head = decoder_head(job)
    if not head:
        return
    for sparsity_type in SPARSITY_TYPES:
        model = load(job, head, is_decoder=True, sparsity_type=sparsity_type, num_global_tokens=2)
        inputs = ids(model, 60)
        with torch.no_grad():
            expected = model(**inputs).logits
            for length in (5, 16, 17, 40):
                close(model(input_ids=inputs["input_ids"][:, :length]).logits, expected[:, :length])


def check_a_decoder_generates(job):
    head = decoder_head(job)
    if not head:
        return
    model = load(job, head, is_decoder=True)
    assert model.config.use_cache is False
    inputs = ids(model, 20)
    settings = {
        "do_sample": False,
        "min_new_tokens": 4,
        "max_new_tokens": 4,
        "pad_token_id": model.config.pad_token_id,
    }
    generated = model.generate(**inputs, **settings)
    tokens = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(4):
            logits = model(tokens).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, tokens)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=True), tokens)  # there is no cache to use


def check_cross_attention_passes_gradients_under_checkpointing(job):
    head = decoder_head(job)
    if not head:
        return
    gradients = []
    for checkpointing in ({}, {"use_reentrant": False}, {"use_reentrant": True}):
        torch.manual_seed(0)
        model = load(job, head, is_decoder=True, add_cross_attention=True, attention_probs_dropout_prob=0.0)
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "crossattention" in name and parameter.dim() > 1:
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        if checkpointing:
            model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        states = torch.linspace(-1, 1, 7 * 32).view(1, 7, 32).requires_grad_()
        seen = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
        logits = model(**ids(model, 40), encoder_hidden_states=states, encoder_attention_mask=seen).logits
        logits.square().sum().backward()
        gradients.append(states.grad)
    assert gradients[0].abs().sum() > 0
    assert gradients[0][:, 5:].abs().max() == 0
    for gradient in gradients[1:]:
        close(gradient, gradients[0], 1e-4)


def check_pipelines(job):
    text = "the of and to in it"
    options = {"trust_remote_code": True, "model": job["repo"], "device": "cpu"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["repo"], trust_remote_code=True)
    assert tokenizer.model_max_length == 256
    fill = transformers.pipeline("fill-mask", tokenizer=tokenizer, **options)
    assert type(fill.model).__name__.startswith("LSG")
    assert len(fill(f"{text} {tokenizer.mask_token}")) == 5
    features = transformers.pipeline("feature-extraction", tokenizer=tokenizer, **options)(text * 8)
    assert len(features[0][0]) == 32
    assert transformers.pipeline("text-classification", tokenizer=tokenizer, **options)(text)[0]["label"]


def check_trainer_trains_with_checkpointing_and_autocast(job):
    torch.manual_seed(0)
    model = load(job, num_global_tokens=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = ids(model, *[60] * 6)["input_ids"]
    settings = transformers.TrainingArguments(
        output_dir=f"{job['save']}-trainer",
        use_cpu=True,
        bf16=True,
        gradient_checkpointing=True,
        per_device_train_batch_size=2,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite()), losses
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter.cpu(), before[name])]
    assert not [name for name in still if not name.endswith("key.bias") and not name.endswith("k_lin.bias")], still
    trainer.save_model()
    again = transformers.AutoModelForMaskedLM.from_pretrained(settings.output_dir, trust_remote_code=True)
    assert type(again).__name__ == type(model).__name__
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def check_sentence_transformers_encodes_long_texts(job):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["sentence_repo"], trust_remote_code=True, device="cpu")
    assert model.max_seq_length == 256
    words = "the of and to in it is that "
    long = words * (100 // len(model.tokenizer.tokenize(words)) + 1)
    one, other = (torch.tensor(x) for x in model.encode([f"{long} he had this", f"{long} they are not"]))
    assert one.shape == (32,)
    assert (one - other).abs().max() > 1e-4  # they differ only after more tokens than the source takes
    dense_form = {"num_global_tokens": 0, "pool_with_global": False, "block_size": 32, "sparse_block_size": 32}
    model = SentenceTransformer(job["sentence_repo"], trust_remote_code=True, device="cpu", config_kwargs=dense_form)
    source = SentenceTransformer(job["sentence_source"], device="cpu")
    texts = ["the of and", "to in a is that it was for on with as he"]
    close(torch.tensor(model.encode(texts)), torch.tensor(source.encode(texts)))


def check_a_saved_model_carries_its_code(job):
    model = load(job, num_global_tokens=2)
    inputs = ids(model, 60, 40)
    model.save_pretrained(job["save"])
    with torch.no_grad():
        torch.save({**inputs, "logits": model(**inputs).logits}, Path(job["save"]) / "expected.pt")
    code = {path.name for path in Path(job["repo"]).glob("*.py")}
    assert code <= {path.name for path in Path(job["save"]).glob("*.py")}, sorted(Path(job["save"]).glob("*.py"))


def check_a_saved_model_loads_again(job):
    expected = torch.load(Path(job["save"]) / "expected.pt")
    logits = expected.pop("logits")
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        job["save"], trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        assert_same_outputs(model.eval()(**expected).logits, logits)


def main(checks: dict) -> None:
    """Runs the checks that the jobs' file names; `checks` has their functions by name."""
    sys.modules["effconv"] = None  # wherever it is installed: an emitted repo must load without it
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    work = json.loads(Path(sys.argv[1]).read_text())
    results = {name: {} for name in work["jobs"]}
    for check in work["checks"]:
        for name, job in work["jobs"].items():
            try:
                checks[check](job)
                results[name][check] = ""
            except Exception:
                results[name][check] = traceback.format_exc()
    Path(work["results"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main(globals())
