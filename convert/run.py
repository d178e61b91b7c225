"""One conversion from end to end: resolve, plan, write, emit, verify, publish. All or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .. import __version__
from .card import write_card
from .checkpoint import Checkpoint
from .dtypes import NAMES
from .emit import emit, emitted_config
from .errors import CheckFailedError, OutputError, listing
from .execute import Progress, SourceHash, execute
from .families import asked_config, family_of
from .family import Family, Head, number, shape_of
from .manifest import (
    Measured,
    hash_files,
    make_manifest,
    with_measurements,
    write_manifest,
)
from .notices import notices, overrides
from .options import Settings, parse_size
from .plan import Plan, check_floats, choose_head, make_plan
from .reader import open_checkpoint
from .refusals import compares_with_source
from .source import Source, resolve
from .staging import Staging, check_apart, check_output, check_replaceable, check_room, output_errors
from .target import Calibration, Context, Target
from .tensorfile import file_sha256
from .text_files import require_readable
from .tokenizer import SpecialTokens, special_tokens
from .verify import require_passed, run_checks
from .wording import counted


@dataclass(frozen=True, slots=True)
class Result:
    """A finished conversion.

    Attributes:
        output: the folder. bytes: of its weights. seconds: wall time of the whole conversion and of verify alone.
        measured: one entry a check, None where verify was off. findings: what was found in the source.
    """

    output: Path
    plan: Plan
    manifest: Mapping[str, Any]
    measured: list[Measured] | None
    findings: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        held = [check for check in self.measured or () if check.passed]
        checks = "not verified" if self.measured is None else f"{len(held)} of {len(self.measured)} checks hold"
        size, findings = f"{self.plan.bytes_out / 1e6:,.1f} MB", counted(len(self.findings), "finding")
        return f"<Result {str(self.output)!r}: {self.plan.architecture}, {size}, {checks}, {findings}>"

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": str(self.output),
            "bytes": self.plan.bytes_out,
            "architecture": self.plan.architecture,
            "plan": self.plan.counts(),
            "checks": None if self.measured is None else [asdict(result) for result in self.measured],
            "fidelity": self.manifest["measurements"].get("fidelity", []),
            "findings": self.findings,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Prepared:
    """A source opened and planned, nothing written yet."""

    source: Source
    checkpoint: Checkpoint
    context: Context
    plan: Plan


def prepare(
    source: str | os.PathLike[str], target: Target, options: object, settings: Settings, *, remote: bool
) -> Prepared:
    """Resolves and plans.

    Args:
        remote: of a Hub source, read only the headers of its weights.

    Raises:
        EffconvError: for any fault of the source or of the options.
    """
    found = resolve(source, revision=settings.revision, token=settings.token, offline=settings.offline)
    return prepare_resolved(found, target, options, settings, remote=remote)


def prepare_resolved(source: Source, target: Target, options: object, settings: Settings, *, remote: bool) -> Prepared:
    """The same for a source that is resolved already."""
    if target.calibration:
        require_readable(getattr(options, "calibrate", ()), "--calibrate")
    if target.prepare is not None:
        checkpoint, context, plan = target.prepare(source, target, options, settings, remote)
        return Prepared(source, checkpoint, context, plan)
    options = target.complete(options, source.config)
    own_code = settings.trust_remote_code and compares_with_source(target, options, settings)
    family = family_of(source.config, target.families, again=target.name if target.again else "", own_code=own_code)
    checkpoint = open_checkpoint(source, allow_pickle=settings.allow_pickle, remote=remote)
    check_floats(checkpoint.tensors.values())
    read_as = None if target.emits else settings.architecture  # a model of its own has heads of its own
    head, unknown_class = choose_head(checkpoint, source.config, family, read_as)
    context, plan = plan_tensors(
        checkpoint,
        target,
        options,
        family,
        head,
        source.config,
        special_tokens(source, family.special_tokens),
        settings,
        unknown_class,
    )
    return Prepared(source, checkpoint, context, plan)


def plan_tensors(
    checkpoint: Checkpoint,
    target: Target,
    options: object,
    family: Family,
    head: Head,
    config: Mapping[str, Any],
    tokens: SpecialTokens,
    settings: Settings,
    unknown_class: str | None = None,
) -> tuple[Context, Plan]:
    """Context and plan from what has been read; the part that a model in memory shares."""
    family.head_width(config)
    target.check_takes(family, head, config)
    emits = target.emits or family
    emitted_head = target.emitted_head(family, head, unknown_class, settings.architecture)
    config = asked_config(config, family, head, settings.architecture)
    context = Context(family, head, config, options, tokens, settings.seed, config, emits, emitted_head)
    context = replace(context, emitted=emitted_config(target, context))
    dtype = NAMES[settings.dtype] if settings.dtype else None
    return context, make_plan(checkpoint, target, context, unknown_class=unknown_class, dtype=dtype)


def convert_source(
    source: str | os.PathLike[str],
    target: Target,
    options: object,
    settings: Settings,
    progress: Progress = lambda step, done, total: None,
) -> Result:
    """Converts a source into a repo.

    Args:
        progress: called with the step, and bytes done and in all where the step counts them.

    Returns:
        The result; the output folder is complete when this returns, and does not exist where it raises.
    """
    begin = time.monotonic()
    progress("source", 0, 0)
    found = resolve(source, revision=settings.revision, token=settings.token, offline=settings.offline)
    named = target.folder(found.name, target.complete(options, found.config))
    output = _absolute(settings.output or Path(named))
    with output_errors(output):
        check_apart(found.folder, output)
        check_output(output, overwrite=settings.overwrite)
        check_replaceable(output)
    progress("plan", 0, 0)
    if found.remote_header:  # faults show before gigabytes are fetched
        prepare_resolved(found, target, options, settings, remote=True)
        progress("download", 0, 0)
    ready = prepare_resolved(found, target, options, settings, remote=False)
    with output_errors(output):
        check_room(output.parent, ready.plan.bytes_out + (16 << 20))
    with Staging(output, overwrite=settings.overwrite) as staging, output_errors(output):
        result = _fill(staging.folder, ready, target, options, settings, progress, begin)
        progress("publish", 0, 0)
        staging.publish()
    progress("done", 0, 0)
    result.seconds["all"] = time.monotonic() - begin
    return Result(output, result.plan, result.manifest, result.measured, result.findings, result.seconds)


def _fill(
    folder: Path, ready: Prepared, target: Target, options: object, settings: Settings, progress: Progress, begin: float
) -> Result:
    options = ready.context.options  # a target may have filled in what was left open
    calibration = _calibrate(ready, target, progress)
    hashing = SourceHash(ready.source, ready.checkpoint.files()) if ready.source.hub_id is None else None
    progress("weights", 0, ready.plan.bytes_out)
    try:
        written = execute(
            ready.plan,
            ready.checkpoint,
            folder,
            shard_bytes=parse_size(settings.max_shard_size),
            progress=progress,
            values=calibration.values,
            form=target.form,
        )
    finally:
        ready.checkpoint.close()
    progress("files", 0, 0)
    emit(folder, ready.source, target, ready.context, ready.plan, written)
    unsound = [f"{name} holds NaN or infinite values" for name in written.not_finite]
    findings = [*unsound, *notices(ready.context, ready.source.config), *calibration.record.get("findings", ())]
    manifest = make_manifest(
        version=__version__,
        target=target.name,
        family=ready.context.family.name,
        architecture=ready.plan.architecture,
        source=_described_source(ready.source, hashing.result() if hashing else {}),
        options={option.name: _portable(getattr(options, option.name)) for option in fields(options)},  # type: ignore[arg-type]
        plan={"sha256": ready.plan.sha256, "counts": ready.plan.counts(), "bytes": ready.plan.bytes_out},
        files={},
        findings=findings,
    ) | _facts(ready, target, settings)
    if target.calibration:
        manifest["calibration"] = {name: value for name, value in calibration.record.items() if name != "findings"}
    seconds = {"convert": time.monotonic() - begin}
    measured: list[Measured] | None = None
    others: dict[str, Any] = {}
    if settings.verify:
        if unsound:
            raise CheckFailedError(
                f"the weights are not sound:\n{listing(unsound)}",
                where=ready.source.where(),
                hint="use a sound checkpoint, or pass --no-verify to convert it all the same",
            )
        progress("verify", 0, 0)
        measured, others = run_checks(
            folder,
            target,
            manifest,
            source=source_folder(ready.source),
            progress=lambda name: progress(f"verify: {name}", 0, 0),
            trust_remote_code=settings.trust_remote_code,
        )
        require_passed(folder, measured)
        seconds["verify"] = time.monotonic() - begin - seconds["convert"]
    progress("manifest", 0, 0)
    complete = with_measurements(manifest, measured, **others)
    write_card(folder, target, complete, ready.source)
    complete["files"] = hash_files(folder, known=written.files)
    write_manifest(folder, complete)
    return Result(folder, ready.plan, complete, measured, findings, seconds)


def _calibrate(ready: Prepared, target: Target, progress: Progress) -> Calibration:
    """Runs the target's calibration, if it has one, on the source's own model."""
    if not target.calibration:
        return Calibration({}, {})
    import importlib

    module, _, function = target.calibration.partition(":")
    found: Calibration = getattr(importlib.import_module(module), function)(
        ready.context, source_folder(ready.source), progress
    )
    return found


def _facts(ready: Prepared, target: Target, settings: Settings) -> dict[str, Any]:
    """What checks and card need to know of the repo, beside the options."""
    context = ready.context
    upgraded = target.upgraded(context)
    new = [row.target for row in ready.plan.rows if row.action == "new"]
    stored = {
        (row.target.removeprefix(f"{context.emits.prefix}."), row.shape)
        for row in ready.plan.rows
        if row.target and row.action != "new"
    }
    part = context.emits.part(context.emitted_head)
    declared = {
        head.auto: context.emits.weights(context.emitted, head)
        for head in target.heads(context.emits)
        if context.emits.part(head) == part  # a decoder alone has none of the target's attention
    }
    heads = [  # by shape too: several heads call their tensors classifier.weight
        auto
        for auto, weights in declared.items()
        if {(weight.name, shape_of(weight, context.emitted)) for weight in weights} <= stored
    ]
    return {
        "max_length": int(context.options.max_length),
        "source_max_length": number(context.config, "max_position_embeddings") - context.family.special_positions,
        "settings": {name: getattr(settings, name) for name in ("architecture", "seed", "dtype", "max_shard_size")},
        "auto": context.emitted_head.auto,
        "part": part,
        # One that the repo approximates, so that fidelity means something.
        "dense_source": target.prepare is None and not upgraded,
        "heads": heads,
        "new": new,
        "carried": [
            row.target for row in ready.plan.rows if row.target and ("kept for" in row.why or "carried" in row.why)
        ],
        **({"upgraded": dict(upgraded)} if upgraded else {}),
        **({"source_config": changed} if (changed := overrides(context, ready.source.config)) else {}),
    }


def _described_source(source: Source, hashes: Mapping[str, str]) -> dict[str, Any]:
    """A Hub source by id and commit, a local one by name and content: never a path."""
    if source.hub_id:
        closed = {"gated": source.gated, "private": source.private}
        known = {"name": source.name, "hub_id": source.hub_id, "commit": source.commit}
        return known | {key: value for key, value in closed.items() if value}
    return {"name": source.name, "sha256": {**hashes, "config.json": file_sha256(source.path("config.json"))}}


def _portable(value: object) -> object:
    """An option as the manifest writes it: files by name, never by path."""
    if isinstance(value, Path):
        return value.name
    return [_portable(item) for item in value] if isinstance(value, (tuple, list)) else value


def source_folder(source: Source) -> Path:
    """The folder with config and weights, all of it local by now."""
    return source.path("config.json").parent


def _absolute(path: Path) -> Path:
    expanded = Path(os.path.expanduser(path))
    if not expanded.name or expanded.name == "..":
        raise OutputError("the output is no folder name", where=str(path), hint="choose one with --output")
    return expanded.absolute()
