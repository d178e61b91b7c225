"""A converted model that another program saved, as a repo: links to its files, and what was lost or changed made anew.

Nothing is written into its folder.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..convert.errors import BadInputError, EffconvError, UnsupportedError
from ..convert.families.converted import converted, named_classes
from ..convert.families.grammar import Family, Head
from ..convert.families.registry import FAMILIES
from ..convert.io.layout import refuse_adapter
from ..convert.io.source import Source, resolve, sentence_modules
from ..convert.options import Progress
from ..convert.repo.heads import complete_heads, head_named
from ..convert.repo.manifest import (
    CARD,
    FAILED,
    FORMAT,
    NAME,
    belongs,
    hash_files,
    read_manifest,
    refuse_export,
    write_manifest,
)
from ..convert.repo.modelcode import class_name
from ..convert.repo.origin import ELSEWHERE, lasting, missing_facts, stated_origin
from ..convert.repo.sentence import require_module_files, sentence_class
from ..convert.target import Target
from ..convert.text import one_or_several
from ..targets.registry import target_named
from ..version import __version__
from .code import missing_code
from .mending import Weights, lent_tokenizer, local_config, uncut_tokenizer, weights_of

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class View:
    """A folder that reads as a repo.

    Attributes:
        folder: with links, and with the files made anew. new: names of these.
        manifest: as it stands there.
        findings: what a user should know.
    """

    folder: Path
    new: tuple[str, ...]
    manifest: dict[str, Any]
    target: Target
    findings: tuple[str, ...]


@contextmanager
def as_repo(repo: str | os.PathLike[str], progress: Progress) -> Iterator[Path]:
    """The folder to read a repo from: the given one or, where another program saved the model there, a view of it.

    Errors name the given folder.
    """
    given = Path(os.path.expanduser(repo)) if os.fspath(repo) else Path(repo)
    if not os.fspath(repo) or not saved_elsewhere(given):
        yield Path(repo) if os.fspath(repo) else given
        return
    progress(f"{given} has no {NAME}: read as a model that was trained after its conversion", 0, 0)
    view = view_of(given)
    try:
        yield view.folder
    except EffconvError as error:
        rename(error, view.folder, given)
        raise


def reads_repos(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a function whose first argument is a repo, or several, take what another program saved."""
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        named, rest = dict(kwargs), list(args)
        given: Any = rest.pop(0) if rest else named.pop(first)
        progress: Any = named.get("progress") or _quiet
        with ExitStack() as views:
            found = [views.enter_context(as_repo(repo, progress)) for repo in one_or_several(given)]
            several = not isinstance(given, (str, os.PathLike))
            call: Callable[..., T] = function
            return call(found if several else found[0], *rest, **named)

    return reading


def _quiet(step: str, done: int, total: int) -> None:
    """Shows nothing."""


def rename(error: EffconvError, view: Path, given: Path) -> None:
    """Makes an error about a view speak of the folder that the user gave."""
    for name in ("what", "where", "hint"):
        setattr(error, name, getattr(error, name).replace(str(view), str(given)))


def saved_elsewhere(folder: Path) -> bool:
    """Whether a folder holds a converted model of known origin without its manifest."""
    if not folder.is_dir() or (folder / NAME).is_file() or (folder / FAILED).is_file():
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and stated_origin(config) is not None


def view_of(folder: Path, origin: Path | None = None) -> View:
    """Makes the view, in a temporary folder that goes when the process ends.

    Args:
        folder: where a converted model was saved; its manifest, if it has one, is that of the repo before.
        origin: the repo that the model was loaded from, where the folder itself does not say all of it.

    Raises:
        BadInputError: no model, or one of unknown origin.
        CheckFailedError: code that effconv did not write.
        UnsupportedError: an adapter without its model, or a target or class that this effconv does not know.
    """
    source = resolve(folder, offline=True)
    refuse_adapter(source)
    require_module_files(source, sentence_modules(source))
    before = _before(folder, source.config, origin)
    target, family, head = _kind(before, source.config, folder)
    made = Path(tempfile.mkdtemp(prefix="effconv-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    view = made / (folder.absolute().name or "repo")
    view.mkdir()
    findings: list[str] = []
    for name, text in missing_code(folder, before, target, family).items():
        (view / name).write_text(text, encoding="utf-8")
        findings.append(f"{name} was missing, and is that of effconv {__version__}")
    weights = weights_of(source, view, target, family)
    findings += [*weights.findings, *local_config(source, view), *uncut_tokenizer(folder, view)]
    if origin is not None:
        findings += lent_tokenizer(folder, origin, view)
    new = tuple(sorted(path.relative_to(view).as_posix() for path in view.rglob("*")))
    _link(folder, view, weights.replaced)
    manifest = _manifest(before, target, family, head, source, weights, findings)
    if (loads := sentence_class(view)) not in ("", "SentenceTransformer"):
        manifest["sentence_class"] = loads
    manifest["files"] = hash_files(view)
    if CARD in manifest["files"] and origin is None and (folder / NAME).is_file():
        manifest["files"][CARD] = before["files"].get(CARD, "")  # a card that a person edited has another hash
    write_manifest(view, manifest)
    return View(view, new, manifest, target, tuple(findings))


def _before(folder: Path, config: Mapping[str, Any], origin: Path | None) -> dict[str, Any]:
    """What is known of the repo from before the training, as fields of a manifest.

    Raises:
        BadInputError: nothing, or not enough.
    """
    if origin is not None:
        return read_manifest(origin)
    if (folder / NAME).is_file():
        return read_manifest(folder)
    stated = stated_origin(config)
    if stated is not None:
        return stated
    if converted(config) is None:
        refuse_export(folder)
        raise BadInputError(
            f"this is a {config.get('model_type')} model, not a model that effconv converted",
            where=f"{folder}: config.json",
            hint=f"convert it first: effconv inspect {folder} lists the targets that take it",
        )
    raise BadInputError(
        "config.json does not say which repo the model comes from: "
        f"its field {', '.join(missing_facts(config))} is missing or damaged",
        where=str(folder),
        hint=f"give the repo that was trained: effconv adopt {folder} --from REPO",
    )


def _kind(before: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> tuple[Target, Family, Head]:
    """The target, the emitted family, and the head that the config names.

    Raises:
        UnsupportedError: one of them is unknown.
    """
    target = target_named(str(before["target"]))
    family = target.emits or FAMILIES.get(str(before["family"]))
    named = [*named_classes(config), before["architecture"]]
    heads = [head for head in (head_named(target, family, name) for name in named) if head] if family else []
    if family is None or not heads or named[0] not in (class_name(family.code, target.code, h.suffix) for h in heads):
        raise UnsupportedError(
            f"{named[0]} is no class of a {before['target']} repo of the family {before['family']}",
            where=f"{folder}: config.json: architectures",
            hint="save the model with one of the classes that the repo's auto_map names",
        )
    return target, family, heads[0]


def _link(folder: Path, view: Path, replaced: tuple[str, ...]) -> None:
    """Links to every file that is part of the repo and was not made anew."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        there = view / name
        if path.is_file() and belongs(name) and name.as_posix() not in (NAME, *replaced) and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path.resolve())


def _manifest(
    before: Mapping[str, Any],
    target: Target,
    family: Family,
    head: Head,
    source: Source,
    weights: Weights,
    findings: list[str],
) -> dict[str, Any]:
    """The manifest without hashes."""
    stored = {(name.removeprefix(f"{family.prefix}."), shape) for name, shape in weights.tensors}
    names = {name for name, _ in weights.tensors}
    facts = {name: value for name, value in before.items() if name not in ("files", "code_sha256", "measurements")}
    return {
        **facts,
        "format": FORMAT,
        "effconv": __version__,
        "architecture": class_name(family.code, target.code, head.suffix),
        "auto": head.auto,
        "heads": complete_heads(target, family, head, dict(source.config), stored),
        "carried": [name for name in before.get("carried", ()) if name in names],
        "new": [],
        "plan": {"sha256": "", "counts": {}, "bytes": weights.bytes},
        "findings": list(findings),
        "adapted": [*before.get("adapted", ()), {"by": ELSEWHERE}],
        "measurements": {"checks": "not run", "fidelity": [], **lasting(before)},
        "files": {},
    }
