"""What a conversion claims is checked before it appears, recorded with it, and can be checked again by anybody."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from checkpoints import SMALL, edit_json, read, read_json, snapshot
from safetensors.torch import save_file
from typer.testing import CliRunner

import effconv
from effconv.cli import app
from effconv.convert import run
from effconv.convert.errors import BadInputError, CheckFailedError, UnsupportedError, UsageError
from effconv.convert.options import Settings
from effconv.convert.repo import manifest
from effconv.convert.repo.manifest import FIELDS, check_hashes, read_manifest
from effconv.convert.verify import recheck
from effconv.convert.verify import run as verify
from effconv.convert.verify.against import Against, source_of
from effconv.lsgify.options import LSGOptions
from effconv.lsgify.target import LSG
from tiny import save_tiny

EFFCONV = Path(sys.executable).with_name("effconv")
VERIFIED = {**SMALL, "verify": True}
pytestmark = pytest.mark.xdist_group("verify")  # one verified conversion for all of them


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, the repo that it became, and what the conversion said."""
    folder = tmp_path_factory.mktemp("verify")
    source = save_tiny(folder / "source", head="ForPreTraining")
    result = effconv.convert(source, "lsg", output=folder / "repo", **VERIFIED)
    return source, folder / "repo", result


@pytest.fixture
def repo(made, tmp_path):
    """A copy of the repo, to be changed."""
    return Path(shutil.copytree(made[1], tmp_path / "repo"))


def test_every_check_holds_and_is_recorded_with_what_it_measured(made):
    _, repo, result = made
    recorded = read_json(repo / "effconv.json")["measurements"]["checks"]
    assert {check["name"] for check in recorded} == {check.name for check in LSG.checks}
    left_out = {check["name"]: check["why"] for check in recorded if check["passed"] is None}
    assert left_out == {"same_embedding": "does not apply: not a sentence encoder"}
    assert all(check["passed"] is True for check in recorded if check["name"] not in left_out)
    measured = [check for check in recorded if check["value"] is not None]
    assert {"equal_to_source", "saved_again_equal"} <= {check["name"] for check in measured}
    assert all(0 <= check["value"] <= check["tolerance"] for check in measured)
    (equal,) = [check for check in recorded if check["name"] == "equal_to_source"]
    assert equal["tolerance"] == 1e-5
    heads = {"AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForNextSentencePrediction"}
    assert heads <= equal["details"]["heads"].keys()
    assert equal["details"]["tokens"] == 32  # two blocks
    assert [check.name for check in result.measured] == [check["name"] for check in recorded]


def test_fidelity_is_measured_and_recorded(made):
    measurements = read_json(made[1] / "effconv.json")["measurements"]
    (row,) = measurements["fidelity"]
    assert row["tokens"] == 64  # as far as the source reaches
    assert 0.5 < row["token_cosine"] <= 1
    assert {"sentence_cosine", "logit_kl", "source_mlm_loss", "mlm_loss"} <= row.keys()
    assert measurements["versions"].keys() == {"torch", "transformers"}


def test_equal_states_have_a_cosine_of_one_without_the_noise_of_float32(tmp_path):
    import torch
    import transformers

    from effconv.convert.verify.fidelity import compare

    model = transformers.AutoModel.from_pretrained(save_tiny(tmp_path / "source", head="Model")).eval()
    row = compare(model, model, torch.randint(5, 50, (16, 32), generator=torch.Generator().manual_seed(0)), None)
    assert (row["token_cosine"], row["sentence_cosine"]) == (1.0, 1.0)


def test_fidelity_takes_one_file_or_several_and_leaves_out_what_a_model_does_not_reach(made, tmp_path, monkeypatch):
    source, repo, _ = made
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in texts:
        path.write_text("the text")
    asked, said = [], []
    monkeypatch.setattr(recheck, "measure_fidelity", lambda *_, **options: asked.append(options) or [{"tokens": 32}])
    effconv.fidelity(repo, against=source, data=str(texts[0]), lengths=32)
    effconv.fidelity(
        repo, against=source, data=texts, lengths="128,64,32", progress=lambda step, done, total: said.append(step)
    )
    command = ["fidelity", repo, "--against", source, "--lengths", "32", "--json", "--data", *texts]
    run = CliRunner().invoke(app, [str(word) for word in command])
    assert run.exit_code == 0, run.output
    assert [options["files"] for options in asked] == [texts[:1], texts, texts]
    assert [options["lengths"] for options in asked] == [[32], [32, 64], [32]]
    assert "skipped texts of 128 tokens: the source takes 64 tokens, the repo 128" in said


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"lengths": [65, 128]}, UsageError, "no length fits both models: the source takes 64 tokens"),
        ({"lengths": "a,b"}, UsageError, "got 'a,b'"),
        ({"lengths": 2}, UsageError, "got 2"),
        ({"texts": 0}, UsageError, "--texts must be at least 1, got 0"),
        ({"data": "nowhere.txt"}, BadInputError, "cannot read the text: nowhere.txt: No such file"),
    ],
)
def test_a_fidelity_that_cannot_be_measured_says_why(options, error, says, made):
    with pytest.raises(error, match=says) as caught:
        effconv.fidelity(made[1], against=made[0], **options)
    assert caught.value.where
    assert caught.value.hint


def test_the_result_is_shown_in_a_line(made, tmp_path):
    shown = repr(made[2])
    assert all(part in shown for part in (str(made[1]), "LSGBertForPreTraining", "8 of 8 checks passed", "0 findings"))
    assert len(shown.splitlines()) == 1
    assert repr(made[2].plan).startswith("<Plan for LSGBertForPreTraining: ")
    assert len(repr(made[2].plan)) < 120


def test_the_card_shows_the_checks(made):
    card = (made[1] / "README.md").read_text(encoding="utf-8")
    assert all(check.says in card for check in LSG.checks)


def test_all_but_the_measurements_is_what_an_unverified_conversion_writes(made, tmp_path):
    source, repo, _ = made
    effconv.convert(source, "lsg", output=tmp_path / "repo", **SMALL)
    verified, plain = read_json(repo / "effconv.json"), read_json(tmp_path / "repo" / "effconv.json")
    assert verified.pop("measurements") != plain.pop("measurements")
    for name in ("README.md", "config.json"):
        assert verified["files"].pop(name) != plain["files"].pop(name)
    assert verified == plain
    configs = [read_json(folder / "config.json") for folder in (repo, tmp_path / "repo")]
    assert configs[0]["effconv"].pop("tokenizer") == read_json(repo / "effconv.json")["measurements"]["tokenizer"]
    assert configs[0] == configs[1]


def test_a_repo_is_verified_again_against_its_source(made):
    source, repo, _ = made
    before = snapshot(repo)
    found = subprocess.run(
        [EFFCONV, "verify", repo, "--against", source, "--json"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    passed = dict.fromkeys((check.name for check in LSG.checks), True) | {"same_embedding": None}
    assert {check["name"]: check["passed"] for check in json.loads(found.stdout)} == passed
    assert "hashes" in found.stderr
    assert snapshot(repo) == before  # not even a __pycache__


def test_without_a_source_what_needs_one_is_left_out(made):
    measured = {check.name: check for check in effconv.verify(made[1])}
    needing = {check.name for check in LSG.checks if check.needs_source}
    assert needing == {"equal_to_source", "stock_attention_equals_source", "same_embedding"}
    why = "does not apply: no source was given to compare with (give --against SOURCE)"
    assert all(measured[name].why == why for name in needing)
    assert {name for name, check in measured.items() if not check.passed} == needing


def flip_one_bit(repo):
    path = repo / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def add_line(path):
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def add_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def change_several(repo):
    flip_one_bit(repo)
    for name in ("vocab.txt", "config.json"):
        (repo / name).unlink()


CHANGES = {
    "a bit of the weights": (flip_one_bit, ["model.safetensors: changed"]),
    "the config": (lambda repo: edit_json(repo / "config.json", block_size=32), ["config.json: changed"]),
    "the code": (lambda repo: add_line(repo / "lsg_attention.py"), ["lsg_attention.py: changed"]),
    "a file more": (lambda repo: add_file(repo / "evil.py"), ["evil.py: not in the manifest"]),
    "a file more, deep": (lambda repo: add_file(repo / "a" / "b" / "c"), ["a/b/c: not in the manifest"]),
    "a file less": (lambda repo: (repo / "tokenizer.json").unlink(), ["tokenizer.json: missing"]),
    "several": (
        change_several,
        ["config.json: missing", "vocab.txt: missing", "model.safetensors: changed"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_in_a_repo_is_named_and_none_of_its_code_runs(change, repo, monkeypatch):
    spoil, says = CHANGES[change]
    spoil(repo)
    monkeypatch.setattr(verify, "CHILD", "nothing.may.be.run")
    with pytest.raises(CheckFailedError, match="differ from its manifest") as caught:
        effconv.verify(repo)
    assert all(line in str(caught.value) for line in says)
    assert caught.value.exit_code == 5


def test_the_card_may_be_edited_and_git_and_the_hub_may_keep_their_files(repo):
    add_line(repo / "README.md")
    (repo / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    for trace in (".git/HEAD", ".cache/huggingface/download/x.metadata", "__pycache__/modeling.pyc"):
        add_file(repo / trace)
    check_hashes(repo, read_manifest(repo))
    (repo / "README.md").unlink()
    check_hashes(repo, read_manifest(repo))


MANIFESTS = {
    "gone": (None, "has no effconv.json"),
    "empty": ("", "not readable JSON"),
    "garbage": ("{]", "not readable JSON"),
    "too deep": ("[" * 100_000, "not readable JSON"),
    "a list": ("[]", "has no format"),
    "without fields": ("{}", "has no format, target"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_named(kind, repo):
    text, says = MANIFESTS[kind]
    (repo / "effconv.json").unlink()
    edit_json(repo / "config.json", effconv=None)  # else the repo is read as one that another program saved
    if text is not None:
        (repo / "effconv.json").write_text(text)
    with pytest.raises(BadInputError, match=says) as caught:
        effconv.verify(repo)
    assert caught.value.where
    assert caught.value.hint
    assert kind == "gone" or f"effconv adopt {repo}" in caught.value.hint


def test_a_manifest_that_may_not_be_read_is_told_from_a_damaged_one(repo, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(BadInputError, match=r"effconv.json cannot be read \(Permission denied\)") as caught:
        read_manifest(repo)
    assert caught.value.hint == "check its permissions"


def test_a_file_that_may_not_be_read_is_named(repo, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "file_sha256", denied)
    with pytest.raises(BadInputError, match="a file of the repo cannot be read") as caught:
        effconv.verify(repo)
    assert caught.value.where.startswith(str(repo))
    assert caught.value.hint == "check its permissions"


BEFORE_THE_HASHES = {
    "export": {},
    "finetune": {"data": "rows.jsonl"},
    "pretrain": {"data": "text.txt"},
    "adapt": {"data": "text.txt", "objective": "mlm"},
}
CONFIGS = {None: "no config.json", '{"a": ': "not readable JSON", "[]": "not a JSON object", "null": "not a JSON"}


@pytest.mark.parametrize("text", CONFIGS)
@pytest.mark.parametrize("command", BEFORE_THE_HASHES)
def test_a_damaged_config_is_named(command, text, repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "it", "label": "a"}\n' * 4)
    Path("text.txt").write_text("it was the\n")
    (repo / "config.json").unlink()
    if text is not None:
        (repo / "config.json").write_text(text)
    with pytest.raises(BadInputError, match=CONFIGS[text]) as caught:
        getattr(effconv, command)(repo, output=tmp_path / "out", **BEFORE_THE_HASHES[command])
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("command", ["export", "verify", "adopt"])
def test_an_export_is_called_one(command, repo):
    (repo / "effconv.json").rename(repo / "effconv-export.json")
    edit_json(repo / "config.json", effconv=None, model_type="bert", architectures=["BertModel"], auto_map=None)
    with pytest.raises(BadInputError, match="the folder is an export of effconv") as caught:
        getattr(effconv, command)(repo)
    assert caught.value.hint == "give the repo that was exported: effconv-export.json has its name"


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_manifest_with_a_field_of_another_kind_is_named(field, repo):
    edit_json(repo / "effconv.json", **{field: 3.5})
    with pytest.raises(BadInputError, match=f"has no {field}"):
        effconv.verify(repo)


def test_a_manifest_that_is_older_than_an_option_takes_its_default(made, repo, monkeypatch):
    edit_json(repo / "effconv.json", options={}, settings={})
    jobs = []
    monkeypatch.setattr(
        verify,
        "_child",
        lambda job, _: jobs.append(job) or {"checks": [], "fidelity": [], "versions": {}, "records": {}},
    )
    effconv.verify(repo, against=made[0])
    assert jobs[0]["manifest"]["options"] == asdict(LSGOptions().filled({}))
    assert {check["name"] for check in jobs[0]["checks"]} == {check.name for check in LSG.checks}


def test_a_repo_of_a_newer_effconv_is_left_to_it(repo):
    edit_json(repo / "effconv.json", target="mamba")
    with pytest.raises(UnsupportedError, match="mamba"):
        effconv.verify(repo)
    edit_json(repo / "effconv.json", format=99)
    with pytest.raises(BadInputError, match="newer than this effconv can read"):
        effconv.verify(repo)


def test_a_source_of_another_family_or_none_at_all_is_refused(repo, tmp_path):
    with pytest.raises(UsageError, match="the source is a roberta, but the repo was made from a bert"):
        effconv.verify(repo, against=save_tiny(tmp_path / "other", "roberta"))
    with pytest.raises(BadInputError, match="no such folder"):
        effconv.verify(repo, against="./nowhere")
    with pytest.raises(BadInputError, match="no such folder"):
        effconv.verify("./nowhere")


@pytest.mark.parametrize("command", ["verify", "fidelity", "retrieval", "adapt"])
def test_what_cannot_be_the_source_is_named_before_anything_runs(command, repo, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("words\n\n" * 40)
    others = {"layers 1, the repo has 2": save_tiny(tmp_path / "flat", num_hidden_layers=1)}
    others |= {"hidden size 48, the repo has 32": save_tiny(tmp_path / "wide", hidden_size=48, num_attention_heads=4)}
    others |= {"it takes 40 tokens, the source took 64": save_tiny(tmp_path / "short", positions=40)}
    others |= {r"repo is a converted model \(lsg\)": made[1]}
    for says, other in others.items():
        given = {"teacher": other, "data": "text.txt"} if command == "adapt" else {"against": other}
        given |= {"lengths": "32"} if command == "fidelity" else {}
        given |= {"data": "text.txt", "tokens": 128, "query_tokens": 8} if command == "retrieval" else {}
        with pytest.raises(UsageError, match=says) as caught:
            getattr(effconv, command)(repo, **given)
        assert caught.value.hint == "give the folder of source"
    assert not list(tmp_path.glob("*adapted*"))


def test_other_weights_of_the_same_size_are_told_from_the_sources(repo, made, tmp_path):
    manifest = read_manifest(repo)
    assert source_of(made[0], repo, manifest, None, True) == Against(made[0], same=True)
    other = save_tiny(tmp_path / "other", head="ForPreTraining", seed=9)
    given = source_of(other, repo, manifest, None, True)
    assert given.same is False
    assert given.doubt == "other has other weights than the source of this repo (source)"
    assert "give that one with --against" in recheck._advice(given, manifest)
    manifest["source"] = {"name": "tiny", "hub_id": "me/tiny", "commit": "c" * 40}  # a folder says nothing of a commit
    assert source_of(other, repo, manifest, None, True) == Against(other)
    assert "if --against is not me/tiny" in recheck._advice(Against(other), manifest)


def test_a_conversion_that_differs_from_its_source_never_appears(tmp_path, monkeypatch):
    source = save_tiny(tmp_path / "source")
    emit = run.emit

    def spoil(folder, *arguments):
        found = emit(folder, *arguments)
        tensors = read(folder)
        tensors["bert.encoder.layer.1.attention.self.key.weight"][0] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return found

    monkeypatch.setattr(run, "emit", spoil)
    with pytest.raises(CheckFailedError, match="2 of 9 checks failed") as caught:
        effconv.convert(source, "lsg", output=tmp_path / "new" / "out", **VERIFIED)
    assert "\n    equal_to_source: differs by" in str(caught.value)
    assert "\n    stock_attention_equals_source: differs by" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_without_a_tokenizer_can_be_verified(tmp_path):
    source = save_tiny(tmp_path / "source", "roberta", "ForQuestionAnswering", tokenizer=False)
    options = {**VERIFIED, "global_init": "random", "architecture": "ForSequenceClassification"}
    result = effconv.convert(source, "lsg", output=tmp_path / "out", **options)
    left_out = {check.name: check.why for check in result.measured if check.passed is None}
    assert left_out["same_tokens"] == "does not apply: the repo has no tokenizer"
    assert left_out.keys() == {"same_tokens", "same_embedding"}
    assert all(check.passed for check in result.measured if check.name not in left_out)
    assert read_json(tmp_path / "out" / "effconv.json")["new"] != []


MANIFEST = {
    "options": asdict(LSGOptions().filled({})),
    "settings": asdict(Settings()),
    "max_length": 128,
    "source_max_length": 64,
}
STRANGERS = {
    "is not there": None,
    "dies at once": "raise SystemExit(3)",
    "dies of a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "says nothing": "import sys; sys.stdin.read()",
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_process_that_dies_is_a_failed_check(kind, size, tmp_path, monkeypatch):
    if STRANGERS[kind] is not None:
        (tmp_path / "strange.py").write_text(f"import sys; print('last words', file=sys.stderr)\n{STRANGERS[kind]}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "CHILD", "strange")
    manifest = {**MANIFEST, "much": "x" * size}
    with pytest.raises(CheckFailedError, match="could not be loaded in a fresh process") as caught:
        verify.run_checks(tmp_path, LSG, manifest, source=None)
    assert ("No module named" if STRANGERS[kind] is None else "last words") in str(caught.value)


def test_a_process_that_says_much_is_heard_to_the_end(tmp_path, monkeypatch):
    (tmp_path / "strange.py").write_text(
        f"""
import json, sys
job = json.load(sys.stdin)
for line in range(20_000):
    print("a warning that nobody asked for", file=sys.stderr)
    print('{{"looks": "like a result"}}')
print({verify.PREFIX!r} + json.dumps({{"begins": "it"}}))
print({verify.PREFIX!r} + json.dumps({{"checks": [], "fidelity": [], "versions": {{}}, "records": {{}}}}))
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "CHILD", "strange")
    begun = []
    measured, others = verify.run_checks(tmp_path, LSG, MANIFEST, source=None, progress=begun.append)
    assert begun == ["it"]
    assert {check.passed for check in measured} == {None}  # without a source
    assert {check.name for check in measured} == {check.name for check in LSG.checks if check.needs_source}
    assert others["fidelity"] == []


@pytest.mark.parametrize(
    ("options", "why"),
    [({"positions": "interpolate"}, "interpolated"), ({"dtype": "bfloat16"}, "cast")],
)
def test_equality_with_the_source_is_claimed_only_where_it_holds(options, why, tmp_path, monkeypatch):
    claimed = []

    def note(job, progress):
        claimed.extend(check["name"] for check in job["checks"])
        return {"checks": [], "fidelity": [], "versions": {}, "records": {}}

    monkeypatch.setattr(verify, "_child", note)
    source = save_tiny(tmp_path / "source")
    result = effconv.convert(source, "lsg", output=tmp_path / "out", **VERIFIED, **options)
    assert "equal_to_source" not in claimed
    assert "equal_to_formula" in claimed
    (left_out,) = result.measured
    assert (left_out.name, left_out.passed) == ("equal_to_source", None)
    assert why in left_out.why
