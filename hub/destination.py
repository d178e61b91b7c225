"""Where a push goes: a repo of the Hub, a branch of it or a pull request, as it stands now."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..convert.errors import CheckFailedError, HubError
from ..convert.repo.manifest import CARD, NAME
from .changes import Changes, LocalFile, compare
from .connection import Connection, Head
from .content import Theirs, parse_manifest

PULL_REQUESTS_READ = 10  # of this user, the newest ones


@dataclass
class Destination:
    """A repo by its id, and the branch, or the pull request to be opened on it."""

    hub: Connection
    repo_id: str
    revision: str | None = None
    create_pr: bool = False
    read: dict[str, Theirs] = field(default_factory=dict)  # by commit

    def look(self) -> tuple[Head | None, bool]:
        """The repo as it stands, None where there is none, and whether its branch is still to be made."""
        head = self.hub.head(self.repo_id, self.revision)
        if head is not None or self.revision is None:
            return head, False
        head = self.hub.head(self.repo_id, None)
        if head is not None and (self.create_pr or self.revision.startswith("refs/")):
            raise HubError("no such revision", where=f"{self.repo_id}@{self.revision}", hint="check --revision")
        return head, head is not None

    def theirs(self, head: Head | None) -> Theirs:
        """The card and the manifest there, read once a commit."""
        if head is None:
            return Theirs()
        if head.commit not in self.read:
            found = {
                name: self.hub.small_file(self.repo_id, name, head.commit)
                for name in (CARD, NAME)
                if name in head.files
            }
            self.read[head.commit] = Theirs(
                found.get(CARD, b"").decode("utf-8", "replace"), parse_manifest(found.get(NAME))
            )
        return self.read[head.commit]

    def create(self, private: bool | None) -> Head:
        """Makes the repo, or finds that somebody just has; None leaves it to the Hub whether it is private."""
        with self.hub.asking(f"make {self.repo_id}", self.repo_id):
            self.hub.api.create_repo(self.repo_id, private=private, exist_ok=True)
        head, _ = self.look()
        if head is None:
            raise HubError(
                "the Hub does not show the repo that it has just made",
                where=self.repo_id,
                hint="wait a moment, then run the command again",
            )
        return head

    def make_branch(self) -> None:
        with self.hub.asking(f"make the branch {self.revision}", self.repo_id):
            self.hub.api.create_branch(self.repo_id, branch=str(self.revision), exist_ok=True)

    def commit(self, changes: Changes, title: str, parent: str) -> tuple[str, int | None]:
        """Sends the changes; returns the commit, and the number of the pull request.

        The client uploads large files first and tries each again. The commit names its parent, so that it never lands
        on what somebody else committed meanwhile, and a second time neither.
        """
        with self.hub.asking("commit", self.repo_id):
            info = self.hub.api.create_commit(
                self.repo_id,
                _operations(changes),
                commit_message=title,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=parent,
            )
        return str(info.oid), info.pr_num

    def open_pull_request(self, files: list[LocalFile]) -> tuple[int, Head] | None:
        """An open pull request of this user that holds exactly these files."""
        with self.hub.asking("list the pull requests", self.repo_id):
            found = self.hub.api.get_repo_discussions(
                self.repo_id, author=self.hub.user, discussion_type="pull_request", discussion_status="open"
            )
            numbers = [entry.num for entry in itertools.islice(found, PULL_REQUESTS_READ)]
        for number in sorted(numbers, reverse=True):
            head = self.hub.head(self.repo_id, f"refs/pr/{number}")
            if head and not compare(files, head.files):
                return number, head
        return None

    def url(self, pull_request: int | None) -> str:
        page = f"{self.hub.endpoint}/{self.repo_id}"
        if pull_request is not None:
            return f"{page}/discussions/{pull_request}"
        return f"{page}/tree/{self.revision}" if self.revision else page

    def left(self, title: str) -> str:
        """What stands there, for somebody who pressed Ctrl-C: asked once, with little patience.

        Args:
            title: of the commit that the push makes.
        """
        where = f"{self.hub.endpoint}/{self.repo_id}"
        try:
            commit = str(self.hub.api.model_info(self.repo_id, revision=self.revision, timeout=5).sha)
            newest = self.hub.api.list_repo_commits(self.repo_id, revision=self.revision)[0]
        except Exception:  # no news is no reason to keep somebody who wants to leave
            return f"what stands at {where} could not be read"
        whose = "which is this push's" if newest.title == title else "without a commit of this push"
        return f"on the Hub: {where} stands at commit {commit[:12]}, {whose}"


def closed_source(hub: Connection, manifest: Mapping[str, Any]) -> str:
    """Why the source is not for everybody, as the manifest says or the Hub says now; "" where it is."""
    source = manifest.get("source")
    source = source if isinstance(source, dict) else {}
    gated, private, hub_id = source.get("gated"), source.get("private"), source.get("hub_id")
    if hub_id and not gated and not private:  # it may have been closed since, or converted offline
        try:
            info = hub.api.model_info(str(hub_id))
            gated, private = info.gated, info.private
        except Exception:  # gone, or of another Hub: then the manifest is all there is to know
            return ""
    if gated:
        return f"the source {hub_id} is gated ({gated})"
    return f"the source {hub_id} is private" if private else ""


def _operations(changes: Changes) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = []
    for file in changes.sent:
        operation = CommitOperationAdd(file.name, file.content)  # reads a path, for its hash
        if operation.upload_info.sha256.hex() != file.sha256:
            raise CheckFailedError(
                "the file changed after it was compared with the manifest; no commit was made",
                where=file.name,
                hint="let nothing write to the repo while it is pushed, then run the command again",
            )
        added.append(operation)
    return [*added, *(CommitOperationDelete(name, is_folder=False) for name in changes.removed)]
