"""Every option of every target acts or is refused: a table names values to try, and what is in no table fails.

A value acts where the repo's weights or code differ from those without it, or its config does and the model's outputs
with it. What acts only beside another option is tried beside it; alone it is refused, or its help says where it acts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from functools import cache

import huggingface_hub
import pytest
import torch
import transformers
from bigs_goldens import ROOT, to_torch
from places import TESTS

import effconv
from effconv.convert.errors import EffconvError
from effconv.convert.options import Settings, default_of
from effconv.targets.registry import TARGETS, target_named
from tiny import save_tiny

torch.set_num_threads(1)
CASE = "mlm_tied_L37"  # of the recorded BiGS checkpoints
TEXT = "the river of words and the sea to which it runs is in a land that was far from here\n"


@dataclass(frozen=True)
class Try:
    """A value to try.

    Attributes:
        beside: other options that it needs. source: of `sources`, where the target's usual one will not do.
        alone: what happens to the value without `beside` and on the usual source: "refused" ("" where it acts there
            too), or a word of its help that says where it acts.
    """

    value: object
    beside: dict = field(default_factory=dict)
    source: str = ""
    alone: str = ""


@dataclass(frozen=True)
class Refused:
    """A value that such a target or source has no use for, so that it is refused, with words of the reason."""

    value: object
    words: str
    beside: dict = field(default_factory=dict)
    source: str = ""


def tries(*values):
    return [Try(value) for value in values]


# Options of the conversion that every other is compared with; texts are files of the fixture.
BASE = {
    "lsg": {"max_length": 160, "block_size": 16, "sparse_block_size": 16},
    "linformer": {"max_length": 160, "proj_dim": 16},
    "lambda": {"max_length": 160, "key_depth": 4, "local_context": 5, "calibrate": "one"},
    "lambda-published": {"max_length": 160, "key_depth": 4, "local_context": 5, "groups": "1"},
    "transnormer": {"max_length": 160, "block_size": 16, "calibrate": "one"},
    "jax2torch": {},
    "torch2jax": {},
    "bigs": {},
}
SOURCES = {"jax2torch": "jax", "torch2jax": "torch", "bigs": "torch"}  # bert for the others
RESIZED = {"max_length": 50}
BIGS_STATES = {"layer_gelu": "tanh", "mask_mode": "pooler"}  # the recorded source's, which leave nothing to see
BIGS_OPTIONS = {
    "max_length": tries(50),
    "positions": [Try("interpolate", RESIZED, alone="refused")],
    "layer_gelu": tries("erf"),
    "mask_mode": tries("inert"),
}
UNTYPED = Refused(False, "no token type", source="roberta")
KEPT = "but the source's are kept"
TABLE = {
    "lsg": {
        "max_length": tries(128),
        "block_size": tries(32),
        "sparse_block_size": tries(0, 8),
        "sparsity_factor": tries(4),
        "sparsity_type": tries("none", "lsh", "pooling", "stride", "block_stride", "bos_pooling"),
        "num_global_tokens": tries(0, 3),
        "mask_first_token": [*tries(True), Refused(True, "needs a global token", {"num_global_tokens": 0})],
        "pool_with_global": [
            *tries(False),
            Refused(False, "must be returned in its place", {"mask_first_token": True}),
        ],
        "pass_global_tokens_to_decoder": [Try(False, source="bart", alone="refused")],
        "global_init": [*tries("random"), Refused("random", KEPT, source="lsg")],
        "global_positional_stride": [*tries(32), Refused(32, KEPT, source="lsg")],
        "positions": [*tries("interpolate"), Refused("interpolate", "both take", {"max_length": 64})],
        "reset_global_tokens": [Try(True, source="lsg", alone="refused")],
        "keep_first_global_token": [Try(True, source="lsg", alone="refused")],
        "use_token_ids": [*tries(False), Refused(False, KEPT, source="lsg"), UNTYPED],
        "adaptive": tries(False),
        "lsh_num_pre_rounds": [Try(2, {"sparsity_type": "lsh"}, alone="lsh")],
        "causal_globals": [Try("published", {"num_global_tokens": 2}, source="decoder", alone="decoder")],
        "bos_pooling_padding": [Try("published", {"sparsity_type": "bos_pooling"}, alone="bos_pooling")],
        "decoder_first_token": [Try("published", {"mask_first_token": True}, source="bart", alone="refused")],
        # Forms give the same outputs, on other devices: nothing to see here.
        "attention_form": "test_lsg_devices.py::test_a_conversion_states_the_form_in_config_and_manifest_and_verifies",
    },
    "linformer": {
        "max_length": tries(128),
        "proj_dim": tries(8),
        "sharing": tries("heads", "layers", "none"),
        "init": tries("mean", "strided", "gaussian", "truncated-normal", "xavier"),
        "weighting": tries("salience"),
        "mask_mode": tries("published"),
        "projection_bias": [Try(True, {"mask_mode": "published"}, alone="refused")],
    },
    "lambda": {
        "max_length": tries(128),
        "local_context": tries(0, 7),
        "key_depth": tries(6),
        "intra_depth": tries(2),
        "groups": [Try("1", {"calibrate": ()}, alone="refused")],
        "num_lambda_queries": [Try(2, {"groups": "1", "calibrate": ()}, alone="refused")],
        "position_std": [Try(1.0, {"groups": "1", "calibrate": ()}, alone="refused")],
        "calibrate": tries("other"),
    },
    "lambda-published": {
        "max_length": tries(128),
        "local_context": tries(0, 7),
        "key_depth": tries(6),
        "intra_depth": tries(2),
        "groups": tries("heads"),
        "num_lambda_queries": tries(2),
        "position_std": tries(1.0),
        "calibrate": [Refused("one", "published layer is not fitted")],
    },
    "transnormer": {
        "max_length": tries(128),
        "variant": tries("t1"),
        "block_size": [*tries(32), Refused(32, "with this --diag-layers no layer", {"diag_layers": "0"})],
        "diag_layers": tries("2", "1,1"),
        "norm": [
            *tries("rmsnorm", "gatedrmsnorm", "layernorm"),
            Refused("layernorm", "with this --diag-layers no layer", {"diag_layers": "2"}),
        ],
        "ffn": tries("glu"),
        "position_encoding": tries("lrpe", "rotary"),
        "calibrate": tries("other"),
        "mask_mode": tries("published"),
        # Only of new models; a conversion refuses it.
        "layer_order": "test_new.py::test_each_layer_of_an_arena_model_is_local_then_linear_then_feed_forward",
    },
    "jax2torch": BIGS_OPTIONS,
    "torch2jax": BIGS_OPTIONS,
    "bigs": BIGS_OPTIONS,
}
# Of every conversion: values to try on LSG, or the test that shows what a setting does elsewhere.
SETTINGS = {
    "output": "test_promises.py::test_an_old_output_stays_until_the_new_one_is_complete",
    "architecture": tries("Model", "ForSequenceClassification", "LMHeadModel"),
    "seed": [Try(7, {"global_init": "random"}, alone="new tensors")],
    "dtype": [*tries("float16", "bfloat16"), Try("float32", source="half")],
    "drop": "test_wrappers.py::test_tensors_are_left_behind_on_request",
    "max_shard_size": tries("20KB"),
    "overwrite": "test_staging.py::test_without_overwrite_a_full_output_is_refused_also_when_it_appears_late",
    "verify": "test_targets.py::test_a_conversion_passes_its_checks",
    "keep_failed": "test_failed.py::test_the_failed_repo_is_kept_under_a_name_that_says_so",
    "revision": "test_hub_sources.py::test_a_revision_is_pinned",
    "token": "test_options_act.py::test_a_token_reaches_the_hubs_client",
    "offline": "test_hub_sources.py::test_offline_reads_the_cache_and_opens_no_socket",
    "allow_pickle": "test_reader.py::test_allow_pickle_loads_what_only_a_full_unpickling_can",
    "trust_remote_code": "test_asked_for.py::test_trusted_code_is_what_the_repo_is_compared_with",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The folder of a source or text by name, made once."""
    folder = tmp_path_factory.mktemp("sources")

    @cache
    def make(name):
        place = folder / name
        if name in ("one", "other"):
            place.write_text(TEXT * 25 if name == "one" else TEXT[::-1] * 25)
        elif name in ("bert", "roberta", "bart"):
            head = "ForConditionalGeneration" if name == "bart" else "ForMaskedLM"
            save_tiny(place, name, head, 64)
        elif name == "decoder":
            save_tiny(place, "bert", "LMHeadModel", 64, is_decoder=True)
        elif name == "half":
            effconv_source = transformers.BertForMaskedLM.from_pretrained(make("bert")).half()
            effconv_source.save_pretrained(place)
            transformers.AutoTokenizer.from_pretrained(make("bert")).save_pretrained(place)
        elif name == "lsg":  # with globals of its own, which no rule makes again
            effconv.convert(make("bert"), "lsg", output=place, verify=False, global_init="random", **BASE["lsg"])
        elif name == "jax":
            return ROOT / CASE
        elif name == "torch":
            return to_torch(CASE, place)
        return place

    return make


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """What a conversion makes of a source with these options (and settings), once for the same ones."""
    folder, known = tmp_path_factory.mktemp("repos"), {}

    def make(target, source, options):
        key = json.dumps([target, source, options], sort_keys=True, default=str)
        if key not in known:
            known[key] = converted(target, sources(source), readable(options, sources), folder / str(len(known)))
        if isinstance(known[key], EffconvError):
            raise known[key]
        return known[key]

    return make


def readable(options, sources):
    texts = options.get("calibrate")
    return {**options, **({"calibrate": (sources(texts),)} if texts else {})}


def converted(target, source, options, output):
    command = TARGETS[target].command or target
    try:
        return effconv.convert(source, command, output=output, **{"verify": False, **options}).output
    except EffconvError as error:
        return error


def usual_source(target):
    return SOURCES.get(target, "bert")


def stored(repo):
    """Hashes of all files but config.json, and those in which the options stand whether or not they act."""
    said = ("effconv.json", "README.md", "config.json")
    files = sorted(path for path in repo.rglob("*") if path.is_file() and path.name not in said)
    return {path.relative_to(repo).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outputs(repo):
    """What the model gives for texts of two lengths, one of them padded; or why it does not."""
    config = json.loads((repo / "config.json").read_text())
    auto = json.loads((repo / "effconv.json").read_text())["auto"]
    model = getattr(transformers, auto).from_pretrained(repo, trust_remote_code=True).eval()
    found = []
    for length in (28, 40, 100):
        if length > config["max_position_embeddings"] - 2:
            continue
        ids = torch.randint(10, 60, (2, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        mask[0, 0] = 0  # a first token that is masked, as decoder_first_token has it
        ids[:, -1] = config.get("eos_token_id") or ids[:, -1]
        more = {"decoder_input_ids": ids} if config.get("is_encoder_decoder") else {}
        try:
            with torch.no_grad():
                given = model(input_ids=ids, attention_mask=mask, **more)
        except ValueError as error:
            found.append(str(error))
        else:
            found += [value for value in given.values() if isinstance(value, torch.Tensor)]
    return found


def differ(one, other):
    """Whether two repos differ in what they store or, where that is their config alone, in what they give."""
    if stored(one) != stored(other):
        return True
    configs = [json.loads((repo / "config.json").read_text()) for repo in (one, other)]
    for config in configs:
        del config["effconv"]  # where the options stand as in the manifest
    if configs[0] == configs[1] or "auto_map" not in configs[0]:  # JAX repos are not run here
        return configs[0] != configs[1]
    return any(unequal(*pair) for pair in zip(outputs(one), outputs(other), strict=True))


def unequal(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) != isinstance(other, str)
    return one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=1e-6)


def fields_of(target):
    return {field.name: field for field in dataclasses.fields(TARGETS[target].options)}


def choices(options, name):
    """The values that an option's type names; () where it may be anything."""
    kind = typing.get_type_hints(options)[name]
    kinds = [kind, *typing.get_args(kind)]
    return next((typing.get_args(part) for part in kinds if typing.get_origin(part) is typing.Literal), ())


CASES = [
    pytest.param(target, name, case, id=f"{target}-{name}-{getattr(case, 'words', '') and 'no-'}{case.value}")
    for target, options in TABLE.items()
    for name, cases in options.items()
    if not isinstance(cases, str)
    for case in cases
]
CASES += [
    pytest.param("lsg", name, case, id=f"settings-{name}-{case.value}")
    for name, cases in SETTINGS.items()
    if not isinstance(cases, str)
    for case in cases
]


@pytest.mark.parametrize(("target", "name", "case"), CASES)
def test_a_value_acts_or_is_refused(target, name, case, made):
    usual, source = BASE[target], case.source or usual_source(target)
    beside = {**usual, **case.beside}
    if isinstance(case, Refused):
        with pytest.raises(EffconvError, match=case.words):
            made(target, source, {**beside, name: case.value})
        return
    assert differ(made(target, source, beside), made(target, source, {**beside, name: case.value}))
    if not case.alone:
        return
    alone = {**usual, name: case.value}
    if case.alone == "refused":
        with pytest.raises(EffconvError):
            made(target, usual_source(target), alone)
    else:
        kind = Settings if name in SETTINGS else TARGETS[target].options
        said = next(field.metadata["help"] for field in dataclasses.fields(kind) if field.name == name)
        assert case.alone in said
        assert made(target, usual_source(target), alone)


def require_test(named):
    """That a test of this name is in this folder."""
    file, _, function = named.partition("::")
    assert f"def {function}(" in next(TESTS.rglob(file)).read_text(), named


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_is_in_the_table_with_every_choice_or_has_a_test_of_its_own(target):
    assert set(TABLE[target]) == set(fields_of(target))
    options = TARGETS[target].options
    for name, cases in TABLE[target].items():
        assert cases, name
        if isinstance(cases, str):
            require_test(cases)
            continue
        usual = {default_of(fields_of(target)[name]), BASE[target].get(name), BIGS_STATES.get(name)}
        assert set(choices(options, name)) <= {case.value for case in cases} | usual, name


def test_every_setting_is_in_the_table_with_every_choice_or_has_a_test_of_its_own():
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(Settings)}
    for name, how in SETTINGS.items():
        if isinstance(how, str):
            require_test(how)
        else:
            assert set(choices(Settings, name)) <= {case.value for case in how}, name


def test_every_target_has_a_table():
    assert set(TABLE) == set(TARGETS) == set(BASE)
    for target, options in BASE.items():
        values = {key: value for key, value in options.items() if key != "calibrate"}
        chosen = TARGETS[target].options(**values)
        assert target_named(TARGETS[target].command or target, chosen).name == target


def test_a_token_reaches_the_hubs_client(monkeypatch):
    seen = []

    def client(token):
        seen.append(token)
        raise OSError("that is all")

    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(EffconvError, match="that is all"):
        effconv.plan("me/gated", "lsg", token="hf_mine")
    assert seen == ["hf_mine"]
