"""The command line as people type it: results on stdout, progress on stderr, JSON that parses, answers at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import read_json, snapshot
from tiers import daily
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.commands import CONVERTING
from effconv.convert.families.registry import FAMILIES
from effconv.report.console import WORDS
from effconv.targets.registry import TARGETS
from tiny import save_tiny, save_tiny_sentence_encoder

EFFCONV = Path(sys.executable).with_name("effconv")
HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "jinja2", "yaml", "tokenizers", "rich"}
SMALL = ("--max-len", "128", "--block-size", "16", "--sparse-block-size", "16", "--no-verify")
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("cli") / "source")


def effconv_(*words, cwd=None, **environment):
    """The installed command; it must succeed unless `code` says otherwise."""
    code = environment.pop("code", 0)
    run = subprocess.run(
        [EFFCONV, *map(str, words)],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lsg", ".", "--max-len", "abc"], "is not a"),  # "a valid integer" of Typer 0.26
        (["lsg", ".", "--max-len", "0"], "error: --max-len must be an integer from 1"),
        (["lambda", ".", "--local-context", "4"], "error: --local-context must be odd"),
        (["lsg", ".", "--max-shard-size", "5X"], "error: '5X' is not a size"),
        (["adapt", ".", "--objective", "attentoin", "--data", "x"], "no effconv.json"),
    ],
)
def test_an_invalid_value_is_named_with_its_flag(words, says, tmp_path):
    run = effconv_(*words, code=4 if says.startswith("no ") else 2, cwd=tmp_path)
    assert says in run.stderr
    assert "Value error" not in run.stderr
    assert "Input should" not in run.stderr


def test_quiet_prints_the_result_and_no_progress(source, tmp_path):
    run = effconv_("lsg", source, "-q", "-o", tmp_path / "quiet", *SMALL)
    assert run.stderr == ""
    assert "quiet" in run.stdout


def test_help_lists_the_commands_and_each_has_help_of_its_own():
    text = effconv_("--help").stdout
    for command in ("lsg", "inspect", "verify", "targets", "families"):
        assert re.search(rf"^\W*{command}\b", text, re.MULTILINE), command
    lsg = effconv_("lsg", "-h", COLUMNS="200").stdout
    options = """--output -o --max-len --block-size --sparse-block-size --sparsity-factor --sparsity-type
        --num-global-tokens --mask-first-token --pool-with-global --no-pool-with-global --architecture --global-init
        --global-positional-stride --keep-first-global-token --positions --seed --dtype --max-shard-size --revision
        --token --offline --overwrite --no-verify --plan --json --allow-pickle --trust-remote-code"""
    assert [option for option in options.split() if not re.search(rf"(?<![\w-]){option}(?![\w-])", lsg)] == []
    assert "4096" in lsg
    adapt = effconv_("adapt", "-h", COLUMNS="200").stdout
    assert "[DATA]..." in adapt.splitlines()[0]  # several files after one --data
    assert adapt.startswith("Usage: effconv adapt [OPTIONS] REPO --data FILE [DATA]...\n")
    assert "More files for --data. Give them after it" in adapt
    assert "<list" not in adapt


def test_help_stands_under_headings_with_every_default_to_be_read():
    """As plain text, in which [default: ...] is no markup."""
    lines = effconv_("--help").stdout.splitlines()
    headings = ["Options:", "Convert:", "Train:", "Inspect and measure:", "Serve:", "Share on the Hub:"]
    assert [line for line in lines if line.endswith(":")] == headings
    for command in (*CONVERTING, "adapt", "push-to-hub", "refresh"):
        assert any(line.startswith(f"  {command} ") for line in lines), command
    lines = effconv_("lsg", "--help", COLUMNS="120").stdout.splitlines()
    headings = [line for line in lines if re.match(r"\S.*:$", line)]
    assert headings[:2] == ["Arguments:", "Options:"]
    assert headings[-1] == "Dangerous: only for sources you trust:"
    assert any("Hub access token. [default: HF_TOKEN, else the stored login]" in line for line in lines)
    assert "[default: your user name and the folder name]" in effconv_("push-to-hub", "--help", COLUMNS="120").stdout


def help_of(*words):
    """In one line, as it wraps."""
    return " ".join(CliRunner().invoke(app, [*words, "--help"]).stdout.split())


def test_help_names_the_default_folder_of_each_target():
    for name, row in CONVERTING.items():
        options = SimpleNamespace(max_length=128)
        made = TARGETS[name].folder("SOURCE", options, options)
        assert made == row.output.rpartition("or ")[2].partition(" ")[0].replace("LENGTH", "128") or not row.output
        assert bool(row.output) == (made != f"{name}-SOURCE-128")
        assert (row.output or "TARGET-SOURCE-LENGTH in the") in help_of(name).replace("- ", "-")  # as it wraps
        options = SimpleNamespace(max_length=None)
        usual = row.output.rpartition(", or ")[0].rpartition(" ")[2]
        assert not row.output or TARGETS[name].folder("SOURCE", options, options) == usual


def test_the_default_folder_of_bigs_repeats_no_ending():
    for length, folder in ((None, "BiGS_512-torch-bigs"), (1024, "BiGS_512-torch-1024")):
        options = SimpleNamespace(max_length=length)
        assert TARGETS["bigs"].folder("BiGS_512-torch", options, options) == folder


def test_usage_shows_the_files_behind_the_option_that_they_belong_to():
    assert "effconv bench [OPTIONS] MODEL... [--data FILE [FILE]...] " in help_of("bench")
    assert "effconv retrieval [OPTIONS] REPO... --data FILE [FILE]... " in help_of("retrieval")
    assert "effconv embed [OPTIONS] REPO --data FILE [DATA]... " in help_of("embed")
    assert "effconv pieces [OPTIONS] REPO [--data FILE [DATA]...] " in help_of("pieces")


def test_a_target_that_takes_another_family_is_named(source):
    with pytest.raises(effconv.EffconvError, match="effconv torch2jax does not take bert"):
        effconv.plan(source, "torch2jax")


def test_help_of_a_new_model_speaks_of_no_source_and_of_what_it_takes():
    bigs = help_of("new", "bigs")
    assert "the source's" not in bigs
    assert "[default: tanh, or the preset's]" in bigs
    assert "bigs is the only one" in bigs
    assert "--causal" not in bigs
    assert "--causal" in help_of("new", "lsg")
    refused = CliRunner().invoke(app, ["new", "bigs", "--vocab", "50", "--causal"])
    assert "bigs attention is never causal" in str(refused.exception)


def test_help_says_what_is_checked_how_files_are_read_and_what_is_measured():
    for command in ("embed", "eval", "pieces"):
        assert "those of other models are not checked" in help_of(command)
    for command in ("embed", "pieces"):
        assert "[default: the whole file, or each article of a file with headings" in help_of(command)
    assert "R@1 is the share of queries" in help_of("retrieval")
    assert "--offline Use no network: a push stops with an error" in help_of("push-to-hub")


def test_a_command_that_is_nearly_one_is_suggested():
    for word, meant in (("lgs", "lsg"), ("linfomer", "linformer"), ("push-hub", "push-to-hub"), ("verfy", "verify")):
        assert f"Did you mean '{meant}'" in effconv_(word, code=2).stderr


@pytest.mark.parametrize("words", [["--help"], ["lsg", "--help"], ["--version"], ["verify", "--help"]])
def test_help_imports_nothing_heavy(words):
    program = f"""
import sys
sys.argv = ["effconv", *{words}]
from effconv.cli import main
try:
    main()
finally:
    print(sorted({{name.split(".")[0] for name in sys.modules}} & {HEAVY}), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "[]", run.stderr


def test_version_is_the_packages():
    assert effconv_("--version").stdout == f"effconv {effconv.__version__}\n"


def test_completion_is_offered():
    assert "--install-completion" in effconv_("--help").stdout
    script = effconv_("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    assert "_EFFCONV_COMPLETE" in script


def test_a_conversion_says_what_it_made_on_stdout_and_how_far_it_is_on_stderr(source, tmp_path):
    run = effconv_("lsg", source, *SMALL, cwd=tmp_path)
    out = tmp_path / f"lsg-{source.name}-128"
    assert run.stdout.splitlines()[0] == str(out)
    assert "LSGBertForMaskedLM" in run.stdout
    assert "not verified" in run.stdout
    assert [line.split(":")[0] for line in run.stderr.splitlines()] == [
        WORDS[step] for step in ("source", "plan", "weights", "files", "manifest", "publish")
    ]
    assert ESCAPE not in run.stdout + run.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert f"{sum(row['nbytes'] for row in rows_of(out)):,} bytes" in run.stderr


def rows_of(out):
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        return [{"nbytes": file.get_tensor(name).nbytes} for name in file.keys()]  # noqa: SIM118 - it is no mapping


def test_the_json_of_a_conversion_is_all_of_stdout_and_parses(source, tmp_path):
    run = effconv_("lsg", source, "-o", "out", "--json", *SMALL, cwd=tmp_path)
    found = json.loads(run.stdout)
    assert found["output"] == str(tmp_path / "out")
    assert found["architecture"] == "LSGBertForMaskedLM"
    assert found["plan"] == {"copy": 41, "tile": 1, "derive": 1}
    assert found["checks"] is None
    assert found["findings"] == []


def test_the_plan_is_shown_and_nothing_is_written(source, tmp_path):
    before = snapshot(source)
    text = effconv_("lsg", source, "--plan", *SMALL, cwd=tmp_path).stdout
    assert "tile" in text
    assert "bert.embeddings.global_embeddings.weight" in text
    assert "bert.encoder.layer.0-1.attention.self.query.weight" in text  # the layers as one row
    assert "41 copy" in text
    found = json.loads(effconv_("lsg", source, "--plan", "--json", *SMALL, cwd=tmp_path).stdout)
    assert len(found["rows"]) == 43
    assert {"action", "sources", "target", "shape", "dtype", "operation", "why"} <= found["rows"][0].keys()
    assert not list(tmp_path.iterdir())
    assert snapshot(source) == before


def test_inspecting_says_what_a_source_is(tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source", "roberta")
    text = effconv_("inspect", source).stdout
    found = json.loads(effconv_("inspect", source, "--json").stdout)
    assert (found["family"], found["architecture"], found["head"]) == ("roberta", "RobertaModel", "Model")
    assert found["sentence_transformers"] is True
    assert found["max_length"] == 64
    assert found["dtypes"] == {"F32": found["parameters"]}
    assert found["bytes"] == 4 * found["parameters"]
    assert "lsg" in found["becomes"]
    assert all(word in text for word in ("roberta", "RobertaModel", "sentence-transformers", "64", "lsg"))


def test_inspecting_imports_no_torch(source, tmp_path):
    program = f"""
import sys
sys.argv = ["effconv", "inspect", {str(source)!r}]
from effconv.cli import main
try:
    main()
finally:
    print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "transformers"}}), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "[]"


def test_targets_and_families_are_listed():
    assert {row["name"] for row in json.loads(effconv_("targets", "--json").stdout)} == set(TARGETS)
    rows = {row["name"]: row for row in json.loads(effconv_("families", "--json").stdout)}
    assert set(rows) == {*FAMILIES, "bigs"}
    assert {"ForPreTraining", "ForMultipleChoice", "ForNextSentencePrediction"} <= set(rows["bigs"]["heads"])
    assert rows["bigs"]["becomes"] == ["jax2torch", "torch2jax", "bigs"]
    assert "ForMaskedLM" in rows["bert"]["heads"]
    assert "lsg" in rows["bert"]["becomes"]
    text = effconv_("targets").stdout
    assert all(name in text for name in TARGETS)
    text = effconv_("families").stdout
    assert all(name in text for name in FAMILIES)
    assert "lambda, lambda --groups 1, transnormer" in text  # as a command makes it, which no lambda-published does


@pytest.mark.parametrize(
    "words",
    [
        ["lsg"],
        ["nothing"],
        ["lsg", "x", "--max-len", "many"],
        ["lsg", "x", "--sparsity-type", "fancy"],
        ["lsg", "x", "--dtype", "float8"],
        ["lsg", "x", "--no-such-option"],
        ["lsg", "x", "y"],
        ["verify"],
        [],
    ],
)
def test_what_cannot_be_parsed_is_a_usage_error(words, tmp_path):
    run = effconv_(*words, cwd=tmp_path, code=2)
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


def test_colour_is_for_terminals_only(source, tmp_path):
    import pty

    def on_a_terminal(**environment):
        main, side = pty.openpty()
        clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "CI")}
        with subprocess.Popen(
            [EFFCONV, "lsg", source, "-o", "out", "--overwrite", *SMALL],
            cwd=tmp_path, env={**clean, "TERM": "xterm-256color", **environment}, stdout=side, stderr=side,
        ) as run:  # fmt: skip
            os.close(side)
            seen = b""
            while True:
                try:
                    part = os.read(main, 65536)
                except OSError:  # the other end was closed
                    break
                if not part:
                    break
                seen += part
        os.close(main)
        assert run.returncode == 0
        return seen.decode()

    colour = re.compile(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|38;5;\d+)m")
    assert colour.search(on_a_terminal())
    assert not colour.search(on_a_terminal(NO_COLOR="1"))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_is_no_traceback_and_stops_no_conversion(stream, source, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    run = subprocess.run([EFFCONV, "lsg", source, "-o", "out", *SMALL], cwd=tmp_path, check=False, **streams)
    os.close(writer)
    assert (tmp_path / "out" / "effconv.json").is_file()
    assert run.returncode == (141 if stream == "stdout" else 0)
    assert run.stderr is None or run.stderr.splitlines()[-1] == WORDS["publish"].encode()  # and no complaint after it


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 141),  # written by Typer
        ("targets", 141),  # by rich
        ("families --json", 141),  # by print, and lost when the process ends
        ("nothing", 2),  # said on stderr
    ],
)
def test_output_that_nobody_reads_is_quiet_and_has_an_exit_code_of_its_own(command, code):
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([EFFCONV, *command.split()], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert run.returncode == code
    assert (run.stderr == "") == (code == 141)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_is_closed_from_the_start_is_no_fault(closed):
    run = subprocess.run(f"{EFFCONV} targets {closed}", shell=True, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("encoding", daily(["ascii"], of=["ascii", "latin-1", "utf-8"]))
def test_any_encoding_of_stdout_will_do(encoding, tmp_path):
    source = save_tiny(tmp_path / "größe 大")
    for words in (["--plan"], ["--plan", "--json"], ["-o", "out", "--json"]):
        run = subprocess.run(
            [EFFCONV, "lsg", source, *SMALL, *words],
            cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        if "--json" in words:
            found = json.loads(run.stdout.decode(encoding))
    assert found["output"] == str(tmp_path / "out")
    assert read_json(tmp_path / "out" / "effconv.json")["source"]["name"] == "größe 大"


def test_flags_of_options_mean_what_they_say(source, tmp_path):
    effconv_(
        "lsg", source, "-o", "out", *SMALL, "--mask-first-token", "--sparsity-type", "lsh",
        "--sparsity-factor", "4", "--num-global-tokens", "3", "--seed", "9", cwd=tmp_path,
    )  # fmt: skip
    config = read_json(tmp_path / "out" / "config.json")
    assert (config["sparsity_type"], config["sparsity_factor"], config["num_global_tokens"]) == ("lsh", 4, 3)
    assert (config["block_size"], config["sparse_block_size"], config["lsh_seed"]) == (16, 16, 9)
    assert config["mask_first_token"] is True
    assert config["pool_with_global"] is True  # a hidden first token needs it
    manifest = read_json(tmp_path / "out" / "effconv.json")
    assert manifest["options"]["num_global_tokens"] == 3
    assert manifest["settings"]["seed"] == 9


def test_the_command_on_the_card_makes_the_same_repo_again(source, tmp_path):
    effconv_("lsg", source, "-o", "out", *SMALL, "--num-global-tokens", "3", "--global-init", "random", cwd=tmp_path)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\s*(effconv lsg .*)$", card, re.MULTILINE)
    again = subprocess.run(
        f"{EFFCONV.parent}/{line} -o {tmp_path}/again --no-verify", shell=True, cwd=source.parent, check=False
    )
    assert again.returncode == 0
    one, other = snapshot(tmp_path / "out"), snapshot(tmp_path / "again")
    assert one["model.safetensors"] == other["model.safetensors"]
    assert one["config.json"] == other["config.json"]


def test_the_module_can_be_run_without_its_script():
    run = subprocess.run(
        [sys.executable, "-m", "effconv.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert run.stdout == f"effconv {effconv.__version__}\n", run.stderr


def test_the_packages_names_are_listed_before_they_are_used():
    assert set(effconv.__all__) <= set(dir(effconv))
