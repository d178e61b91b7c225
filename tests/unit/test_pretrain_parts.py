"""Parts of `effconv pretrain` by themselves: schedules, presets, options, batches, the log, and who has which heads."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from effconv.convert.errors import UnsupportedError, UsageError
from effconv.pretrain.batches import Collator, batches
from effconv.pretrain.corpus import Examples
from effconv.pretrain.log import Log
from effconv.pretrain.objectives import auto_for
from effconv.pretrain.options import USUAL, PretrainOptions, settings
from effconv.pretrain.presets import PRESETS
from effconv.pretrain.schedules import SCHEDULES, Rates
from effconv.targets.registry import target_named

# Schedules


@pytest.mark.parametrize(
    ("schedule", "theirs", "specific"),
    [
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("constant", "constant_with_warmup", {}),
        ("inverse-sqrt", "inverse_sqrt", {}),
        ("polynomial", "polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 7])
def test_rates_are_those_of_transformers(schedule, theirs, specific, warmup):
    if theirs == "inverse_sqrt":
        specific = {"timescale": max(warmup, 1)}  # of no warmup, transformers makes 10,000
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    found = transformers.get_scheduler(theirs, optimizer, warmup, 40, scheduler_specific_kwargs=specific)
    ours = Rates(schedule, 3e-3, 40, warmup, end=specific.get("lr_end", 0.0), power=specific.get("power", 1.0))
    for step in range(40):
        assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), step
        optimizer.step()
        found.step()


def test_rates_are_their_closed_forms_from_a_given_rate_to_a_given_rate():
    def at(schedule, step):
        return Rates(schedule, 5e-4, 100, 10, warm_from=1e-7, end=5e-5, power=3.0).at(step)

    assert {at(schedule, 0) for schedule in SCHEDULES} == {1e-7}
    assert {at(schedule, 10) for schedule in SCHEDULES} == {5e-4}
    for schedule in SCHEDULES:
        assert at(schedule, 4) == pytest.approx(1e-7 + 0.4 * (5e-4 - 1e-7))
    assert at("inverse-sqrt", 90) == pytest.approx(5e-4 / 3)
    assert at("cosine", 55) == pytest.approx((5e-4 + 5e-5) / 2)
    assert at("linear", 55) == pytest.approx((5e-4 + 5e-5) / 2)
    assert at("polynomial", 55) == pytest.approx(5e-5 + (5e-4 - 5e-5) / 8)
    assert at("cosine", 100) == at("linear", 100) == at("polynomial", 100) == pytest.approx(5e-5)


# Presets and options

PUBLISHED = {  # as the papers and the scripts have it
    "bigs": ("mlm", 128, 1048, 100_000, 6e-4, "cosine", 2_000, (0.9, 0.98), 0.05),
    "lambdabert": ("mlm+nsp", 512, 8, None, 5e-5, "linear", 0, (0.9, 0.999), 0.0),
    "transnormer-clm": ("clm", 512, 128, 100_000, 5e-4, "inverse-sqrt", 8_000, (0.9, 0.98), 0.01),
    "transnormer-roberta": ("mlm", 512, 512, 50_000, 5e-4, "polynomial", 3_000, (0.9, 0.98), 0.01),
    "linformer": ("mlm", 512, 1024, 250_000, 1e-4, "linear", 25_000, (0.9, 0.98), 0.01),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_recipe_and_each_option_overrides_it(name):
    chosen = settings(PretrainOptions(preset=name))
    assert PUBLISHED[name] == (
        *(chosen.objective, chosen.length, chosen.batch_size, chosen.steps, chosen.learning_rate),
        *(chosen.schedule, chosen.warmup_steps, (chosen.beta1, chosen.beta2), chosen.weight_decay),
    )
    fields = {field.name for field in dataclasses.fields(PretrainOptions)}
    assert PRESETS[name].values.keys() <= fields
    assert USUAL.keys() <= fields
    given = {"learning_rate": 1e-2, "beta2": 0.5, "batch_size": 3, "length": 16, "warmup_steps": 1, "clip": 0.25}
    changed = settings(PretrainOptions(preset=name, **given))
    assert {key: getattr(changed, key) for key in given} == given
    assert settings(PretrainOptions(preset=name, steps=5)).epochs is None
    assert settings(PretrainOptions(preset=name, epochs=0.5)).steps is None


def test_only_the_causal_recipe_clips_nothing():
    assert {name: settings(PretrainOptions(preset=name)).clip for name in PRESETS} == {
        **dict.fromkeys(PRESETS, 1.0),
        "transnormer-clm": 0.0,
    }


def test_all_invalid_options_are_named_at_once():
    with pytest.raises(UsageError) as raised:
        PretrainOptions(
            *(), objective="clm", mask_share=0.2, steps=0, beta1=1.0, power=2.0, warmup_from=1e-7, dropout=1.5
        )
    for flag in ("--mask-share", "--steps", "--beta1", "--power", "--warmup-from", "--dropout"):
        assert flag in str(raised.value), flag
    with pytest.raises(UsageError, match="--steps and --epochs exclude each other"):
        PretrainOptions(steps=1, epochs=1.0)
    with pytest.raises(UsageError, match="--multiple-docs-separator names none") as raised:
        PretrainOptions(documents="separator")  # which effconv prepare checks
    assert raised.value.hint == "effconv pretrain --help describes each option"
    with pytest.raises(UsageError, match="unknown preset"):
        PretrainOptions(preset="gpt")


# Batches

EXAMPLES = [
    {
        "input_ids": [2, *range(10, 10 + n), 3],
        "token_type_ids": [0] * (n + 1) + [1],
        "special_tokens_mask": [1, *[0] * n, 1],
    }
    for n in (20, 7, 13, 20)
]


def collator(**changed):
    usual = {"causal": False, "pairs": False, "pad_id": 0, "mask_id": 4, "vocabulary": 90, "share": 0.5, "most": None}
    return Collator(**{**usual, "whole_words": False, **changed})


def test_a_batch_is_padded_masked_and_counted():
    batch = collator()(EXAMPLES, (1, 2))
    assert batch.ids.shape == batch.labels.shape == batch.mask.shape == (4, 22)
    assert batch.mask.sum(1).tolist() == [22, 9, 15, 22]
    assert batch.tokens == 68
    predicted = batch.labels != -100
    assert batch.predicted == int(predicted.sum()) == 10 + 4 + 6 + 10
    for row, example in enumerate(EXAMPLES):
        whole = torch.where(predicted[row], batch.labels[row], batch.ids[row])
        assert whole[: len(example["input_ids"])].tolist() == example["input_ids"]
        assert not predicted[row, [0, len(example["input_ids"]) - 1]].any()
        assert (batch.types[row] == 1).nonzero().flatten().tolist() == [len(example["input_ids"]) - 1]
    assert not torch.equal(collator()(EXAMPLES, (1, 3)).labels, batch.labels)
    assert torch.equal(collator()(EXAMPLES, (1, 2)).ids, batch.ids)
    most = collator(most=2)(EXAMPLES, (1, 2))
    assert (most.labels != -100).sum(1).tolist() == [2, 2, 2, 2]


def test_causal_labels_are_the_next_tokens():
    batch = collator(causal=True)(EXAMPLES, ())
    for row, example in enumerate(EXAMPLES):
        n = len(example["input_ids"])
        assert batch.ids[row, :n].tolist() == example["input_ids"]
        assert batch.labels[row, : n - 1].tolist() == example["input_ids"][1:]
        assert (batch.labels[row, n - 1 :] == -100).all()
    assert batch.predicted == sum(len(example["input_ids"]) - 1 for example in EXAMPLES)


def test_stored_masks_and_pairs_stay_as_they_are():
    stored = [{**example, "labels": [-100] * 3 + [7] * (len(example["input_ids"]) - 3)} for example in EXAMPLES]
    stored = [{**example, "next_sentence_label": i % 2} for i, example in enumerate(stored)]
    batch = collator(pairs=True)(stored, (9,))
    assert batch.pairs.tolist() == [0, 1, 0, 1]
    assert batch.ids[1, :9].tolist() == EXAMPLES[1]["input_ids"]
    assert batch.labels[1].tolist() == [-100] * 3 + [7] * 6 + [-100] * 13


def test_the_parts_of_a_batch_are_its_rows_and_a_step_is_the_same_after_a_pause():
    whole = collator()(EXAMPLES, (1,))
    parts = [whole.part(i, 3) for i in range(3)]
    assert torch.equal(torch.cat([part.ids for part, _ in parts]), whole.ids)
    assert all(counts and part.predicted == whole.predicted and part.rows == 4 for part, counts in parts)
    assert whole.part(5, 6)[1] is False
    examples = Examples(lambda epoch: iter(EXAMPLES[epoch % 2 :]), [], {})
    first, again = batches(examples, collator(), 3, 5), batches(examples, collator(), 3, 5, skip=4)
    for _ in range(4):
        next(first)
    one, other = next(first), next(again)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.labels, other.labels)


# The log


def test_a_continued_log_loses_only_what_is_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in range(1, 6):
        log.write(step, {"loss/mlm": float(step)})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    Log(path, 3).write(4, {"loss/mlm": 40.0})
    assert [json.loads(line)["loss/mlm"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0, 40.0]
    Log(path, 0)
    assert not path.read_text()


# Heads


def heads(tmp_path, target, objective, auto, architecture, *others, family="bert", **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    manifest = {"auto": auto, "heads": list(others), "architecture": architecture, "family": family}
    return auto_for(tmp_path, manifest, target_named(target), objective)


PRE, MASKED, CAUSAL = "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM"


def test_an_objective_takes_the_head_that_it_needs(tmp_path):
    assert heads(tmp_path, "lsg", "mlm", MASKED, "LSGBertForMaskedLM") == MASKED
    assert heads(tmp_path, "lsg", "mlm", PRE, "LSGBertForPreTraining", MASKED) == MASKED
    assert heads(tmp_path, "lsg", "mlm+sop", PRE, "LSGBertForPreTraining", MASKED) == PRE
    assert heads(tmp_path, "lambda-published", "mlm", PRE, "LambdaBertForPreTrainingNSP") == PRE
    assert heads(tmp_path, "lsg", "clm", CAUSAL, "LSGBertLMHeadModel", is_decoder=True) == CAUSAL


@pytest.mark.parametrize(
    ("target", "objective", "auto", "architecture", "more", "says"),
    [
        ("lsg", "mlm+nsp", MASKED, "LSGBertForMaskedLM", {}, "--architecture ForPreTraining"),
        ("lsg", "mlm+nsp", MASKED, "LSGRobertaForMaskedLM", {"family": "roberta"}, "no head for pairs"),
        ("lsg", "mlm", PRE, "LSGElectraForPreTraining", {"family": "electra"}, "no masked-LM head"),
        ("lsg", "mlm", CAUSAL, "LSGBertLMHeadModel", {"is_decoder": True}, "--objective clm"),
        ("lsg", "clm", MASKED, "LSGBertForMaskedLM", {}, "effconv new lsg --causal"),
        ("linformer", "clm", MASKED, "LinformerBertForMaskedLM", {}, "new lsg --causal"),
        ("lambda-published", "mlm+sop", PRE, "LambdaBertForPreTrainingNSP", {}, "ForPreTrainingSOP"),
        ("lambda-published", "mlm+nsp", PRE, "LambdaBertForPreTrainingSOP", {}, "ForPreTrainingNSP"),
    ],
)
def test_an_objective_without_its_head_is_refused(tmp_path, target, objective, auto, architecture, more, says):
    with pytest.raises(UnsupportedError, match=says):
        heads(tmp_path, target, objective, auto, architecture, **more)


def test_a_score_counts_every_loss():
    from effconv.pretrain.heldout import score

    assert score({"tokens": 9, "mlm_loss": 2.0, "perplexity": math.e**2, "nsp_loss": 0.5, "nsp_accuracy": 1.0}) == -2.5


def test_weights_that_decay_are_matrices_or_all():
    from effconv.pretrain.trainer import groups_of

    model = torch.nn.Linear(2, 3)
    chosen = SimpleNamespace(decay="matrices", weight_decay=0.1, learning_rate=1.0)
    assert [(len(g["params"]), g["weight_decay"]) for g in groups_of(model, chosen)] == [(1, 0.1), (1, 0.0)]
    chosen.decay = "all"
    assert [(len(g["params"]), g["weight_decay"]) for g in groups_of(model, chosen)] == [(2, 0.1)]
    assert np.isclose(groups_of(model, chosen)[0]["peak"], 1.0)
