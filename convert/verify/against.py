"""The source that a repo is compared with: opened, and compared with what the repo's manifest says of its source.

A model of another family or size, or a converted model, is refused. Other weights of the same size are taken, and said
to be others: the manifest has the hashes of a local source and the commit of a Hub source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError, UsageError
from ..families.converted import converted
from ..families.registry import FAMILIES
from ..io.reader import DENSE_FORMATS, open_checkpoint
from ..io.source import Source, read_json, resolve
from ..io.tensorfile import file_sha256
from ..io.unwrapped import readable_folder
from ..repo.origin import trained_elsewhere
from ..target import Target


@dataclass(frozen=True, slots=True)
class Against:
    """A source at hand.

    Attributes:
        folder: with config and weights.
        same: whether it is the checkpoint that the repo was made from; None where the manifest cannot tell.
        doubt: what is different; "" where nothing is known to be.
    """

    folder: Path
    same: bool | None = None
    doubt: str = ""


def source_of(
    against: str | os.PathLike[str],
    repo: Path,
    manifest: Mapping[str, Any],
    token: str | None,
    offline: bool,
    target: Target | None = None,
) -> Against:
    """Opens the source of a repo, its weights fetched.

    Args:
        target: says which forms of weights it reads.

    Raises:
        UsageError: this cannot be the source of the repo.
    """
    if (manifest.get("source") or {}).get("random"):
        raise UsageError(
            "the repo began with random weights: there is no source to compare with",
            where=str(against),
            hint="leave it out",
        )
    found = resolve(against, token=token, offline=offline)
    _require_kin(found, str(against), repo, manifest, target)
    files = open_checkpoint(found, formats=target.reads if target else DENSE_FORMATS).files()
    paths = [found.path(name) for name in files]
    same, doubt = _compared(found, paths, manifest)
    if not same:
        _require_reach(found, str(against), manifest)
    return Against(readable_folder(found), same, doubt)


def named_source(manifest: Mapping[str, Any]) -> str:
    """What the manifest calls the source."""
    stated = manifest.get("source") or {}
    return str(stated.get("hub_id") or stated.get("name") or "the checkpoint that the repo was made from")


def _give(manifest: Mapping[str, Any]) -> str:
    stated = manifest.get("source") or {}
    local = stated.get("name") and not stated.get("hub_id")  # its folder's name alone: a manifest has no paths
    return f"give {'the folder of ' if local else ''}{named_source(manifest)}"


def _require_kin(found: Source, against: str, repo: Path, manifest: Mapping[str, Any], target: Target | None) -> None:
    """Raises UsageError for a model of another family or size, and for a converted one."""
    brought = target.brings if target else None
    before = converted(found.config)
    family = before.family if before else found.config.get("model_type")
    give = _give(manifest)
    if family not in (brought.model_types if brought else (manifest["family"],)):
        raise UsageError(
            f"the source is a {family}, but the repo was made from a {manifest['family']}", where=against, hint=give
        )
    if before is not None and brought is None and manifest.get("dense_source", True):
        raise UsageError(
            f"{found.name} is a converted model ({before.target}), not the source of this repo",
            where=against,
            hint=give,
        )
    ours = read_json(repo / "config.json", "config.json")
    words = [config.get("vocab_size") for config in (found.config, ours)]
    if trained_elsewhere(manifest) and all(isinstance(count, int) for count in words) and words[0] != words[1]:
        raise UsageError(
            f"the vocabulary was changed after the conversion: {words[1]:,} tokens, the source has {words[0]:,}",
            where=against,
            hint="compare the repo from before the training with its source",
        )
    differences = list(_differences(found.config, ours, manifest["family"]))
    if differences:
        raise UsageError(
            f"{found.name} is not the source of this repo: {'; '.join(differences)}", where=against, hint=give
        )


def _differences(source: Mapping[str, Any], repo: Mapping[str, Any], family: str) -> Iterator[str]:
    """How the sizes of two models differ, as their configs state them."""
    kind = FAMILIES.get(family)
    names = {
        "hidden size": kind.hidden_size if kind else "hidden_size",
        "attention heads": kind.num_heads if kind else "num_attention_heads",
        "feed-forward size": kind.inner_size if kind else "intermediate_size",
        "vocabulary size": "vocab_size",
        "embedding size": "embedding_size",
    }
    try:
        source, repo = (kind.read_config(config) if kind else config for config in (source, repo))
        layers = [len(kind.layer_paths(c)) if kind else c.get("num_hidden_layers") for c in (source, repo)]
    except (BadInputError, KeyError, TypeError, ValueError):  # a config that says less than it could
        layers = [None, None]
    sizes = {"layers": layers} | {
        label: [config.get(name) for config in (source, repo)] for label, name in names.items()
    }
    for label, (theirs, ours) in sizes.items():
        if isinstance(theirs, int) and isinstance(ours, int) and theirs != ours:
            yield f"{label} {theirs:,}, the repo has {ours:,}"


def _compared(found: Source, weights: list[Path], manifest: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether these are the weights that the manifest names, and what is different."""
    stated = manifest.get("source") or {}
    hashes = stated.get("sha256")
    if isinstance(hashes, dict):
        known = {digest for name, digest in hashes.items() if name != "config.json"}
        if not known:
            return None, ""
        if known == {file_sha256(path) for path in weights}:
            return True, ""
        return False, f"{found.name} has other weights than the source of this repo ({named_source(manifest)})"
    if not stated.get("commit") or not found.commit:
        return None, ""
    if stated["commit"] == found.commit:
        return True, ""
    return False, (
        f"{found.hub_id} is at commit {found.commit[:12]}, and the repo was made from {named_source(manifest)} at "
        f"commit {stated['commit'][:12]}"
    )


def _require_reach(found: Source, against: str, manifest: Mapping[str, Any]) -> None:
    """Raises UsageError for a model that takes shorter texts than the source did."""
    family, had = FAMILIES.get(str(found.config.get("model_type"))), manifest.get("source_max_length")
    reach = family.longest(family.read_config(found.config)) if family else None
    if reach is not None and isinstance(had, int) and reach < had:
        raise UsageError(
            f"{found.name} is not the source of this repo: it takes {reach:,} tokens, the source took {had:,}",
            where=against,
            hint=_give(manifest),
        )
