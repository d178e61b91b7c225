"""`effconv new`: repos with random weights, of any target, BiGS and the dense control."""

from __future__ import annotations

import json
import runpy
import shlex

import pytest
import torch
import transformers
from environments import FIVE, FOUR, strangers_output
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from tiers import daily
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import UnsupportedError, UsageError
from effconv.convert.families.registry import FAMILIES
from effconv.convert.io.tensorfile import file_sha256
from effconv.convert.repo.manifest import read_manifest
from effconv.convert.verify.loaded import Loaded
from effconv.convert.verify.stranger import run_check
from effconv.hub.refresh import refresh
from effconv.new.families import STARTS
from effconv.targets.bigs.scratch import SCALINGS, frequencies
from effconv.targets.registry import CREATABLE, TARGETS
from effconv.templates.bigs_ssm import initial_frequencies
from tiny import save_tokenizer

SMALL = {"length": 64, "layers": 2, "hidden": 32, "heads": 4, "intermediate": 64}
BLOCKS = {"block_size": 8, "sparse_block_size": 8}
# Target, options, and the class that is made.
MADE = {
    "lsg": ("lsg", BLOCKS, "LSGBertForMaskedLM"),
    "lsg-causal": ("lsg", {**BLOCKS, "causal": True}, "LSGBertLMHeadModel"),
    "linformer": ("linformer", {"proj_dim": 16}, "LinformerBertForMaskedLM"),
    "pretraining": ("linformer", {"proj_dim": 16, "architecture": "ForPreTraining"}, "LinformerBertForPreTraining"),
    "lambda": ("lambda", {"key_depth": 4}, "LambdaBertForMaskedLM"),
    "lambda-published": ("lambda", {"groups": "1", "num_lambda_queries": 8}, "LambdaBertForPreTrainingNSP"),
    "transnormer": ("transnormer", {"block_size": 8}, "TransNormerBertForMaskedLM"),
    "transnormer-causal": (
        "transnormer",
        {"preset": "t1", "block_size": 8, "position_encoding": "lrpe"},
        "TransNormerBertLMHeadModel",
    ),
    "lra": (
        "transnormer",
        {"preset": "lra-listops", "block_size": 8, "tokenizer": None},
        "TransNormerRobertaPreLayerNormForSequenceClassification",
    ),
    "bigs": ("bigs", {"heads": None}, "BiGSForMaskedLM"),
    "dense": ("dense", {}, "BertForMaskedLM"),
    "dense-causal": ("dense", {"causal": True}, "BertLMHeadModel"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    folder.mkdir()
    save_tokenizer(folder, "bert", 64)
    return folder


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    """Makes a new repo, unchecked; each one once."""
    made = {}

    def new(name):
        if name not in made:
            target, options, _ = MADE[name]
            asked = {**SMALL, "tokenizer": tokenizer, **options}
            output = tmp_path_factory.mktemp("new") / name
            made[name] = effconv.new(target, output=output, verify=False, **asked).output
        return made[name]

    return new


def loaded(repo, **overrides):
    model = Loaded(repo, None, read_manifest(repo), False).model(**overrides)
    return model


def with_larger_weights(model):
    """As after a training: from small weights every token gives nearly the same."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def checks_of(repo):
    manifest = read_manifest(repo)
    held = Loaded(repo, None, manifest, False)
    results = {}
    for check in TARGETS[manifest["target"]].checks:
        if not check.left_out(manifest):
            asked = {"name": check.name, "function": check.function, "says": check.says, "tolerance": check.tolerance}
            results[check.name] = run_check(held, asked)
    return results


@pytest.mark.parametrize("name", MADE)
def test_a_new_repo_passes_its_checks_and_says_that_it_is_random(name, make):
    repo = make(name)
    manifest, card = read_manifest(repo), (repo / "README.md").read_text(encoding="utf-8")
    assert manifest["architecture"] == MADE[name][2]
    results = checks_of(repo)
    assert {"padding_changes_nothing", "saved_again_equal", "every_tensor_read", "same_tokens"} <= set(results) | (
        {"padding_changes_nothing"} if name == "bigs" else set()  # as published, padding flows through the layers
    )
    assert not {check: result["why"] for check, result in results.items() if result["passed"] is False}
    assert not any(check.needs_source for check in TARGETS[manifest["target"]].checks if check.name in results)
    assert manifest["source"]["random"]["like"]
    assert "from **random weights**" in card
    assert "its source" not in card
    origin = json.loads((repo / "config.json").read_text(encoding="utf-8"))["effconv"]
    assert origin["source"] == manifest["source"]
    assert refresh(repo, verify=False).changed == ()


def test_every_target_of_the_command_is_tested():
    assert {target for target, _, _ in MADE.values()} == set(CREATABLE)


def test_the_seed_and_the_name_alone_decide_every_weight(make, tokenizer, tmp_path):
    def weights(**options):
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        made = effconv.new(
            "linformer", tokenizer=tokenizer, proj_dim=16, output=output, verify=False, **SMALL | options
        )
        return load_file(made.output / "model.safetensors")

    once, deeper, other = load_file(make("linformer") / "model.safetensors"), weights(layers=3), weights(seed=7)
    assert once.keys() < deeper.keys()
    assert all(torch.equal(value, deeper[name]) for name, value in once.items())
    differing = {name for name, value in once.items() if not torch.equal(value, other[name])}
    fixed = {name for name in once if name.endswith("bias") or "LayerNorm" in name}
    assert differing == once.keys() - fixed


@pytest.mark.parametrize("name", ["linformer", "bigs", "lambda"])
def test_the_cards_command_makes_the_same_weights(name, make, tokenizer, tmp_path):
    repo = make(name)
    card = (repo / "README.md").read_text(encoding="utf-8")
    command = next(line for line in card.splitlines() if line.startswith("effconv new "))
    words = shlex.split(command)[1:]
    words[words.index("--tokenizer") + 1] = str(tokenizer)
    run = CliRunner().invoke(app, [*words, "--no-verify", "-o", str(tmp_path / "again"), "-q"])
    assert run.exit_code == 0, run.output
    assert file_sha256(tmp_path / "again" / "model.safetensors") == file_sha256(repo / "model.safetensors")


def test_embeddings_and_matrices_begin_as_the_stock_models(make):
    stored = load_file(make("dense") / "model.safetensors")
    words = stored["bert.embeddings.word_embeddings.weight"]
    assert not words[0].any()  # [PAD], which the stock embeddings do not train
    assert words[1:].std().item() == pytest.approx(0.02, rel=0.1)
    positions = stored["bert.embeddings.position_embeddings.weight"]
    assert len({tuple(row.tolist()) for row in positions}) == SMALL["length"]  # each row is its own
    assert stored["bert.encoder.layer.0.attention.self.query.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(stored["bert.encoder.layer.0.output.LayerNorm.weight"], torch.ones(SMALL["hidden"]))


def test_kernels_of_bigs_begin_as_the_published_code(make):
    stored = load_file(make("bigs") / "model.safetensors")
    kernel = {name.rpartition(".")[2]: value for name, value in stored.items() if "layer.0.fs4" in name}
    modes = len(kernel["A_re"])
    assert torch.equal(kernel["A_re"], torch.full((modes,), -0.5))
    assert torch.equal(kernel["A_im"], torch.tensor(initial_frequencies("hippo", modes)))
    assert kernel["C"].var().item() == pytest.approx(0.5, rel=0.5)
    assert 0.01 <= kernel["log_step"].exp().item() <= 1.0
    assert torch.equal(kernel["D"], torch.ones(1))
    for scaling in SCALINGS:
        assert frequencies(scaling, 8) == pytest.approx(initial_frequencies(scaling, 8))


@pytest.mark.parametrize("local", [0, 15])
@pytest.mark.parametrize(("options", "std"), [({}, 0.02), ({"position_std": 0.5}, 0.5), ({"like": "published"}, 1.0)])
def test_position_tables_of_lambdabert_have_the_deviation_that_is_asked_for(options, std, local, tmp_path):
    asked = {**SMALL, "groups": "1", "vocab": 50, "local_context": local, "verify": False, **options}
    repo = effconv.new("lambda", output=tmp_path / "repo", **asked).output
    name = "rel_pos_embed" if local else "pos_diagonal"
    table = load_file(repo / "model.safetensors")[f"lambdabert.encoder.layer.0.lambdalayer.self.{name}"]
    assert table.std().item() == pytest.approx(std, rel=0.1)
    config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True)
    again = transformers.AutoModelForPreTraining.from_config(config, trust_remote_code=True)
    table = again.get_parameter(f"lambdabert.encoder.layer.0.lambdalayer.self.{name}")
    assert table.std().item() == pytest.approx(std, rel=0.1)


def test_t5_is_drawn_by_width(tmp_path):
    made = effconv.new("lsg", family="t5", vocab=60, output=tmp_path / "t5", verify=False, **BLOCKS, **SMALL)
    stored = load_file(made.output / "model.safetensors")
    attention = "encoder.block.0.layer.0.SelfAttention"
    names = {name.removeprefix("transformer."): value for name, value in stored.items()}
    assert names["shared.weight"].std().item() == pytest.approx(1.0, rel=0.1)
    assert names[f"{attention}.q.weight"].std().item() == pytest.approx((32 * 8) ** -0.5, rel=0.1)
    assert names[f"{attention}.k.weight"].std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_every_family_has_a_start():
    assert FAMILIES.keys() == STARTS.keys() - {"bigs"}, "each family needs an entry in STARTS (new/families.py)"


@pytest.mark.parametrize("family", daily(["electra", "mpnet", "bart"], of=[name for name in STARTS if name != "bigs"]))
def test_every_family_can_be_made(family, tmp_path):
    made = effconv.new("lsg", family=family, vocab=60, output=tmp_path / "new", verify=False, **BLOCKS, **SMALL)
    assert not {name: found["why"] for name, found in checks_of(made.output).items() if found["passed"] is False}


def test_sizes_override_the_preset_and_the_feed_forward_keeps_its_ratio(tmp_path):
    asked = {"like": "mini", "vocab": 60, "length": 32, "layers": 1, "hidden": 64, "set": "hidden_dropout_prob=0.3"}
    made = effconv.new("dense", output=tmp_path / "new", verify=False, **asked)
    config = json.loads((made.output / "config.json").read_text(encoding="utf-8"))
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    assert [config[name] for name in sizes] == [64, 1, 4, 256, 60]
    assert config["hidden_dropout_prob"] == 0.3
    assert config["max_position_embeddings"] == 32


@pytest.mark.parametrize(
    ("target", "options", "error", "says"),
    [
        ("lsg", {}, UsageError, "needs a tokenizer"),
        ("bigs", {}, UsageError, "such as bert-large-uncased"),
        ("lsg", {"tokenizer": True, "vocab": 50}, UsageError, "the tokenizer has"),
        ("lsg", {"vocab": 50, "like": "smal"}, UsageError, "Did you mean small"),
        ("lsg", {"vocab": 50, "family": "gpt2"}, UnsupportedError, "lsg makes no gpt2"),
        ("linformer", {"vocab": 50, "family": "t5"}, UnsupportedError, "linformer makes no t5"),
        ("lsg", {"vocab": 50, "hidden": 100}, UsageError, "must be a multiple of --heads"),
        ("lsg", {"vocab": 50, "set": "hiden=1"}, UsageError, "bert has no field hiden"),
        ("lsg", {"vocab": 50, "set": "hidden_size"}, UsageError, "not a field and a value"),
        ("lambda", {"vocab": 50, "causal": True}, UnsupportedError, "lambda attention is never causal"),
        ("linformer", {"vocab": 50, "causal": True}, UnsupportedError, "linformer attention is never causal"),
        ("bigs", {"vocab": 50, "causal": True}, UnsupportedError, "bigs attention is never causal"),
        ("lsg", {"vocab": 50, "family": "mpnet", "causal": True}, UnsupportedError, "no causal"),
        ("lsg", {"vocab": 50, "causal": True, "architecture": "ForMaskedLM"}, UsageError, "both directions"),
        ("transnormer", {"vocab": 50, "calibrate": "a.txt"}, UsageError, "a new model has none"),
        ("transnormer", {"vocab": 50, "layer_order": "both", "family": "distilbert"}, UnsupportedError, "distilbert"),
        ("lambda", {"vocab": 50, "num_lambda_queries": 8}, UsageError, "only with --groups 1"),
        ("lambda", {"vocab": 50, "groups": "1", "num_lambda_queries": 7}, UsageError, "must divide"),
        ("lambda", {"vocab": 50, "position_std": 1.0}, UsageError, "--position-std applies only with --groups 1"),
        ("lambda", {"vocab": 50, "groups": "1", "position_std": -1.0}, UsageError, "at least 0, got -1.0"),
        ("bigs", {"vocab": 50, "heads": 4}, UsageError, "no attention heads"),
        ("jax2torch", {}, UsageError, "makes no 'jax2torch'"),
        ("lsg", {"vocab": 50, "block_size": 0}, UsageError, "effconv new lsg --help describes"),
        ("linformer", {"vocab": 50, "proj_dim": 0}, UsageError, "effconv new linformer --help describes"),
        ("lsg", {"vocab": 50, "length": 1 << 30}, UsageError, "--length must be an integer"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(target, options, error, says, tokenizer, tmp_path):
    given = {**options, "tokenizer": tokenizer} if "tokenizer" in options else options
    with pytest.raises(error) as raised:
        effconv.new(target, output=tmp_path / "new", **given)
    assert says in f"{raised.value.what} {raised.value.hint}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "where", "hint"),
    [
        ({"layers": 0}, "--layers", "such as 12"),
        ({"set": "hidden_size"}, "--set", "initializer_range"),
        ({"set": "hidden_act=sillu"}, "--set hidden_act", "silu"),
        ({"set": "initializer_range=-1"}, "--set initializer_range", "another value"),
    ],
)
def test_a_wrong_size_or_field_names_its_option_and_gives_an_example(options, where, hint, tokenizer, tmp_path):
    with pytest.raises(effconv.EffconvError) as caught:
        effconv.new("lsg", tokenizer=tokenizer, like="tiny", output=tmp_path / "out", **options)
    assert caught.value.where == where
    assert hint in caught.value.hint


def test_a_repo_without_a_source_is_compared_with_none(make):
    with pytest.raises(UsageError, match="random weights"):
        effconv.verify(make("linformer"), against="bert-base-uncased", offline=True)
    with pytest.raises(UnsupportedError, match="random weights"):
        effconv.fidelity(make("linformer"), against="bert-base-uncased")


def test_a_dense_repo_is_a_source_like_any_other(make):
    assert effconv.plan(make("dense"), "linformer", proj_dim=16, max_length=128).counts()["tile"] == 1
    assert "auto_map" not in json.loads((make("dense") / "config.json").read_text(encoding="utf-8"))


def test_the_command_checks_in_a_fresh_process(tokenizer, tmp_path):
    sizes = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words = ["new", "linformer", "--tokenizer", str(tokenizer), "--proj-dim", "16", *sizes]
    run = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "new"), "--json", "-q"])
    assert run.exit_code == 0, run.output
    passed = {check["name"]: check["passed"] for check in json.loads(run.stdout)["checks"]}
    assert passed == {
        "equal_to_source": None, "equal_to_formula": True, "padding_changes_nothing": True, "saved_again_equal": True,
        "stock_attention_equals_source": None, "every_tensor_read": True, "runs_at_full_length": True,
        "same_tokens": True, "same_embedding": None,
    }  # fmt: skip
    assert "tokenizer" in read_manifest(tmp_path / "new")["measurements"]  # so that verify compares without the source


LOAD = """
import sys
sys.modules["effconv"] = None  # a repo must load without it
import torch, transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
lsg, published, fitted, lra, bigs = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(lsg, trust_remote_code=True).eval()
ids = torch.randint(10, 60, (2, 30))
made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, use_cache=True)
print(made.shape[1])
for repo in (published, fitted):
    found = AutoModel.from_pretrained(repo, trust_remote_code=True).eval()(ids, output_lambda_params=True).attentions
    print(len(found), *found[0].shape)
print(*AutoModelForSequenceClassification.from_pretrained(lra, trust_remote_code=True)(ids % 16).logits.shape)
print(*AutoModel.from_pretrained(bigs, trust_remote_code=True)(ids).last_hidden_state.shape)
"""


@pytest.mark.parametrize("python", [FIVE, FOUR])
def test_new_repos_load_without_effconv(python, make, tmp_path):
    repos = [make(name) for name in ("lsg-causal", "lambda-published", "lambda", "lra", "bigs")]
    said = strangers_output("-c", LOAD, *repos, folder=tmp_path, python=python)
    lines = [line for line in said.splitlines() if "reserved" not in line]
    assert lines == ["35", "2 2 8 4", "2 2 4 5 8", "2 10", "2 30 32"]


def slow_loop(model, ids, tokens):
    """Greedy text by one whole forward a token."""
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1)[:, None]], 1)
    return ids


@pytest.fixture(params=["lsg-causal", "transnormer-causal", "roberta"])
def causal(request, make, tmp_path):
    if request.param != "roberta":
        return with_larger_weights(loaded(make(request.param)))
    options = {**SMALL, **BLOCKS, "family": "roberta", "vocab": 80, "causal": True}
    return with_larger_weights(loaded(effconv.new("lsg", output=tmp_path / "new", verify=False, **options).output))


@torch.no_grad()
def test_generate_is_the_slow_loop_with_and_without_a_cache(causal):
    ids = torch.randint(10, 70, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = slow_loop(causal, ids, 37)  # over several blocks
    for use_cache in (None, True, False):
        asked = {} if use_cache is None else {"use_cache": use_cache}
        made = causal.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=37, min_new_tokens=37, do_sample=False,
            eos_token_id=None, pad_token_id=causal.config.pad_token_id, **asked,
        )  # fmt: skip
        assert made.tolist() == wanted.tolist()


@torch.no_grad()
@pytest.mark.parametrize("sparsity", ["norm", "pooling", "stride", "block_stride", "lsh", "bos_pooling", "none"])
def test_no_token_of_a_causal_lsg_sees_a_later_one(sparsity, make):
    model = with_larger_weights(loaded(make("lsg-causal"), sparsity_type=sparsity))
    assert_no_leak(model)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transnormer-causal", "dense-causal"])
def test_no_token_of_a_causal_model_sees_a_later_one(name, make):
    assert_no_leak(with_larger_weights(loaded(make(name))))


def assert_no_leak(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 70, (2, 60), generator=generator)
    before = model(input_ids=ids).logits
    for kept in (1, 8, 21, 59):
        changed = ids.clone()
        changed[:, kept:] = torch.randint(10, 70, changed[:, kept:].shape, generator=generator)
        after = model(input_ids=changed).logits
        assert (after[:, :kept] - before[:, :kept]).abs().max() <= 1e-5
        assert (after[:, kept:] - before[:, kept:]).abs().max() > 1e-3  # what changed is seen from there on


@torch.no_grad()
def test_each_layer_of_an_arena_model_is_local_then_linear_then_feed_forward(make):
    model = with_larger_weights(loaded(make("lra")))
    base, x = model.base_model, torch.randn((1, 20, 32), generator=torch.Generator().manual_seed(0))
    layer = base.encoder.layer[0]
    block, local = layer.attention, layer.attention.local
    assert local.self.mix.diag
    assert not block.self.mix.diag
    got = layer(x, None)
    got = got[0] if isinstance(got, tuple) else got
    x = x + local.output.dense(local.self(local.LayerNorm(x), None)[0])
    x = x + block.output.dense(block.self(block.LayerNorm(x), None)[0])
    wide = layer.intermediate
    x = x + layer.output.dense(wide.intermediate_act_fn(wide.dense(wide.LayerNorm(x))))
    assert (got - x).abs().max() <= 1e-5
    with safe_open(make("lra") / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "roberta_prelayernorm.encoder.layer.1.attention.local.self.query.weight" in names


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_fitted_lambdas_are_those_of_the_formula(masked, make):
    model = loaded(make("lambda"))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for layer in model.base_model.encoder.layer:
        mix = layer.attention.self.mix
        mix.landmarks.copy_(torch.randn(mix.landmarks.shape, generator=generator))
        mix.register_forward_pre_hook(lambda module, inputs: seen.append((module.landmarks, *inputs)))
    ids = torch.randint(10, 70, (3, 40), generator=generator)
    mask = torch.ones_like(ids)
    if masked:
        mask[1, 6:], mask[2, 30:] = 0, 0
    found = model(input_ids=ids, attention_mask=mask, output_lambda_params=True).attentions
    assert len(found) == len(seen) == SMALL["layers"]
    for got, (landmarks, _, k, v, _) in zip(found, seen, strict=True):
        scores = torch.einsum("hcd,bhtd->bhct", landmarks.double(), k.double())
        weights = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
        wanted = torch.einsum("bhct,bhtd->bhcd", weights, v.double())
        assert got.shape == (3, 4, 5, 8)  # text, head, landmark and mean, value
        assert (got - wanted).abs().max() <= 1e-5


@torch.no_grad()
def test_lambdas_are_returned_on_request_alone(make):
    model, ids = loaded(make("lambda")), torch.randint(10, 70, (2, 20))
    assert model(input_ids=ids).attentions is None
    as_tuple = model(input_ids=ids, output_lambda_params=True, return_dict=False)
    assert len(as_tuple[-1]) == SMALL["layers"]
    model.config.output_lambda_params = True
    assert len(model(input_ids=ids).attentions) == SMALL["layers"]
    assert model(input_ids=ids, output_lambda_params=False).attentions is None
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, output_lambda_params=False).logits)


def test_lambdas_carry_a_gradient_but_for_checkpointed_layers(make):
    model, ids = loaded(make("lambda")).train(), torch.randint(10, 70, (2, 20))
    found = model(input_ids=ids, labels=ids, output_lambda_params=True)
    assert found.attentions[0].requires_grad
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = model(input_ids=ids, labels=ids, output_lambda_params=True)
    found.loss.backward()
    assert not found.attentions[0].requires_grad


@pytest.mark.parametrize("name", ["lambda", "lambda-published"])
def test_the_example_reads_a_word_off_the_lambdas(name, make, capsys):
    accuracies = runpy.run_path(str(ROOT / "examples" / "probe_lambdas.py"))["main"]([str(make(name))])
    assert len(accuracies) == SMALL["layers"]
    assert max(accuracies) > 0.62  # of 200 texts half have the word: chance is 0.5, its standard error 0.035
    assert "layer 0: accuracy" in capsys.readouterr().out


def test_what_is_new_alone_is_no_target_of_a_conversion():
    """Also after it was used."""
    before = list(TARGETS)
    assert TARGETS["dense"].name == "dense"
    assert list(TARGETS) == before
    assert "dense" not in before
    assert len(TARGETS) == len(before)
