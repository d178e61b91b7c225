"""Runs a target's checks on a repo, in a fresh process that loads it as a stranger does: offline, with remote code."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import CheckFailedError, listing
from .manifest import Measured
from .target import Check, Target

PYTHON = (sys.executable,)  # the command of the fresh process, and the module that it runs
CHILD = "effconv.convert.stranger"
PREFIX = "effconv: "  # of the lines that are for us: the repo's code, or the source's, may print too


def run_checks(
    repo: Path,
    target: Target,
    manifest: Mapping[str, Any],
    *,
    source: Path | None,
    progress: Callable[[str], None] = lambda step: None,
    trust_remote_code: bool = False,
) -> tuple[list[Measured], dict[str, Any]]:
    """The result of every check of the target, and the measured fidelity.

    Args:
        source: folder of the dense source; None leaves out what compares with it.
        progress: called with the name of each check as it begins.
        trust_remote_code: lets the source run code of its own.

    Raises:
        CheckFailedError: the process that loads the repo died.
    """
    applying: list[tuple[Check, str]] = []
    left_out: list[tuple[Check, str]] = []
    for check in target.checks:
        why = check.applies(manifest)
        if not why and source is None and check.name == "equal_to_source":
            why = "no source was given to compare with"
        (left_out if why else applying).append((check, why))
    checks = [{"name": c.name, "function": c.function, "says": c.says, "tolerance": c.tolerance} for c, _ in applying]
    reply = _child(_job(repo, source, manifest, trust_remote_code) | {"checks": checks}, progress)
    measured = [Measured(**result) for result in reply["checks"]]
    measured += [Measured(check.name, check.says, None, why=f"does not apply: {why}") for check, why in left_out]
    return measured, {"fidelity": reply["fidelity"], "versions": reply["versions"]}


def measure_fidelity(
    repo: Path,
    manifest: Mapping[str, Any],
    *,
    source: Path,
    files: Sequence[Path],
    lengths: Sequence[int],
    texts: int,
    progress: Callable[[str], None] = lambda step: None,
    trust_remote_code: bool = False,
) -> list[dict[str, Any]]:
    """How close the repo's model is to its source on the files' text (the built-in one where there are none).

    Args:
        lengths: tokens of a window, special tokens included. texts: windows a length.

    Raises:
        CheckFailedError: the process that loads both died.
    """
    asked = {"files": [str(path.resolve()) for path in files], "lengths": list(lengths), "texts": texts}
    reply = _child(_job(repo, source, manifest, trust_remote_code) | {"checks": [], "fidelity": asked}, progress)
    return list(reply["fidelity"])


def require_passed(repo: Path, measured: list[Measured]) -> None:
    """Raises CheckFailedError with every check that failed."""
    failed = [f"{result.name}: {result.why}" for result in measured if result.passed is False]
    if failed:
        raise CheckFailedError(
            f"{len(failed)} of {len(measured)} checks failed:\n{listing(failed)}",
            where=str(repo),
            hint="do not use this repo; please report it with the command that made it",
        )


def strangers_environment(modules: str) -> dict[str, str]:
    """Variables of a process that loads a repo: offline, quiet, the repo's code copied to the folder `modules` only."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": modules,  # the repo's code is copied there: nothing of it stays behind
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8:replace",  # whatever the locale: the repo's code may print anything
    }


def _job(repo: Path, source: Path | None, manifest: Mapping[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    return {
        "repo": str(repo),
        "source": str(source) if source else None,
        "manifest": dict(manifest),
        "trust_remote_code": trust_remote_code,
    }


def _text_file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def _child(job: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    # Errors go to a file: a pipe that nobody reads until the end would stop a process that says much.
    with tempfile.TemporaryDirectory(prefix="effconv-") as modules, _text_file() as errors:
        process = subprocess.Popen(
            [*PYTHON, "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            env=strangers_environment(modules),
            cwd=modules,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        last: dict[str, Any] = {}
        with process:
            try:
                # It may die before it has read all: its exit status says so, closing the pipe would only say it again.
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(json.dumps(job))
                for line in process.stdout:
                    if line.startswith(PREFIX):
                        last = json.loads(line.removeprefix(PREFIX))
                        if "begins" in last:
                            progress(last["begins"])
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read()
    if process.returncode or "checks" not in last:
        tail = "\n".join(f"    {line}" for line in said.strip().splitlines()[-6:])
        raise CheckFailedError(
            f"the repo could not be loaded in a fresh process (it ended with {process.returncode}):\n{tail}",
            where=str(job["repo"]),
            hint="if memory ran out, use a machine with more of it or pass --no-verify; else please report this",
        )
    return last
