"""Opens the given models (converted repos, dense models, others) and finds their sources."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adopt.view import saved_elsewhere, view_of
from ..convert.errors import BadInputError, EffconvError, UnsupportedError, UsageError
from ..convert.families.converted import converted
from ..convert.families.registry import FAMILIES
from ..convert.io.reader import open_checkpoint
from ..convert.io.source import Source, hub_errors, resolve
from ..convert.io.tensorfile import file_sha256
from ..convert.io.tokenizer_classes import VOCABULARIES
from ..convert.io.unwrapped import readable_folder
from ..convert.repo import manifest as manifests
from ..convert.repo.card import command
from ..convert.repo.origin import stated_origin
from ..convert.verify.against import named_source
from ..targets.registry import TARGETS, target_named
from .models import Subject, size_of, stretched
from .options import BenchOptions


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that a user named.

    Attributes:
        subject: what is measured; None of a dense model of a family that effconv knows, which any length may stretch.
        dense: config of the dense model behind it, with a stock model_type; None where there is none.
        had: tokens that the dense model takes as it is.
        manifest: of a repo that effconv made.
    """

    name: str
    source: Source
    subject: Subject | None
    dense: Mapping[str, Any] | None
    had: int
    manifest: Mapping[str, Any] | None = None

    def at(self, length: int) -> Subject:
        """What is measured, where texts of up to `length` tokens are."""
        return self.subject or stretched(self.name, self.dense or {}, length, self.had)


def opened(model: str, options: BenchOptions) -> Opened:
    """Finds a model and says what it is; of a repo that effconv made, every file is compared with its manifest.

    Raises:
        EffconvError: it cannot be found, or its code may not run.
    """
    found = resolve(model, token=options.token, offline=options.offline)
    name = found.hub_id or found.name
    if manifests.NAME in found.files or stated_origin(found.config):
        return _emitted(model, name, found, options)
    family, before = FAMILIES.get(str(found.config.get("model_type"))), converted(found.config)
    if before is not None:
        raise UnsupportedError(
            f"{name} was converted to {before.target} by another tool, and its code may not load",
            where=model,
            hint=f"upgrade it first (effconv {before.target} {model}), or give a repo that has {manifests.NAME}",
        )
    if family is not None:
        had = family.longest(family.read_config(found.config))
        return Opened(name, found, None, found.config, had)
    reach = found.config.get("max_position_embeddings")
    reach = reach if isinstance(reach, int) else None
    if found.config.get("auto_map"):
        if not options.trust_remote_code:
            raise UsageError(
                f"{name} has its own Python code",
                where=model,
                hint="if you trust the code, pass --trust-remote-code to run it",
            )
        subject = Subject(name, "its own code", folder=str(_fetched(found)), own_code=True, reach=reach)
        return Opened(name, found, subject, None, 0)
    what = f"{found.config.get('model_type')}, random weights"
    return Opened(name, found, Subject(name, what, config=dict(found.config), reach=reach), None, 0)


def _emitted(model: str, name: str, found: Source, options: BenchOptions) -> Opened:
    if found.hub_id is not None and not options.trust_remote_code:
        raise UsageError(
            f"{name} is a Hub repo with Python code, which would run on this machine",
            where=model,
            hint="if you trust the code, pass --trust-remote-code. Or give a local folder",
        )
    folder = _fetched(found)
    folder = view_of(folder).folder if saved_elsewhere(folder) else folder
    manifest = manifests.read_manifest(folder)
    manifests.check_hashes(folder, manifest)
    target = TARGETS.get(manifest["target"])
    if target is not None and target.weights_format.library != "transformers":
        raise UnsupportedError(
            f"a {manifest['target']} repo runs with {target.weights_format.library}, not with torch",
            where=model,
            hint="measure the torch repo that it was made from",
        )
    subject = Subject(
        name,
        (target.label(manifest["options"]) if target else "") or str(manifest["target"]),
        folder=str(folder),
        own_code=True,
        reach=int(manifest["max_length"]),
        converted=True,
    )
    dense = None
    if manifest["family"] in FAMILIES and not manifest.get("part"):
        dense = {**found.config, "model_type": manifest["family"]}
    return Opened(name, found, subject, dense, int(manifest["source_max_length"]), manifest)


def _fetched(found: Source) -> Path:
    for name in found.files:
        kinds = (".json", ".py", ".safetensors", ".txt", ".md", ".model", ".bin")
        if Path(name).suffix in kinds or Path(name).name in VOCABULARIES:
            found.path(name.removeprefix(found.root))
    return readable_folder(found)


def conversion_of(model: Opened, options: BenchOptions) -> tuple[Source, list[str]]:
    """The local source of a model, and the words of its conversion: `[target, option, ...]`.

    Raises:
        EffconvError: why it cannot be measured: effconv did not make it, the source is not at hand or another one, or
            the target is fitted on text.
    """
    if model.manifest is None:
        raise UnsupportedError(f"{model.name} was not converted by effconv", where=model.name)
    manifest, stated = model.manifest, model.manifest["source"]
    if stated.get("random"):
        raise UnsupportedError(f"{model.name} began with random weights: nothing was converted", where=model.name)
    target = TARGETS.get(manifest["target"])
    if target is None:
        raise UnsupportedError(
            f"this version of effconv does not know the target {manifest['target']!r}", where=model.name
        )
    target = target_named(manifest["target"], target.options(**_known(target.options, manifest["options"])))
    if target.calibration:
        raise UnsupportedError(
            f"{target.name} is fitted on text, so its time does not compare with a copy", where=model.name
        )
    words = shlex.split(command(target, {**manifest, "source": {"name": "source"}}))
    return _weights_at_hand(_find_source(model, stated, options)), [words[1], *words[3:]]


def _known(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = getattr(kind, "__dataclass_fields__", {})
    return {name: value for name, value in options.items() if name in fields and not isinstance(value, list)}


def _find_source(model: Opened, stated: Mapping[str, Any], options: BenchOptions) -> Source:
    if options.against is not None:
        found = resolve(options.against, token=options.token, offline=options.offline)
        if model.dense is not None and _size(found.config) != _size(model.dense):
            raise UsageError(
                f"this is not the source of {model.name}: its family or size differs",
                where=f"--against {options.against}",
                hint=f"give {named_source(model.manifest or {})}, or leave out --against",
            )
        return found
    missing = BadInputError(
        f"the source {stated.get('hub_id') or stated['name']} is not on this machine",
        where=model.name,
        hint="give its folder with --against FOLDER",
    )
    if stated.get("hub_id"):
        from huggingface_hub import snapshot_download

        try:
            with hub_errors(stated["hub_id"]):
                place = snapshot_download(stated["hub_id"], revision=stated.get("commit"), local_files_only=True)
            return resolve(place, offline=True)
        except EffconvError:
            raise missing from None
    beside = [model.source.folder.parent] if model.source.folder else []
    for folder in dict.fromkeys([*beside, Path.cwd()]):
        place = folder / stated["name"]
        config = place / "config.json"
        if config.is_file() and file_sha256(config) == stated.get("sha256", {}).get("config.json"):
            return resolve(place, offline=True)
    raise missing


def _size(config: Mapping[str, Any]) -> tuple[object, ...]:
    """Family and size of a dense model, or of what was converted from one; without a size where the family is none."""
    before = converted(config)
    name = str(before.family if before else config.get("model_type"))
    return (name, *size_of(FAMILIES[name], config)) if name in FAMILIES else (name,)


def _weights_at_hand(source: Source) -> Source:
    """The source, if all of its weights are local."""
    if source.folder is None:
        raise BadInputError(
            "the source's weights are on the Hub", where=source.where(), hint="give its folder with --against"
        )
    return source


def weights_of(source: Source) -> list[Path]:
    """The weight files of a local source."""
    checkpoint = open_checkpoint(source)
    try:
        return [source.path(name) for name in checkpoint.files()]
    finally:
        checkpoint.close()
