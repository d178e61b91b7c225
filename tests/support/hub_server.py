"""A Hub on 127.0.0.1 for tests: speaks to the real huggingface_hub client, keeps its repos in memory, fails on request.

with LoopbackHub() as hub:
    hub.add_repo("me/model", {"config.json": "{}"})
    hub.fault("/commit/", method="POST", drop="reply")          # the commit lands, its reply is lost
    subprocess.run([...], env=hub.env(home=tmp_path))           # the client reads its environment when imported
    assert hub.repos["me/model"].files["config.json"] == b"{}"
    assert hub.count("POST", "/commit/") == 1
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from hub_api import Call, Reply, answer, as_json
from hub_storage import HubError, Storage


@dataclass
class Fault:
    """What happens to the next `times` requests that match, after the first `skip` that do."""

    path: str  # a regular expression, searched in the path with its query
    method: str = "*"
    times: int = 1
    skip: int = 0
    status: int | None = None  # answer with this instead of doing anything
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: Literal["before", "upload", "download", "reply"] | None = None
    after: int = 0  # bytes read ("upload") or sent ("download") before the connection is dropped
    call: Callable[[], object] | None = None  # run first: move a revision, wait, set an event

    def takes(self, method: str, path: str) -> bool:
        if self.times <= 0 or self.method not in ("*", method) or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Request:
    """A line of the log. `status` is None where no reply was sent."""

    method: str
    path: str
    status: int | None
    user: str | None
    received: int  # bytes of the request's body


class LoopbackHub(Storage):
    """The server, what it holds (see `Storage`) and what has been asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.add_user("me", "hf_me")
        self.server = Server(self)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, home: Path | str, token: str | None = "hf_me", *, offline: bool = False) -> dict[str, str]:
        """The environment of a process that uses this Hub, with its own cache and nothing of the caller's login."""
        outer = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
        }
        return {
            **outer,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
            **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        }

    def fault(self, path: str, **options: object) -> Fault:
        """Programme a fault (see `Fault`); they are tried in the order in which they were given."""
        self.faults.append(Fault(path, **options))  # type: ignore[arg-type]
        return self.faults[-1]

    def count(self, method: str = "*", path: str = "") -> int:
        """How many requests arrived that match."""
        return sum(method in ("*", line.method) and bool(re.search(path, line.path)) for line in self.requests)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub

    def handle_error(self, request: object, address: object) -> None:
        """A client that went away (a test may kill it) is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault have it, sends the answer, writes the log."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one(self) -> None:
        hub = self.server.hub
        with hub.lock:
            fault = next((fault for fault in hub.faults if fault.takes(self.command, self.path)), Fault(""))
        if fault.call:
            fault.call()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = hub.users.get(token)
        body = b"" if fault.drop == "before" else self.read_body(fault.after if fault.drop == "upload" else None)

        reply = None
        if fault.drop not in ("before", "upload"):
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
            call = Call(self.command, url.path, query, self.headers, body, user)
            try:
                if fault.status:
                    raise HubError(fault.status, f"fault {fault.status}")
                if token and user is None:
                    raise HubError(401, "Invalid credentials in Authorization header")
                reply = answer(hub, call)
            except HubError as error:
                headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode(), **fault.headers}
                headers |= {"X-Error-Code": error.code} if error.code else {}
                headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
                reply = as_json({"error": error.message}, error.status, **headers)
        sent = reply if fault.drop != "reply" else None
        status = sent.status if sent else None
        hub.requests.append(Request(self.command, self.path, status, user.name if user else None, len(body)))
        if sent:
            self.send(sent, fault.after if fault.drop == "download" else None)
        if fault.drop:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def read_body(self, limit: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)[:limit]
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size if limit is None else min(limit, size))

    def send(self, reply: Reply, limit: int | None) -> None:
        self.send_response(reply.status)
        for key, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[:limit])

    def log_message(self, *_: object) -> None:
        """Keep stderr for the tests' own output."""
