"""`effconv refresh`: a repo's code, card blocks and manifest as today's effconv writes them; weights untouched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..adopt.run import adopt
from ..adopt.view import saved_elsewhere
from ..convert.errors import BadInputError, UnsupportedError, UsageError
from ..convert.families.converted import named_classes
from ..convert.families.registry import FAMILIES
from ..convert.io.source import HUB_ID, cached, hub_errors
from ..convert.io.staging import Staging, check_apart, check_output, output_errors
from ..convert.io.tokenizer import tokenizer_in
from ..convert.options import Progress
from ..convert.repo.card import card_text
from ..convert.repo.card_blocks import named, names_in
from ..convert.repo.emit import REMOVED_FIELDS, code_fields, code_files
from ..convert.repo.heads import head_named
from ..convert.repo.manifest import (
    CARD,
    NAME,
    Measured,
    check_hashes,
    read_manifest,
    with_measurements,
)
from ..convert.repo.old_card import OldCard, old_card
from ..convert.repo.origin import FIELD as ORIGIN
from ..convert.repo.origin import lasting, origin_of
from ..convert.repo.own_modules import own_modules
from ..convert.repo.record import write_hashes
from ..convert.repo.sentence import COLBERT
from ..convert.target import Target
from ..convert.verify.against import source_of
from ..convert.verify.run import require_passed, run_checks
from ..targets.registry import target_named
from ..version import __version__
from .connection import refuse_offline, require_repo_id
from .push import Pushed, check_reachable, push_refreshed

Place = Callable[[Path, Path], object]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        output: the folder; None where only the Hub has it. changed, removed: names of files.
        measured: the checks that ran on the new code; None where none did.
    """

    output: Path | None
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    measured: list[Measured] | None = None
    notes: tuple[str, ...] = ()
    pushed: Pushed | None = None

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": str(self.output) if self.output else None,
            "changed": list(self.changed),
            "removed": list(self.removed),
            "checks": None if self.measured is None else [asdict(result) for result in self.measured],
            "notes": list(self.notes),
            "pushed": self.pushed.described() if self.pushed else None,
        }


@dataclass(frozen=True)
class _Fresh:
    """Text files as they shall be, by name, and names of those that go."""

    files: dict[str, str]
    gone: tuple[str, ...]
    code_changed: bool
    target: Target
    manifest: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def refresh(
    repo: str | os.PathLike[str],
    *,
    output: Path | None = None,
    push: bool = False,
    to: str | None = None,
    verify: bool = True,
    against: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Refreshed:
    """Writes what effconv generates anew; every tensor file keeps its bytes.

    Args:
        repo: a folder, or a Hub id.
        output: where to; by default the folder itself, or a folder of the Hub id's name here. With `push` a Hub id
            leaves nothing here unless this is given.
        push: open a pull request with what changed.
        to: Hub id for that, where `repo` is a folder; by default the token's user and the folder's name.
        verify: run the target's checks where the code is new.
        against: the dense source to compare with then.
        revision: branch or commit of a Hub id.
        token: of the Hub; by default HF_TOKEN, else the stored login.
        offline: open no socket; read a Hub id from the cache.
        trust_remote_code: let the source's own code run, in the checks.
        progress: called with each step.

    Raises:
        CheckFailedError: a file differs from the manifest (README.md may), or a check fails on the new code.
        EffconvError: as `convert` and `push`; the repo is then as it was.
    """
    if push:
        refuse_offline(offline)
    local = os.path.isdir(os.path.expanduser(repo))
    if to is not None:
        require_repo_id(to, "--to")
    if to is not None and (not push or not local):
        what = "--to needs --push" if local else "--to applies only to a local folder: a Hub repo is pushed to itself"
        raise UsageError(what, where="--to", hint="pass --push too, or leave out --to" if local else "leave out --to")
    if local and revision is not None:
        raise UsageError(
            "--revision applies only to Hub repos", where=str(repo), hint="leave out --revision for a local folder"
        )
    if push:  # before minutes go into checks, and before a folder is updated whose changes then stay here
        check_reachable(to or _name_on_hub(repo, local), token, offline=offline, create_pr=True)
    with tempfile.TemporaryDirectory(prefix="effconv-") as temporary:
        folder = Path(os.path.expanduser(repo)) if local else _fetched(str(repo), revision, token, offline, progress)
        if saved_elsewhere(folder):  # its code may be old, its weights are trained: first a repo, then refreshed
            made = None if local and output is None else Path(temporary) / "adopted" / folder.absolute().name
            folder = adopt(
                folder,
                output=made,
                verify=verify,
                offline=offline,
                trust_remote_code=trust_remote_code,
                progress=progress,
            ).output
        name = folder.absolute().name if local else str(repo).rpartition("/")[2]
        place: Place = os.link if local and output is None else shutil.copyfile
        if output is None and not local and push:
            output, place = Path(temporary) / name, _link_to  # the weights stay where the client keeps them
        target_folder = Path(os.path.expanduser(output or (folder if local else name))).absolute()
        kept = None if target_folder.parent == Path(temporary) else target_folder
        result = _refresh(folder, target_folder, place, verify, against, token, offline, trust_remote_code, progress)
        pushed = None
        if push and (result.changed or local):
            pushed = push_refreshed(
                target_folder if result.changed else folder,
                to if local else str(repo),
                revision=revision,
                trusted=not local,
                token=token,
                message=f"Refresh with effconv {__version__}",
                progress=progress,
            )
    return replace(result, output=kept, pushed=pushed)


def _name_on_hub(repo: str | os.PathLike[str], local: bool) -> str:
    return Path(os.path.expanduser(repo)).resolve().name if local else str(repo)


def _refresh(
    folder: Path,
    output: Path,
    place: Place,
    verify: bool,
    against: str | os.PathLike[str] | None,
    token: str | None,
    offline: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> Refreshed:
    manifest = read_manifest(folder)
    progress("compare every file with the manifest", 0, 0)
    check_hashes(folder, manifest)
    before = old_card(folder, manifest)
    fresh = _fresh(folder, manifest)
    in_place = output == folder.absolute()
    if not in_place:
        check_apart(folder, output)
        check_output(output, overwrite=None)
    measured = None
    with Staging(output, overwrite=in_place or None) as staging, output_errors(output):
        for name in manifest["files"]:
            if name not in fresh.files and name not in fresh.gone and name != CARD:
                (staging.folder / name).parent.mkdir(parents=True, exist_ok=True)
                _put(place, (folder / name).resolve(), staging.folder / name)
        for name, text in fresh.files.items():
            _write(staging.folder / name, text)
        new = {**fresh.manifest, "effconv": __version__}
        _card(staging.folder, before, fresh.target, new, folder)  # raises before minutes go into the checks
        if fresh.code_changed:
            measured, new["measurements"] = _measured(
                staging.folder, fresh, verify, against, token, offline, trust_remote_code, progress
            )
        _write(staging.folder / CARD, _card(staging.folder, before, fresh.target, new, folder))
        known = {n: digest for n, digest in manifest["files"].items() if n not in fresh.files and n != CARD}
        write_hashes(staging.folder, new, before=before, known=known)
        changed = tuple(sorted(name for name in (*fresh.files, CARD, NAME) if _differs(staging.folder, folder, name)))
        if in_place and not changed and not fresh.gone:
            return Refreshed(output, (), (), None, tuple(fresh.notes))
        progress("publish", 0, 0)
        staging.publish()
    return Refreshed(output, changed, fresh.gone, measured, tuple(fresh.notes))


def _fresh(folder: Path, manifest: Mapping[str, Any]) -> _Fresh:
    """Code and config as today's templates give them."""
    target = target_named(manifest["target"])
    family = target.emits or FAMILIES.get(manifest["family"])
    own = head_named(target, family, manifest["architecture"]) if family else None
    if family is None or own is None:
        raise UnsupportedError(
            f"this effconv makes no {manifest['architecture']} from a {manifest['family']}",
            where=f"{folder / NAME}: architecture",
            hint="upgrade effconv",
        )
    code, stated = {**code_files(target, family, own), **own_modules(folder)}, code_fields(target, family, own)
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if COLBERT in named_classes(config):
            stated["architectures"] = [*stated["architectures"], COLBERT]
        options = _without_removed(manifest["options"]) if isinstance(manifest.get("options"), dict) else {}
        manifest = {**manifest, "options": options}
        today = {**_without_removed(config), **stated, ORIGIN: _origin(config, manifest, code)}
        newer = json.dumps(today, indent=2, ensure_ascii=False) + "\n"
    except (OSError, ValueError, TypeError) as error:
        raise BadInputError(
            f"config.json cannot be read ({error})", where=str(config_path), hint="convert again"
        ) from None
    files = code if today == config else {**code, "config.json": newer}
    kept = {*code, *manifest.get("source_code", ()), *tokenizer_in(folder).code}  # the last two came with the source
    gone = tuple(sorted(name for name in manifest["files"] if name.endswith(".py") and name not in kept))
    changed = bool(gone) or any(_text(folder / name) != text for name, text in files.items())
    return _Fresh(files, gone, changed, target, manifest)


def _origin(config: Mapping[str, Any], manifest: Mapping[str, Any], code: Mapping[str, str]) -> dict[str, Any]:
    """What config.json says of the origin; as it stands where this effconv would only name itself in it."""
    stated = config.get(ORIGIN)
    new = origin_of({**manifest, "effconv": __version__}, code)
    if isinstance(stated, dict) and {**stated, "version": __version__} == new:
        return stated
    return new


def _without_removed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in REMOVED_FIELDS}


def _measured(
    folder: Path,
    fresh: _Fresh,
    verify: bool,
    against: str | os.PathLike[str] | None,
    token: str | None,
    offline: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[list[Measured] | None, dict[str, Any]]:
    """The checks of the new code, and the manifest's block; what was measured against the source stays, and says so."""
    old = fresh.manifest.get("measurements")
    old = old if isinstance(old, dict) else {}
    by = old.get("fidelity_by", fresh.manifest.get("effconv"))
    kept = {"fidelity": old["fidelity"], "fidelity_by": by} if old.get("fidelity") else {}
    kept |= lasting(fresh.manifest)
    if not verify:
        fresh.notes.append("the code is new and was not checked (--no-verify)")
        return None, with_measurements({}, None, **kept)["measurements"]
    source = None if against is None else source_of(against, folder, fresh.manifest, token, offline, fresh.target)
    if source and source.doubt:
        fresh.notes.append(source.doubt)
    progress("verify", 0, 0)
    measured, others = run_checks(
        folder,
        fresh.target,
        fresh.manifest,
        source=source.folder if source else None,
        progress=lambda name: progress(f"verify: {name}", 0, 0),
        trust_remote_code=trust_remote_code,
    )
    stays = "the repo stays as it is; refresh it with another effconv, or with other versions of torch and transformers"
    require_passed(measured, fresh.target, stays)
    held = {entry.get("name") for entry in _entries(old) if entry.get("passed") is True}
    measured = [
        replace(result, why=f"held when effconv {by} made it; not compared again")
        if source is None and result.passed is None and result.name in held
        else result
        for result in measured
    ]
    found = others | kept if source is None else lasting(fresh.manifest) | others
    return measured, with_measurements({}, measured, **found)["measurements"]


def _entries(measurements: Mapping[str, Any]) -> list[dict[str, Any]]:
    checks = measurements.get("checks")
    return [entry for entry in checks if isinstance(entry, dict)] if isinstance(checks, list) else []


def _card(folder: Path, before: OldCard, target: Target, manifest: Mapping[str, Any], given: Path) -> str:
    """The card with today's generated blocks, and all that a person wrote.

    Args:
        folder: of the new repo. given: of the old one, for errors.
    """
    import jinja2

    try:
        card = card_text(target, manifest, {}, sentence=(folder / "modules.json").is_file())
    except (jinja2.UndefinedError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"{NAME} lacks what the card shows ({error})", where=str(given / NAME), hint="convert the source again"
        ) from None
    names = names_in(before.text)
    return before.renewed(named(card, **names) if "repo_id" in names else card)


def _fetched(repo_id: str, revision: str | None, token: str | None, offline: bool, progress: Progress) -> Path:
    """A repo of the Hub in the client's cache, at one commit."""
    if not HUB_ID.fullmatch(repo_id):
        raise BadInputError("no such folder", where=repo_id, hint="give the folder of a repo, or a Hub id (user/name)")
    progress(f"fetch {repo_id}", 0, 0)
    with hub_errors(repo_id, named=True):
        from huggingface_hub import HfApi, constants, snapshot_download

        if offline or constants.HF_HUB_OFFLINE:
            folder = cached(repo_id, revision, "--offline" if offline else "HF_HUB_OFFLINE").folder
            assert folder is not None
            return folder
        api = HfApi(token=token)
        commit = api.model_info(repo_id, revision=revision).sha
        return Path(snapshot_download(repo_id, revision=commit, token=token))


def _put(place: Place, there: Path, here: Path) -> None:
    try:
        place(there, here)
    except OSError:  # a file system without links
        if place is shutil.copyfile:
            raise
        shutil.copyfile(there, here)


def _link_to(there: Path, here: Path) -> None:
    here.symlink_to(there)


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else None


def _differs(new: Path, old: Path, name: str) -> bool:
    return _text(new / name) != _text(old / name)
