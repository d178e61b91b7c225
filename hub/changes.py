"""What a push would change on the Hub: files here against files there, by name and hash alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class LocalFile:
    """A file to send: its bytes where they are made for the push, else its path.

    Attributes:
        sha256: of its content, as the manifest has it.
    """

    name: str
    size: int
    sha256: str
    content: bytes | Path

    @classmethod
    def made(cls, name: str, content: bytes) -> LocalFile:
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), content)

    @cached_property
    def blob_id(self) -> str:
        """The name that git has for the content."""
        from huggingface_hub.utils.sha import git_hash

        return git_hash(self.content if isinstance(self.content, bytes) else self.content.read_bytes())


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repo on the Hub; `sha256` is set where git holds a pointer to it only."""

    size: int | None
    blob_id: str | None
    sha256: str | None = None

    def holds(self, file: LocalFile) -> bool:
        if self.sha256 is not None:
            return self.sha256 == file.sha256
        return self.size in (None, file.size) and self.blob_id == file.blob_id


@dataclass(frozen=True, slots=True)
class Changes:
    """A push, before it happens.

    Attributes:
        left: files that are there as they are here. removed: names that an earlier push of effconv left there and this
            repo has no more. others: names on the Hub that are none of ours; they stay.
    """

    added: tuple[LocalFile, ...]
    changed: tuple[LocalFile, ...]
    left: tuple[LocalFile, ...]
    removed: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def sent(self) -> tuple[LocalFile, ...]:
        return self.added + self.changed

    def __bool__(self) -> bool:
        return bool(self.sent or self.removed)


def compare(files: Sequence[LocalFile], there: Mapping[str, RemoteFile], earlier: Collection[str] = ()) -> Changes:
    """What sending these files would change.

    Args:
        files: all that the repo holds.
        there: the Hub's files by name.
        earlier: names that the manifest on the Hub calls its own.
    """
    names = {file.name for file in files}
    gone = {name for name in there.keys() - names if name in earlier}
    return Changes(
        added=tuple(file for file in files if file.name not in there),
        changed=tuple(file for file in files if file.name in there and not there[file.name].holds(file)),
        left=tuple(file for file in files if file.name in there and there[file.name].holds(file)),
        removed=tuple(sorted(gone)),
        others=tuple(sorted(there.keys() - names - gone - {".gitattributes"})),
    )
