"""Resolves a Hub id or a folder to files at a pinned commit. Files are downloaded on demand.

File names from a source (a listing, an index, modules.json) are untrusted until `checked_name` has checked them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BadInputError, HubError, UnsupportedError, UsageError
from .layout import is_model_config, refuse_adapter, refuse_router, without_config

HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "hf_xet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HOSTILE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in a file name: what a system or a terminal may obey

MODULE_DEPTH = 8  # levels of folders in a sentence-transformers module: Router and its like nest modules
LFS_POINTER = b"version https://git-lfs."  # what git leaves in place of a file that it did not fetch


@dataclass(frozen=True)
class Source:
    """A checkpoint to read: its file names, its config, and access to each file.

    Attributes:
        name: the last part of the Hub id, or the folder's name.
        files: names of all files, posix style, relative to the root of the repo.
        root: the folder inside the repo that holds config.json ("" but for old sentence-transformers layouts).
        config: the parsed config.json.
        hub_id, revision, commit: set for a Hub source.
        gated: "auto" or "manual" if users must accept conditions. private: whether the Hub repo is private.
        fetch: returns the local path of a file, and downloads it if needed.
        remote_header: reads a safetensors header without its payload (Hub sources, before their weights are fetched).
    """

    name: str
    files: tuple[str, ...]
    fetch: Callable[[str], Path]
    config: dict[str, Any] = field(default_factory=dict)
    root: str = ""
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    gated: str = ""
    private: bool = False
    remote_header: Callable[[str], dict[str, Any]] | None = None

    def has(self, name: str) -> bool:
        return self.root + name in self.files

    def path(self, name: str) -> Path:
        return self.fetch(self.root + name)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file that holds an object."""
        return self.object(self.root + name)

    def object(self, name: str) -> dict[str, Any]:
        """The same by its name relative to the root of the repo."""
        parsed = read_json(self.fetch(name), name)
        if not isinstance(parsed, dict):
            raise BadInputError(f"{name} is not a JSON object", where=name, hint="download the file again")
        return parsed

    def where(self) -> str:
        return f"{self.hub_id}@{self.commit}" if self.hub_id else self.name


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Source:
    """Finds a source and reads its config.

    Args:
        source: a folder, or a Hub id such as `bert-base-uncased`.
        revision: branch, tag or commit of a Hub source.
        token: a Hub token. By default HF_TOKEN or the stored login.
        offline: use no network. Hub files are read from the local cache.

    Raises:
        BadInputError: the folder or its config does not exist or cannot be read.
        HubError: the Hub or the network refused or failed.
        UnsupportedError: the source is an adapter or has quantised weights.
    """
    return _with_config(located(source, revision=revision, token=token, offline=offline))


def located(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Source:
    """Finds a folder or a Hub repo, which may have no config. Arguments and errors are those of `resolve`."""
    text = os.fspath(source)
    folder = Path(os.path.expanduser(text))
    if text and os.path.isdir(folder):
        if revision is not None:
            raise UsageError(
                "--revision applies only to Hub sources", where=text, hint="leave out --revision for a local folder"
            )
        found = _local(folder)
    elif text and os.path.exists(folder):
        raise BadInputError(
            "the source is a file", where=text, hint="give the folder that contains this file and config.json"
        )
    elif may_be_hub_id(text):
        found = _hub(text, revision, token, offline)
    else:
        raise BadInputError(
            "no such folder",
            where=text or "SOURCE",
            hint="give a folder with config.json and weights, or a Hub id (user/name)",
        )
    return found


def may_be_hub_id(text: str) -> bool:
    """Whether a name could be that of a model on the Hub. A folder's name often could."""
    return bool(HUB_ID.fullmatch(text)) and len(text) <= 96 and not text.endswith((".safetensors", ".bin", ".json"))


def read_json(path: Path, name: str) -> Any:
    """Parses a JSON file of a source or a repo.

    Raises:
        BadInputError: it is missing, cannot be read or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        parsed = json.loads(text)
        if "\\ud" in text.lower():  # escaped halves of a character, which no file could be written with again
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except (ValueError, RecursionError) as error:
        raise BadInputError(
            f"{name} is not readable JSON ({error})", where=name, hint="download the file again"
        ) from None
    except OSError as error:
        raise BadInputError(
            f"cannot read {name} ({error.strerror})",
            where=str(path),
            hint="check that the file is there, and its permissions",
        ) from None


def checked_name(name: object, where: str) -> str:
    """The file name, if it stays inside the repo; else raises."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not isinstance(name, str) or not parts or parts[0] == "/" or ".." in parts or HOSTILE.search(name):
        raise BadInputError(
            f"the file name {name!r} points outside the source", where=where, hint="do not trust this checkpoint"
        )
    return str(PurePosixPath(name))


def require_no_pointers(source: Source, names: Iterable[str]) -> None:
    """Raises BadInputError for files of a local source that git left as pointers to its large file storage."""
    if source.folder is None:
        return
    pointers = [name for name in names if source.has(name) and _begins_with(source.path(name), LFS_POINTER)]
    if pointers:
        raise BadInputError(
            f"{', '.join(pointers[:4])}: a Git LFS pointer, not the file itself",
            where=source.where(),
            hint="run `git lfs pull` in the source's folder",
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def sentence_modules(source: Source) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers source, [] for others. Module paths are checked."""
    if "modules.json" not in source.files:
        return []
    modules = read_json(source.fetch("modules.json"), "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInputError(
            "modules.json is not a list of modules", where="modules.json", hint="download the file again"
        )
    return [
        {**module, "path": checked_name(module["path"], "modules.json") if module.get("path") else ""}
        for module in modules
    ]


def _local(folder: Path) -> Source:
    name = Path(os.path.abspath(folder)).name  # as it was given: a link's own name, not what it leads to
    name = os.fsencode(name).decode(errors="replace")  # a folder may have any bytes for a name, the manifest is UTF-8
    folder = folder.resolve()

    def fetch(name: str) -> Path:
        if not os.access(folder / name, os.R_OK):
            raise BadInputError("a file of the source cannot be read", where=name, hint="check its permissions")
        return folder / name

    try:
        files = tuple(sorted(_walk(folder)))
    except PermissionError as error:
        raise BadInputError(
            "the source is not readable", where=str(error.filename), hint="check its permissions"
        ) from None
    return Source(name=name, files=files, fetch=fetch, folder=folder)


def _with_modules(source: Source, modules: list[dict[str, Any]]) -> Source:
    """The source with all files of its modules' folders, however deep; else a local folder is read two levels deep."""
    if source.folder is None:
        return source
    found = set(source.files)
    for path in {module["path"] for module in modules if module["path"]}:
        if (source.folder / path).is_dir():
            found |= {f"{path}/{name}" for name in _walk(source.folder / path, MODULE_DEPTH)}
    return replace(source, files=tuple(sorted(found)))


def _walk(folder: Path, depth: int = 2) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.is_file():
            yield entry.name
        elif entry.is_dir() and depth > 1 and not entry.name.startswith("."):
            for name in _walk(Path(entry.path), depth - 1):
                yield f"{entry.name}/{name}"


def go_offline() -> None:
    """Turns on offline mode of the Hub's client, and of datasets."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # both read it at their import, so before it


def _hub(hub_id: str, revision: str | None, token: str | None, offline: bool) -> Source:
    if offline:
        go_offline()
    with hub_errors(hub_id, named=True):
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE or offline:
            return cached(hub_id, revision, "--offline" if offline else "HF_HUB_OFFLINE")
        api = HfApi(token=token)
        info = api.model_info(hub_id, revision=revision)
    commit = str(info.sha)
    files = tuple(checked_name(sibling.rfilename, hub_id) for sibling in info.siblings or ())

    def fetch(name: str) -> Path:
        if name not in files:
            raise BadInputError(f"{name} is not in the source", where=f"{hub_id}@{commit}")
        with hub_errors(hub_id):
            if revision != commit and (name == "config.json" or "config.json" not in files):
                # Asked for by branch once, so that the cache knows which commit the branch was when offline.
                api.hf_hub_download(hub_id, name, revision=revision)
            return Path(api.hf_hub_download(hub_id, name, revision=commit))

    def remote_header(name: str) -> dict[str, Any]:
        with hub_errors(hub_id):
            parsed = api.parse_safetensors_file_metadata(hub_id, name, revision=commit)
        return {
            key: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
            for key, info in parsed.tensors.items()
        }

    return Source(
        name=hub_id.rsplit("/", 1)[-1],
        files=files,
        fetch=fetch,
        hub_id=hub_id,
        revision=revision,
        commit=commit,
        gated=str(info.gated or ""),
        private=bool(info.private),
        remote_header=remote_header,
    )


def cached(hub_id: str, revision: str | None, offline: str) -> Source:
    """A Hub source in the local cache; `offline` is what turned offline mode on."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    at = f" --revision {revision}" if revision else ""
    try:
        snapshot = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise HubError(
            f"{hub_id}{at} is not in the Hub cache of this machine, and offline mode is on ({offline})",
            where=hub_id,
            hint=f"run `hf download {hub_id}{at}`, or run once without {offline}. "
            "If you meant a folder, check its path",
        ) from None
    return replace(
        _local(snapshot), name=hub_id.rsplit("/", 1)[-1], hub_id=hub_id, revision=revision, commit=snapshot.name
    )


@contextmanager
def hub_errors(hub_id: str, *, named: bool = False) -> Iterator[None]:
    """Turns errors of the Hub client and connection errors into a HubError with a hint.

    Args:
        named: nothing is known of the id yet: it may be a misspelt folder.
    """
    try:
        yield
    except Exception as raised:
        error = client_error(raised)
        if error is None:
            raise
        raise _hub_error(error, hub_id, named) from None


def client_error(raised: Exception) -> Exception | None:
    """The error of the Hub or of the network that the client raised; None for an error of another kind.

    An error that ended an upload is the cause of a RuntimeError. A dropped connection is an error of the client's HTTP
    library, which is not an OSError, or a RuntimeError of its Xet library.
    """
    cause = raised.__cause__ if isinstance(raised, RuntimeError) else None
    error = cause if isinstance(cause, Exception) else raised
    library = type(error).__module__.partition(".")[0]
    known = library in HTTP_LIBRARIES or isinstance(error, (OSError, ValueError, RuntimeError))
    return error if known else None


def _hub_error(error: Exception, hub_id: str, named: bool) -> HubError:
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    hints = {
        "GatedRepoError": "accept its conditions on the Hub, then pass --token or set HF_TOKEN",
        "RepositoryNotFoundError": (
            "check the spelling. A private repo needs --token or HF_TOKEN. Write a local folder with ./ in front"
        ),
        "RevisionNotFoundError": "check --revision: a branch, a tag or a full commit",
        "LocalEntryNotFoundError": "it is not in the cache: check the network and HF_ENDPOINT, then run again",
        "OfflineModeIsEnabled": "offline mode is on: run once without it so that the cache holds the source",
        "HFValidationError": "a Hub id is user/name. Write a local folder with ./ in front",
    }
    hint = hints.get(kind) or (
        "check the token" if status in (401, 403) else "check the network and HF_ENDPOINT, then run the command again"
    )
    reason = str(error).strip().splitlines()
    if named and status is None and kind not in hints:
        return HubError(
            f"there is no folder {hub_id} here, and the Hub could not be reached ({kind}"
            + (f": {reason[0]})" if reason else ")"),
            where=hub_id,
            hint="check the spelling of the folder. For a Hub id, check the network and HF_ENDPOINT",
        )
    return HubError(
        f"cannot get {hub_id} from the Hub: {kind}: {reason[0] if reason else 'no reply'}", where=hub_id, hint=hint
    )


def _with_config(source: Source) -> Source:
    modules = sentence_modules(source)
    source = rooted(source, modules)
    refuse_router(source, modules)
    if not source.has("config.json"):
        raise without_config(source)
    refuse_adapter(source)
    config = source.json("config.json")
    if config.get("quantization_config"):
        raise UnsupportedError(
            "the weights are quantised",
            where="config.json: quantization_config",
            hint="convert the unquantised checkpoint, then quantise the result",
        )
    return replace(source, config=config)


def rooted(source: Source, modules: list[dict[str, Any]]) -> Source:
    """The source with all files of its modules, and with the folder that holds its encoder as root."""
    source = _with_modules(source, modules)
    if "config.json" not in source.files or not _is_model_config(source, ""):
        for module in modules[:1]:
            # Before sentence-transformers 2 the encoder stood in a folder of its own, such as 0_Transformer/.
            root = f"{module['path']}/" if module.get("path") else ""
            if f"{root}config.json" in source.files:
                source = replace(source, root=root)
    return source


def _is_model_config(source: Source, root: str) -> bool:
    return is_model_config(read_json(source.fetch(f"{root}config.json"), "config.json"))
