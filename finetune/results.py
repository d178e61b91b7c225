"""Writes the new repo: trained weights, the head's code and config, manifest, card and results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..convert.families.grammar import Head
from ..convert.io.dtypes import SIZES, from_float32
from ..convert.io.reader import open_checkpoint
from ..convert.io.source import resolve
from ..convert.io.tensorfile import TensorFile
from ..convert.repo.card import PIPELINES
from ..convert.repo.card_blocks import OWN, with_block, with_field, with_results
from ..convert.repo.emit import code_fields, code_files
from ..convert.repo.manifest import Measured
from ..convert.repo.modelcode import class_name
from ..convert.repo.sentence import MODEL_SETTINGS, MODULES, SETTINGS_NAMES
from ..convert.text import counted
from .heads import Stored, heads_of
from .labels import Labels
from .models import label_fields
from .tasks import Task

BLOCK, HEADING = "finetune", "Fine-tuned"
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A finished run.

    Attributes:
        output: the folder. record: as the manifest has it. measured: the checks of the new repo, None if they were off.
    """

    output: Path
    record: Mapping[str, Any]
    measured: list[Measured] | None
    findings: list[str]

    def __repr__(self) -> str:
        before, after = self.record["before"], self.record["after"]
        moved = [f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in self.record["metrics"]]
        steps = counted(self.record["steps"], "step")
        return f"<Finetuned {str(self.output)!r}: {self.record['task']}, {steps}; {', '.join(moved)}>"

    def described(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": str(self.output),
            **self.record,
            "checks": None if self.measured is None else [asdict(result) for result in self.measured],
            "findings": self.findings,
        }


def write_files(
    repo: Path,
    folder: Path,
    manifest: Mapping[str, Any],
    stored: Stored,
    head: Head,
    state: Mapping[str, Tensor],
    frozen: Collection[str],
    config: Mapping[str, Any],
) -> dict[str, str]:
    """Writes weights, config and code, and copies every other file; returns sha256 of the weights files.

    A tensor keeps its file and its dtype; one that was not trained keeps its bytes. New ones have the repo's dtype and
    are in the last file. Tensors of the head before are left out.

    Args:
        repo: to read. folder: to write. state: all tensors of the trained model. frozen: those that were not trained.
        config: the new config.json.
    """
    family = stored.family
    values = {str(family.canonical_name(name)): value for name, value in state.items()}
    same = {str(family.canonical_name(name)) for name in frozen}
    kept = set(stored.kept(head))
    added = [weight.name for weight in family.head_weights(head) if weight.when(config) and weight.name in values]
    added = [name for name in added if name not in kept]
    replaced = [name for name in kept if name in values and tuple(values[name].shape) != stored.shapes[name]]
    checkpoint = open_checkpoint(resolve(repo, offline=True))
    hashes: dict[str, str] = {}
    where: dict[str, str] = {}
    total = 0
    files = checkpoint.files()
    dtype = STORED_AS.get(str(config.get("dtype", "float32")), "F32")
    try:
        for file_name in files:
            rows: list[tuple[str, str, tuple[int, ...]]] = []  # canonical name, dtype, shape
            for tensor in sorted(
                (t for t in checkpoint.tensors.values() if t.file == file_name), key=lambda t: t.start
            ):
                name = str(family.canonical_name(tensor.name))
                if name in kept:
                    shape = tuple(values[name].shape) if name in replaced else tensor.shape
                    rows.append((name, tensor.dtype, shape))
            if file_name == files[-1]:
                rows += [(name, dtype, tuple(values[name].shape)) for name in added]
            sizes = [(stored.full_name(n), t, s, _bytes(t, s)) for n, t, s in rows]
            file = TensorFile(folder / file_name, sizes)
            for name, stored_dtype, _ in rows:
                if name in values and (name not in same or name not in stored.names or name in replaced):
                    array = np.ascontiguousarray(values[name].detach().float().cpu().numpy())
                    file.append(memoryview(from_float32(array, stored_dtype).data).cast("B"))
                else:
                    for chunk in checkpoint.chunks(stored.names[name]):
                        file.append(chunk)
            hashes[file_name] = file.finish()
            where |= {name: file_name for name, *_ in sizes}
            total += sum(size for *_, size in sizes)
    finally:
        checkpoint.close()
    code = code_files(stored.target, family, head)
    index = stored.target.weights_format.index
    dropped = _sentence_files(repo, manifest, stored.own == head)
    for name in manifest["files"]:
        if name in hashes or name in (*code, "config.json", index) or name in dropped:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repo / name, folder / name)
    if len(files) > 1:
        _write(folder / index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    for name, text in code.items():
        (folder / name).write_text(text, encoding="utf-8")
    _write(folder / "config.json", config)
    return hashes


def new_config(config: Mapping[str, Any], stored: Stored, head: Head, task: Task, labels: Labels) -> dict[str, Any]:
    """config.json of the new repo: its head and its labels."""
    kept = {k: v for k, v in config.items() if k not in ("num_labels", "problem_type", *label_fields(task, labels))}
    return {**kept, **label_fields(task, labels), **code_fields(stored.target, stored.family, head)}


def with_record(
    manifest: Mapping[str, Any],
    record: Mapping[str, Any],
    made: str,
    stored: Stored,
    head: Head,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    trained: Mapping[str, bool],
) -> dict[str, Any]:
    """The manifest of the new repo: its head, an entry under `adapted`, and what was measured.

    Args:
        made: effconv's version. shapes: of the new repo's tensors, by canonical name. trained: by canonical name.
    """
    before = manifest["measurements"] if isinstance(manifest.get("measurements"), dict) else {}
    entry = {
        "by": "finetune",
        "effconv": made,
        **{key: record[key] for key in ("task", "options", "data", "heldout")},
    }
    new = {*stored.new, *stored.random(head, config)} & shapes.keys()
    carried = [n for n in manifest["carried"] if stored.family.canonical_name(n) in shapes]
    result = {
        **manifest,
        "effconv": made,
        "architecture": class_name(stored.family.code, stored.target.code, head.suffix),
        "auto": head.auto,
        "heads": heads_of(stored, head, shapes, config),
        "new": [stored.full_name(name) for name in shapes if name in new and not trained.get(name)],
        "carried": [stored.full_name(str(stored.family.canonical_name(name))) for name in carried],
        "adapted": [*manifest.get("adapted", ()), entry],
        "measurements": {**before, "finetune": [*before.get("finetune", ()), dict(record)]},
    }
    if stored.own != head:
        result.pop("sentence_class", None)
    return result


def with_results_of(
    task: Task, record: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any], card: str, model: str
) -> str:
    """The card with a block about the run, and its results in `model-index`.

    Args:
        folder: of the new repo. model: its name in `model-index`.
    """
    from huggingface_hub import EvalResult

    dataset = record["heldout"]["data"][0]
    results = [
        EvalResult(
            task_type=task.pipeline,
            dataset_type=dataset,
            dataset_name=", ".join(record["heldout"]["data"]),
            metric_type=metric,
            metric_name=metric,
            metric_value=round(record["after"][metric], 6),
            **OWN,
        )
        for metric in record["metrics"]
    ]
    if not (folder / MODULES).is_file():
        card = with_field(card, "pipeline_tag", PIPELINES[manifest["auto"]])
        card = with_field(card, "library_name", "transformers")
    return with_results(with_block(card, BLOCK, block(record), heading=HEADING), model, results)


def block(record: Mapping[str, Any]) -> str:
    """The card's block about a run."""
    data, heldout, spent, options = record["data"], record["heldout"], record["spent"], record["options"]
    frozen = f", `--freeze {options['freeze']}`" if options["freeze"] != "none" else ""
    rows = [
        "| metric | before | after |",
        "|---|---|---|",
        *(
            f"| {name} | {record['before'][name]:.4f} | {record['after'][name]:.4f} |"
            for name in dict.fromkeys((*record["metrics"], "loss"))
        ),
    ]
    names = ", ".join(f"{name} (sha256 `{digest[:12]}`)" for name, digest in data["sha256"].items())
    how = (
        f"Trained for {record['task']} with `effconv finetune`{frozen} on {counted(data['rows'], 'row')} of {names}: "
        f"{counted(record['steps'], 'step')} of {counted(options['batch'], 'text')}, peak learning rate "
        f"{record['learning_rate']:g}, texts of up to {record['max_length']:,} tokens, {spent['wall_seconds']:,.0f} s "
        f"({spent['processes']} process{'es' if spent['processes'] > 1 else ''}). "
        f"The state of step {record['best_step']:,} was kept, the best by {record['metrics'][0]}."
    )
    where = f"Measured on {counted(heldout['rows'], 'row')} of {', '.join(heldout['data'])}" + (
        ", a part of the training data that was held out." if record["held_out"] else ", which also chose the state."
    )
    return "\n".join([how, "", where, "", *rows])


def _sentence_files(repo: Path, manifest: Mapping[str, Any], same_head: bool) -> set[str]:
    """Files that make a repo one of sentence-transformers: with another head it is none any more."""
    if same_head or not (repo / MODULES).is_file():
        return set()
    modules = json.loads((repo / MODULES).read_text(encoding="utf-8"))
    folders = [f"{module['path']}/" for module in modules if module.get("path")]
    own = {MODULES, MODEL_SETTINGS, *SETTINGS_NAMES}
    return {name for name in manifest["files"] if name in own or name.startswith(tuple(folders))}


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * SIZES[dtype]


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
