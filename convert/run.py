"""Runs a conversion from end to end: resolve, plan, write, emit, verify, publish. All or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..version import __version__
from .errors import CheckFailedError, OutputError, joined_hints, listing
from .execute import SourceHash, Written, execute
from .failed import refused
from .io.source import resolve
from .io.staging import Staging, check_apart, check_output, check_room, output_errors
from .io.tensorfile import file_sha256
from .io.tokenizer import tokenizer_of
from .io.unwrapped import readable_folder
from .io.vocabulary import largest_id
from .notices import notices, overrides
from .options import Progress, Settings, parse_size
from .plan import Plan
from .prepare import Prepared, ask, planned
from .repo.card import render_card
from .repo.emit import code_files, emit
from .repo.heads import complete_heads
from .repo.manifest import Measured, make_manifest, with_measurements
from .repo.old_card import OldCard, overwritten_card
from .repo.origin import trained_before
from .repo.record import write_record
from .repo.sentence import sentence_class
from .target import Calibration, Target
from .text import counted
from .verify.run import require_passed, run_checks

RECORDED = ("architecture", "seed", "dtype", "max_shard_size", "drop")  # settings that change what is converted


@dataclass(frozen=True, slots=True)
class Result:
    """A finished conversion.

    Attributes:
        output: the folder. bytes: size of its weights. seconds: wall time of the whole conversion and of verify alone.
        measured: one entry per check, None if verify was off. findings: remarks about the source.
        pushed: the `effconv.hub.push.Pushed`, if it was pushed to the Hub.
    """

    output: Path
    plan: Plan
    manifest: Mapping[str, Any]
    measured: list[Measured] | None
    findings: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    pushed: Any = None

    def __repr__(self) -> str:
        applying = [check.passed for check in self.measured or () if check.passed is not None]
        checks = "not verified" if self.measured is None else f"{sum(applying)} of {len(applying)} checks passed"
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
            **({"pushed": self.pushed.described()} if self.pushed is not None else {}),
        }


@dataclass(frozen=True)
class Weights:
    """Result of `write_weights`.

    Attributes:
        written: files, their hashes, tensors that are not finite. calibration: record and findings of the fit.
        source_sha256: hashes of a local source's weight files, by name.
    """

    written: Written
    calibration: Mapping[str, Any]
    source_sha256: Mapping[str, str]

    @property
    def unsound(self) -> list[str]:
        return [f"{name} holds NaN or infinite values" for name in self.written.not_finite]


@dataclass(frozen=True)
class Checked:
    """Result of `check_repo`.

    Attributes:
        manifest: the given one with the measurements on the source. measured: one entry per check, None if verify is
            off. others: further measurements, by name.
    """

    manifest: Mapping[str, Any]
    measured: list[Measured] | None
    others: Mapping[str, Any]


def convert_source(
    source: str | os.PathLike[str],
    target: Target,
    options: object,
    settings: Settings,
    progress: Progress = lambda step, done, total: None,
) -> Result:
    """Converts a source into a repo.

    Args:
        progress: called with the name of the step, the bytes done and the bytes in total.

    Returns:
        The result. When this returns, the output folder is complete. If it raises, there is no output folder.
    """
    begin = time.monotonic()
    progress("source", 0, 0)
    found = resolve(source, revision=settings.revision, token=settings.token, offline=settings.offline)
    asked = ask(found, target, options, settings)
    output = absolute(settings.output or Path(target.folder(found.name, options, asked.options)))
    with output_errors(output):
        check_apart(found.folder, output)
        check_output(output, overwrite=settings.overwrite, of_models=True)
    progress("plan", 0, 0)
    if found.remote_header:  # report faults before downloading gigabytes
        planned(asked, remote=True)
        progress("download", 0, 0)
    return make_repo(planned(asked, remote=False), output, progress, begin)


def make_repo(ready: Prepared, output: Path, progress: Progress, begin: float) -> Result:
    """Writes, checks and publishes a planned repo. Closes the source's files.

    Args:
        output: absolute, and checked. begin: of the command, by `time.monotonic`.
    """
    settings = ready.settings
    with output_errors(output):
        check_room(output.parent, ready.plan.bytes_out + (16 << 20))
    seconds: dict[str, float] = {}
    with Staging(output, overwrite=settings.overwrite) as staging, output_errors(output):
        weights = write_weights(staging.folder, ready, progress)
        manifest = write_repo(staging.folder, ready, weights, progress)
        before = overwritten_card(output, manifest)  # may raise: not after minutes of checks
        seconds["convert"] = time.monotonic() - begin
        try:
            checked = check_repo(staging.folder, ready, weights, manifest, progress)
        except CheckFailedError as error:
            raise refused(error, staging, manifest, keep=settings.keep_failed) from None
        if checked.measured is not None:
            seconds["verify"] = time.monotonic() - begin - seconds["convert"]
        complete = describe(staging.folder, ready, weights, checked, before, progress)
        progress("publish", 0, 0)
        staging.publish()
    progress("done", 0, 0)
    seconds["all"] = time.monotonic() - begin
    return Result(output, ready.plan, complete, checked.measured, list(complete["findings"]), seconds)


def write_weights(folder: Path, ready: Prepared, progress: Progress) -> Weights:
    """Calibrates if the target needs it, and streams every tensor of the plan into files. Closes the source's files.

    Returns:
        The files' hashes and the findings.
    """
    calibration = Calibration({}, {}) if ready.random else _calibrate(ready, progress)
    hashing = SourceHash(ready.source, ready.checkpoint.files()) if ready.source.hub_id is None else None
    progress("weights", 0, ready.plan.bytes_out)
    try:
        written = execute(
            ready.plan,
            ready.checkpoint,
            folder,
            shard_bytes=parse_size(ready.settings.max_shard_size),
            progress=progress,
            values=calibration.values,
            form=ready.target.weights_format,
        )
    finally:
        ready.checkpoint.close()
    return Weights(written, calibration.record, hashing.result() if hashing else {})


def write_repo(folder: Path, ready: Prepared, weights: Weights, progress: Progress) -> dict[str, Any]:
    """Writes config, code and tokenizer next to the weights.

    Returns:
        The manifest without measurements and file hashes, as needed by checks and card.
    """
    progress("files", 0, 0)
    target, context, options = ready.target, ready.context, ready.context.options
    carried = emit(folder, ready.source, target, context, ready.plan, weights.written)
    said = [*notices(context, ready.source.config, asked=ready.settings.architecture), *_of_tokenizer(ready)]
    findings = [*weights.unsound, *said, *weights.calibration.get("findings", ())]
    loads = sentence_class(folder)
    manifest = make_manifest(
        version=__version__,
        target=target.name,
        family=context.family.name,
        architecture=ready.plan.architecture,
        source=_described_source(ready, weights.source_sha256),
        options={option.name: _portable(getattr(options, option.name)) for option in fields(options)},
        plan={"sha256": ready.plan.sha256, "counts": ready.plan.counts(), "bytes": ready.plan.bytes_out},
        files={},
        findings=[*findings, *carried],
    ) | _facts(ready)
    if loads not in ("", "SentenceTransformer"):
        manifest["sentence_class"] = loads
    ours = code_files(target, context.emits, context.emitted_head)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.py")))
    if theirs := [name for name in names if name not in ours]:
        manifest["source_code"] = theirs  # which a refresh leaves as it is
    if target.calibration and not ready.random:
        manifest["calibration"] = {name: value for name, value in weights.calibration.items() if name != "findings"}
    return manifest


def check_repo(
    folder: Path, ready: Prepared, weights: Weights, manifest: Mapping[str, Any], progress: Progress
) -> Checked:
    """Runs the target's checks on the repo in a fresh process, unless verify is off.

    References that some checks compare with are measured on the source here, even with verify off, and stored in the
    returned manifest, so that `effconv verify` does not need the source.

    Raises:
        CheckFailedError: weights with NaN or infinite values, or a failed check.
    """
    settings = ready.settings
    if not settings.verify:
        return Checked(manifest, None, {})
    if weights.unsound:
        raise CheckFailedError(
            f"the weights hold NaN or infinite values:\n{listing(weights.written.not_finite)}",
            where=ready.source.where(),
            hint="use another checkpoint, or pass --no-verify to convert this one anyway",
        )
    progress("verify", 0, 0)
    try:
        measured, others = run_checks(
            folder,
            ready.target,
            manifest,
            source=readable_folder(ready.source),
            progress=lambda name: progress(f"verify: {name}", 0, 0),
            trust_remote_code=settings.trust_remote_code,
        )
    except CheckFailedError as error:  # no check said anything of the repo
        error.where = ""
        error.hint = joined_hints(error.hint, "pass --no-verify to convert without checks")
        raise
    require_passed(
        measured, ready.target, "do not use these weights; --no-verify converts without checks, at your own risk"
    )
    return Checked(manifest, measured, others)


def describe(
    folder: Path, ready: Prepared, weights: Weights, checked: Checked, before: OldCard, progress: Progress
) -> dict[str, Any]:
    """Writes the card and then the manifest with every file's hash. Returns the manifest.

    Args:
        before: the card of the folder that is overwritten.
    """
    progress("manifest", 0, 0)
    complete = with_measurements(checked.manifest, checked.measured, **checked.others)
    card = before.renewed(render_card(ready.target, complete, ready.source))
    return write_record(folder, complete, card, before=before, known=weights.written.files)


def _calibrate(ready: Prepared, progress: Progress) -> Calibration:
    """Runs the target's calibration, if it has one, on the source model."""
    if not ready.target.calibration:
        return Calibration({}, {})
    import importlib

    for name in tokenizer_of(ready.source, ready.context.family).files:  # of a Hub source: fetched
        ready.source.path(name)
    module, _, function = ready.target.calibration.partition(":")
    found: Calibration = getattr(importlib.import_module(module), function)(
        ready.context, readable_folder(ready.source), progress
    )
    return found


def _of_tokenizer(ready: Prepared) -> list[str]:
    """What a user must know of a tokenizer: tokens without an embedding, or code of its own."""
    found = tokenizer_of(ready.source, ready.context.family)
    largest, rows = largest_id(ready.source), ready.context.config.get("vocab_size")
    if largest is not None and isinstance(rows, int) and largest >= rows:
        return [
            f"the tokenizer has ids up to {largest:,}, and the model has embeddings for {rows:,} tokens: a text with a "
            f"token from id {rows:,} on cannot be run"
        ]
    if not found.references:
        return []
    there = [reference for reference in found.references if "--" in reference]
    copied = ", ".join((*found.code, *found.vocabulary))
    where = f"stays where it is ({', '.join(there)})" if there else f"was copied ({copied})"
    ran = "" if ready.settings.trust_remote_code else " and was not run: --trust-remote-code lets the checks run it"
    return [f"the tokenizer {found.name} is Python code of the source: it {where}{ran}"]


def _facts(ready: Prepared) -> dict[str, Any]:
    """Facts about the repo for checks and card, in addition to the options."""
    target, context, settings = ready.target, ready.context, ready.settings
    upgraded = target.upgraded(context)
    # Where all weights are random, none is named: there is no tensor that the others would have to wait for.
    new = [row.target for row in ready.plan.rows if row.action == "new" and not ready.random]
    stored = {
        (row.target.removeprefix(f"{context.emits.prefix}."), row.shape)
        for row in ready.plan.rows
        if row.target and (row.action != "new" or ready.random)
    }
    part = context.emits.part(context.emitted_head)
    return {
        "max_length": int(context.options.max_length),
        "source_max_length": context.family.longest(context.config),
        "settings": {name: _portable(getattr(settings, name)) for name in RECORDED},
        "auto": context.emitted_head.auto,
        "part": part,
        # a head that the repo approximates, so that fidelity is meaningful
        "dense_source": target.brings is None and not upgraded and not ready.random,
        "heads": complete_heads(target, context.emits, context.emitted_head, dict(context.emitted), stored),
        "new": new,
        "carried": [row.target for row in ready.plan.rows if row.target in ready.plan.carried],
        **({"upgraded": dict(upgraded)} if upgraded else {}),
        **({"source_config": changed} if (changed := overrides(context, ready.source.config)) else {}),
    }


def _described_source(ready: Prepared, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Identifies a Hub source by id and commit, a local one by name and content, never by path."""
    source = ready.source
    if ready.random:
        return {"name": source.name, "random": dict(ready.random)}
    trained = trained_before(source.config)
    before = {"trained": trained} if trained else {}
    if source.hub_id:
        closed = {"gated": source.gated, "private": source.private}
        known = {"name": source.name, "hub_id": source.hub_id, "commit": source.commit}
        return known | {key: value for key, value in closed.items() if value} | before
    hashed = {**hashes, "config.json": file_sha256(source.path("config.json"))}
    return {"name": source.name, "sha256": hashed, **before}


def _portable(value: object) -> object:
    """An option as written to the manifest: files by name, never by path."""
    if isinstance(value, Path):
        return value.name
    return [_portable(item) for item in value] if isinstance(value, (tuple, list)) else value


def absolute(path: Path) -> Path:
    expanded = Path(os.path.expanduser(path))
    if not expanded.name or expanded.name == "..":
        raise OutputError(
            "the output cannot be the current folder, or one above it",
            where=f"--output {path}",
            hint="give a new folder",
        )
    return expanded.absolute()
