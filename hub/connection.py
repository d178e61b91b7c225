"""The Hub's client on a network that fails: tries again where the client does not, and has one kind of error.

With offline mode on nothing here opens a socket.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..convert.errors import BadInputError, HubError, UsageError
from .changes import RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Say = Callable[[str], None]

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 120.0  # what the Hub may ask for before a run gives up instead
TIMEOUTS = (
    10.0,
    300.0,
    60.0,
    10.0,
)  # seconds to connect, to read, to write, for a free connection; the client has none
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # answers that another try may change
MOVED = 412
NEVER_CONNECTED = {"ConnectError", "ConnectTimeout", "NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}
HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "hf_xet")
REPO_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """A repo of the Hub at one commit: everything that is compared with what is here."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]


@dataclass(frozen=True)
class Failure:
    """What the client raised, read.

    Attributes:
        status: of the reply, None where none came. passing: whether another try may end otherwise.
        wait: seconds that the Hub asks for.
    """

    error: BaseException
    status: int | None
    passing: bool
    wait: float | None = None

    @property
    def worth_waiting(self) -> bool:
        return (self.wait or 0) <= LONGEST_WAIT

    @property
    def unreachable(self) -> bool:
        """Whether no connection came about; httpx names that, requests (before huggingface_hub 1.0) holds what does."""
        names = {type(error).__name__ for error in (self.error, *_within(self.error))}
        return self.status is None and bool(names & NEVER_CONNECTED)

    @property
    def reason(self) -> str:
        if self.status is not None:
            return f"the Hub answered {self.status}"
        return f"{'the connection failed' if self.passing else 'no sense in the reply'} ({type(self.error).__name__})"


@dataclass(frozen=True)
class Connection:
    """A client whose token the Hub has accepted.

    Attributes:
        organisations: those of the user; None where the Hub does not say.
    """

    api: HfApi
    user: str
    token: str
    say: Say
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

    def ask(self, what: str, function: Callable[[], T], *, repo_id: str = "", first: bool = False) -> T:
        """The function's result, however often it takes; waits between tries.

        Args:
            what: what is asked for, as it stands in messages.
            function: asks for it.
            repo_id: which repo it is about, for messages.
            first: whether nothing has been reached yet: a host that is not there then fails at once.

        Raises:
            HubError: it does not work out.
        """
        for wait in itertools.chain(WAITS, (None,)):
            try:
                self._bound_waiting()
                return function()
            except Exception as raised:
                failure = failure_of(raised)
                if failure is None:
                    raise
                if wait is None or not failure.passing or (first and failure.unreachable) or not failure.worth_waiting:
                    raise self.error(failure, what, repo_id) from None
                self.pause(what, failure, wait)
        raise AssertionError("the last wait is None")

    def pause(self, what: str, failure: Failure, wait: float) -> None:
        """Says what failed, and waits: as long as the Hub asks for, if it does."""
        wait = wait if failure.wait is None else failure.wait
        self.say(f"{what}: {failure.reason}; trying again in {wait:g} s")
        time.sleep(wait)

    def head(self, repo_id: str, revision: str | None) -> Head | None:
        """The repo at a revision; None where the Hub has no such repo, or no such revision in it."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def read() -> Any:
            try:
                return self.api.model_info(repo_id, revision=revision, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None

        info = self.ask("look at the repo", read, repo_id=repo_id)
        if info is None:
            return None
        files = {}
        for entry in info.siblings or ():
            lfs = entry.lfs
            files[entry.rfilename] = RemoteFile(entry.size, entry.blob_id, lfs.sha256 if lfs else None)
        return Head(str(info.sha), bool(info.private), files)

    def small_file(self, repo_id: str, name: str, commit: str) -> bytes:
        """A small file of a repo; nothing of it stays in the cache."""
        import tempfile
        from pathlib import Path

        def read() -> bytes:
            with tempfile.TemporaryDirectory(prefix="effconv-") as folder:
                return Path(
                    self.api.hf_hub_download(repo_id, name, revision=commit, cache_dir=folder, local_dir=folder)
                ).read_bytes()

        return self.ask(f"read {name}", read, repo_id=repo_id)

    def error(self, failure: Failure, what: str, repo_id: str) -> HubError:
        """The failure with advice."""
        settings = f"{self.endpoint}/settings/tokens"
        advice = {
            401: f"the token is not accepted: make one at {settings} and pass it with --token or HF_TOKEN",
            403: f"use a token that may write there ({settings}), a repo of {self.user or 'your own'}, or --create-pr",
            404: "check the name; an organisation must exist before a push",
            409: "somebody else writes to the repo at this moment: run the command again",
            429: "too many requests: wait some minutes, then run the command again",
        }
        again = "check the network and HF_ENDPOINT, then run the command again: what has arrived is not sent twice"
        hint = advice.get(failure.status or 0) or (again if failure.passing else "run the command again")
        if failure.wait:
            hint = f"the Hub asks to wait {failure.wait:g} s; then run the command again"
        lines = [line.strip() for line in str(failure.error).splitlines() if line.strip()]
        said = f": {lines[0]}" if lines else ""
        return HubError(f"{what}: {failure.reason}{said}", where=repo_id or self.endpoint, hint=hint)

    def _bound_waiting(self) -> None:
        """Gives the client's session, which may be new, bounds: it would wait forever for a host that says nothing."""
        from huggingface_hub import get_session

        session: Any = get_session()
        if type(session).__module__.partition(".")[0] == "requests":  # before huggingface_hub 1.0
            _bound_requests(session)
        else:
            session.timeout = TIMEOUTS


def connect(token: str | None, *, offline: bool, say: Say) -> Connection:
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
    found = Connection(api, "", used, say).ask("ask who the token belongs to", api.whoami, first=True)
    role = ((found.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubError(
            f"the token of {found['name']} may only read",
            where=str(api.endpoint),
            hint=f"make one that may write at {api.endpoint}/settings/tokens",
        )
    orgs = found.get("orgs")
    organisations = tuple(str(org.get("name")) for org in orgs) if isinstance(orgs, list) else None
    return Connection(api, str(found["name"]), used, say, organisations)


def refuse_offline(offline: bool) -> None:
    """Raises HubError where offline mode is on, by flag or by environment."""
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        why = "--offline" if offline else "HF_HUB_OFFLINE"
        raise HubError(
            f"offline mode is on ({why}): nothing was sent, no socket was opened",
            where=why,
            hint="a push needs the Hub: run it without offline mode",
        )


def require_repo_id(repo_id: str) -> None:
    """Raises UsageError for what can be no Hub id."""
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".", "-")):
        raise UsageError(
            f"{repo_id!r} is no Hub id",
            where="user/name",
            hint="user/name of letters, digits, single - and _ and ., at most 96 each",
        )


def failure_of(raised: BaseException) -> Failure | None:
    """What the client raised, read; None for what is no business of the network's.

    Raises:
        BadInputError: a local file could not be read.
    """
    wrapped = isinstance(raised, RuntimeError) and raised.__cause__ is not None
    error = (
        raised.__cause__ if wrapped and raised.__cause__ else raised
    )  # how the client passes on what ended an upload
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return Failure(error, status, status in PASSING, _asked_wait(error))
    if isinstance(error, OSError) and error.filename is not None:
        raise BadInputError(
            f"a file of the repo cannot be read ({error.strerror})", where=str(error.filename), hint="check it"
        ) from None
    broken = (ConnectionError, TimeoutError, RuntimeError)  # RuntimeError: what the Xet library makes of a bad network
    if type(error).__module__.partition(".")[0] in HTTP_LIBRARIES or isinstance(error, broken):
        return Failure(error, None, passing=True)
    return Failure(error, None, passing=False) if isinstance(error, (OSError, ValueError)) else None


def _bound_requests(session: Any) -> None:
    """The bounds for a session of requests, which has none itself: each request that names no bound gets them."""
    send = type(session).send

    def bounded(request: object, **options: Any) -> Any:
        return send(session, request, **{**options, "timeout": options.get("timeout") or TIMEOUTS[:2]})

    session.send = bounded


def _within(error: BaseException) -> Iterator[BaseException]:
    """The errors that one of requests or urllib3 was made of: they are its arguments and its reason."""
    for part in (*error.args, getattr(error, "reason", None)):
        if isinstance(part, BaseException):
            yield part
            yield from _within(part)


def _asked_wait(error: BaseException) -> float | None:
    """Seconds of Retry-After, or of the rate limit's header; None where the reply names none."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, pattern in (("retry-after", r"\s*(\d+)\s*"), ("ratelimit", r".*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+).*")):
        found = re.fullmatch(pattern, headers.get(name) or "")
        if found:
            return float(found[1])
    return None
