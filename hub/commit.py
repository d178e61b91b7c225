"""The one commit of a push: large files first, then all at once.

A commit that landed without a reply is recognised, a repo that moved meanwhile is followed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..convert.errors import CheckFailedError, EffconvError, HubError, UsageError, listing
from .changes import Changes, LocalFile, compare
from .connection import MOVED, WAITS, Failure, Head, failure_of
from .content import CARD
from .destination import Destination

LARGE = 1 << 20  # bytes of a file that is uploaded on its own before the commit


@dataclass(frozen=True, slots=True)
class Landed:
    """Where the push stands on the Hub."""

    changes: Changes
    commit: str
    pull_request: int | None = None


@dataclass
class Committing:
    """A commit on its way.

    Attributes:
        rebuild: for another state of the Hub, the files to send, and whether their card keeps what was written there.
        uploaded: files that the Hub has, commit or not.
    """

    to: Destination
    title: str
    rebuild: Callable[[Head], tuple[list[LocalFile], bool]]
    progress: Callable[[str, int, int], None]
    notes: list[str]
    uploaded: list[str] = field(default_factory=list)
    began: bool = False

    def send(self, files: list[LocalFile], head: Head, changes: Changes) -> Landed:
        """Sends the changes.

        Every try names the commit that it stands on, so that one that landed without a reply cannot land again.
        """
        to = self.to
        operations, lost = _operations(changes), False
        for wait in itertools.chain(WAITS, (None,)):
            self._upload(operations)
            self.progress("commit", 0, 0)
            try:
                info = to.hub.api.create_commit(
                    to.repo_id,
                    operations,
                    commit_message=self.title,
                    revision=to.revision,
                    create_pr=to.create_pr,
                    parent_commit=head.commit,
                )
                return Landed(changes, str(info.oid), info.pr_num)
            except Exception as raised:
                failure = failure_of(raised)
                if failure is None:
                    raise
                moved = failure.status == MOVED
                if not (moved or failure.passing):
                    raise self._refusal(failure) from None
                lost = lost or failure.status is None or failure.status >= 500
                landed = self._landed(files, head, changes) if lost or moved else None
                if landed:
                    if lost:
                        self.notes.append("the Hub's reply was lost, and the commit had landed")
                    return landed
                if wait is None or not failure.worth_waiting:
                    raise to.hub.error(failure, "commit", to.repo_id) from None
                if not moved:
                    to.hub.pause("commit", failure, wait)
                    continue
                head, files, changes = self._follow(head)
                if not changes:
                    return Landed(changes, head.commit)
                operations = _operations(changes)
        raise AssertionError("the last wait is None")

    def _upload(self, operations: list[Any]) -> None:
        """Sends large files one by one, so that Ctrl-C ends between two and each is tried again on its own."""
        to, self.began = self.to, True
        large = [op for op in operations if hasattr(op, "upload_info") and op.upload_info.size >= LARGE]
        for number, operation in enumerate(large, 1):
            name, size = operation.path_in_repo, operation.upload_info.size / 1e6
            if name in self.uploaded:
                continue
            what = f"upload {name}"
            self.progress(f"{what} ({size:,.1f} MB, {number} of {len(large)})", 0, 0)

            def send(operation: Any = operation) -> None:
                to.hub.api.preupload_lfs_files(
                    to.repo_id, [operation], revision=to.revision, create_pr=to.create_pr, free_memory=False
                )

            to.hub.ask(what, send, repo_id=to.repo_id)
            if operation._upload_mode == "lfs":  # a large text is part of the commit itself
                self.uploaded.append(name)

    def _landed(self, files: list[LocalFile], before: Head, changes: Changes) -> Landed | None:
        """Where the Hub stands as this push wants it, although it was not told so."""
        if self.to.create_pr:
            found = self.to.open_pull_request(files)
            return Landed(changes, found[1].commit, found[0]) if found else None
        head, _ = self.to.look()
        if head is None or head.commit == before.commit:
            return None
        return None if compare(files, head.files, self.to.theirs(before).files) else Landed(changes, head.commit)

    def _follow(self, before: Head) -> tuple[Head, list[LocalFile], Changes]:
        """The push on top of what somebody else has committed meanwhile, unless the two concern the same files."""
        head, _ = self.to.look()
        if head is None:
            raise HubError(
                "the repo has vanished while this push ran", where=self.to.repo_id, hint="run the command again"
            )
        files, keeps_card = self.rebuild(head)
        both = sorted(
            file.name
            for file in files
            if file.name in head.files
            and head.files[file.name] != before.files.get(file.name)
            and not head.files[file.name].holds(file)
            and not (file.name == CARD and keeps_card)
        )
        if both:
            raise HubError(
                f"somebody else changed the same files meanwhile, and this push changed nothing:\n{listing(both)}",
                where=f"{self.to.repo_id} at {head.commit[:12]}",
                hint="look at their commit; to put yours on top of it, run the command again",
            )
        self.notes.append(f"the repo moved to {head.commit[:12]} while this push ran; it went on from there")
        return head, files, compare(files, head.files, self.to.theirs(head).files)

    def _refusal(self, failure: Failure) -> EffconvError:
        if isinstance(failure.error, ValueError) and "metadata" in str(failure.error):
            said = str(failure.error).strip().splitlines()
            return UsageError(
                f"the Hub refuses the card's front matter:\n{listing(said[1:] or said)}", where=CARD, hint="mend it"
            )
        return self.to.hub.error(failure, "commit", self.to.repo_id)


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
