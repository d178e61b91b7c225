"""`effconv push-to-hub`: one commit of what differs, once the manifest is verified; safe to run again at any point."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adopt.run import as_checked_repo
from ..adopt.view import saved_elsewhere
from ..convert.errors import StoppedError, UsageError
from ..convert.options import Progress
from ..convert.repo.manifest import CARD, check_hashes, read_manifest, repo_folder
from .changes import Changes, LocalFile, compare
from .connection import Head, connect, refuse_offline, require_repo_id
from .content import (
    card_of,
    files_to_send,
    license_missing,
    require_identifier,
    require_license,
    require_nothing_private,
)
from .destination import Destination, closed_source


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
        commit_message: first line of the commit.
        token: of the Hub; by default HF_TOKEN, else the stored login.
        offline: refuse, without opening a socket.
        dry_run: say what would happen, and change nothing.
        progress: called with each step.

    Returns:
        What was sent; nothing where the Hub has it all.

    Raises:
        CheckFailedError: a file is not what the manifest says (README.md may differ).
        HubError: the Hub or the network.
        UsageError: no license, no Hub id, a public repo for a source that is not.
        StoppedError: Ctrl-C; the message says what is on the Hub.
    """
    if saved_elsewhere(repo_folder(repo)):  # its checks take long: a bad token shows before them
        connect(token, offline=offline)
    with as_checked_repo(repo, progress) as folder:
        job = _Job(
            folder=folder,
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

    With `trusted` the repo came from there, so that its license and visibility are somebody's decision already.
    """
    job = _Job(folder=folder, revision=revision, create_pr=True, message=message, trusted=trusted, progress=progress)
    return job.run(repo_id, token, False)


def check_reachable(repo_id: str, token: str | None, *, offline: bool, create_pr: bool) -> None:
    """Raises what would keep a push from beginning, before hours are spent on what it shall send."""
    require_repo_id(repo_id)
    hub = connect(token, offline=offline)
    if "/" in repo_id and not create_pr:
        hub.require_namespace(repo_id)


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
    manifest: dict[str, Any] = field(default_factory=dict)
    to: Destination | None = None
    making: bool = False  # the repo
    committing: bool = False

    def run(self, repo_id: str | None, token: str | None, offline: bool) -> Pushed:
        self.manifest = read_manifest(self.folder)
        name = repo_id or self.folder.resolve().name
        require_repo_id(name)
        require_identifier(self.license)
        refuse_offline(offline)
        try:
            self.progress("compare every file with the manifest", 0, 0)
            check_hashes(self.folder, self.manifest)
            self.progress("ask the Hub who the token belongs to", 0, 0)
            hub = connect(token, offline=offline)
            full_name = name if "/" in name else f"{hub.user}/{name}"
            if not self.create_pr:
                hub.require_namespace(full_name)
            self.to = Destination(hub, full_name, self.revision, self.create_pr)
            return self._push(self.to)
        except KeyboardInterrupt:
            raise StoppedError(f"interrupted; local files are as they were\n{self._left()}") from None

    def _push(self, to: Destination) -> Pushed:
        closed = "" if self.trusted else closed_source(to.hub, self.manifest)
        head, branch_missing = to.look()
        files, keeps_card = self._files(head)
        self._check(card_of(files), closed, head)
        require_nothing_private(files, to.hub.token, Path.home())
        changes = compare(files, head.files if head else {}, to.theirs(head).files)
        self._note(changes, head, keeps_card)
        private = head.private if head else self._new_private(closed)
        if self.dry_run:
            if branch_missing:
                self.notes.append(f"the branch {self.revision} would be made from main")
            return self._pushed(changes, None, private)
        if head is None:
            self.progress(f"make {to.repo_id}", 0, 0)
            self.making = True
            head = to.create(private)
            changes = compare(files, head.files)
        if not changes:
            return self._pushed(changes, head.commit, private)
        if self.create_pr:
            found = to.open_pull_request(files)
            if found:
                self.notes.append("an open pull request of yours holds exactly this")
                return self._pushed(compare(files, found[1].files), found[1].commit, private, found[0])
        if branch_missing:
            to.make_branch()
        large = sum(file.size for file in changes.sent) / 1e6
        self.progress(f"upload and commit {len(changes.sent)} files ({large:,.1f} MB)", 0, 0)
        self.committing = True
        commit, pull_request = to.commit(changes, self._title(), head.commit)
        return self._pushed(changes, commit, private, pull_request)

    def _files(self, head: Head | None) -> tuple[list[LocalFile], bool]:
        """What to send, and whether its card keeps what was written on the Hub."""
        assert self.to is not None
        options: dict[str, Any] = {"revision": self.revision, "license": self.license}
        files = files_to_send(self.folder, self.manifest, self.to.repo_id, theirs=self.to.theirs(head), **options)
        alone = files_to_send(self.folder, self.manifest, self.to.repo_id, **options)
        return files, card_of(files) != card_of(alone)

    def _check(self, card: str, closed: str, head: Head | None) -> None:
        """License and visibility: what a person must have said before anything becomes public."""
        if self.trusted:
            return
        missing = license_missing(card, self.license) if self.dry_run else ""
        if missing:
            self.notes.append(f"the push would be refused without --license: {missing}")
        if not self.dry_run:
            require_license(card, self.license)
        if head is not None and self.private and not head.private:
            raise UsageError(
                "the repo exists and is public: --private holds for a repo that the push makes",
                where=str(self.to and self.to.repo_id),
                hint="make it private in its settings on the Hub, or choose another name",
            )
        if not closed or self.private is not None:
            return
        allowed = "pass --public where the source's conditions allow it"
        if head is None:
            self.notes.append(f"{closed}: the new repo is private; {allowed}")
        elif not head.private:
            raise UsageError(
                f"{closed}, and the repo to push to is public",
                where=str(self.to and self.to.repo_id),
                hint=f"push to a private repo, or {allowed}",
            )

    def _new_private(self, closed: str) -> bool | None:
        """Whether a new repo is private; None leaves it to the Hub, where organisations have a default of their own."""
        return self.private if self.private is not None else (True if closed else None)

    def _note(self, changes: Changes, head: Head | None, keeps_card: bool) -> None:
        assert self.to is not None
        if changes.others:
            few = ", ".join(changes.others[:4]) + (", ..." if len(changes.others) > 4 else "")
            self.notes.append(f"{len(changes.others)} files on the Hub are none of this repo's and stay: {few}")
        if keeps_card:
            self.notes.append(f"{CARD} was edited on the Hub: that text stays, the generated blocks are new")
        elif self.to.theirs(head).edited and any(file.name == CARD for file in changes.changed):
            self.notes.append(f"this push replaces a {CARD} that a person wrote in; the old one stays in the history")

    def _left(self) -> str:
        """What of the push is on the Hub."""
        if self.to is None or not (self.making or self.committing):
            return "nothing was sent to the Hub"
        kept = "; files that were uploaded are kept there for the next run" if self.committing else ""
        return self.to.left(self._title()) + kept

    def _title(self) -> str:
        made = f"{self.manifest['architecture']}, made with effconv {self.manifest.get('effconv', '')}"
        return self.message or made.rstrip()

    def _pushed(
        self, changes: Changes, commit: str | None, private: bool | None, pull_request: int | None = None
    ) -> Pushed:
        assert self.to is not None
        notes = tuple(dict.fromkeys(self.notes))
        url = self.to.url(pull_request)
        return Pushed(self.to.repo_id, url, commit, changes, private, pull_request, self.dry_run, notes)
