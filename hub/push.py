"""`effconv push-to-hub`: one commit with what differs, after the manifest has been verified; safe to run again at any point."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..convert.errors import HubError, StoppedError, UsageError, listing
from ..convert.manifest import NAME, check_hashes, read_manifest
from .changes import Changes, LocalFile, compare
from .connection import MOVED, WAITS, Connection, Failure, Head, connect, failure_of, refuse_offline, require_repo_id
from .content import (
    CARD,
    Theirs,
    card_of,
    files_to_send,
    license_missing,
    parse_manifest,
    require_license,
    require_nothing_private,
)

Progress = Callable[[str, int, int], None]
LARGE = 1 << 20  # files from here on are uploaded one by one before the commit
PULL_REQUESTS_READ = 10


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did, or (dry_run) would do.

    Attributes:
        url: of the repo, its branch or the pull request. commit: where the repo, or the pull request, stands now; None
            for a dry run. notes: what a person should know.
    """

    repo_id: str
    url: str
    commit: str | None
    changes: Changes
    private: bool | None
    pull_request: int | None = None
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """As JSON values."""

        def sizes(files: tuple[LocalFile, ...]) -> dict[str, int]:
            return {file.name: file.size for file in files}

        return {
            "repo_id": self.repo_id,
            "url": self.url,
            "commit": self.commit,
            "pull_request": self.pull_request,
            "private": self.private,
            "dry_run": self.dry_run,
            "nothing_to_do": not self.changes,
            "added": sizes(self.changes.added),
            "changed": sizes(self.changes.changed),
            "left_alone": sizes(self.changes.left),
            "removed": list(self.changes.removed),
            "others": list(self.changes.others),
            "notes": list(self.notes),
        }


def push(
    repo: str | os.PathLike[str],
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    license: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    offline: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Pushed:
    """Sends an emitted repo to the Hub.

    Args:
        repo: its folder, which stays as it is.
        repo_id: user/name; by default the token's user and the folder's name.
        private: of a repo that is made; None leaves it to the source: private where that is gated or private.
        license: written into the card that is sent; needed where the card names none.
        revision: branch to commit to; made where there is none.
        create_pr: open a pull request, on `revision` or main.
        dry_run: say what would happen, and change nothing.

    Returns:
        What was sent; nothing where the Hub has it all.

    Raises:
        CheckFailedError: a file is not what the manifest says (README.md may differ).
        HubError: the Hub or the network.
        UsageError: no license, no Hub id, a public repo for a source that is not.
        StoppedError: Ctrl-C; the message says what is on the Hub.
    """
    job = _Job(
        folder=Path(repo),
        private=private,
        license=license,
        revision=revision,
        create_pr=create_pr,
        message=commit_message,
        dry_run=dry_run,
        progress=progress,
    )
    return job.run(repo_id, token, offline)


def push_refreshed(
    folder: Path,
    repo_id: str | None,
    *,
    revision: str | None,
    trusted: bool,
    token: str | None,
    message: str,
    progress: Progress,
) -> Pushed:
    """Opens a pull request with what a refresh changed.

    Args:
        trusted: the repo came from there, so that its license and visibility are somebody's decision already.
    """
    job = _Job(folder=folder, revision=revision, create_pr=True, message=message, trusted=trusted, progress=progress)
    return job.run(repo_id, token, False)


def check_reachable(repo_id: str, token: str | None, *, offline: bool) -> None:
    """Raises what would keep a push from beginning, before hours are spent on what it shall send."""
    require_repo_id(repo_id)
    connect(token, offline=offline, say=lambda line: None)


@dataclass
class _Job:
    """One push as it goes on; Ctrl-C reads from it how far it came."""

    folder: Path
    private: bool | None = None
    license: str | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    dry_run: bool = False
    trusted: bool = False  # the repo is on the Hub with its license and visibility already
    progress: Progress = lambda step, done, total: None
    notes: list[str] = field(default_factory=list)
    hub: Connection | None = None
    repo_id: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    made: bool = False  # the repo, by this push
    began: bool = False  # to send
    uploaded: list[str] = field(default_factory=list)
    read: dict[str, Theirs] = field(default_factory=dict)  # by commit

    def run(self, repo_id: str | None, token: str | None, offline: bool) -> Pushed:
        if not self.folder.is_dir():
            raise UsageError(
                "no such folder", where=str(self.folder), hint="give the folder of a repo that effconv made"
            )
        self.manifest = read_manifest(self.folder)
        name = repo_id or self.folder.resolve().name
        require_repo_id(name)
        try:
            return self._push(name, token, offline)
        except KeyboardInterrupt:
            raise StoppedError(f"interrupted; local files are as they were\n{self._left_on_hub()}") from None

    def _push(self, name: str, token: str | None, offline: bool) -> Pushed:
        refuse_offline(offline)
        self.progress("ask the Hub who the token belongs to", 0, 0)
        self.hub = hub = connect(token, offline=offline, say=self._say)
        self.repo_id = name if "/" in name else f"{hub.user}/{name}"
        self.progress("compare every file with the manifest", 0, 0)
        check_hashes(self.folder, self.manifest)
        closed = "" if self.trusted else _closed_source(hub, self.manifest)
        head, branch_missing = self._look()
        files = self._files(head)
        self._check(card_of(files), closed, head)
        require_nothing_private(files, hub.token, Path.home())
        changes = compare(files, head.files if head else {}, self._theirs(head).files if head else ())
        self._note(files, changes, head)
        private = head.private if head else self._new_private(closed)
        if self.dry_run:
            if branch_missing:
                self.notes.append(f"the branch {self.revision} would be made from main")
            return self._pushed(changes, None, private)
        if head is None:
            self._create(closed)
            head, _ = self._look()
            if head is None:
                raise HubError(
                    "the Hub does not show the repo that it has just made", where=self.repo_id, hint="run again"
                )
            changes = compare(files, head.files)
        if not changes:
            return self._pushed(changes, head.commit, private)
        if self.create_pr:
            found = self._open_pull_request(files)
            if found:
                self.notes.append("an open pull request of yours holds exactly this")
                return self._pushed(compare(files, found[1].files), found[1].commit, private, found[0])
        if branch_missing:
            hub.ask(
                f"make the branch {self.revision}",
                lambda: hub.api.create_branch(self.repo_id, branch=str(self.revision), exist_ok=True),
                repo_id=self.repo_id,
            )
        changes, commit, pull_request = self._commit(files, head, changes)
        return self._pushed(changes, commit, private, pull_request)

    def _look(self) -> tuple[Head | None, bool]:
        """The repo where the push goes to, and whether its branch is still to be made."""
        hub = self._connected()
        head = hub.head(self.repo_id, self.revision)
        if head is None and self.revision is not None:
            head = hub.head(self.repo_id, None)
            if head is not None and (self.create_pr or self.revision.startswith("refs/")):
                raise HubError("no such revision", where=f"{self.repo_id}@{self.revision}", hint="check --revision")
            return head, head is not None
        return head, False

    def _files(self, head: Head | None) -> list[LocalFile]:
        theirs = self._theirs(head) if head else None
        return files_to_send(
            self.folder, self.manifest, self.repo_id, revision=self.revision, license=self.license, theirs=theirs
        )

    def _theirs(self, head: Head) -> Theirs:
        """The Hub's card and manifest, read once a commit."""
        hub = self._connected()
        if head.commit not in self.read:
            card = hub.text(self.repo_id, CARD, head.commit).decode("utf-8", "replace") if CARD in head.files else ""
            stated = parse_manifest(hub.text(self.repo_id, NAME, head.commit)) if NAME in head.files else {}
            self.read[head.commit] = Theirs(card, stated)
        return self.read[head.commit]

    def _check(self, card: str, closed: str, head: Head | None) -> None:
        """License and visibility: what a person must have said before anything becomes public."""
        if self.trusted:
            return
        if self.dry_run:
            missing = license_missing(card, self.license)
            if missing:
                self.notes.append(f"the push would be refused without --license: {missing}")
        else:
            require_license(card, self.license)
        if head is not None and self.private and not head.private:
            raise UsageError(
                "the repo exists and is public: --private holds for a repo that the push makes",
                where=self.repo_id,
                hint="make it private in its settings on the Hub, or choose another name",
            )
        if closed and head is not None and not head.private and self.private is None:
            raise UsageError(
                f"{closed}, and the repo to push to is public",
                where=self.repo_id,
                hint="push to a private repo, or pass --public where the source's conditions allow it",
            )
        if closed and self._new_private(closed) and head is None and self.private is None:
            self.notes.append(
                f"{closed}: the new repo is private; pass --public where the source's conditions allow it"
            )

    def _new_private(self, closed: str) -> bool | None:
        """Whether a new repo is private; None leaves it to the Hub, where organisations have a default of their own."""
        return self.private if self.private is not None else (True if closed else None)

    def _note(self, files: list[LocalFile], changes: Changes, head: Head | None) -> None:
        theirs = self._theirs(head) if head else Theirs()
        if changes.others:
            self.notes.append(
                f"{len(changes.others)} files on the Hub are none of this repo's and stay: {_few(changes.others)}"
            )
        if not theirs.edited:
            return
        alone = files_to_send(self.folder, self.manifest, self.repo_id, revision=self.revision, license=self.license)
        if card_of(files) != card_of(alone):
            self.notes.append(f"{CARD} was edited on the Hub: that text stays, the generated blocks are new")
        elif any(file.name == CARD for file in changes.changed):
            self.notes.append(f"this push replaces a {CARD} that a person wrote in; the old one stays in the history")

    def _create(self, closed: str) -> None:
        hub = self._connected()
        self.progress(f"make {self.repo_id}", 0, 0)
        self.made = True
        hub.ask(
            f"make {self.repo_id}",
            lambda: hub.api.create_repo(self.repo_id, private=self._new_private(closed), exist_ok=True),
            repo_id=self.repo_id,
        )

    def _commit(self, files: list[LocalFile], head: Head, changes: Changes) -> tuple[Changes, str, int | None]:
        """The changes that were sent, the commit and the number of the pull request.

        Every try names the commit it stands on, so that one that landed without a reply cannot land again.
        """
        hub = self._connected()
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def operations() -> list[Any]:
            sent = [CommitOperationAdd(f.name, f.content) for f in changes.sent]  # a Path is read as it is sent
            return [*sent, *(CommitOperationDelete(name, is_folder=False) for name in changes.removed)]

        ready = operations()
        lost = False
        for wait in itertools.chain(WAITS, (None,)):
            self._upload(ready)
            self.progress("commit", 0, 0)
            try:
                info = hub.api.create_commit(
                    self.repo_id,
                    ready,
                    commit_message=self.message or _message(self.manifest),
                    revision=self.revision,
                    create_pr=self.create_pr,
                    parent_commit=head.commit,
                )
                return changes, str(info.oid), int(info.pr_num) if info.pr_num is not None else None
            except Exception as raised:
                failure = failure_of(raised)
                if failure is None:
                    raise
                moved = failure.status == MOVED
                if not (moved or failure.passing):
                    raise self._refusal(failure) from None
                lost = lost or failure.status is None or failure.status >= 500
                landed = self._landed(files, head) if lost or moved else None
                if landed and lost:
                    self.notes.append("the Hub's reply was lost, and the commit had landed")
                if landed:
                    return changes, *landed
                if wait is None or not failure.worth_waiting:
                    raise hub.error(failure, "commit", self.repo_id) from None
                if moved:
                    head, files, changes = self._follow(head, files)
                    if not changes:
                        return changes, head.commit, None
                    ready = operations()
                else:
                    hub.pause("commit", failure, wait)
        raise AssertionError("the last wait is None")

    def _upload(self, operations: list[Any]) -> None:
        """Sends large files one by one, so that Ctrl-C ends between two and each is tried again on its own."""
        hub = self._connected()
        large = [op for op in operations if hasattr(op, "upload_info") and op.upload_info.size >= LARGE]
        self.began = True
        for number, operation in enumerate(large, 1):
            size = operation.upload_info.size / 1e6
            self.progress(f"upload {operation.path_in_repo} ({size:,.1f} MB, {number} of {len(large)})", 0, 0)

            def send(operation: Any = operation) -> None:
                hub.api.preupload_lfs_files(
                    self.repo_id, [operation], revision=self.revision, create_pr=self.create_pr, free_memory=False
                )

            hub.ask(f"upload {operation.path_in_repo}", send, repo_id=self.repo_id)
            if operation._upload_mode == "lfs" and operation.path_in_repo not in self.uploaded:
                self.uploaded.append(operation.path_in_repo)

    def _landed(self, files: list[LocalFile], before: Head) -> tuple[str, int | None] | None:
        """Commit and pull request where the Hub stands as this push wants it, although it was not told so."""
        if self.create_pr:
            found = self._open_pull_request(files)
            return (found[1].commit, found[0]) if found else None
        head = self._connected().head(self.repo_id, self.revision)
        if head is None or head.commit == before.commit:
            return None
        return None if compare(files, head.files, self._theirs(before).files) else (head.commit, None)

    def _follow(self, before: Head, files: list[LocalFile]) -> tuple[Head, list[LocalFile], Changes]:
        """The push on top of what somebody else has committed meanwhile, where the two do not concern the same files."""
        head, _ = self._look()
        if head is None:
            raise HubError("the repo has vanished while this push ran", where=self.repo_id, hint="run it again")
        ours = {file.name for file in files} - {CARD, NAME}
        both = sorted(n for n in ours if before.files.get(n) != head.files.get(n) and n in head.files)
        if both:
            raise HubError(
                f"somebody else has changed the same files while this push ran, which has changed nothing:\n{listing(both)}",
                where=f"{self.repo_id} at {head.commit[:12]}",
                hint="look at their commit; to put yours on top of it, run the command again",
            )
        self.notes.append(f"the repo moved to {head.commit[:12]} while this push ran; it went on from there")
        files = self._files(head)
        return head, files, compare(files, head.files, self._theirs(head).files)

    def _open_pull_request(self, files: list[LocalFile]) -> tuple[int, Head] | None:
        """An open pull request of this user that holds exactly these files."""
        hub = self._connected()

        def read() -> list[int]:
            found = hub.api.get_repo_discussions(
                self.repo_id, author=hub.user, discussion_type="pull_request", discussion_status="open"
            )
            return [entry.num for entry in itertools.islice(found, PULL_REQUESTS_READ)]

        for number in sorted(hub.ask("list the pull requests", read, repo_id=self.repo_id), reverse=True):
            head = hub.head(self.repo_id, f"refs/pr/{number}")
            if head and not compare(files, head.files):
                return number, head
        return None

    def _refusal(self, failure: Failure) -> HubError | UsageError:
        if isinstance(failure.error, ValueError) and "metadata" in str(failure.error):
            said = str(failure.error).strip().splitlines()
            return UsageError(
                f"the Hub refuses the card's front matter:\n{listing(said[1:] or said)}", where=CARD, hint="mend it"
            )
        return self._connected().error(failure, "commit", self.repo_id)

    def _left_on_hub(self) -> str:
        """For somebody who pressed Ctrl-C: what of the push is on the Hub."""
        if not self.hub or not (self.made or self.began):
            return "nothing was sent to the Hub"
        sent = f"; uploaded and kept for the next run: {', '.join(self.uploaded)}" if self.uploaded else ""
        where = f"{self.hub.endpoint}/{self.repo_id}"
        try:
            info = self.hub.api.model_info(self.repo_id, revision=self.revision, timeout=5)
            return f"on the Hub: {where} stands at commit {str(info.sha)[:12]}{self._whose(info)}{sent}"
        except Exception:  # no news is no reason to keep somebody who wants to leave
            return f"what is at {where} could not be read{sent}"

    def _whose(self, info: Any) -> str:
        commits = self._connected().api.list_repo_commits(self.repo_id, revision=self.revision)
        ours = commits and commits[0].title == (self.message or _message(self.manifest))
        return ", which is this push's" if ours else ", without a commit of this push"

    def _pushed(
        self, changes: Changes, commit: str | None, private: bool | None, pull_request: int | None = None
    ) -> Pushed:
        url = f"{self._connected().endpoint}/{self.repo_id}"
        if pull_request is not None:
            url += f"/discussions/{pull_request}"
        elif self.revision:
            url += f"/tree/{self.revision}"
        return Pushed(
            self.repo_id, url, commit, changes, private, pull_request, self.dry_run, tuple(dict.fromkeys(self.notes))
        )

    def _connected(self) -> Connection:
        assert self.hub is not None
        return self.hub

    def _say(self, line: str) -> None:
        self.progress(line, 0, 0)


def _closed_source(hub: Connection, manifest: Mapping[str, Any]) -> str:
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


def _message(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['architecture']}, made with effconv {manifest.get('effconv', '')}".rstrip()


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
