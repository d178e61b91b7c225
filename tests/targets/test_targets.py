"""Every target on every family: conversions pass their checks, and the repos do what a transformers model does.

Repos are loaded in fresh processes that cannot import effconv, on both versions of transformers. What LSG promises
beside is in test_lsg_model and test_lsg_parity.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from environments import FIVE, FOUR_NIGHTLY, strangers_output
from places import SUPPORT
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert.errors import EffconvError
from effconv.convert.families.registry import FAMILIES
from effconv.targets.registry import TARGETS
from tiny import save_tiny

WORKER = SUPPORT / "target_worker.py"
TOKENS = 160
SMALL = {
    "lsg": {"block_size": 16},
    "linformer": {"proj_dim": 16},
    "lambda": {"key_depth": 4, "local_context": 5},
    "lambda-published": {"key_depth": 4, "local_context": 5, "intra_depth": 2},
    "transnormer": {"block_size": 16},
}


def small(target, family, options=()):
    """Options of a small conversion, but for the block size where no layer has blocks: it is refused there."""
    no_blocks = target == "transnormer" and (family == "albert" or dict(options).get("diag_layers") == "0")
    return {} if no_blocks else SMALL.get(target, {})


GLU = {"ffn": "glu", "position_encoding": "lrpe"}
DECODERS = [("bert", "LMHeadModel"), ("roberta", "ForCausalLM"), ("electra", "ForCausalLM")]
# Options beside the small ones, each on a family: what a target can do in more than one way.
VARIANTS = {
    "linformer": [
        ("bert", {"sharing": "heads", "max_length": 40}),
        ("electra", {"sharing": "none"}),
        ("roberta", {"sharing": "layers"}),
        ("albert", {"sharing": "layers", "weighting": "salience"}),
        ("distilbert", {"init": "gaussian", "dtype": "float16"}),
    ],
    "lambda": [
        ("bert", {"local_context": 0, "max_length": 40}),
        ("albert", {"intra_depth": 2}),
        ("distilbert", {"local_context": 1, "dtype": "bfloat16"}),
    ],
    "lambda-published": [("bert", {"local_context": 0})],
    "transnormer": [
        *((family, GLU) for family in TARGETS["transnormer"].families),
        ("bert", {"variant": "t1", "norm": "gatedrmsnorm", "max_length": 40}),
        ("electra", {"variant": "t1", "norm": "layernorm", "diag_layers": "0"}),
        ("distilbert", {"position_encoding": "rotary", "norm": "rmsnorm", "diag_layers": "2", "variant": "t1"}),
        ("roberta", {"dtype": "bfloat16", "diag_layers": "0,1"}),
    ],
}
DENSE = {name: target for name, target in TARGETS.items() if target.brings is None}  # the others: test_bigs_*
PAIRS = [(target, family) for target in DENSE.values() for family in target.families]
# Families whose code differs in kind: with every change. The others, which differ from these in names, nightly.
DAILY = {"bert", "distilbert", "albert", "xlm-roberta-xl", "bart", "t5"}


def main_head(family):
    """Masked LM, or what takes its place where there is a decoder."""
    heads = [head.suffix for head in FAMILIES[family].heads]
    return "ForMaskedLM" if "ForMaskedLM" in heads else FAMILIES[family].default_head


each_pair = pytest.mark.parametrize(
    ("target", "family"),
    [pytest.param(t.name, f, id=f"{t.name}-{f}", marks=pytest.mark.xdist_group(f"target-{t.name}")) for t, f in PAIRS],
)
verified_pair = pytest.mark.parametrize(
    ("target", "family"),
    [
        pytest.param(
            t.name,
            f,
            id=f"{t.name}-{f}",
            marks=[pytest.mark.xdist_group(f"target-{t.name}"), *([] if f in DAILY else [pytest.mark.nightly])],
        )
        for t, f in PAIRS
    ],
)
LINEAR = [pytest.param(name, marks=pytest.mark.xdist_group(f"target-{name}")) for name in DENSE if name != "lsg"]
each_target = pytest.mark.parametrize(
    "target", [pytest.param(name, marks=pytest.mark.xdist_group(f"target-{name}")) for name in DENSE]
)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Makes the tiny source of a family and head, once."""
    folder = tmp_path_factory.mktemp("sources")

    @cache
    def make(family, head="ForMaskedLM", **config):
        name = f"{family}-{head}-{len(config)}"
        return save_tiny(folder / name, family, head, 64, **config)

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of the tiny models' words for the targets that are fitted."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the river of words and the sea to which it runs is in a land that was far from here\n" * 25)
    return path


@pytest.fixture(scope="session")
def convert(source, text, tmp_path_factory):
    """Converts a tiny source, once for the same arguments; what it verifies, it verifies in forks."""
    folder = tmp_path_factory.mktemp("repos")

    @cache
    def run(target, family, head=None, verify=False, decoder=False, options=()):
        head = head or main_head(family)
        made = source(family, head, **({"is_decoder": True} if decoder else {}))
        chosen = {"max_length": TOKENS, **small(target, family, options), **dict(options)}
        if TARGETS[target].calibration:
            chosen["calibrate"] = (text,)
        name = "-".join([target, family, head, *(f"{key}_{value}" for key, value in options)])
        return effconv.convert(made, target, output=folder / name, verify=verify, **chosen)

    return run


def job_of(result, **more):
    config = json.loads((result.output / "config.json").read_text())
    target = TARGETS[result.manifest["target"]]
    return {
        "name": result.output.name,
        "repo": str(result.output),
        "auto": result.manifest["auto"],
        "autos": [auto for auto in config["auto_map"] if auto != "AutoConfig"],
        "tokens": result.manifest["max_length"],
        "causal": target.causal or target.emits is not None,
        "dtype": config["dtype"],
        **more,
    }


@pytest.fixture(scope="session")
def chosen(request):
    """The families to make repos of: all of them where a nightly test of this file is selected."""
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    return FAMILIES if any(item.get_closest_marker("nightly") for item in ours) else DAILY


def jobs_of(target, convert, chosen):
    families = [family for family in TARGETS[target].families if family in chosen]
    heads = ("Model", "ForSequenceClassification", "ForQuestionAnswering")
    jobs = [job_of(convert(target, family, verify=True)) for family in families]
    jobs += [job_of(convert(target, family, heads[i % 3]), autos=[]) for i, family in enumerate(families)]
    for family, options in VARIANTS.get(target, ()):
        if family not in chosen:
            continue
        more = {"equals": str(convert(target, family, verify=True).output)} if options is GLU else {}
        jobs.append(job_of(convert(target, family, options=tuple(options.items())), autos=[], **more))
    if target == "transnormer":
        jobs += [job_of(convert(target, *pair, decoder=True), autos=[], decoder=True) for pair in DECODERS]
    return jobs


@verified_pair
def test_a_conversion_passes_its_checks(target, family, convert):
    result = convert(target, family, verify=True)
    assert result.measured
    assert all(check.passed is not False for check in result.measured)
    assert {check.name for check in result.measured if check.passed} >= {"equal_to_formula", "saved_again_equal"}
    assert not result.findings
    assert result.manifest["measurements"]["fidelity"]


@pytest.mark.parametrize("python", [FIVE, FOUR_NIGHTLY])
@pytest.mark.parametrize("target", LINEAR)
def test_repos_do_what_a_model_does(target, python, convert, chosen, tmp_path, subtests):
    job = {
        "repos": jobs_of(target, convert, chosen),
        "save": str(tmp_path / "saved"),
        "results": str(tmp_path / "results"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    strangers_output(WORKER, tmp_path / "job.json", folder=tmp_path, python=python)
    for repo, faults in json.loads((tmp_path / "results").read_text()).items():
        for check, fault in faults.items():
            with subtests.test(f"{repo}: {check}"):
                assert not fault, fault


@each_pair
def test_every_head_is_planned_or_refused(target, family, source):
    for head in FAMILIES[family].heads:
        made = source(family, head.suffix)
        if TARGETS[target].takes(FAMILIES[family], head, {}) and TARGETS[target].keeps(head):
            plan = effconv.plan(made, target, max_length=TOKENS, **small(target, family))
            assert plan.family == family
            assert {row.action for row in plan.rows} <= {"copy", "rename", "tile", "derive", "new", "drop"}
            assert all(row.why for row in plan.rows if row.action in ("new", "drop"))
        else:
            with pytest.raises(EffconvError, match=r"see later tokens|choose the head to emit") as refused:
                effconv.plan(made, target, max_length=TOKENS, **small(target, family))
            assert refused.value.exit_code == 3


@pytest.mark.parametrize("target", [name for name, target in DENSE.items() if not target.causal])
def test_a_decoder_is_refused_where_all_positions_are_mixed(target, source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(EffconvError, match="see later tokens") as refused:
        effconv.convert(source("bert", is_decoder=True), target, max_length=TOKENS, output=out, **small(target, "bert"))
    assert refused.value.exit_code == 3
    assert not out.exists()


COMMANDS = {
    "as many rows as positions": (
        2,
        "--proj-dim must be smaller than the length 160, got 160",
        ["linformer", "--proj-dim", "160"],
    ),
    "no room for rows": (2, "at least 3", ["linformer", "--proj-dim", "2"]),
    "bias without published masks": (2, "--projection-bias", ["linformer", "--projection-bias"]),
    "an even window": (2, "must be odd", ["lambda", "--local-context", "4"]),
    "no landmarks": (2, "--key-depth must be", ["lambda", "--key-depth", "0"]),
    "no block": (2, "--block-size must be", ["transnormer", "--block-size", "0"]),
    "too many diag layers": (2, "only 2 layers, got 3", ["transnormer", "--diag-layers", "3"]),
    "no such diag layer": (2, "no layer 7", ["transnormer", "--diag-layers", "0,7"]),
    "no layers": (2, "--diag-layers must be", ["transnormer", "--diag-layers", "all"]),
    "no such choice": (2, "t3", ["transnormer", "--variant", "t3"]),
    "no calibration file": (4, "cannot read the text", ["lambda", "--calibrate", "nowhere.txt"]),
    "a folder to calibrate on": (4, "cannot read the text", ["transnormer", "--calibrate", "."]),
    "the second calibration file": (4, "nowhere.txt: No such", ["lambda", "--calibrate", __file__, "nowhere.txt"]),
    "a calibration file that is not needed yet": (
        4,
        "cannot read the text",
        ["lambda", "--plan", "--calibrate", "nowhere"],
    ),
    "a file without its option": (2, "unexpected argument stray.txt", ["transnormer", "stray.txt"]),
    "a fit of what is not fitted": (2, "not fitted", ["lambda", "--groups", "1", "--calibrate", __file__]),
    "a causal head": (3, "see later tokens", ["linformer", "--proj-dim", "16", "--architecture", "LMHeadModel"]),
}


def in_process(*arguments):
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    raised = run.exception if isinstance(run.exception, EffconvError) else None
    return (raised.exit_code if raised else run.exit_code), run.output + (str(raised) if raised else "")


@pytest.mark.parametrize("name", COMMANDS)
def test_what_makes_no_sense_is_refused(name, source, tmp_path):
    wanted, words, arguments = COMMANDS[name]
    out = tmp_path / "out"
    code, said = in_process(arguments[0], source("bert"), *arguments[1:], "--max-len", TOKENS, "-o", out)
    assert (code, words in said) == (wanted, True), said
    assert not out.exists()


@each_target
def test_heads_that_do_not_divide_the_width_are_refused(target, tmp_path):
    made = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", 64)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    with pytest.raises(
        EffconvError, match="hidden_size must be a multiple of num_attention_heads, got 32 and 5"
    ) as refused:
        effconv.plan(made, target, max_length=TOKENS, **small(target, "bert"))
    assert refused.value.exit_code == 4


def test_pairs_of_channels_need_an_even_head(tmp_path):
    made = save_tiny(tmp_path / "source", "bert", "ForMaskedLM", 64, hidden_size=36)
    with pytest.raises(EffconvError, match="even head size, and the heads of this source have 9") as refused:
        effconv.plan(made, "transnormer", max_length=TOKENS, position_encoding="rotary")
    assert refused.value.exit_code == 2


@each_target
def test_a_shorter_model_says_which_positions_it_drops(target, source):
    plan = effconv.plan(source("bert"), target, max_length=40, **small(target, "bert"))
    row = next(row for row in plan.rows if row.target and row.target.endswith("position_embeddings.weight"))
    assert row.shape[0] == 40
    assert "drops the last 24 of 64 positions" in row.why


@each_target
def test_the_card_and_the_manifest_describe_the_repo(target, convert, source):
    repo = convert(target, "bert", verify=True).output
    card, manifest = (repo / "README.md").read_text(), json.loads((repo / "effconv.json").read_text())
    assert manifest["target"] == target
    assert (manifest.get("calibration", {}).get("text") == "text.txt") is bool(TARGETS[target].calibration)
    assert str(repo.parent) not in card + json.dumps(manifest)
    assert "trust_remote_code=True" in card
    assert "{{" not in card
    for check in TARGETS[target].checks:
        assert check.says in card


@pytest.mark.parametrize("target", ["linformer", "transnormer"])
def test_a_repo_is_verified_again_against_its_source(target, convert, source):
    repo = convert(target, "bert", verify=True).output
    measured = {check.name: check for check in effconv.verify(repo, against=source("bert"))}
    left_out = {name for name, check in measured.items() if not check.passed}
    assert left_out == {"same_embedding"}  # no sentence encoder
    if target == "linformer":
        assert measured["equal_to_source"].value <= 1e-5
