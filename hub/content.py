"""What a push sends: the repo's files, its card as the Hub shall have it, and what must not be sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, CheckFailedError, UsageError, listing
from ..convert.io.tokenizer_classes import VOCABULARIES
from ..convert.repo.card_blocks import front_matter, merged, named, with_field
from ..convert.repo.manifest import CARD, NAME, manifest_text
from .changes import LocalFile

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
PATHLESS = VOCABULARIES  # any text may be a word of theirs
BINARY = (".safetensors", ".bin", ".model")


@dataclass(frozen=True, slots=True)
class Theirs:
    """The card and the manifest that the Hub has; an empty card or manifest where it has none that can be read."""

    card: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> Mapping[str, str]:
        found = self.manifest.get("files")
        return found if isinstance(found, dict) else {}

    @property
    def edited(self) -> bool:
        """Whether somebody wrote in the card on the Hub."""
        return bool(self.card) and CARD in self.files and _sha256(self.card.encode()) != self.files[CARD]

    def same_model(self, manifest: Mapping[str, Any]) -> bool:
        return all(self.manifest.get(key) == manifest[key] for key in ("plan", "options", "target"))


def parse_manifest(data: bytes | None) -> dict[str, Any]:
    """A manifest of the Hub, whatever it holds; {} for none."""
    try:
        found = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def files_to_send(
    folder: Path,
    manifest: Mapping[str, Any],
    repo_id: str,
    *,
    revision: str | None = None,
    license: str | None = None,
    theirs: Theirs | None = None,
) -> list[LocalFile]:
    """Every file of the repo as the Hub shall have it: the card names repo and license, the manifest knows that card.

    Where a person wrote in the card on the Hub and nobody in the one here, their text stays and the generated blocks
    are ours. The manifest keeps the hash of the card that effconv made, so that a card with another one is a person's.
    """
    try:
        text = (folder / CARD).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BadInputError(
            f"the repo has no {CARD}", where=str(folder), hint=f"restore it, or let `effconv refresh {folder}` make it"
        ) from None
    except UnicodeDecodeError:
        raise BadInputError("the card is not UTF-8 text", where=str(folder / CARD), hint="save it as UTF-8") from None
    edited = manifest["files"].get(CARD) != _sha256(text.encode())
    card = named(text, repo_id, revision or "main")
    card = card if license is None else with_field(card, "license", license)
    stated = dict(manifest["files"]) if edited else {**manifest["files"], CARD: _sha256(card.encode())}
    if theirs and theirs.edited and not edited and theirs.same_model(manifest):
        card = merged(theirs.card, card)
        card = card if license is None else with_field(card, "license", license)
    front_matter(card)  # raises where it is no YAML: the Hub would refuse it after the upload
    made = {CARD: card, NAME: manifest_text({**manifest, "files": stated})}
    others = [name for name in manifest["files"] if name != CARD]
    return [LocalFile.made(name, content.encode()) for name, content in made.items()] + [
        LocalFile(name, (folder / name).stat().st_size, manifest["files"][name], folder / name) for name in others
    ]


def card_of(files: list[LocalFile]) -> str:
    """The text of the card among the files to send."""
    content = next(file.content for file in files if file.name == CARD)
    assert isinstance(content, bytes)
    return content.decode()


def license_missing(card: str, license: str | None) -> str:
    """Why the push needs a say on the license; "" where it does not."""
    stated = front_matter(card).get("license")
    if license is not None or (stated and str(stated).lower() not in ("other", "unknown")):
        return ""
    return (
        "the card says license: other, which says nothing"
        if stated
        else "neither the source nor the card names a license"
    )


def require_identifier(license: str | None) -> None:
    """Raises UsageError for what is no license identifier."""
    if license is not None and not LICENSE.fullmatch(license):
        raise UsageError(
            f"{license!r} is not a license identifier",
            where="--license",
            hint="give one such as apache-2.0, mit, cc-by-4.0, other",
        )


def require_license(card: str, license: str | None) -> None:
    """Raises UsageError where nobody has said under which license the repo stands."""
    why = license_missing(card, license)
    if why:
        raise UsageError(
            why,
            where=f"{CARD}: license",
            hint="pass --license with what the source stands under, such as mit (`other` passes if asked for), "
            f"or write it into {CARD}",
        )


def require_nothing_private(files: list[LocalFile], token: str, home: Path) -> None:
    """Raises CheckFailedError where a file holds a token of the Hub, or a path in the user's home."""
    here = f"{home}/".encode() if len(home.parts) > 1 else b""
    found = []
    for file in files:
        if file.name.endswith(BINARY):
            continue
        data = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        if token.encode() in data or SECRET.search(data):
            found.append(f"{file.name}: a token of the Hub")
        if here and here in data and file.name.rpartition("/")[2] not in PATHLESS:
            found.append(f"{file.name}: a path of this machine")
    if found:
        raise CheckFailedError(
            f"the repo holds what is not for others, and nothing was sent:\n{listing(found)}",
            where=CARD if all(line.startswith(CARD) for line in found) else "",
            hint="take it out; if a token was shown to anybody, revoke it",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
