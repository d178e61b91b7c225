"""The Hub's client with a token that the Hub accepts, and one kind of error. It retries uploads by itself.

With offline mode on nothing here opens a socket.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.errors import BadInputError, EffconvError, HubError, UsageError, listing
from ..convert.io.source import client_error
from ..convert.repo.manifest import CARD
from .changes import RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TIMEOUTS = (10.0, 300.0, 60.0, 10.0)  # seconds to connect, to read, to write, for a free connection
REPO_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """A repo of the Hub at one commit: everything that is compared with what is here."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]


@dataclass(frozen=True)
class Connection:
    """A client whose token the Hub has accepted.

    Attributes:
        organisations: those of the user; None where the Hub does not say.
    """

    api: HfApi
    user: str
    token: str
    organisations: tuple[str, ...] | None = None

    @property
    def endpoint(self) -> str:
        return str(self.api.endpoint)

    def require_namespace(self, repo_id: str) -> None:
        """Raises HubError for a repo of somebody else, in which this user can only open pull requests."""
        owner = repo_id.partition("/")[0]
        own = (self.user, *(self.organisations or ()))
        if self.organisations is not None and owner.lower() not in (name.lower() for name in own):
            raise HubError(
                f"{owner} is neither {self.user} nor an organisation of theirs: the token may not write there",
                where=repo_id,
                hint=f"push to {' or '.join(f'{name}/...' for name in own)}, or open a pull request with --create-pr",
            )

    @contextmanager
    def asking(self, what: str, repo_id: str = "") -> Iterator[None]:
        """Turns what the client raises into an error of effconv.

        Args:
            what: what is asked for, as messages name it.
            repo_id: the repo that it is about.
        """
        try:
            self._bound_waiting()
            yield
        except Exception as raised:
            error = client_error(raised)
            if error is None:
                raise
            raise self._error(error, what, repo_id) from None

    def head(self, repo_id: str, revision: str | None) -> Head | None:
        """The repo at a revision; None where the Hub has no such repo, or no such revision in it."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self.asking("look at the repo", repo_id):
            try:
                info = self.api.model_info(repo_id, revision=revision, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        files = {}
        for entry in info.siblings or ():
            lfs = entry.lfs
            files[entry.rfilename] = RemoteFile(entry.size, entry.blob_id, lfs.sha256 if lfs else None)
        return Head(str(info.sha), bool(info.private), files)

    def small_file(self, repo_id: str, name: str, commit: str) -> bytes:
        """A small file of a repo; nothing of it stays in the cache."""
        with self.asking(f"read {name}", repo_id), tempfile.TemporaryDirectory(prefix="effconv-") as folder:
            there = self.api.hf_hub_download(repo_id, name, revision=commit, cache_dir=folder, local_dir=folder)
            return Path(there).read_bytes()

    def _error(self, error: Exception, what: str, repo_id: str) -> EffconvError:
        """The error with advice."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if status is None and isinstance(error, OSError) and error.filename is not None:
            return BadInputError(
                f"a file of the repo cannot be read ({error.strerror})", where=str(error.filename), hint="check it"
            )
        if status is None and isinstance(error, ValueError) and "metadata" in str(error):
            return UsageError(
                f"the Hub refuses the card's front matter:\n{listing(lines[1:] or lines)}", where=CARD, hint="mend it"
            )
        settings = f"{self.endpoint}/settings/tokens"
        advice = {
            401: f"the token is not accepted: make one at {settings} and pass it with --token or HF_TOKEN",
            403: f"use a token that may write there ({settings}), a repo of {self.user or 'your own'}, or --create-pr",
            404: "check the name; an organisation must exist before a push",
            409: "somebody else writes to the repo at this moment: run the command again",
            412: "somebody else committed meanwhile: look at their commit; run the command again to put yours on top",
            429: "too many requests: wait some minutes, then run the command again",
        }
        again = "check the network and HF_ENDPOINT, then run the command again"
        if what.startswith("commit"):  # only then may files have been uploaded
            again += ": what has arrived is not sent twice"
        reason = f"the Hub answered {status}" if status else f"no reply ({type(error).__name__})"
        said = f": {lines[0]}" if lines else ""
        hint = advice.get(status or 0, again)
        return HubError(f"cannot {what}: {reason}{said}", where=repo_id or self.endpoint, hint=hint)

    def _bound_waiting(self) -> None:
        """Gives the client's session, which may be new, bounds: without, it waits forever for a host that is silent."""
        from huggingface_hub import get_session

        session: Any = get_session()
        if type(session).__module__.partition(".")[0] == "requests":  # before huggingface_hub 1.0
            _bound_requests(session)
        else:
            session.timeout = TIMEOUTS


def connect(token: str | None, *, offline: bool) -> Connection:
    """Asks the Hub who the token belongs to, before anything else: a bad token or host shows at once.

    Raises:
        HubError: offline mode, no token, a bad one, one that may only read, no Hub there.
    """
    refuse_offline(offline)
    from huggingface_hub import HfApi, get_token

    from ..version import __version__

    used = token or get_token()
    if not used:
        raise HubError(
            "no token for the Hub",
            where="--token, HF_TOKEN, the stored login",
            hint="run `hf auth login`, or pass a token that may write",
        )
    api = HfApi(token=used, library_name="effconv", library_version=__version__)
    with Connection(api, "", used).asking("ask the Hub who the token belongs to"):
        found = api.whoami()
    role = ((found.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubError(
            f"the token of {found['name']} may only read",
            where=str(api.endpoint),
            hint=f"make one that may write at {api.endpoint}/settings/tokens",
        )
    orgs = found.get("orgs")
    organisations = tuple(str(org.get("name")) for org in orgs) if isinstance(orgs, list) else None
    return Connection(api, str(found["name"]), used, organisations)


def refuse_offline(offline: bool) -> None:
    """Raises HubError where offline mode is on, by flag or by environment."""
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        why = "--offline" if offline else "HF_HUB_OFFLINE"
        raise HubError(
            f"offline mode is on ({why}): nothing was sent",
            where=why,
            hint="a push needs the Hub: run it without offline mode",
        )


def require_repo_id(repo_id: str, where: str = "user/name") -> None:
    """Raises UsageError for what cannot be a Hub id.

    Args:
        where: the option or argument that it was given with.
    """
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".", "-")):
        raise UsageError(
            f"{repo_id!r} is not a Hub id",
            where=where,
            hint="give user/name: letters, digits, -, _ and ., no -- or .., at most 96 characters each",
        )


def _bound_requests(session: Any) -> None:
    """The bounds for a session of requests, which has none itself: each request that names no bound gets them."""
    send = type(session).send

    def bounded(request: object, **options: Any) -> Any:
        return send(session, request, **{**options, "timeout": options.get("timeout") or TIMEOUTS[:2]})

    session.send = bounded
