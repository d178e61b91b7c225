"""The card of a repo that a command writes anew: what a person wrote in it stays, and stays known as theirs.

The manifest has the hash of the card that effconv wrote. A card with another hash is one that a person edited. The
manifest of the next repo keeps that hash, so that push and refresh go on taking the card for a person's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError, EffconvError
from .card_blocks import blocks, front_matter, merged
from .manifest import CARD, read_manifest

SAME = ("target", "family", "architecture", "max_length")  # and the source's name: of one model


@dataclass(frozen=True, slots=True)
class OldCard:
    """A card from before.

    Attributes:
        text: "" where there is none. edited: whether a person wrote in it. stated: its hash as the manifest has it.
    """

    text: str = ""
    edited: bool = False
    stated: str = ""

    def renewed(self, generated: str) -> str:
        """The card with the generated blocks of a new one, or the new one where there is none from before."""
        return merged(self.text, generated) if self.text else generated

    def files(self, hashes: Mapping[str, str]) -> dict[str, str]:
        """The hashes as the new manifest has them: of an edited card the one from before."""
        return {**hashes, CARD: self.stated} if self.edited else dict(hashes)


def old_card(folder: Path, manifest: Mapping[str, Any]) -> OldCard:
    """The card of a repo.

    Raises:
        BadInputError: its blocks or its front matter are broken, so that it cannot be written anew.
    """
    path = folder / CARD
    if not path.is_file():
        return OldCard()
    data, stated = path.read_bytes(), str(manifest["files"].get(CARD, ""))
    text = data.decode("utf-8", "replace")
    try:
        blocks(text), front_matter(text)
    except BadInputError as error:
        error.where = error.where.replace(CARD, str(path), 1)
        raise
    return OldCard(text, hashlib.sha256(data).hexdigest() != stated, stated)


def overwritten_card(output: Path, manifest: Mapping[str, Any]) -> OldCard:
    """The card that a person edited in the folder that `--overwrite` replaces, if it is a repo of the same model.

    Args:
        manifest: of the new repo.
    """
    try:
        before = read_manifest(output)
    except EffconvError:  # nothing there, or not a repo
        return OldCard()
    if _model(before) != _model(manifest):  # title and front matter are of another model
        return OldCard()
    found = old_card(output, before)
    return found if found.edited else OldCard()


def _model(manifest: Mapping[str, Any]) -> list[Any]:
    source = manifest.get("source")
    source = source if isinstance(source, dict) else {}
    return [*(manifest.get(name) for name in SAME), source.get("name"), source.get("hub_id")]
