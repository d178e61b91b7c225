"""What a loopback Hub holds: repos with a real commit history, in memory, without a word of HTTP."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LFS_SIZE = 10 * 1024 * 1024
LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
    ".npy",
    ".zip",
    ".gz",
)
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class User:
    name: str
    token: str
    write: bool = True
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)


class HubError(Exception):
    """An answer other than 2xx: its status, the Hub's code for it where there is one, and its message."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


@dataclass(frozen=True)
class Blob:
    """One file's content. `lfs` says whether git holds a pointer only."""

    data: bytes = field(repr=False)
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        body = self.data
        if self.lfs:
            body = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(body)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


def wants_lfs(path: str, size: int, sample: bytes) -> bool:
    """How the Hub decides on a file's upload mode: by name, by size, by whether it looks binary."""
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str


@dataclass
class Repo:
    """A model repo. `refs` maps full names (`refs/heads/main`, `refs/tags/x`, `refs/pr/1`) to commits."""

    name: str
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)  # users let through the gate, besides the owner
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)  # number → title

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["refs/heads/main"]]

    @property
    def files(self) -> dict[str, bytes]:
        """The content of `main`, as the tests like to look at it."""
        return {path: blob.data for path, blob in sorted(self.head.files.items())}

    def find_ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str = "main") -> Commit:
        ref = self.find_ref(revision)
        sha = self.refs[ref] if ref else revision
        if sha in self.commits:
            return self.commits[sha]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits from a revision back to the first."""
        found: list[Commit] = []
        sha: str | None = self.resolve(revision).sha
        while sha:
            found.append(self.commits[sha])
            sha = found[-1].parent
        return found

    def blob(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.resolve(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.sha)
        return commit, commit.files[path]

    def commit(
        self,
        changes: Mapping[str, Blob | None],
        title: str,
        *,
        ref: str = "refs/heads/main",
        message: str = "",
        author: str = "me",
        parent: str | None = None,
    ) -> Commit:
        """Move `ref` by one commit; None as a file's content deletes it.

        Args:
            changes: path → new content.
            title: the first line of the commit's message.
            ref: what moves.
            message: the lines after it.
            author: who.
            parent: fail with 412 unless `ref` stands there (seven digits are enough).
        """
        base = self.refs.get(ref)
        if parent and not (base or "").startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[base].files) if base else {}
        for path, blob in changes.items():
            if blob is None and path not in files:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            if blob is None:
                del files[path]
            else:
                files[path] = blob
        tree = "".join(f"{path}\0{blob.git_oid}\n" for path, blob in sorted(files.items()))
        identity = f"{self.name}\n{base}\n{len(self.commits)}\n{tree}\n{title}\n{message}\n{author}"
        sha = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[sha] = Commit(sha, base, files, title, message, author)
        self.refs[ref] = sha
        return self.commits[sha]

    def open_pull_request(self, title: str, start: str = "main") -> str:
        """Open one and return its ref, which still stands where it starts."""
        number = len(self.pull_requests) + 1
        self.pull_requests[number] = title
        self.refs[f"refs/pr/{number}"] = self.resolve(start).sha
        return f"refs/pr/{number}"

    def create_branch(self, name: str, start: str = "main") -> None:
        if f"refs/heads/{name}" in self.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{name}")
        self.refs[f"refs/heads/{name}"] = self.resolve(start).sha


def as_blobs(files: Mapping[str, bytes | str]) -> dict[str, Blob | None]:
    """Files given by a test, each in the mode that the Hub would choose."""
    contents = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    return {path: Blob(data, wants_lfs(path, len(data), data[:512])) for path, data in contents.items()}


def tree_entries(files: Mapping[str, Blob], folder: str = "", recursive: bool = False) -> list[dict[str, object]]:
    """The rows of `GET .../tree/REV/FOLDER`: files, and the folders between."""
    prefix = f"{folder}/" if folder else ""
    rows: dict[str, dict[str, object]] = {}
    for path, blob in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            name = prefix + "/".join(parts[:depth])
            rows[name] = {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
        if recursive or len(parts) == 1:
            rows[path] = file_entry(path, blob)
    return list(rows.values())


def file_entry(path: str, blob: Blob) -> dict[str, object]:
    row: dict[str, object] = {"type": "file", "path": path, "oid": blob.git_oid, "size": len(blob.data)}
    if blob.lfs:
        row["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return row


def valid_name(name: str) -> bool:
    return re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) is not None and ".." not in name


@dataclass(repr=False)
class Storage:
    """The users, the repos and the uploaded objects. Tests read and change all three directly."""

    users: dict[str, User] = field(default_factory=dict)  # token → user
    repos: dict[str, Repo] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)  # sha256 → content, of every upload that arrived whole
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add_user(self, name: str, token: str, *, write: bool = True, orgs: tuple[str, ...] = ()) -> User:
        self.users[token] = User(name, token, write, orgs)
        return self.users[token]

    def add_repo(
        self, name: str, files: Mapping[str, bytes | str] | None = None, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """Add a repo whose first commit holds these files (what the Hub's own creation makes if there are none)."""
        repo = self.repos[name] = Repo(name, private, gated)
        self.add_commit(name, files if files is not None else {".gitattributes": GITATTRIBUTES}, "initial commit")
        return repo

    def add_folder(self, name: str, folder: Path, **options: bool) -> Repo:
        """Add a repo that holds what a folder does."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.add_repo(
            name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **options
        )

    def add_commit(self, name: str, files: Mapping[str, bytes | str], title: str = "update") -> Commit:
        """Move a repo's main as somebody else would."""
        blobs = as_blobs(files)
        self.lfs.update({blob.sha256: blob.data for blob in blobs.values() if blob and blob.lfs})
        with self.lock:
            return self.repos[name].commit(blobs, title)
