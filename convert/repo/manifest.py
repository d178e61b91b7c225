"""The manifest, effconv.json: source, options, file hashes, and the result of each check.

Everything but `measurements` is the same for the same input and options on one machine and version. config.json has a
copy of one measurement, the record of the tokenizer (origin.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInputError, CheckFailedError, EffconvError, listing
from ..families.converted import converted
from ..io.source import may_be_hub_id, resolve
from ..io.tensorfile import file_sha256

NAME = "effconv.json"
CARD = "README.md"
FAILED = "effconv-failed.json"  # what a conversion that failed its checks has instead
EXPORTED = "effconv-export.json"  # the record of an export, which has no manifest
FORMAT = 1
UNHASHED = (NAME, ".gitattributes")
# What a training leaves beside a model: states of optimisers and generators, options, logs, other checkpoints. No model
# loads them, some are pickles, and they name folders of a machine.
TRAINING_FILES = re.compile(
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl"
    r"|trainer_state\.json|training_args\.bin|zero_to_fp32\.py|latest|events\.out\.tfevents.*"
    r"|_fsdp_\w+\.py"  # torch's own, which transformers takes for the code of a model that fully_shard wrapped
)
# Of the encoder: a repo has safetensors, also where it was adopted from these. Modules in folders may keep theirs.
PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
TRAINING_FOLDERS = re.compile(r"checkpoint-\d+|global_step\d+|(pytorch_model|optimizer)(_fsdp)?_\d+|runs|wandb")
FIELDS = {
    "format": int, "target": str, "family": str, "architecture": str, "options": dict, "settings": dict, "files": dict,
    "plan": dict, "max_length": int, "source_max_length": int, "auto": str, "heads": list, "carried": list,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of one check. `passed` is None for a measurement without a bound, or a check that does not apply.

    Attributes:
        value: the largest difference found, or None.
        why: why it failed, or why it does not apply.
    """

    name: str
    says: str
    passed: bool | None
    value: float | None = None
    tolerance: float | None = None
    why: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def make_manifest(
    *,
    version: str,
    target: str,
    family: str,
    architecture: str,
    source: Mapping[str, Any],
    options: Mapping[str, Any],
    plan: Mapping[str, Any],
    files: Mapping[str, str],
    findings: Sequence[str],
) -> dict[str, Any]:
    """The part of the manifest that does not depend on a measurement.

    Args:
        files: sha256 by file name, of every file of the repo but the manifest.
        findings: remarks about the source, such as tensors with NaN.
    """
    return {
        "format": FORMAT,
        "effconv": version,
        "target": target,
        "family": family,
        "architecture": architecture,
        "source": dict(source),
        "options": dict(options),
        "plan": dict(plan),
        "files": dict(sorted(files.items())),
        "findings": list(findings),
    }


def with_measurements(
    manifest: Mapping[str, Any], measured: Sequence[Measured] | None, **others: object
) -> dict[str, Any]:
    """The manifest with its measurements. None means that the checks were not run."""
    checks = "not run" if measured is None else [asdict(result) for result in measured]
    return {**manifest, "measurements": {"checks": checks, **others}}


def repo_folder(repo: str | os.PathLike[str], wanted: str = "the folder of a repo that effconv made") -> Path:
    """The folder of a repo as a user names it.

    Args:
        wanted: what the command takes, for the hint.

    Raises:
        BadInputError: there is no such folder.
    """
    text, folder = os.fspath(repo), Path(os.path.expanduser(repo))
    if text and os.path.isdir(folder):
        return folder
    exists = bool(text) and os.path.exists(folder)
    hint = f"give {wanted}"
    if not exists and may_be_hub_id(text):
        hint += f". Download a model of the Hub first: hf download {text} --local-dir {text.rpartition('/')[2]}"
    raise BadInputError(
        "this is a file, not a folder" if exists else "no such folder", where=str(repo) or "REPO", hint=hint
    )


def read_manifest(repo: Path) -> dict[str, Any]:
    """Reads a repo's manifest.

    Raises:
        BadInputError: the folder is not a converted repo, or its manifest is damaged.
        CheckFailedError: the folder is a conversion that failed its checks.
    """
    path = repo / NAME
    if (repo / FAILED).is_file():
        raise _kept_to_be_looked_at(repo)
    if not path.is_file():
        refuse_export(repo)
        raise _no_manifest(repo)
    manifest = _parsed(path, _restored(repo))
    odd = [
        key for key, kind in FIELDS.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind)
    ]
    if odd:
        raise BadInputError(f"{NAME} has no {', '.join(odd)}", where=str(path), hint=_restored(repo))
    if "failed" in manifest:
        raise _kept_to_be_looked_at(repo)
    if manifest["format"] > FORMAT:
        raise BadInputError(
            f"{NAME} has format {manifest['format']}, which is newer than this effconv can read",
            where=str(path),
            hint="upgrade effconv",
        )
    return dict(manifest)


def config_of(repo: Path) -> dict[str, Any]:
    """A repo's config.json, for what is read before the files are compared with the manifest.

    Raises:
        BadInputError: it is missing or damaged.
    """
    path, hint = repo / "config.json", "restore config.json, or convert the source again"
    if not path.is_file():
        raise BadInputError("the repo has no config.json", where=str(repo), hint=hint)
    config = _parsed(path, hint)
    if not isinstance(config, dict):
        raise BadInputError("config.json is not a JSON object", where=str(path), hint=hint)
    return config


def _restored(repo: Path) -> str:
    """What to do about a damaged manifest."""
    return (
        f"restore {NAME}, or convert the source again; if you trained the model, delete {NAME} and make the folder a "
        f"repo again: effconv adopt {repo}"
    )


def _parsed(path: Path, hint: str) -> Any:
    """A JSON file of a repo.

    Args:
        hint: what to do about a damaged one.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(
            f"{path.name} cannot be read ({error.strerror or error})", where=str(path), hint="check its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path.name} is not readable JSON ({error})", where=str(path), hint=hint) from None


def refuse_export(folder: Path) -> None:
    """Raises BadInputError for a folder that effconv export made."""
    if (folder / EXPORTED).is_file():
        raise BadInputError(
            "the folder is an export of effconv, not a converted repo",
            where=str(folder),
            hint=f"give the repo that was exported: {EXPORTED} has its name",
        )


def _no_manifest(repo: Path) -> EffconvError:
    """The error for a folder without a manifest: what it is instead, and what to give."""
    what, hint = f"the folder has no {NAME}, so it was not made by effconv", "give the folder of a converted repo"
    try:
        config = resolve(repo, offline=True).config
    except EffconvError as error:
        run = "output folder of a training" in error.what  # which has its checkpoints in subfolders
        return error if run else BadInputError(what, where=str(repo), hint=hint)
    before = converted(config)
    if before and not before.published:
        what = f"the folder has no {NAME}: the model was saved after its conversion, by another program"
        hint = f"give the repo that was trained: effconv adopt {repo} --from REPO"
    elif config.get("model_type"):
        hint = f"give the folder of a converted repo; effconv inspect {repo} lists the targets that this one can become"
    return BadInputError(what, where=str(repo), hint=hint)


def _kept_to_be_looked_at(repo: Path) -> CheckFailedError:
    return CheckFailedError(
        "this folder is a conversion that failed its checks (kept by --keep-failed)",
        where=str(repo),
        hint=f"see {FAILED} for the failed checks, then convert the source again",
    )


def hash_files(repo: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file of the repo but the manifest, by its name inside the repo; `known` ones are not read.

    Raises:
        BadInputError: a file cannot be read.
    """
    names = {
        path.relative_to(repo).as_posix(): path
        for path in sorted(repo.rglob("*"))
        if path.is_file() and path.name not in UNHASHED and belongs(path.relative_to(repo))
    }
    try:
        return {name: (known or {}).get(name) or file_sha256(path) for name, path in names.items()}
    except OSError as error:
        raise BadInputError(
            f"a file of the repo cannot be read ({error.strerror})",
            where=str(error.filename or repo),
            hint="check its permissions",
        ) from None


def belongs(name: Path) -> bool:
    """Whether a file is part of a repo, by its path inside the repo's folder.

    It is not where git, the Hub's client or Python left it in a hidden folder or a cache, or where a training did.
    """
    folders = name.parts[:-1]
    trace = any(part.startswith(".") or part == "__pycache__" for part in folders)
    left = TRAINING_FILES.fullmatch(name.name) or (not folders and PICKLED.fullmatch(name.name))
    return not (trace or left or any(map(TRAINING_FOLDERS.fullmatch, folders[:1])))


def write_manifest(repo: Path, manifest: Mapping[str, Any]) -> None:
    (repo / NAME).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def changed_files(repo: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Differences between a repo and its manifest, one line each.

    Raises:
        BadInputError: a file may not be read.
    """
    found, stated = hash_files(repo), manifest["files"]
    return [
        *(f"{name}: missing" for name in stated.keys() - found.keys()),
        *(f"{name}: not in the manifest" for name in found.keys() - stated.keys()),
        *(f"{name}: changed" for name in stated.keys() & found.keys() if stated[name] != found[name]),
    ]


def check_hashes(repo: Path, manifest: Mapping[str, Any]) -> None:
    """Raises CheckFailedError, with every file that differs, unless README.md is all that changed."""
    changed = sorted(line for line in changed_files(repo, manifest) if not line.startswith("README.md:"))
    if changed:
        raise CheckFailedError(
            f"the files of the repo differ from its manifest:\n{listing(changed)}",
            where=str(repo),
            hint="restore changed and missing files and remove those not in the manifest, or convert the source again; "
            f"if you trained the model, make it a repo again: effconv adopt {repo}",
        )
