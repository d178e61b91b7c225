"""Writes a trained repo, checks it and puts it in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..convert.io.staging import Staging, output_errors
from ..convert.options import Progress
from ..convert.repo.card import card_text
from ..convert.repo.card_blocks import merged
from ..convert.repo.manifest import Measured, hash_files, write_manifest
from ..convert.repo.origin import write_origin
from ..convert.target import Target
from .results import copy_repo
from .verified import verified


class Publishing(Protocol):
    """The options of a training that say how its result is written."""

    @property
    def overwrite(self) -> bool: ...
    @property
    def verify(self) -> bool: ...
    @property
    def trust_remote_code(self) -> bool: ...


class Training(Protocol):
    """What was trained: the repo's folder, manifest and target, the options, and where the result goes."""

    @property
    def folder(self) -> Path: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def target(self) -> Target: ...
    @property
    def options(self) -> Publishing: ...
    @property
    def output(self) -> Path: ...


def publish_trained(
    asked: Training,
    new: dict[str, Any],
    state: Mapping[str, Tensor],
    write_results: Callable[[Path, dict[str, Any]], None],
    *,
    source: Path | None,
    progress: Progress,
    finish: Callable[[Path], None] = lambda folder: None,
) -> list[Measured] | None:
    """Writes the old files with trained weights.

    Args:
        new: the manifest of the new repo. state: trained tensors by name.
        write_results: adds the results to the folder, with its card. source: to compare with in the checks.
        finish: called with the folder before the checks.

    Returns:
        The checks, None if they are off.

    Raises:
        CheckFailedError: a check failed. Nothing is published.
    """
    folder, options, output = asked.folder, asked.options, asked.output
    with Staging(output, overwrite=options.overwrite) as staging, output_errors(output):
        hashes = copy_repo(folder, staging.folder, asked.manifest, state)
        finish(staging.folder)
        measured = verified(
            staging.folder,
            asked.target,
            new,
            source=source,
            verify=options.verify,
            trust_remote_code=options.trust_remote_code,
            progress=progress,
        )
        progress("publish", 0, 0)
        card = staging.folder / "README.md"
        generated = card_text(asked.target, new, {}, sentence=(folder / "modules.json").is_file())
        card.write_text(merged(card.read_text(encoding="utf-8"), generated) if card.is_file() else generated, "utf-8")
        write_results(staging.folder, new)
        write_origin(staging.folder, new)
        new["files"] = hash_files(staging.folder, known=hashes)
        write_manifest(staging.folder, new)
        staging.publish()
    return measured
