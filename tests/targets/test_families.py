"""Every family and head of the registry: the entry says what transformers has, and its repos keep the promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
import torch
import transformers
from checkpoints import bits, convert, read, write
from environments import FOUR, stranger
from lsg_goldens import faults, run_worker
from tiers import daily

from effconv.convert.families.grammar import shape_of
from effconv.convert.families.registry import ENCODER_DECODERS, FAMILIES
from effconv.convert.repo.card_blocks import blocks
from effconv.lsgify.target import LSG, global_bias
from tiny import save_tiny, tiny_config

HEADS = matrix.CELLS
# Of every family one head with every change, of BERT three; nightly the whole matrix.
KINDS = ("ForMaskedLM", "LMHeadModel", "ForSequenceClassification")
DAILY = [
    pair for pair in HEADS if pair[1] == FAMILIES[pair[0]].default_head or (pair[0] == "bert" and pair[1] in KINDS)
]


def variants(family: str, head: str) -> dict[str, dict]:
    """Configs in which a model of the family has other tensors, or other shapes."""
    causal = any(known.auto == "AutoModelForCausalLM" for known in FAMILIES[family].heads)
    found = {"plain": {}, "labels": {"num_labels": 3}, "untied": {"tie_word_embeddings": False}}
    if causal and family not in ENCODER_DECODERS:
        found["cross-attention"] = {"is_decoder": True, "add_cross_attention": True}
    if family == "electra":
        found |= {"one size": {"embedding_size": 32}, "no summary": {"summary_use_proj": False}}
    if family == "albert":
        found["groups"] = {"num_hidden_groups": 2, "inner_group_num": 2, "num_hidden_layers": 3}
    if family == "ernie":
        found["no task types"] = {"use_task_id": False}
    if family in ("t5", "mt5"):
        found["other feed-forward"] = {"feed_forward_proj": {"t5": "gated-gelu", "mt5": "relu"}[family], "d_kv": 16}
    if family == "xmod":
        found["norms first"] = {"pre_norm": True, "adapter_layer_norm": True, "adapter_reduction_factor": 4}
        found["residual first"] = {"ln_before_adapter": False, "adapter_reuse_layer_norm": False}
    if (family, head) == ("distilbert", "ForMaskedLM"):
        found["chunks"] = {"chunk_size_feed_forward": 8}
    if (family, head) == ("distilbert", "ForQuestionAnswering"):
        del found["labels"]  # it takes two only
    return found


def after_padding(family: str) -> bool:
    """Whether the first position depends on the id of the padding token."""
    return FAMILIES[family].code.after_padding


def type_of(family: str, head: str):
    return getattr(transformers, FAMILIES[family].code.class_prefix + head)


def stock(family: str, head: str, **config):
    """The stock model, without memory for its tensors."""
    settings = {**tiny_config(family), "vocab_size": 50, **config}
    with torch.device("meta"):
        return type_of(family, head)(getattr(transformers, FAMILIES[family].code.config_class)(**settings))


def canonical(family: str, names):
    return [name.removeprefix(f"{FAMILIES[family].prefix}.") for name in names]


def test_the_docs_say_which_target_takes_which_family():
    assert blocks(matrix.PAGE.read_text(encoding="utf-8"))["targets"] == matrix.targets_table(), "run `make matrix`"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_of_transformers_is_a_head(family):
    prefix = FAMILIES[family].code.class_prefix
    classes = {name for name in dir(transformers) if re.fullmatch(rf"{prefix}(Model|LMHeadModel|For[A-Z]\w+)", name)}
    assert classes == {f"{prefix}{head.suffix}" for head in FAMILIES[family].heads}


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_the_auto_class_loads_the_head(family, head):
    entry = FAMILIES[family]
    auto = getattr(transformers, entry.stock_auto(entry.head(head).auto))
    assert auto._model_mapping[getattr(transformers, FAMILIES[family].code.config_class)] is type_of(family, head)


@pytest.mark.parametrize(
    ("family", "head", "variant"), [(*pair, variant) for pair in HEADS for variant in variants(*pair)]
)
def test_the_declared_tensors_are_those_of_transformers(family, head, variant):
    config = variants(family, head)[variant]
    model, entry = stock(family, head, **config), FAMILIES[family].head(head)
    tensors = model.state_dict()
    shapes = dict(zip(canonical(family, tensors), (tuple(tensor.shape) for tensor in tensors.values()), strict=True))
    declared = FAMILIES[family].weights(model.config.to_dict(), entry)
    assert len({weight.name for weight in declared}) == len(declared)
    assert {weight.name: shape_of(weight, model.config.to_dict()) for weight in declared} == {
        name: shape for name, shape in shapes.items() if name not in FAMILIES[family].tied_weights(entry)
    }
    assert shapes.keys() >= FAMILIES[family].tied_weights(entry).keys()
    tied = model.all_tied_weights_keys
    expected = FAMILIES[family].tied_weights(entry)
    if variant == "untied":
        expected = {alias: name for alias, name in FAMILIES[family].tied.items() if alias in FAMILIES[family].same}
    assert dict(zip(canonical(family, tied), canonical(family, tied.values()), strict=True)) == expected


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        *((name, {}) for name, entry in FAMILIES.items() if entry.positions),
        *((name, {"pad_token_id": 4, "max_position_embeddings": 69}) for name in FAMILIES if after_padding(name)),
        ("roberta", {"pad_token_id": 0, "max_position_embeddings": 65}),
    ],
)
def test_the_first_position_is_where_transformers_begins_to_count(family, fields, tmp_path):
    entry, model = FAMILIES[family], stock(family, "Model", **fields)
    tensors = dict(zip(canonical(family, model.state_dict()), model.state_dict().values(), strict=True))
    tables = entry.position_tables(entry.head("Model"))
    longest = model.config.max_position_embeddings
    config = model.config.to_dict()
    rows = entry.special_rows(config)
    assert {len(tensors[table]) for table in tables} == {longest + rows - entry.special_positions(config)}
    assert entry.longest(config) == 64
    source = save_tiny(tmp_path / "source", family, "Model", **fields)
    ids = torch.arange(5, 69)[None]  # the 64 tokens that it takes
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if family in ENCODER_DECODERS else {})}
    for table in tables:
        model = type_of(family, "Model").from_pretrained(source).eval()
        before = model(**inputs).last_hidden_state
        with torch.no_grad():
            model.get_parameter(table)[:rows] += 1
            assert torch.equal(model(**inputs).last_hidden_state, before)
            model.get_parameter(table)[rows] += 1
            assert not torch.equal(model(**inputs).last_hidden_state, before)


@pytest.mark.parametrize(("family", "head"), daily(DAILY, of=HEADS))
def test_a_bin_with_the_whole_state_dict_converts_with_and_without_prefix(family, head, tmp_path):
    entry = FAMILIES[family]
    source = save_tiny(tmp_path / "source", family, head, safetensors=False)
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    own = {name: tensor for name, tensor in state.items() if not entry.is_head_weight(name)}
    other = {
        f"{entry.prefix}.{name}" if head == "Model" else name.removeprefix(f"{entry.prefix}."): name for name in own
    }
    assert other.keys().isdisjoint(own)
    config = entry.read_config(tiny_config(family))
    declared = {weight.name for weight in entry.weights(config, entry.head(head))}
    for folder, renamed in (
        ("as saved", state),
        ("other", {**state, **{new: state[old] for new, old in other.items()}}),
    ):
        if folder == "other":
            renamed = {name: tensor for name, tensor in renamed.items() if name not in own}
        write(source, renamed, form="bin")
        convert(source, tmp_path / folder)
        out = read(tmp_path / folder)
        added = {entry.global_embeddings, *([global_bias(entry)] if entry.score_bias else [])}
        added = set() if entry.part(entry.head(head)) else added
        assert set(canonical(family, out)) == declared | added
        for name, tensor in out.items():
            assert name.startswith(f"{entry.prefix}.") == (head != "Model" and not entry.is_head_weight(name)), name
            if not name.endswith((*entry.position_tables(entry.head(head)), *added)):
                assert bits(tensor) == bits(state[name]), name


# What is unusual enough to be converted, verified and loaded beside every plain head.
UNUSUAL = [
    ("bert", "LMHeadModel", "cross-attention"),
    ("electra", "ForMaskedLM", "untied"),
    ("roberta", "ForCausalLM", "cross-attention"),
    ("xlm-roberta-xl", "ForCausalLM", "cross-attention"),
    ("ernie", "ForPreTraining", "no task types"),
    ("rembert", "ForCausalLM", "cross-attention"),
    ("xmod", "ForCausalLM", "cross-attention"),
    ("xmod", "ForMaskedLM", "norms first"),
    ("xmod", "ForMaskedLM", "residual first"),
    ("electra", "ForMaskedLM", "one size"),
    ("electra", "ForMultipleChoice", "no summary"),
    ("distilbert", "ForMaskedLM", "untied"),
    ("distilbert", "ForMaskedLM", "chunks"),
    ("albert", "ForPreTraining", "groups"),
    ("albert", "ForMaskedLM", "untied"),
    ("bart", "ForConditionalGeneration", "untied"),
    ("mbart", "ForCausalLM", "untied"),
    ("t5", "Model", "other feed-forward"),
]
EVERY = [*((*pair, "plain") for pair in HEADS), *UNUSUAL]
COMMON = [*((*pair, "plain") for pair in DAILY), UNUSUAL[0]]
each = pytest.mark.parametrize(("family", "head", "variant"), daily(COMMON, of=EVERY), ids=lambda value: value)
together = pytest.mark.xdist_group("families")  # they share the repos and the processes


@pytest.fixture(scope="session")
def cells(request) -> list[tuple[str, str, str]]:
    """The cells to make: all of them where a nightly test is selected."""
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    return EVERY if any(item.get_closest_marker("nightly") for item in ours) else COMMON


@pytest.fixture(scope="session")
def repos(cells, tmp_path_factory):
    """Jobs by name, each a tiny source, converted by the command line."""
    folder = tmp_path_factory.mktemp("families")
    jobs = []
    for family, head, variant in cells:
        job = matrix.make_job(folder, family, head, variant, **variants(family, head)[variant])
        jobs.append({**job, "in_memory": head == FAMILIES[family].default_head and variant == "plain"})
    return {job["name"]: job for job in jobs}


@pytest.fixture(scope="session")
def verified(repos, tmp_path_factory):
    return matrix.run_jobs(list(repos.values()), tmp_path_factory.mktemp("verified"))


@together
@each
def test_every_promise_holds(family, head, variant, verified):
    results = verified[matrix.name_of(family, head, variant)]
    alone = FAMILIES[family].part(FAMILIES[family].head(head))  # a decoder, which keeps its attention
    promised = {check.name for check in LSG.checks} - ({"equal_to_formula"} if alone else set())
    assert results.keys() - {"same_in_memory"} == promised | {"runs", "trains"}
    assert not any(results.values()), results


@together
@pytest.mark.nightly
def test_the_docs_have_the_matrix_of_these_results(verified):
    assert blocks(matrix.PAGE.read_text(encoding="utf-8"))["matrix"] == matrix.table(matrix.rows(verified)), (
        "run `make matrix`"
    )


@together
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_becomes_what_the_command_makes(family, verified):
    assert verified[f"{family}-{FAMILIES[family].default_head}-plain"]["same_in_memory"] == ""


@pytest.fixture(scope="session", params=[FOUR])
def loaded_elsewhere(request, cells, repos, verified, tmp_path_factory):
    autos = {(family, head.suffix): head.auto for family in FAMILIES for head in FAMILIES[family].heads}
    jobs = []
    for family, head, variant in cells:
        name = matrix.name_of(family, head, variant)
        case = {"name": name, "file": repos[name]["case"], "auto_class": autos[family, head], "has_pooler": True}
        jobs.append({"repo": repos[name]["repo"], "cases": [case]})
    return run_worker(jobs, tmp_path_factory.mktemp("elsewhere"), request.param)


@together
@each
def test_both_versions_give_the_same(family, head, variant, loaded_elsewhere):
    name = matrix.name_of(family, head, variant)
    assert not faults({name: loaded_elsewhere[name]}, tolerance=1e-5)  # two loads, and sums in another order


@pytest.mark.nightly
def test_the_command_verifies_what_it_makes(tmp_path):
    """For one family: the others' conversions are verified by test_targets."""
    source = save_tiny(tmp_path / "source", "distilbert", FAMILIES["distilbert"].default_head)
    script = Path(sys.executable).with_name("effconv")
    run = subprocess.run(
        [script, "lsg", source, "--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=stranger(tmp_path),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    checks = json.loads(run.stdout)["checks"]
    held = [check["name"] for check in checks if check["passed"]]
    assert held == [check.name for check in LSG.checks if check.name != "same_embedding"]
