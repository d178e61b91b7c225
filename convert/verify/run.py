"""Runs a target's checks in a fresh process that loads the repo as any user would: offline, with trust_remote_code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import (
    MEMORY,
    NO_EMBEDDING,
    BadInputError,
    CheckFailedError,
    EffconvError,
    beyond_a_table,
    joined_hints,
    listing,
    memory_ran_out,
)
from ..repo.manifest import Measured
from ..target import Check, Target
from ..text import counted

PYTHON = (sys.executable,)  # the command of the fresh process, and the module that it runs
CHILD = "effconv.convert.verify.stranger"
NO_SOURCE = "no source was given"  # begins why a check does not apply that --against would make apply
NOT_FINITE = "not_finite"  # in the details of a check that gave NaN: the tensors that hold some
CORRECT_WEIGHTS = (
    "correct the weights where they come from (the source or a training), or use others. Converting the same weights "
    "again fails the same checks"
)
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
    """Runs every check of the target. Also returns fidelity, versions and records for later checks.

    Args:
        source: folder of the source. None skips the checks that compare with it.
        progress: called with the name of each check when it starts.
        trust_remote_code: allows the Python code of the source to run.

    Raises:
        CheckFailedError: the process that loads the repo died.
    """
    applying: list[tuple[Check, str]] = []
    left_out: list[tuple[Check, str]] = []
    for check in target.checks:
        why = check.left_out(manifest)
        if not why and source is None and check.needs_source:
            why = f"{NO_SOURCE} to compare with"
        (left_out if why else applying).append((check, why))
    checks = [{"name": c.name, "function": c.function, "says": c.says, "tolerance": c.tolerance} for c, _ in applying]
    reply = _child(_job(repo, source, manifest, trust_remote_code) | {"checks": checks}, progress)
    results = [Measured(**result) for result in reply["checks"]]
    results += [Measured(check.name, check.says, None, why=f"does not apply: {why}") for check, why in left_out]
    order = [check.name for check in target.checks]
    measured = sorted(results, key=lambda result: order.index(result.name))
    return measured, {"fidelity": reply["fidelity"], "versions": reply["versions"], **reply["records"]}


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
    """Measures how close the repo's model is to its source on the files' text (without files: on the built-in text).

    Args:
        lengths: tokens of a window, special tokens included. texts: windows a length.

    Raises:
        CheckFailedError: the process that loads both died.
        BadInputError: a file that cannot be read.
    """
    asked = {"files": [str(path.resolve()) for path in files], "lengths": list(lengths), "texts": texts}
    reply = _child(_job(repo, source, manifest, trust_remote_code) | {"checks": [], "fidelity": asked}, progress)
    return list(reply["fidelity"])


def require_passed(
    measured: Sequence[Measured],
    target: Target,
    hint: str,
    repo: Path | None = None,
    *,
    hint_if_not_finite: str = "",
) -> None:
    """Raises CheckFailedError with every failed check, its value and a possible cause.

    Args:
        hint: what to do next. repo: a folder that is kept for inspection.
        hint_if_not_finite: what to do next where the cause is that the weights have NaN or infinite values.
    """
    means = {check.name: check.means for check in target.checks}
    failed = [result for result in measured if result.passed is False]
    if not failed:
        return
    undefined = next((result.details[NOT_FINITE] for result in failed if result.details.get(NOT_FINITE)), None)
    cause = ""
    if undefined:
        cause = (
            f", because the weights have NaN or infinite values ({counted(len(undefined), 'tensor')}: {undefined[0]}"
        )
        cause += ", ...)" if undefined[1:] else ")"
        hint = hint_if_not_finite or hint
    lines = [
        f"{result.name}: {result.why}"
        + (
            f". Possible cause: {means[result.name]}"
            if _compared(result) and means.get(result.name) and not result.details.get(NOT_FINITE)
            else ""
        )
        for result in failed
    ]
    short = MEMORY if any(memory_ran_out(result.why) for result in failed) else ""
    error = CheckFailedError(
        f"{len(failed)} of {len(measured)} checks failed{cause}:\n{listing(lines)}",
        where=str(repo) if repo else "",
        hint=joined_hints(short, hint),
    )
    error.measured = tuple(measured)
    raise error


def _compared(result: Measured) -> bool:
    """Whether a check failed because of its result, not because of an exception."""
    return result.value is not None or not re.match(r"\w+(Error|Exception): ", result.why)


def _died(returncode: int, said: str, repo: str) -> EffconvError:
    """The error for a process that ended before it reported all results."""
    if beyond_a_table(said):
        return BadInputError(NO_EMBEDDING.what, where=repo, hint=NO_EMBEDDING.hint)
    tail = "\n".join(f"    {line}" for line in said.strip().splitlines()[-6:])
    ended = f"exit status {returncode}"
    hint = "read the lines above, and install or upgrade the package that they name"
    if returncode < 0:
        ended = f"ended by signal {-returncode}"
        hint = "a package may not fit this machine: reinstall torch and transformers"
    if returncode == -9 or memory_ran_out(said):
        hint = MEMORY
    what = f"the repo could not be loaded in a fresh process ({ended}):\n{tail}"
    return CheckFailedError(what, where=repo, hint=hint)


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
    if "refused" in last:
        raise BadInputError(last["refused"].pop("what"), **last["refused"])
    if process.returncode or "checks" not in last:
        raise _died(process.returncode, said, str(job["repo"]))
    return last
