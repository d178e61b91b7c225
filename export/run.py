"""Exports a repo from end to end: load, trace, write, compare with the repo, measure, publish. All or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import EffconvError, UnsupportedError
from ..convert.io.staging import Staging, check_apart, check_output, check_room, output_errors
from ..convert.io.tensorfile import file_sha256
from ..convert.options import Progress
from ..convert.repo.manifest import EXPORTED, NAME, check_hashes, hash_files, read_manifest, repo_folder
from ..targets.registry import target_named
from ..version import __version__
from .layout import copy_files
from .options import ExportOptions
from .refusals import require_exportable, require_packages

GRAPH, INT8, FP16, PROGRAM = "onnx/model.onnx", "onnx/model_qint8.onnx", "onnx/model_fp16.onnx", "model.pt2"


@dataclass(frozen=True)
class ExportResult:
    """Result of an export.

    Attributes:
        output: the folder. record: what effconv-export.json says: files, inputs, outputs, checks, measurements.
    """

    output: Path
    record: dict[str, Any]

    def described(self) -> dict[str, Any]:
        return {"output": str(self.output), **self.record}


def export_repo(
    repo: str | os.PathLike[str],
    options: ExportOptions,
    *,
    progress: Progress = lambda step, done, total: None,
) -> ExportResult:
    """Exports a converted repo.

    Returns:
        The output folder, complete and checked, and its record.

    Raises:
        EffconvError: the repo cannot be exported, or a graph does not give its outputs. No output is written.
    """
    folder = repo_folder(repo).absolute()
    manifest = read_manifest(folder)
    require_exportable(folder, manifest, target_named(manifest["target"]))
    require_packages(options)
    output = Path(os.path.expanduser(options.output or folder.name + "-export")).absolute()
    progress("compare every file with the manifest", 0, 0)
    check_hashes(folder, manifest)
    with output_errors(output):
        check_apart(folder, output)
        check_output(output, overwrite=options.overwrite, of_models=True)
        size = sum((folder / name).stat().st_size for name in manifest["files"])
        check_room(output.parent, (2 + options.int8 + options.fp16 + options.torch) * size + (64 << 20))
    with Staging(output, overwrite=options.overwrite) as staging:
        copy_files(folder, staging.folder, manifest)
        record = {"effconv": __version__, "repo": _named(folder, manifest)}
        record |= write_graphs(folder, staging.folder, manifest, options, progress)
        record["files"] = hash_files(staging.folder)
        (staging.folder / EXPORTED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        progress("moving the folder into place", 0, 0)
        staging.publish()
    return ExportResult(output, record)


def _named(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Which repo was exported."""
    fields = ("target", "family", "architecture", "max_length")
    return {
        "name": folder.name,
        "manifest_sha256": file_sha256(folder / NAME),
        **{name: manifest[name] for name in fields},
        "options": manifest["options"],
    }


def write_graphs(
    repo: Path, folder: Path, manifest: Mapping[str, Any], options: ExportOptions, progress: Progress
) -> dict[str, Any]:
    """Writes every form that was asked for into `folder`, and compares each with the repo's model.

    Returns:
        The record of the graphs: inputs, outputs, checks, measurements.
    """
    import torch

    from .checks import compare, random_batch, runner
    from .graphs import INPUTS, OPSET, program_of, session, write_onnx
    from .loaded import load, takes_segments, tokenizer_of

    progress("loading the repo", 0, 0)
    exported = load(repo, manifest, trust_remote_code=options.trust_remote_code)
    tokenizer = tokenizer_of(repo, trust_remote_code=options.trust_remote_code)
    longest = int(manifest["max_length"])
    segments = takes_segments(exported.model, tokenizer)
    inputs = INPUTS[: 3 if segments else 2]
    example = random_batch(exported, [min(longest, 37), min(longest, 23)], segments, seed=1)
    progress("tracing", 0, 0)
    try:
        program = program_of(exported, example, longest)
    except EffconvError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"torch.export cannot trace this model: {str(error).strip().splitlines()[0]}",
            where=str(repo),
            hint="try another version of torch, or serve the repo with transformers",
        ) from error
    record: dict[str, Any] = {
        "inputs": list(inputs),
        "outputs": list(exported.outputs),
        "versions": {"torch": torch.__version__},
        "checks": {},
    }
    if options.torch:
        progress("writing the program of torch.export", 0, 0)
        torch.export.save(program, folder / PROGRAM)
        kept = torch.export.load(folder / PROGRAM).module()
        progress("comparing it with the repo", 0, 0)
        with torch.no_grad():
            record["checks"][PROGRAM] = compare(exported, lambda x: kept(*x), longest, segments, PROGRAM)
    if not options.onnx:
        return record
    progress("writing the ONNX graph", 0, 0)
    write_onnx(program, folder / GRAPH, inputs, exported.outputs)
    del program
    import onnxruntime

    record["opset"], record["versions"]["onnxruntime"] = OPSET, onnxruntime.__version__
    progress("comparing it with the repo", 0, 0)
    run = runner(session(folder / GRAPH), inputs)
    record["checks"][GRAPH] = compare(exported, run, longest, segments, GRAPH)
    record["measured"] = _smaller(exported, tokenizer, folder, inputs, longest, options, progress)
    return record


def _smaller(
    exported: Any,
    tokenizer: Any,
    folder: Path,
    inputs: Any,
    longest: int,
    options: ExportOptions,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Writes the smaller forms of the graph, and measures all of them where there are any."""
    from .small import measured, write_fp16, write_int8

    files = {"onnx": folder / GRAPH}
    if options.int8:
        progress("quantising to 8 bits", 0, 0)
        files["int8"] = folder / INT8
        write_int8(folder / GRAPH, files["int8"])
    if options.fp16:
        progress("converting to 16 bits", 0, 0)
        files["fp16"] = folder / FP16
        write_fp16(folder / GRAPH, files["fp16"])
    if len(files) == 1:
        return []
    progress("measuring similarity and speed", 0, 0)
    return measured(exported, tokenizer, files, inputs, longest)
