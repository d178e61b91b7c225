"""What is done with a repo that exists: check it again, measure its fidelity."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .converted import converted
from .errors import BadInputError, UnsupportedError, UsageError
from .execute import Progress
from .manifest import Measured, check_hashes, read_manifest
from .options import Settings, default_of
from .reader import DENSE_FORMATS, open_checkpoint
from .run import source_folder
from .source import resolve
from .target import Target
from .verify import measure_fidelity, require_passed, run_checks


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
    """Checks an emitted repo again: every hash, then the target's checks in a fresh process.

    Args:
        against: the dense source to compare with; without it what needs a source is left out.

    Raises:
        CheckFailedError: a file differs from the manifest, or a check fails.
    """
    folder, manifest = _opened(repo)
    target = targets.get(manifest["target"])
    if target is None:
        raise UnsupportedError(
            f"the repo's target {manifest['target']!r} is unknown to this effconv",
            where=str(folder),
            hint="upgrade effconv",
        )
    manifest = _with_defaults(manifest, target)
    progress("hashes", 0, 0)
    check_hashes(folder, manifest)
    source = None if against is None else source_of(against, manifest, token, offline, target)
    measured, _ = run_checks(
        folder.resolve(),
        target,
        manifest,
        source=source,
        progress=lambda name: progress(f"verify: {name}", 0, 0),
        trust_remote_code=trust_remote_code,
    )
    require_passed(folder, measured)
    return measured


def fidelity_of(
    repo: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]] = (),
    lengths: Sequence[int] = (128, 256, 512),
    texts: int = 32,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> list[dict[str, Any]]:
    """How close a repo's model is to its source on the same text, one entry a length.

    The text is tokenized whole and cut into windows one after the other; `texts` of them, evenly spread, are measured.
    Lengths that the source or the repo does not reach are left out.

    Args:
        data: text files; by default the part of the built-in text that no calibration has seen.
        lengths: tokens of a window, special tokens included.

    Raises:
        BadInputError: a text file that cannot be read, or is too short for every length.
    """
    folder, manifest = _opened(repo)
    files = [Path(path) for path in data]
    for path in files:
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"the text cannot be read ({error})", where=str(path), hint="give UTF-8 text files"
            ) from None
    if not lengths or min(lengths) < 3 or texts < 1:
        raise UsageError(
            "lengths of at least 3 tokens, and at least one text", where="--lengths", hint="such as 128,512"
        )
    if not manifest.get("dense_source", True):
        raise UnsupportedError(
            f"a {manifest['target']} repo has its source's weights and approximates nothing",
            where=str(folder),
            hint="compare the two with effconv verify --against",
        )
    check_hashes(folder, manifest)
    rows = measure_fidelity(
        folder.resolve(),
        manifest,
        source=source_of(against, manifest, token, offline),
        files=files,
        lengths=sorted(set(lengths)),
        texts=texts,
        progress=lambda name: progress(name, 0, 0),
        trust_remote_code=trust_remote_code,
    )
    if not rows:
        reach = min(int(manifest["max_length"]), int(manifest["source_max_length"]))
        raise BadInputError(
            "no length could be measured: the text is too short, or both models do not reach it",
            where=f"--lengths {','.join(map(str, lengths))}; both models take {reach} tokens",
            hint="give shorter lengths, or more text with --data",
        )
    return rows


def _opened(repo: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    folder = Path(repo)
    if not folder.is_dir():
        raise UsageError(
            "no such folder", where=str(repo) or "REPO", hint="give the folder of a repo that effconv made"
        )
    return folder, read_manifest(folder)


def _with_defaults(manifest: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The manifest with the options that are younger than it, or that somebody removed."""
    known = {"options": target.options, "settings": Settings}
    filled = {key: {f.name: default_of(f) for f in fields(kind)} | manifest[key] for key, kind in known.items()}
    return {**manifest, **filled}


def source_of(
    against: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    token: str | None,
    offline: bool,
    target: Target | None = None,
) -> Path:
    """The source's folder, its weights fetched; `target` where it has a way of its own to open sources."""
    found = resolve(against, token=token, offline=offline)
    own = target if target and target.model_types else None
    before = converted(found.config)
    family = before.family if before and not own else found.config.get("model_type")
    if family not in (own.model_types if own else (manifest["family"],)):
        raise UsageError(
            f"the source is a {family}, the repo was made from a {manifest['family']}",
            where=str(against),
            hint="give the checkpoint that the repo was made from",
        )
    for name in open_checkpoint(found, formats=own.formats if own else DENSE_FORMATS).files():
        found.path(name)
    return source_folder(found)
