"""`effconv adopt`: a converted model that another program saved becomes a repo again, checked like any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import EffconvError, UsageError
from ..convert.io.source import resolve
from ..convert.io.staging import Staging, check_apart, check_output, check_writable, output_errors
from ..convert.options import Progress
from ..convert.repo.card import card_text
from ..convert.repo.card_blocks import joined, without_scores
from ..convert.repo.manifest import (
    CARD,
    NAME,
    Measured,
    changed_files,
    read_manifest,
    repo_folder,
    with_measurements,
)
from ..convert.repo.old_card import old_card
from ..convert.repo.record import write_record
from ..convert.repo.sentence import MODULES
from ..convert.verify.run import require_passed, run_checks
from .view import View, rename, saved_elsewhere, view_of

WEIGHTS = (".safetensors", ".bin", ".msgpack", ".h5", ".onnx", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was done.

    Attributes:
        output: the folder. manifest: its manifest. written: names of the files that are new or changed.
        measured: one entry per check, None if they were not run. findings: what a user should know.
    """

    output: Path
    manifest: Mapping[str, Any]
    written: tuple[str, ...]
    measured: list[Measured] | None
    findings: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": str(self.output),
            "architecture": self.manifest["architecture"],
            "written": list(self.written),
            "checks": None if self.measured is None else [asdict(result) for result in self.measured],
            "findings": list(self.findings),
        }


UNKNOWN_CHANGES = (
    f"the folder had an {NAME}, which is replaced: weights and settings are taken as they are. adopt cannot tell "
    "training from damage"
)


def adopt(
    folder: str | os.PathLike[str],
    *,
    origin: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Adopted:
    """Makes a repo of a folder in which another program saved a converted model.

    Args:
        folder: where Trainer, sentence-transformers, PEFT or another program saved the model.
        origin: the repo that it was loaded from, a folder or a Hub id, where the model's config does not say all of it.
        output: where to write the repo; by default into the folder itself, in which no other file is touched.
        verify: run the checks that hold for a trained model.
        token: of the Hub, for `origin`.
        offline: use no network.
        trust_remote_code: let Python code of the source, such as a tokenizer's, run in the checks.
        progress: called with each step.

    Returns:
        What was written; no files where the folder is a repo already.

    Raises:
        CheckFailedError: code that is not effconv's, or a failed check. Nothing is written.
        EffconvError: the folder has no such model, or its origin is unknown.
    """
    given = repo_folder(folder)
    target_folder = given if output is None else Path(os.path.expanduser(output)).absolute()
    if output is not None:
        with output_errors(target_folder):
            check_apart(given, target_folder)
            check_output(target_folder, overwrite=None)
    elif (given / NAME).is_file() and origin is None:
        manifest = read_manifest(given)
        if not [line for line in changed_files(given, manifest) if not line.startswith(f"{CARD}:")]:
            return Adopted(given, manifest, (), None, ("the folder is a repo already, and no file has changed",))
    had_manifest = (given / NAME).is_file()
    if output is None:
        check_writable(given / NAME)
    view = view_of(given, None if origin is None else _fetched(origin, token, offline))
    try:
        measured = finish(view, verify=verify, trust_remote_code=trust_remote_code, progress=progress)
    except EffconvError as error:
        rename(error, view.folder, given)
        raise
    progress("publish", 0, 0)
    made = sorted(path.relative_to(view.folder).as_posix() for path in view.folder.rglob("*") if _is_new(path))
    with output_errors(target_folder):
        if output is None:
            _put_in_place(view.folder, given, made)
        else:
            _write_apart(view.folder, target_folder)
    findings = (*view.findings, *([UNKNOWN_CHANGES] if had_manifest else []))
    return Adopted(target_folder, read_manifest(target_folder), tuple(made), measured, findings)


def finish(
    view: View, *, verify: bool = True, trust_remote_code: bool = False, progress: Progress
) -> list[Measured] | None:
    """Runs the checks on a view, and writes its card, its origin and its manifest.

    Raises:
        CheckFailedError: a check failed.
    """
    manifest, measured = view.manifest, None
    if verify:
        progress("verify", 0, 0)
        measured, others = run_checks(
            view.folder,
            view.target,
            manifest,
            source=None,
            progress=lambda name: progress(f"verify: {name}", 0, 0),
            trust_remote_code=trust_remote_code,
        )
        require_passed(measured, view.target, "train again from a repo that passes its checks", view.folder)
        kept = {name: value for name, value in manifest["measurements"].items() if name != "checks"}
        manifest = with_measurements(manifest, measured, **{**kept, **others, "fidelity": []})
    progress("manifest", 0, 0)
    before = old_card(view.folder, view.manifest)
    ours = card_text(view.target, manifest, {}, sentence=(view.folder / MODULES).is_file())
    card = joined(without_scores(before.text), ours) if before.text.strip() else ours
    config = view.folder / "config.json"
    text = config.read_bytes()
    config.unlink()  # maybe a link into the user's folder
    config.write_bytes(text)
    known = {name: digest for name, digest in manifest["files"].items() if name.endswith(WEIGHTS)}
    write_record(view.folder, manifest, card, before=before, known=known)
    return measured


@contextmanager
def as_checked_repo(
    repo: str | os.PathLike[str], progress: Progress = lambda step, done, total: None
) -> Iterator[Path]:
    """The folder of a repo to share: the given one or, where another program saved the model there, a checked view.

    Errors name the given folder.
    """
    given = repo_folder(repo)
    if not saved_elsewhere(given):
        yield given
        return
    progress(f"{given} has no {NAME}: checked as a model that was trained after its conversion", 0, 0)
    view = view_of(given)
    try:
        finish(view, progress=progress)
        yield view.folder
    except EffconvError as error:
        rename(error, view.folder, given)
        raise


def _fetched(origin: str | os.PathLike[str], token: str | None, offline: bool) -> Path:
    """The folder of the repo from before; of one on the Hub, without its weights."""
    source = resolve(origin, token=token, offline=offline)
    for name in source.files:
        if not name.endswith(WEIGHTS):
            source.fetch(name)
    folder = source.path("config.json").parent
    if not (folder / NAME).is_file():
        raise UsageError(
            f"the repo from before has no {NAME} either",
            where=f"--from {origin}",
            hint="give the repo as effconv made it",
        )
    return folder


def _is_new(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _put_in_place(view: Path, folder: Path, names: list[str]) -> None:
    """The manifest goes last: until then the folder is as little a repo as it was."""
    for name in sorted(names, key=lambda name: name == NAME):
        there = folder / name
        beside = there.with_name(f".{there.name}.effconv")
        shutil.copyfile(view / name, beside)
        os.replace(beside, there)


def _write_apart(view: Path, output: Path) -> None:
    with Staging(output, overwrite=None) as staging:
        for path in sorted(view.rglob("*")):
            if path.is_file():
                there = staging.folder / path.relative_to(view)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, there)
        staging.publish()
