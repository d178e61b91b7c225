"""What every command that writes a repo ends with: the card, the origin in config.json, and last the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .manifest import CARD, hash_files, write_manifest
from .old_card import OldCard
from .origin import write_origin


def write_record(
    folder: Path, manifest: Mapping[str, Any], card: str, *, before: OldCard, known: Mapping[str, str]
) -> dict[str, Any]:
    """Writes card, origin and manifest of a repo whose other files are there.

    Args:
        card: the text of README.md. before: the card that it was made of. known: hashes of files that need not be read.

    Returns:
        The manifest with every file's hash.
    """
    path = folder / CARD
    path.unlink(missing_ok=True)  # it may be a link to a file that must not change
    path.write_bytes(card.encode("utf-8"))
    write_origin(folder, manifest)
    return write_hashes(folder, manifest, before=before, known=known)


def write_hashes(
    folder: Path, manifest: Mapping[str, Any], *, before: OldCard, known: Mapping[str, str]
) -> dict[str, Any]:
    """Writes the manifest with every file's hash, and returns it."""
    complete = {**manifest, "files": before.files(hash_files(folder, known=known))}
    write_manifest(folder, complete)
    return complete
