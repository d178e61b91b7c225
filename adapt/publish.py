"""Writes a trained repo, checks it and puts it in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..convert.io.staging import Staging, output_errors
from ..convert.options import Progress
from ..convert.repo.card import card_text
from ..convert.repo.card_blocks import without_scores
from ..convert.repo.manifest import Measured
from ..convert.repo.old_card import old_card, overwritten_card
from ..convert.repo.record import write_record
from ..convert.repo.sentence import MODULES
from ..convert.target import Target
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
    write: Callable[[Path], tuple[dict[str, Any], dict[str, str]]],
    add_results: Callable[[Path, dict[str, Any], str], str],
    *,
    source: Path | None,
    progress: Progress,
) -> list[Measured] | None:
    """Writes, checks and publishes a trained repo.

    Args:
        write: writes all files but the card into the folder; returns the new manifest, and sha256 of what it hashed.
        add_results: adds to the folder what the training left, and to the card its results; returns the card.
        source: to compare with in the checks.

    Returns:
        The checks, None if they are off.

    Raises:
        CheckFailedError: a check failed. Nothing is published.
    """
    options, output = asked.options, asked.output
    with Staging(output, overwrite=options.overwrite) as staging, output_errors(output):
        folder = staging.folder
        new, hashes = write(folder)
        before = overwritten_card(output, new)
        before = before if before.edited else old_card(asked.folder, asked.manifest)
        measured = verified(
            folder,
            asked.target,
            new,
            source=source,
            verify=options.verify,
            trust_remote_code=options.trust_remote_code,
            progress=progress,
        )
        progress("publish", 0, 0)
        generated = card_text(asked.target, new, {}, sentence=(folder / MODULES).is_file())
        card = add_results(folder, new, without_scores(before.renewed(generated)))
        write_record(folder, new, card, before=before, known=hashes)
        staging.publish()
    return measured
