"""The Hub's addresses and what each answers, as the huggingface_hub 2.4 client (and 0.36) asks for them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from hub_storage import Blob, HubError, Repo, User, tree_entries, valid_name, wants_lfs

if TYPE_CHECKING:
    from hub_server import LoopbackHub


@dataclass
class Call:
    """One request, read."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    user: User | None
    groups: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict:
        return json.loads(self.body)

    def signed_in(self) -> User:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})


def answer(hub: LoopbackHub, call: Call) -> Reply:
    for method, pattern, function in ROUTES:
        if (call.method == method or (call.method, method) == ("HEAD", "GET")) and (
            match := pattern.fullmatch(call.path)
        ):
            call.groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
            with hub.lock:
                return function(hub, call)
    raise HubError(404, f"Not found: {call.method} {call.path}")


def whoami(hub: LoopbackHub, call: Call) -> Reply:
    user = call.signed_in()
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in user.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": "write" if user.write else "read"}}
    return as_json(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
    )


def create(hub: LoopbackHub, call: Call) -> Reply:
    user, body = call.signed_in(), call.json()
    namespace = body.get("organization") or user.name
    name = f"{namespace}/{body['name']}"
    if not valid_name(name):
        raise HubError(400, f"Invalid repo name: {name}")
    if not (user.write and user.owns(namespace)):
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    url = {"url": f"{hub.endpoint}/{name}", "name": name}
    if name in hub.repos:
        return as_json({**url, "error": "You already created this model repo"}, 409)
    hub.add_repo(name, private=body.get("visibility") == "private" or bool(body.get("private")))
    return as_json(url)


def model_info(hub: LoopbackHub, call: Call) -> Reply:
    repo = readable(hub, call)
    commit = repo.resolve(call.groups.get("rev", "main"))
    siblings = [sibling(path, blob, "blobs" in call.query) for path, blob in sorted(commit.files.items())]
    info = {"_id": repo.name, "id": repo.name, "modelId": repo.name, "author": repo.owner, "sha": commit.sha}
    state = {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
    return as_json({**info, **state, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})


def sibling(path: str, blob: Blob, details: bool) -> dict[str, object]:
    row: dict[str, object] = {"rfilename": path}
    if details:
        row |= {"size": len(blob.data), "blobId": blob.git_oid}
    if details and blob.lfs:
        row["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return row


def tree(hub: LoopbackHub, call: Call) -> Reply:
    commit = readable(hub, call).resolve(call.groups["rev"])
    folder = call.groups.get("path", "")
    rows = tree_entries(commit.files, folder, call.query.get("recursive", "").lower() in ("true", "1"))
    if folder and not rows:
        raise HubError(404, f"{folder} does not exist on {call.groups['rev']!r}", "EntryNotFound", commit.sha)
    return as_json(rows)


def commits(hub: LoopbackHub, call: Call) -> Reply:
    date = "2026-01-01T00:00:00.000Z"
    return as_json(
        [
            {"id": c.sha, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": date}
            for c in readable(hub, call).history(call.groups["rev"])
        ]
    )


def discussions(hub: LoopbackHub, call: Call) -> Reply:
    repo = readable(hub, call)
    about = {"repo": {"name": repo.name, "type": "model"}, "createdAt": "2026-01-01T00:00:00.000Z"}
    rows = [
        {"num": n, "title": title, "status": "open", "author": {"name": "me"}, "isPullRequest": True, **about}
        for n, title in repo.pull_requests.items()
    ]
    return as_json({"discussions": rows, "count": len(rows), "start": 0})


def create_branch(hub: LoopbackHub, call: Call) -> Reply:
    writable(hub, call).create_branch(call.groups["rev"], call.json().get("startingPoint", "main"))
    return as_json({})


def resolve(hub: LoopbackHub, call: Call) -> Reply:
    repo = readable(hub, call)
    user = call.user
    if repo.gated and not (user and (user.owns(repo.owner) or user.name in repo.allowed)):
        message = f"Access to model {repo.name} is restricted. You must have access to it and be authenticated."
        raise HubError(403 if user else 401, message, "GatedRepo")
    commit, blob = repo.blob(call.groups["rev"], call.groups["path"])
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    return with_range(blob.data, call.headers.get("Range"), headers)


def preupload(hub: LoopbackHub, call: Call) -> Reply:
    repo = writable(hub, call)
    files = repo.resolve(call.groups["rev"]).files
    rows = []
    for file in call.json()["files"]:
        path, old = file["path"], files.get(file["path"])
        lfs = wants_lfs(path, file["size"], base64.b64decode(file.get("sample", "")))
        row = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        rows.append({**row, **({"oid": old.etag} if old else {})})
    return as_json({"files": rows, "commitOid": repo.resolve(call.groups["rev"]).sha})


def lfs_batch(hub: LoopbackHub, call: Call) -> Reply:
    writable(hub, call, pull_request=True)  # the request does not say what the upload is for
    objects = []
    for item in call.json()["objects"]:
        href = f"{hub.endpoint}/_lfs/{item['oid']}"
        actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append({**item, **({} if item["oid"] in hub.lfs else {"actions": actions})})
    return as_json({"transfer": "basic", "objects": objects})


def lfs_put(hub: LoopbackHub, call: Call) -> Reply:
    if Blob(call.body).sha256 != call.groups["oid"]:
        raise HubError(400, "The content does not have this sha256")
    hub.lfs[call.groups["oid"]] = call.body
    return Reply(headers={"ETag": f'"{call.groups["oid"]}"'})


def lfs_verify(hub: LoopbackHub, call: Call) -> Reply:
    if len(hub.lfs.get(call.groups["oid"], b"")) != call.json()["size"]:
        raise HubError(404, "This object was not uploaded")
    return as_json({})


def commit(hub: LoopbackHub, call: Call) -> Reply:
    repo = writable(hub, call)
    ref = repo.find_ref(call.groups["rev"])
    if ref is None:
        raise HubError(404, f"Invalid rev id: {call.groups['rev']}", "RevisionNotFound")
    changes: dict[str, Blob | None] = {}
    header: dict[str, str] = {}
    for line in call.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                changes[value["path"]] = Blob(base64.b64decode(value["content"]))
            case "lfsFile" if value["oid"] in hub.lfs:
                changes[value["path"]] = Blob(hub.lfs[value["oid"]], lfs=True)
            case "lfsFile":
                raise HubError(400, f"Your push was rejected: LFS pointer to a missing object: {value['path']}")
            case "deletedFile":
                changes[value["path"]] = None
    title, parent = header.get("summary", ""), header.get("parentCommit")
    url: dict[str, str] = {}
    if "create_pr" in call.query:
        ref, parent = repo.open_pull_request(title, parent or ref), None
        url = {"pullRequestUrl": f"{hub.endpoint}/{repo.name}/discussions/{ref.rpartition('/')[2]}"}
    author = call.signed_in().name
    made = repo.commit(changes, title, ref=ref, message=header.get("description", ""), author=author, parent=parent)
    return as_json(
        {
            "success": True,
            "commitOid": made.sha,
            "commitUrl": f"{hub.endpoint}/{repo.name}/commit/{made.sha}",
            **url,
        }
    )


def validate_yaml(hub: LoopbackHub, call: Call) -> Reply:
    import yaml  # the client needs it too

    found = re.match(r"---\r?\n(.*?)\r?\n---", call.json()["content"], re.DOTALL)
    if not found:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        yaml.safe_load(found[1])
    except yaml.YAMLError as fault:
        return as_json({"errors": [{"message": str(fault)}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def readable(hub: LoopbackHub, call: Call) -> Repo:
    repo = hub.repos.get(call.groups["repo"])
    user = call.user
    if repo is None or (repo.private and not (user and user.owns(repo.owner))):
        raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
    return repo


def writable(hub: LoopbackHub, call: Call, pull_request: bool = False) -> Repo:
    """The repo if the user may commit to it, or open a pull request where that is all that is asked."""
    repo, user = readable(hub, call), call.signed_in()
    if not user.write:
        raise HubError(403, "You need a token with write access to this repository")
    if not (user.owns(repo.owner) or pull_request or "create_pr" in call.query):
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return repo


def with_range(data: bytes, asked: str | None, headers: Mapping[str, str]) -> Reply:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if not match or match.groups() == ("", ""):
        return Reply(data, 200, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= stop:
        return Reply(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Reply(data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


REPO = r"(?P<repo>[^/]+?(?:/[^/]+?)?)"
Route = tuple[str, re.Pattern[str], Callable[["LoopbackHub", Call], Reply]]
MODEL = rf"/api/models/{REPO}"
ROUTES: list[Route] = [
    (method, re.compile(pattern), function)
    for method, pattern, function in [
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate_yaml),
        ("GET", rf"{MODEL}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", tree),
        ("GET", rf"{MODEL}/commits/(?P<rev>[^/]+)", commits),
        ("GET", rf"{MODEL}/discussions", discussions),
        ("POST", rf"{MODEL}/branch/(?P<rev>[^/]+)", create_branch),
        ("POST", rf"{MODEL}/preupload/(?P<rev>[^/]+)", preupload),
        ("POST", rf"{MODEL}/commit/(?P<rev>[^/]+)", commit),
        ("GET", rf"{MODEL}/revision/(?P<rev>[^/]+)", model_info),
        ("GET", MODEL, model_info),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
        ("POST", r"/_lfs/(?P<oid>[0-9a-f]{64})/verify", lfs_verify),
        ("GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    ]
]
