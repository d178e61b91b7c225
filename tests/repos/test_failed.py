"""A conversion that fails its checks: what it says, what it names, what `--keep-failed` keeps and who refuses that."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from checkpoints import SMALL, read, read_json, snapshot, write, write_json

import effconv
from effconv import cli
from effconv.convert import failed, run
from effconv.convert.errors import BadInputError, CheckFailedError, UsageError
from effconv.convert.io import staging
from effconv.convert.io.staging import Staging
from effconv.convert.repo.manifest import Measured
from effconv.convert.verify import run as verify
from effconv.targets.registry import TARGETS
from tiny import save_tiny

VERIFIED = {**SMALL, "verify": True}
ROOT = Path(effconv.__file__).parent


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("failed") / "source")


@pytest.fixture
def failing(monkeypatch):
    """Lets the first check of every conversion fail by 0.25, without a process that loads anything."""

    def checks(repo, target, manifest, **_options):
        assert (repo / "config.json").is_file()
        measured = [Measured(check.name, check.says, True, 0.0, check.tolerance) for check in target.checks]
        first = target.checks[0]
        why = f"differs by 0.25, the tolerance is {first.tolerance:g}"
        measured[0] = Measured(first.name, first.says, False, 0.25, first.tolerance, why)
        return measured, {}

    monkeypatch.setattr(run, "run_checks", checks)


def failure(source, output, **options) -> CheckFailedError:
    with pytest.raises(CheckFailedError) as caught:
        effconv.convert(source, "lsg", output=output, **{**VERIFIED, **options})
    return caught.value


def test_every_check_says_what_its_failure_may_mean():
    assert [
        (target.name, check.name) for target in TARGETS.values() for check in target.checks if not check.means
    ] == []


def test_a_failed_check_says_which_number_which_tolerance_and_what_it_may_mean(source, failing, tmp_path):
    error = failure(source, tmp_path / "new" / "out")
    assert error.exit_code == 5
    assert "equal_to_source: differs by 0.25, the tolerance is 1e-05. Possible cause:" in error.what
    assert [check.name for check in error.measured if check.passed is False] == ["equal_to_source"]
    assert "report" not in str(error)
    assert "--keep-failed" in error.hint
    assert error.where == ""
    assert str(tmp_path) not in str(error)  # nothing is left, so nothing is named
    assert list(tmp_path.iterdir()) == []


def test_the_failed_repo_is_kept_under_a_name_that_says_so(source, failing, tmp_path):
    error = failure(source, tmp_path / "new" / "out", keep_failed=True)
    kept = tmp_path / "new" / "out.failed"
    assert error.where == str(kept)
    assert [path.name for path in kept.parent.iterdir()] == ["out.failed"]
    assert "effconv-failed.json" in error.hint
    assert {"config.json", "model.safetensors", "lsg_attention.py", "tokenizer.json"} <= set(snapshot(kept))
    assert not (kept / "effconv.json").exists()
    stated = read_json(kept / "effconv-failed.json")
    assert "differs by 0.25" in stated["failed"][1]
    assert stated["measurements"]["checks"][0]["value"] == 0.25
    assert (stated["target"], stated["source"]["name"]) == ("lsg", "source")
    card = (kept / "README.md").read_text(encoding="utf-8")
    assert "failed its checks" in card
    assert "differs by 0.25" in card


def test_no_command_takes_a_failed_repo_for_a_good_one(source, failing, tmp_path):
    failure(source, tmp_path / "out", keep_failed=True)
    kept = tmp_path / "out.failed"
    uses = [effconv.load, effconv.verify, effconv.push_to_hub, effconv.refresh]
    for use in (*uses, lambda repo: effconv.fidelity(repo, against=source), lambda repo: effconv.adapt(repo, data="x")):
        with pytest.raises(CheckFailedError, match="failed its checks") as caught:
            use(kept)
        assert caught.value.where == str(kept)
        assert "effconv-failed.json" in caught.value.hint
    (kept / "effconv-failed.json").rename(kept / "effconv.json")  # by somebody who wants to share it all the same
    with pytest.raises(CheckFailedError, match="failed its checks"):
        effconv.load(kept)


def test_a_failed_repo_of_before_is_replaced_and_anything_else_of_that_name_stays(source, failing, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "out.failed"
    kept.mkdir()
    write_json(kept / "effconv-failed.json", {})
    (kept / "old").touch()
    assert failure(source, out, keep_failed=True).where == str(kept)
    assert not (kept / "old").exists()
    (kept / "effconv-failed.json").unlink()  # a folder that nobody can tell from a person's own
    (tmp_path / "out.failed-2").touch()
    (tmp_path / "out.failed-3").symlink_to("out.failed")
    before = snapshot(kept)
    for _ in range(2):
        assert failure(source, out, keep_failed=True).where == str(tmp_path / "out.failed-4")
    assert snapshot(kept) == before
    names = ["out.failed", "out.failed-2", "out.failed-3", "out.failed-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_old_output_stays_beside_the_failed_one(source, failing, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    failure(source, tmp_path / "out", keep_failed=True, overwrite=True)
    assert snapshot(tmp_path / "out") == {"config.json": b"old"}
    monkeypatch.undo()
    effconv.convert(source, "lsg", output=tmp_path / "out", overwrite=True, **SMALL)
    assert (tmp_path / "out.failed").is_dir()


@pytest.mark.parametrize("moment", ["mark", "first rename", "second rename"])
def test_a_run_killed_while_it_keeps_a_failed_repo_leaves_what_the_next_run_clears(
    moment, source, failing, tmp_path, monkeypatch
):
    """A run that is killed unwinds nothing: here its clean-up does nothing, and its lock is let go."""
    failure(source, tmp_path / "out", keep_failed=True)  # so that there is one to replace
    rename, renames = Path.rename, []

    class Killed(BaseException):
        pass

    def killing(self, target):
        renames.append(self)
        if moment == ("first rename", "second rename")[len(renames) - 1]:
            raise Killed
        return rename(self, target)

    def leave(self, *_):
        staging.os.close(self._lock)

    def die(*_args, **_options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "__exit__", leave)
        patch.setattr(staging.shutil, "rmtree", lambda *_args, **_options: None)
        if moment == "mark":
            patch.setattr(failed, "_mark", die)
        else:
            patch.setattr(Path, "rename", killing)
        with pytest.raises(Killed):
            effconv.convert(source, "lsg", output=tmp_path / "out", keep_failed=True, **VERIFIED)
    assert len(list(tmp_path.iterdir())) > 1
    for folder in tmp_path.glob("out.failed*"):
        assert (folder / "effconv-failed.json").is_file()  # none is without its mark
    failure(source, tmp_path / "out", keep_failed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def test_a_failed_repo_that_cannot_be_kept_is_still_a_failed_check(source, failing, tmp_path, monkeypatch):
    def refuse(self, mark):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Staging, "keep_failed", refuse)
    error = failure(source, tmp_path / "out", keep_failed=True)
    assert "could not be kept (Permission denied)" in error.hint
    assert "equal_to_source" in error.what
    assert list(tmp_path.iterdir()) == []


def test_keeping_what_is_not_checked_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="--no-verify"):
        effconv.convert(source, "lsg", output=tmp_path / "out", keep_failed=True, **SMALL)


def test_a_conversion_that_holds_leaves_no_trace_of_the_option(source, tmp_path, monkeypatch):
    def checks(repo, target, manifest, **_options):
        return [Measured(check.name, check.says, True, 0.0, check.tolerance) for check in target.checks], {}

    monkeypatch.setattr(run, "run_checks", checks)
    for name, keep in (("kept", True), ("plain", False)):
        effconv.convert(source, "lsg", output=tmp_path / name, keep_failed=keep, **VERIFIED)
    assert snapshot(tmp_path / "kept") == snapshot(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "plain"]


DEATHS = {
    "killed for memory": ("import os; os.kill(os.getpid(), 9)", "ended by signal 9", "out of memory"),
    "without memory": ("raise MemoryError", "exit status 1", "out of memory"),
    "in an allocator": (
        'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 4 bytes")',
        "exit status 1",
        "out of memory",
    ),
    "by a crash": ("import os; os.kill(os.getpid(), 11)", "ended by signal 11", "install torch"),
    "without a package": ("import no_such_package", "No module named 'no_such_package'", "install or upgrade"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("keep", [False, True])
def test_a_process_that_dies_says_what_can_be_done_about_it(
    death, keep, source, tmp_path, monkeypatch, fresh_processes
):
    program, says, hint = DEATHS[death]
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "strange.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr(verify, "CHILD", "strange")
    error = failure(source, tmp_path / "out", keep_failed=keep)
    assert says in error.what
    assert hint in error.hint
    assert "--no-verify" in error.hint
    assert "report" not in str(error)
    assert error.where == (str(tmp_path / "out.failed") if keep else "")
    assert error.where == "" or Path(error.where).is_dir()
    assert ".effconv-" not in str(error)


def test_a_check_without_memory_says_so(monkeypatch):
    target = TARGETS["lsg"]
    why = "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"
    lost = Measured("equal_to_source", "", False, None, 1e-5, why)
    with pytest.raises(CheckFailedError, match="allocate memory") as caught:
        verify.require_passed([lost], target, "what to do")
    assert caught.value.hint.startswith("out of memory")
    assert caught.value.hint.endswith("what to do")
    assert "Possible cause" not in caught.value.what  # of an equality nothing is known


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_is_no_fault_of_ours(error, source, tmp_path, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(run, "emit", fail)
    words = ["effconv", "lsg", str(source), "-o", str(tmp_path / "out"), "--no-verify"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 8
    assert "out of memory" in said
    assert "report" not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_an_error_never_names_a_staging_folder_that_is_gone(tmp_path):
    with pytest.raises(BadInputError) as caught, Staging(tmp_path / "out", overwrite=False) as made:
        raise BadInputError("it is damaged", where=str(made.folder / "config.json"))
    assert caught.value.where == ""


def test_only_a_fault_of_our_own_asks_for_a_report():
    asks = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(ROOT.rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith((".", "tests/", "build/"))  # environments, in any folder
        and re.search(r"please report|report (this|it)\b", path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert asks == ["cli.py"]


def test_weights_with_nan_are_named_as_the_cause(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    name = "bert.encoder.layer.0.attention.self.value.weight"
    tensors = read(tmp_path / "source")
    tensors[name][0, 0] = float("nan")
    write(tmp_path / "source", tensors)
    effconv.convert(tmp_path / "source", "lsg", output=tmp_path / "out", **{**VERIFIED, "verify": False})
    with pytest.raises(CheckFailedError, match="because the weights have NaN or infinite values") as caught:
        effconv.verify(tmp_path / "out")
    assert name in caught.value.what
    assert "position" not in str(caught.value)  # the usual cause of runs_at_full_length
    assert "convert its source again" not in caught.value.hint
