"""No bad input ends in a traceback: each gets its exit code and a message of three parts, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import edit_config, edit_json, read, read_json, rewrite, snapshot, write, write_json

from effconv import cli
from effconv.convert.families.refused import REFUSED
from tiny import save_tiny, save_tiny_sentence_encoder

EFFCONV = Path(sys.executable).with_name("effconv")
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}  # nobody listens there
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("faults") / "source")


@pytest.fixture
def source(tiny, tmp_path):
    """A fresh copy of a sound checkpoint, in the working folder."""
    (tmp_path / "source").mkdir()
    for path in tiny.iterdir():
        (tmp_path / "source" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "source"


@pytest.fixture
def effconv(tmp_path, monkeypatch, capsys):
    """Run the command in the folder that holds `source`; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["effconv", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def check_message(err: str, code: int, got: int) -> None:
    assert got == code, err
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    what, _, rest = err.partition("error: ")[2].partition("\n  where: ")
    where, _, hint = rest.partition("\n  next: ")
    assert what.strip(), err
    assert where.strip(), err
    assert hint.strip(), err


def write_text(name, text):
    return lambda source: (source / name).write_text(text, encoding="utf-8")


def change_bytes(change):
    def apply(source):
        path = source / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return apply


def config(**fields):
    return lambda source: edit_config(source, **fields)


def only(*names):
    def apply(source):
        for path in source.iterdir():
            if path.name not in names:
                path.unlink()

    return apply


def adapter(source):
    only()(source)
    write_json(source / "adapter_config.json", {"peft_type": "LORA"})
    (source / "adapter_model.safetensors").write_bytes(b"")


def adapter_with_config(source):
    only("config.json")(source)
    write_json(source / "adapter_config.json", {"peft_type": "LORA"})


def int8(source):
    rewrite(source, lambda tensors: {**tensors, WORDS: tensors[WORDS].to(torch.int8)})


def cut_shards(source):
    write(source, read(source), shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()


def index_outside(source):
    write(source, read(source), shards=2)
    path = source / "model.safetensors.index.json"
    index = read_json(path)
    edit_json(path, weight_map=index["weight_map"] | {WORDS: "../x.safetensors"})


def index_disagrees(source):
    write(source, read(source), shards=2)
    path = source / "model.safetensors.index.json"
    index = read_json(path)
    edit_json(path, weight_map=index["weight_map"] | {WORDS + "2": "model-00001-of-00002.safetensors"})


def flax_only(source):
    (source / "model.safetensors").rename(source / "flax_model.msgpack")


def no_mask(source):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        write_json(source / name, {**read_json(source / name), "mask_token": None})


def nan(source):
    rewrite(source, lambda tensors: {**tensors, WORDS: tensors[WORDS] * float("nan")})


def decoder_differs(source):
    rewrite(source, lambda tensors: {**tensors, "cls.predictions.decoder.weight": tensors[WORDS] + 1})


def folder_of_that_name(source):
    (source / "config.json").unlink()
    (source / "config.json").mkdir()


def dangling(source):
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("nowhere")


SOURCES = {
    "family not supported": (config(model_type="gpt2"), 3, "supported: "),
    **{
        f"no {name}": (config(model_type=name), 3, f"{name} is not supported: {reason}")
        for name, (reason, _) in REFUSED.items()
    },
    "cross-attention without a decoder": (config(add_cross_attention=True), 4, "set is_decoder to true"),
    "converted before": (config(model_type="linformer-bert"), 3, "convert the dense checkpoint"),
    "LSG of a family that is none": (config(model_type="lsg-deberta"), 3, "a roberta or electra checkpoint"),
    "no model type": (config(model_type=None), 3, "has no model_type"),
    "model type is a list": (config(model_type=["bert"]), 3, "not supported"),
    "relative positions": (config(position_embedding_type="relative_key"), 3, "relative_key"),
    "an adapter": (adapter, 3, "merge"),
    "an adapter with a config": (adapter_with_config, 3, "merge"),
    "a quantised config": (config(quantization_config={"bits": 4}), 3, "quantised"),
    "quantised tensors": (int8, 3, f"{WORDS}: I8"),
    "header cut": (change_bytes(lambda raw: raw[:500]), 4, "the header claims"),
    "payload cut": (change_bytes(lambda raw: raw[:-1]), 4, "its header describes"),
    "payload too long": (change_bytes(lambda raw: raw + b"0"), 4, "its header describes"),
    "header length huge": (change_bytes(lambda raw: b"\xff" * 8 + raw[8:]), 4, "the header claims"),
    "header garbage": (change_bytes(lambda raw: raw[:8] + b"!" * 100 + raw[108:]), 4, "not a JSON object"),
    "empty weights": (change_bytes(lambda raw: b""), 4, "shorter than its header"),
    "a Git LFS pointer": (change_bytes(lambda raw: b"version https://git-lfs.github.com/spec/v1\n"), 4, "git lfs pull"),
    "no weights": (lambda source: (source / "model.safetensors").unlink(), 4, "no readable weights"),
    "flax weights only": (flax_only, 4, "flax_model.msgpack"),
    "a missing shard": (cut_shards, 4, "model-00002-of-00003"),
    "an index that names ../x": (index_outside, 4, "../x.safetensors"),
    "an index that disagrees": (index_disagrees, 4, "do not agree"),
    "a decoder unlike its twin": (decoder_differs, 4, "cls.predictions.decoder.weight"),
    "no config": (lambda source: (source / "config.json").unlink(), 4, "no config.json"),
    "a config that is a folder": (folder_of_that_name, 4, "no config.json"),
    "a config that leads nowhere": (dangling, 4, "no config.json"),
    "a config of garbage": (write_text("config.json", "{]"), 4, "not readable JSON"),
    "an empty config": (write_text("config.json", ""), 4, "not readable JSON"),
    "a config that is a list": (write_text("config.json", "[1]"), 4, "not a JSON object"),
    "a config too deep": (write_text("config.json", "[" * 100_000), 4, "not readable JSON"),
    "half a character": (write_text("config.json", '{"a": "\\ud83d"}'), 4, "not readable JSON"),
    "a binary config": (lambda source: (source / "config.json").write_bytes(b"\xff\x00"), 4, "not readable JSON"),
    "hidden_size is text": (config(hidden_size="32"), 4, "got '32'"),
    "hidden_size is missing": (config(hidden_size=None), 4, "config.json has no hidden_size"),
    "hidden_size is another": (config(hidden_size=16), 4, "but config.json requires"),
    "no layers": (config(num_hidden_layers=0), 4, "num_hidden_layers must be"),
    "a billion layers": (config(num_hidden_layers=10**9), 4, "got 1000000000"),
    "positions are negative": (config(max_position_embeddings=-5), 4, "got -5"),
    "positions are a float": (config(max_position_embeddings=64.0), 4, "got 64.0"),
    "heads do not divide": (config(num_attention_heads=5), 4, "num_attention_heads"),
    "a tokenizer without mask token": (no_mask, 4, "--global-init random"),
    "a damaged tokenizer": (write_text("tokenizer.json", "{"), 4, "tokenizer.json"),
    "a tokenizer that is a list": (write_text("tokenizer_config.json", "[]"), 4, "tokenizer_config.json"),
    "modules.json of garbage": (write_text("modules.json", "{"), 4, "modules.json"),
    "modules.json is an object": (write_text("modules.json", "{}"), 4, "modules.json"),
    "a module outside": (write_text("modules.json", '[{"path": ""}, {"path": "../x"}]'), 4, "'../x'"),
    "an encoder outside": (write_text("modules.json", '[{"path": "../x"}]'), 4, "'../x'"),
    "NaN weights": (nan, 5, f"    {WORDS}\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_source_is_named_and_leaves_nothing(name, source, effconv, tmp_path):
    spoil, code, says = SOURCES[name]
    spoil(source)
    before = snapshot(source)
    got, out, err = effconv("lsg", "source", "-o", "new/out", "--max-len", 128, "--block-size", 16)
    check_message(err, code, got)
    assert says in err
    assert out == ""
    assert snapshot(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


OPTIONS = {
    "length zero": (("--max-len", 0), 2, "--max-len must be"),
    "length negative": (("--max-len", -4), 2, "got -4"),
    "length absurd": (("--max-len", 10**12), 2, "got 1000000000000"),
    "a block that the factor does not divide": (("--block-size", 10, "--sparsity-factor", 3), 2, "divisible"),
    "block zero": (("--block-size", 0), 2, "--block-size must be"),
    "too many globals": (("--num-global-tokens", 513), 2, "from 0 to 512"),
    "negative globals": (("--num-global-tokens", -1), 2, "from 0 to 512"),
    "a first token hidden without globals": (
        ("--num-global-tokens", 0, "--mask-first-token"),
        2,
        "--mask-first-token needs",
    ),
    "stride zero": (("--global-positional-stride", 0), 2, "--global-positional-stride must be"),
    "a bad shard size": (("--max-shard-size", "5XB"), 2, "'5XB' is not a size"),
    "a shard size of nothing": (("--max-shard-size", "0"), 2, "'0' is not a size"),
    "a seed below zero": (("--seed", -1), 2, "2^63 - 1, got -1"),
    "a seed beyond torch's": (("--seed", 2**63), 2, "seed must be an integer"),
    "a revision of a folder": (("--revision", "main"), 2, "--revision applies only to Hub sources"),
    "the first global of a dense source": (("--keep-first-global-token",), 2, "--keep-first-global-token"),
    "an unknown head": (("--architecture", "ForFun"), 2, "ForMaskedLM"),
    "output at the source": (("-o", "source", "--overwrite"), 7, "overlap"),
    "output inside the source": (("-o", "source/out"), 7, "overlap"),
    "output around the source": (("-o", ".", "--overwrite"), 7, "cannot be the current folder"),
    "output is a file": (("-o", "file", "--overwrite"), 7, "not a folder"),
    "output below a file": (("-o", "file/out"), 7, "not a folder"),
    "output exists": (("-o", "full"), 7, "--overwrite"),
    "output of other files": (("-o", "full", "--overwrite"), 7, "no model"),
    "output is a link": (("-o", "link", "--overwrite"), 7, "not a folder"),
    "output of an endless name": (("-o", "x" * 400), 7, "too long"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bad_option_is_named_and_leaves_nothing(name, source, effconv, tmp_path):
    options, code, says = OPTIONS[name]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("full")
    before = snapshot(tmp_path), sorted(path.name for path in tmp_path.iterdir())
    output = () if "-o" in options else ("-o", "new/out")
    length = () if "--max-len" in options else ("--max-len", 128)
    got, out, err = effconv("lsg", "source", *output, *length, *options, "--no-verify")
    check_message(err, code, got)
    assert says in err
    assert out == ""
    assert (snapshot(tmp_path), sorted(path.name for path in tmp_path.iterdir())) == before


PLACES = {
    "no such folder": ("./nowhere", 4, "no such folder"),
    "no such folder, deep": ("a/b/c", 4, "no such folder"),
    "a file": ("source/config.json", 4, "the source is a file"),
    "a file that is not there": ("model.safetensors", 4, "no such folder"),
    "an empty folder": ("empty", 4, "no config.json"),
    "nobody's home": ("~nobody-of-that-name/x", 4, "no such folder"),
    "a name too long": ("x" * 5000, 4, "no such folder"),
    "a NUL": ("a\0b", 4, "no such folder"),
    "nothing": ("", 4, "no such folder"),
}


@pytest.mark.parametrize("command", ["lsg", "inspect"])
@pytest.mark.parametrize("name", PLACES)
def test_a_source_that_is_not_there_is_named(name, command, source, effconv, tmp_path):
    place, code, says = PLACES[name]
    (tmp_path / "empty").mkdir()
    got, out, err = effconv(command, place)
    check_message(err, code, got)
    assert says in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "source"]


@pytest.mark.parametrize("options", [(), ("--offline",)])
def test_a_hub_that_does_not_answer_is_exit_code_6(options, tmp_path):
    environment = {**os.environ, **OFFLINE, "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [EFFCONV, "lsg", "nobody/nothing", *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    check_message(run.stderr, 6, run.returncode)
    assert "nobody/nothing" in run.stderr
    assert run.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []


def test_nan_weights_can_be_converted_on_request_and_are_reported(source, effconv):
    nan(source)
    code, out, _ = effconv("lsg", "source", "-o", "out", "--max-len", 128, "--no-verify")
    assert code == 0
    assert f"{WORDS} holds NaN or infinite values" in out
    assert "not verified" in out
    assert sorted(read_json(Path("out") / "effconv.json")["findings"]) == [
        f"{name} holds NaN or infinite values" for name in ("bert.embeddings.global_embeddings.weight", WORDS)
    ]


def test_a_fault_of_our_own_says_how_to_report_it(source, effconv, monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("effconv.convert.run.emit", fail)
    code, out, err = effconv("lsg", "source", "-o", "out", "--max-len", 128, "--no-verify")
    assert code == 1
    assert "ZeroDivisionError: ours" in err
    assert "Please report it" in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


SPOILED = {
    "the weights cannot be read": ("model.safetensors", 0o000, 4, "cannot be read"),
    "the tokenizer cannot be read": ("tokenizer.json", 0o000, 4, "cannot be read"),
    "the config cannot be read": ("config.json", 0o000, 4, "cannot be read"),
    "the source cannot be listed": (".", 0o311, 4, "not readable"),
    "the source cannot be entered": ("..", 0o000, 4, "no such folder"),
}


def as_plain_user(*command, cwd):
    """Run a command for which file modes hold: root passes by them unless it gives that up."""
    plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return subprocess.run([*plain, *command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def place(source, tmp_path):
    """The folder that holds the source, and an empty one to work in."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root passes by every mode, and there is no setpriv to give that up")
    (tmp_path / "work").mkdir()
    yield tmp_path
    for folder in (tmp_path, *tmp_path.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o755)


@pytest.mark.parametrize("name", SPOILED)
def test_a_source_without_permission_is_named(name, place):
    file, mode, code, says = SPOILED[name]
    (place / "outer").mkdir()
    (place / "source").rename(place / "outer" / "source")
    (place / "outer" / "source" / file).chmod(mode)
    run = as_plain_user(EFFCONV, "lsg", "../outer/source", "-o", "out", "--no-verify", cwd=place / "work")
    check_message(run.stderr, code, run.returncode)
    assert says in run.stderr
    assert not list((place / "work").iterdir())


@pytest.mark.parametrize("output", ["out", "new/out", "full"])
def test_an_output_without_permission_is_named(output, place):
    (place / "closed" / "full").mkdir(parents=True)
    (place / "closed" / "full" / "config.json").write_text("mine")
    (place / "closed").chmod(0o555)
    run = as_plain_user(EFFCONV, "lsg", "../source", "-o", f"../closed/{output}", "--overwrite", cwd=place / "work")
    check_message(run.stderr, 7, run.returncode)
    assert "no permission" in run.stderr
    assert snapshot(place / "closed") == {"full/config.json": b"mine"}
    assert sorted(path.name for path in (place / "closed").iterdir()) == ["full"]


def test_an_unsupported_source_can_still_be_inspected(source, effconv):
    edit_config(source, model_type="gpt2")
    code, out, _ = effconv("inspect", "source", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["becomes"] == []
    assert "gpt2" in found["why_not"]


def test_inspecting_what_is_damaged_is_an_error_too(source, effconv):
    change_bytes(lambda raw: raw[:100])(source)
    got, out, err = effconv("inspect", "source")
    check_message(err, 4, got)
    assert out == ""


@pytest.mark.parametrize("architectures", ["BertModel", {"a": 1}, [], [None], [3], 3])
def test_odd_architectures_are_taken_for_none(architectures, source, effconv):
    edit_config(source, architectures=architectures)
    code, out, err = effconv("inspect", "source", "--json")
    assert code == 0, err
    code, out, err = effconv("lsg", "source", "--plan", "--json")
    assert code == 0, err
    assert json.loads(out)["architecture"].startswith("LSGBert")


COMMANDS_ON_A_REPO = {
    "verify": [],
    "export": ["-o", "exported"],
    "embed": ["--data", "a.jsonl", "-o", "v.npy"],
    "adapt": ["--data", "a.jsonl", "--teacher", "source", "-o", "adapted"],
    "pretrain": ["--data", "a.jsonl", "-o", "pretrained"],
    "finetune": ["--data", "a.jsonl", "-o", "finetuned"],
    "adopt": [],
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny sentence encoder and its LSG."""
    from effconv import convert

    folder = tmp_path_factory.mktemp("encoder")
    save_tiny_sentence_encoder(folder / "source")
    sizes = {"max_length": 128, "block_size": 16, "sparse_block_size": 16}
    convert(folder / "source", "lsg", output=folder / "lsg", verify=False, **sizes)
    return folder


@pytest.mark.parametrize("how", ["missing", "a folder", "unreadable", "damaged"])
def test_a_repo_whose_config_cannot_be_read_is_bad_input(how, encoder, tmp_path, monkeypatch, effconv):
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    Path("a.jsonl").write_text('{"text": "the of", "label": 1}\n')
    config = tmp_path / "lsg" / "config.json"
    opened, access = io.open, os.access
    if how == "damaged":
        config.write_text("{")
    elif how == "unreadable":  # also for root, whom no permission stops

        def denied(file, *rest, **named):
            if not isinstance(file, int) and Path(os.path.abspath(os.fspath(file))) == config:
                raise PermissionError(13, "Permission denied", str(file))
            return opened(file, *rest, **named)

        monkeypatch.setattr(io, "open", denied)
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != config and access(path, mode))
    else:
        config.unlink()
        if how == "a folder":
            config.mkdir()
    for command, words in COMMANDS_ON_A_REPO.items():
        got, _, err = effconv(command, "lsg", *words)
        assert got in (4, 5), (command, err)
        check_message(err, got, got)
        assert "config.json" in err


def test_a_sentence_encoder_whose_module_folder_is_missing_is_carried_without_it(effconv, tmp_path):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    assert not (source / "2_Normalize").exists()  # it has no files, so git never stored the folder
    code, _, err = effconv("lsg", "source", "-o", "out", "--max-len", 128, "--no-verify")
    assert code == 0, err
