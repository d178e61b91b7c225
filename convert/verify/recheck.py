"""Checks an existing repo, and measures its fidelity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...data.files import require_forms
from ..errors import BadInputError, UnsupportedError, UsageError
from ..io.tokenizer import require_tokenizer
from ..options import Progress, Settings, default_of
from ..repo.manifest import Measured, check_hashes, read_manifest, repo_folder
from ..target import Target
from ..text import Named, one_or_several
from .against import Against, named_source, source_of
from .run import CORRECT_WEIGHTS, NO_SOURCE, measure_fidelity, require_passed, run_checks


def verify_repo(
    repo: str | os.PathLike[str],
    targets: Mapping[str, Target],
    *,
    against: str | os.PathLike[str] | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> list[Measured]:
    """Checks a converted repo: file hashes, then the target's checks in a fresh process.

    Args:
        against: the source model. Without it, checks that compare with the source are skipped.

    Raises:
        CheckFailedError: a file differs from the manifest, or a check fails.
    """
    folder, manifest = _opened(repo)
    target = targets.get(manifest["target"])
    if target is None:
        raise UnsupportedError(
            f"this version of effconv does not know the repo's target {manifest['target']!r}",
            where=str(folder),
            hint="upgrade effconv",
        )
    manifest = _with_defaults(manifest, target)
    progress("hashes", 0, 0)
    check_hashes(folder, manifest)
    source = None if against is None else source_of(against, folder, manifest, token, offline, target)
    if source and source.doubt:
        progress(source.doubt, 0, 0)
    measured, _ = run_checks(
        folder.resolve(),
        target,
        manifest,
        source=source.folder if source else None,
        progress=lambda name: progress(f"verify: {name}", 0, 0),
        trust_remote_code=trust_remote_code,
    )
    require_passed(measured, target, _advice(source, manifest), folder, hint_if_not_finite=CORRECT_WEIGHTS)
    # Said here, as other commands that run the checks have no --against.
    return [
        replace(result, why=f"{result.why} (give --against SOURCE)") if NO_SOURCE in result.why else result
        for result in measured
    ]


def _advice(source: Against | None, manifest: Mapping[str, Any]) -> str:
    """What to do after a failed check, which is the repo's fault only where the source is the right one."""
    bad = "do not use this repo; convert its source again"
    if source is None or source.same:
        return bad
    if source.doubt:
        return f"{source.doubt}: give that one with --against. If its checks fail too, {bad}"
    return f"if --against is not {named_source(manifest)}, from which the repo was made, give that one. Otherwise {bad}"


def fidelity_of(
    repo: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    data: Named | Sequence[Named] = (),
    lengths: str | int | Sequence[int] = (128, 256, 512),
    texts: int = 32,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> list[dict[str, Any]]:
    """Measures how close a repo's model is to its source on the same text. One entry per length.

    The text is tokenized and cut into consecutive windows, of which `texts`, evenly spread, are measured. Lengths that
    the source or the repo does not support are skipped.

    Args:
        data: one or more text files, or tables with a column `text`. By default the part of the built-in text that
            calibration does not use.
        lengths: tokens per window, special tokens included: one or more numbers, or text such as "128,512".

    Raises:
        UsageError: no length fits both models.
        BadInputError: a text file cannot be read, or is too short for every length.
    """
    folder, manifest = _opened(repo)
    files = [Path(path) for path in one_or_several(data)]
    require_forms(files, "--data")
    wanted = _token_lengths(lengths)
    if texts < 1:
        raise UsageError(
            f"--texts must be at least 1, got {texts}", where="--texts", hint="give the number of texts per length"
        )
    if (manifest.get("source") or {}).get("random"):
        raise UnsupportedError(
            "the repo began with random weights: there is no source to be similar to",
            where=str(folder),
            hint="measure its loss on held-out text: effconv pretrain reports it",
        )
    if not manifest.get("dense_source", True):
        raise UnsupportedError(
            f"a {manifest['target']} repo computes the same as its source: there is no approximation to measure",
            where=str(folder),
            hint="compare their outputs with effconv verify --against SOURCE",
        )
    if manifest.get("part"):
        raise UnsupportedError(
            f"the repo has only the {manifest['part']}, whose attention is the source's: there is no approximation",
            where=str(folder),
            hint="compare their outputs with effconv verify --against SOURCE",
        )
    require_tokenizer(folder, trust_remote_code=trust_remote_code)
    reach = min(int(manifest["max_length"]), int(manifest["source_max_length"]))
    reached = [length for length in wanted if length <= reach]
    beyond = [str(length) for length in wanted if length > reach]
    takes = f"the source takes {manifest['source_max_length']} tokens, the repo {manifest['max_length']}"
    if not reached:
        raise UsageError(
            f"no length fits both models: {takes}",
            where=f"--lengths {','.join(beyond)}",
            hint=f"give lengths of at most {reach} tokens (for longer texts: effconv retrieval)",
        )
    if beyond:
        progress(f"skipped texts of {','.join(beyond)} tokens: {takes}", 0, 0)
    check_hashes(folder, manifest)
    source = source_of(against, folder, manifest, token, offline)
    if source.doubt:
        progress(source.doubt, 0, 0)
    rows = measure_fidelity(
        folder.resolve(),
        manifest,
        source=source.folder,
        files=files,
        lengths=reached,
        texts=texts,
        progress=lambda name: progress(name, 0, 0),
        trust_remote_code=trust_remote_code,
    )
    if not rows:
        raise BadInputError(
            f"the text is shorter than {reached[0]} tokens",
            where="--data, --lengths",
            hint="give more text, or shorter lengths",
        )
    filled = {row["tokens"] for row in rows}
    for length in reached:
        if length not in filled:
            progress(f"skipped texts of {length} tokens: the text is shorter", 0, 0)
    return rows


def _token_lengths(lengths: str | int | Sequence[int]) -> list[int]:
    """The lengths, ascending, each once.

    Raises:
        UsageError: they are no numbers of tokens, or too few for a text between its special tokens.
    """
    parts = lengths.split(",") if isinstance(lengths, str) else [lengths] if isinstance(lengths, int) else lengths
    found = sorted({int(part) if str(part).strip().isdigit() else 0 for part in parts})
    if not found or found[0] < 3:
        raise UsageError(
            f"--lengths must be numbers of tokens, at least 3, got {lengths!r}",
            where="--lengths",
            hint="separate lengths by commas, such as 128,512",
        )
    return found


def _opened(repo: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    folder = repo_folder(repo)
    return folder, read_manifest(folder)


def _with_defaults(manifest: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The manifest with the options that are younger than it, or that somebody removed."""
    known = {"options": target.options, "settings": Settings}
    filled = {key: {f.name: default_of(f) for f in fields(kind)} | manifest[key] for key, kind in known.items()}
    return {**manifest, **filled}
