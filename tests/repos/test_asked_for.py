"""What was asked for is done or refused: heads, causality, and parts of a source that effconv does not read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import effconv
from effconv.adapt.models import _load_teacher
from effconv.convert.errors import BadInputError, EffconvError, UnsupportedError, UsageError
from effconv.convert.families.activations import ACTIVATIONS
from effconv.convert.families.registry import FAMILIES
from effconv.inspection import inspect_source
from effconv.lsgify.target import LSG
from tiny import save_tiny

torch.set_num_threads(1)
TOKENS = 160
PUBLISHED = {"groups": "1", "key_depth": 4, "local_context": 5, "max_length": TOKENS}
BLOCKS = {"block_size": 16, "sparse_block_size": 16, "max_length": TOKENS}
CAUSAL = [(f, head.suffix) for f in LSG.families for head in FAMILIES[f].heads if head.causal]
IN_ENCODERS = [(family, head) for family, head in CAUSAL if not FAMILIES[family].code.encoder]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Makes the tiny source of a family and head, once."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}

    def make(family="bert", head="ForMaskedLM", **config):
        name = f"{family}-{head}-{'-'.join(config)}"
        if name not in made:
            made[name] = save_tiny(folder / name, family, head, 64, **config)
        return made[name]

    return make


def refused(call, kind, *words):
    with pytest.raises(kind) as raised:
        call()
    assert all(word in str(raised.value) for word in words), str(raised.value)


def edited(source, folder, **fields):
    """A copy of a source with these fields in config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize(
    ("family", "field"), [("bert", "hidden_act"), ("distilbert", "activation"), ("bart", "activation_function")]
)
def test_an_unknown_activation_is_refused_before_anything_is_written(family, field, source, tmp_path):
    odd = edited(source(family, "Model"), tmp_path / "odd", **{field: "gellu"})
    refused(lambda: effconv.plan(odd, "lsg", **BLOCKS), BadInputError, field, "'gellu'", "Did you mean gelu?")


def test_every_activation_of_transformers_is_known():
    assert set(transformers.activations.ACT2FN) <= ACTIVATIONS


def test_a_misspelt_class_is_reported(source, tmp_path):
    odd = edited(source(), tmp_path / "odd", architectures=["BertForMaskdLM"])
    (said,) = effconv.convert(odd, "lsg", output=tmp_path / "repo", verify=False, **BLOCKS).findings
    assert "the class BertForMaskdLM" in said
    assert said.endswith("Did you mean BertForMaskedLM?")
    asked = effconv.convert(odd, "lsg", output=tmp_path / "named", architecture="ForMaskedLM", verify=False, **BLOCKS)
    assert asked.findings == []


def test_the_causal_head_is_named_whatever_its_name(source):
    refused(lambda: effconv.plan(source(), "lsg", architecture="ForCausalLM", **BLOCKS), UsageError, "is LMHeadModel")
    refused(lambda: effconv.plan(source(), "lsg", architecture="ForMaskdLM", **BLOCKS), UsageError, "mean ForMaskedLM")


def test_tokens_without_an_embedding_are_said(source, tmp_path):
    odd = edited(source(), tmp_path / "odd")
    parsed = json.loads((odd / "tokenizer.json").read_text())
    rows = json.loads((odd / "config.json").read_text())["vocab_size"]
    parsed["model"]["vocab"]["beyond"] = rows
    (odd / "tokenizer.json").write_text(json.dumps(parsed))
    (said,) = effconv.convert(odd, "lsg", output=tmp_path / "repo", verify=False, **BLOCKS).findings
    assert f"ids up to {rows}, and the model has embeddings for {rows} tokens" in said
    (tmp_path / "text.txt").write_text("beyond the beyond", encoding="utf-8")
    typed = "from effconv.cli import main; main()"
    command = [sys.executable, "-c", typed, "fidelity", str(tmp_path / "repo"), "--against", str(odd)]
    run = subprocess.run(
        [*command, "--data", str(tmp_path / "text.txt"), "--lengths", "4"], capture_output=True, text=True
    )
    assert run.returncode == 4, run.stderr
    assert "has no embedding" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("asked", ["ForMaskedLM", "ForSequenceClassification", "BertForQuestionAnswering"])
def test_a_head_that_the_published_lambda_has_not_is_refused_with_those_it_has(asked, source):
    def ask():
        effconv.plan(source(), "lambda", architecture=asked, **PUBLISHED)

    refused(ask, UsageError, asked, "Model, ForPreTrainingNSP, ForPreTrainingSOP")


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "LMHeadModel"])
def test_a_classifier_becomes_a_published_lambda_only_when_the_head_is_named(head, source):
    made = source(head=head)
    refused(lambda: effconv.plan(made, "lambda", **PUBLISHED), UnsupportedError, f"Bert{head}", "ForPreTrainingNSP")
    assert "lambda-published" not in inspect_source(made).becomes
    plan = effconv.plan(made, "lambda", architecture="ForPreTrainingNSP", **PUBLISHED)
    assert plan.architecture == "LambdaBertForPreTrainingNSP"
    dropped = [row for row in plan.rows if row.action == "drop" and "classifier" in row.sources[0]]
    assert (len(dropped) == 2) == (head != "LMHeadModel")
    assert all("not part of LambdaBertForPreTrainingNSP" in row.why for row in dropped)


@pytest.mark.parametrize("head", ["Model", "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction"])
def test_other_heads_become_a_published_lambda_that_has_all_of_them(head, source):
    made = source(head=head)
    plan = effconv.plan(made, "lambda", **PUBLISHED)
    left = {row.sources[0] for row in plan.rows if row.action == "drop" and ".attention.self." not in row.sources[0]}
    assert not left
    assert "lambda-published" in inspect_source(made).becomes


def test_a_class_of_its_own_becomes_a_published_lambda_only_when_the_head_is_named(source, tmp_path):
    made = edited(source(head="ForSequenceClassification"), tmp_path / "own", architectures=["BertForMyTask"])
    refused(lambda: effconv.plan(made, "lambda", **PUBLISHED), UnsupportedError, "BertForMyTask")
    assert effconv.plan(made, "lambda", architecture="Model", **PUBLISHED).architecture == "LambdaBertModel"


@pytest.mark.parametrize("tied", [True, False])
def test_the_published_lambda_with_sentence_order_keeps_the_masked_lm_head(tied, source, tmp_path):
    made = source(head="ForPreTraining", **({} if tied else {"tie_word_embeddings": False}))
    options = {**PUBLISHED, "architecture": "ForPreTrainingSOP", "output": tmp_path / "out", "verify": False}
    result = effconv.convert(made, "lambda", **options)
    assert json.loads((result.output / "config.json").read_text())["architectures"] == ["LambdaBertForPreTrainingSOP"]
    new = {row.target: row.why for row in result.plan.rows if row.action == "new" and "layer" not in row.target}
    assert set(new) == {"sop_classifier.classifier.weight", "sop_classifier.classifier.bias"}
    assert all("needs training" in why for why in new.values())
    before, after = load_file(made / "model.safetensors"), load_file(result.output / "model.safetensors")
    kept = {name for name in after if name.startswith("predictions.")}
    assert len(kept) == (5 if tied else 7)
    assert all(torch.equal(after[name], before[f"cls.{name}"]) for name in kept if f"cls.{name}" in before)
    model = transformers.AutoModelForPreTraining.from_pretrained(result.output, trust_remote_code=True)
    assert type(model).__name__ == "LambdaBertForPreTrainingSOP"
    assert torch.equal(model.predictions.transform.dense.weight, before["cls.predictions.transform.dense.weight"])


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("family", "head"), IN_ENCODERS)
def test_a_causal_head_that_is_asked_for_is_causal_and_the_stock_decoder(family, head, source, tmp_path):
    made = source(family)
    repo = effconv.convert(made, "lsg", architecture=head, output=tmp_path / "out", verify=False, **BLOCKS)
    assert any("is_decoder" in finding for finding in repo.findings)
    read = transformers.AutoModelForCausalLM.from_pretrained
    model = read(repo.output, trust_remote_code=True, num_global_tokens=0).eval()
    stock = (
        getattr(transformers, FAMILIES[family].code.class_prefix + head).from_pretrained(made, is_decoder=True).eval()
    )
    ids = torch.randint(10, 40, (1, 32), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(model, ids), logits(stock, ids), atol=2e-5, rtol=1e-5)
    longer = torch.randint(10, 40, (1, 100), generator=torch.Generator().manual_seed(0))
    changed = longer.clone()
    changed[:, 60:] = 41
    with_globals = read(repo.output, trust_remote_code=True).eval()
    for causal in (model, with_globals):
        early = [logits(causal, tokens)[:, :60] for tokens in (longer, changed)]
        torch.testing.assert_close(*early, atol=2e-5, rtol=1e-5)
        assert (logits(causal, longer)[:, 60:] - logits(causal, changed)[:, 60:]).abs().max() > 1e-3


def test_a_causal_transnormer_is_fitted_to_the_source_as_a_decoder(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the river of words and the sea to which it runs is in a land that was far from here\n" * 25)
    options = {"block_size": 16, "max_length": TOKENS, "calibrate": text, "verify": False}
    made = source()
    asked = effconv.convert(made, "transnormer", architecture="LMHeadModel", output=tmp_path / "out", **options)
    stated = effconv.convert(
        edited(made, tmp_path / "decoder", is_decoder=True, architectures=["BertLMHeadModel"]),
        "transnormer", output=tmp_path / "other", **options,
    )  # fmt: skip
    one, other = (load_file(result.output / "model.safetensors") for result in (asked, stated))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.output, trust_remote_code=True).eval()
    ids = torch.randint(10, 40, (1, 100), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 60:] = 41
    torch.testing.assert_close(logits(model, ids)[:, :60], logits(model, changed)[:, :60], atol=2e-5, rtol=1e-5)


def test_checks_and_teachers_run_the_source_of_a_causal_repo_as_a_decoder(source, tmp_path):
    made = source()
    result = effconv.convert(made, "lsg", architecture="LMHeadModel", output=tmp_path / "out", **BLOCKS)
    measured = {check.name: check for check in result.measured}
    assert measured["equal_to_source"].passed
    assert result.manifest["source_config"] == {"is_decoder": True}
    asked = result.manifest["source_config"]
    assert _load_teacher(made, "AutoModel", None, trust_remote_code=False, asked=asked).config.is_decoder


def test_a_causal_head_that_nobody_asked_for_stays_what_the_source_is_and_says_so(source, tmp_path):
    made = source(head="LMHeadModel")
    result = effconv.convert(made, "lsg", output=tmp_path / "out", verify=False, **BLOCKS)
    assert not json.loads((result.output / "config.json").read_text()).get("is_decoder")
    assert any("--architecture LMHeadModel makes it causal" in finding for finding in result.findings)
    assert "source_config" not in result.manifest


def test_a_decoder_gets_no_head_that_reads_whole_texts(source):
    decoder = source(head="LMHeadModel", is_decoder=True)
    for asked in ("ForMaskedLM", "ForSequenceClassification", "ForPreTraining"):
        refused(lambda asked=asked: effconv.plan(decoder, "lsg", architecture=asked, **BLOCKS), UsageError, asked)
    for asked in ("Model", "LMHeadModel", None):
        effconv.plan(decoder, "lsg", architecture=asked, **BLOCKS)
    own = source(head="ForTokenClassification", is_decoder=True)  # its own head stays, causal as it is
    assert effconv.plan(own, "lsg", architecture="ForTokenClassification", **BLOCKS)


def test_a_decoder_that_names_no_class_gets_a_causal_head(source, tmp_path):
    nameless = edited(source(head="LMHeadModel", is_decoder=True), tmp_path / "nameless", architectures=None)
    assert effconv.plan(nameless, "lsg", **BLOCKS).architecture == "LSGBertLMHeadModel"


@pytest.mark.parametrize("named", ["DistilBertForMaskedLM", "MyBertForMaskedLM", "RobertaForMaskedLM"])
def test_the_class_of_another_architecture_is_not_this_ones(named, source, tmp_path):
    refused(lambda: effconv.plan(source(), "lsg", architecture=named, **BLOCKS), UsageError, named)
    other = edited(source(), tmp_path / "named", architectures=[named])
    assert effconv.plan(other, "lsg", **BLOCKS).architecture == "LSGBertModel"  # the head is carried beside it


@pytest.mark.parametrize("named", ["BertForMaskedLM", "TFBertForMaskedLM", "FlaxBertForMaskedLM", "LSGBertForMaskedLM"])
def test_twins_of_a_class_are_that_class(named, source, tmp_path):
    assert effconv.plan(source(), "lsg", architecture=named, **BLOCKS).architecture == "LSGBertForMaskedLM"


def test_an_adapter_beside_a_model_is_refused(source, tmp_path):
    made = tmp_path / "adapted"
    shutil.copytree(source(), made)
    (made / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "bert"}))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, made / "adapter_model.safetensors")
    refused(lambda: effconv.plan(made, "lsg", **BLOCKS), UnsupportedError, "adapter", "merge_and_unload")
    refused(lambda: inspect_source(made), UnsupportedError, "adapter", "merge_and_unload")


OWN_CODE = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
HARMLESS = [
    {"AutoConfig": "configuration_own.OwnConfig"},
    {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
    {"AutoModel": None},
    "damaged",
]


def test_a_model_with_code_of_its_own_is_refused_and_inspect_says_so(source, tmp_path):
    own = edited(source(), tmp_path / "own", auto_map=OWN_CODE)
    for target, options in (("lsg", BLOCKS), ("lambda", PUBLISHED), ("linformer", {"proj_dim": 16})):
        plan = {"target": target, **options}
        refused(lambda plan=plan: effconv.plan(own, **plan), UnsupportedError, "modeling_own.OwnModel", "auto_map")
    seen = inspect_source(own)
    assert not seen.becomes
    assert "modeling_own.OwnModel" in seen.why_not


@pytest.mark.parametrize("auto_map", HARMLESS)
def test_a_config_class_or_tokenizer_of_its_own_changes_no_model(auto_map, source, tmp_path):
    made = edited(source(), tmp_path / "own", auto_map=auto_map)
    assert effconv.plan(made, "lsg", **BLOCKS)
    assert "lsg" in inspect_source(made).becomes


def test_code_of_its_own_is_trusted_only_where_a_check_compares_with_it(source, tmp_path):
    own = edited(source(), tmp_path / "own", auto_map=OWN_CODE)
    for options in (
        {},
        {"dtype": "float16"},
        {"positions": "interpolate"},
    ):  # with its attention put back, all are compared
        assert effconv.plan(own, "lsg", trust_remote_code=True, **BLOCKS, **options)
    assert effconv.plan(own, "lambda", trust_remote_code=True)
    unproved = {**BLOCKS, "verify": False, "trust_remote_code": True}
    refused(lambda: effconv.plan(own, "lsg", **unproved), UnsupportedError, "auto_map")


STOCK = "from transformers import BertForMaskedLM\n\n\nclass OwnForMaskedLM(BertForMaskedLM):\n    pass\n"
OTHER = STOCK.replace("    pass\n", "") + (
    "    def forward(self, *args, **kwargs):\n"
    "        output = super().forward(*args, **kwargs)\n"
    "        output.logits = 2 * output.logits\n"
    "        return output\n"
)


@pytest.mark.parametrize(("code", "passes"), [(STOCK, True), (OTHER, False)])
def test_trusted_code_is_what_the_repo_is_compared_with(code, passes, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = edited(source(), tmp_path / "own", auto_map={"AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM"})
    (own / "modeling_own.py").write_text(code)
    options = {**BLOCKS, "trust_remote_code": True, "output": tmp_path / "out"}
    if passes:
        assert effconv.convert(own, "lsg", **options).measured
        return
    with pytest.raises(EffconvError, match="equal_to_source") as failed:
        effconv.convert(own, "lsg", **options)
    assert failed.value.exit_code == 5


def test_a_stock_model_in_memory_is_stock_whatever_its_folder_names(source, tmp_path):
    own = edited(source(), tmp_path / "own", auto_map=OWN_CODE)
    model = transformers.BertForMaskedLM.from_pretrained(own)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source())
    assert type(effconv.lsgify(model, tokenizer, **BLOCKS)).__name__ == "LSGBertForMaskedLM"

    class BertForMaskedLM(transformers.BertForMaskedLM):
        pass

    other = BertForMaskedLM.from_pretrained(own)
    refused(lambda: effconv.lsgify(other, tokenizer, **BLOCKS), UnsupportedError, "auto_map")
