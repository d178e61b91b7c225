"""What another program loses or changes when it saves a converted model, made as a repo has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from ..convert.families.grammar import Family
from ..convert.families.wrappers import wrapping_of
from ..convert.io.portable import portable
from ..convert.io.reader import FILES, open_checkpoint
from ..convert.io.source import Source, read_json
from ..convert.io.tensorfile import TensorFile
from ..convert.io.tokenizer import tokenizer_in
from ..convert.io.tokenizer_classes import FILE
from ..convert.target import Target

SAFETENSORS = FILES["safetensors"]
SHARDED_CLASS = re.compile(r"_fsdp_init\.FSDP(\w+)")  # how auto_map names a class that torch's fully_shard wrapped
SHARDED_STATE = re.compile(r"(pytorch_model_fsdp_\d+|global_step\d+)/")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights as the repo has them.

    Attributes:
        tensors: names and shapes. bytes: of all tensors.
        replaced: files that new ones stand for.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    replaced: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def weights_of(source: Source, view: Path, target: Target, family: Family) -> Weights:
    """Reads the headers; weights in a `.bin`, or under the names of a wrapper, are written anew as safetensors.

    DeepSpeed's script writes a `.bin`, a model that was compiled or wrapped has prefixes. The bytes of a tensor stay.

    Args:
        source: the folder. view: where to write.
    """
    if target.weights_format.library != "transformers":
        checkpoint = open_checkpoint(source, formats=("msgpack",))
        stored = tuple((tensor.name, tensor.shape) for tensor in checkpoint.tensors.values())
        size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        checkpoint.close()
        return Weights(stored, size)
    try:
        checkpoint = open_checkpoint(source)
    except BadInputError as error:
        parts = {name.partition("/")[0] for name in source.files if SHARDED_STATE.match(name)}
        if parts:  # of FSDP or DeepSpeed: no model yet
            error.hint = (
                f"merge the state in {', '.join(sorted(parts))} first: accelerate merge-weights, or zero_to_fp32.py"
            )
        raise
    try:
        tensors = list(checkpoint.tensors.values())
        wrapping = wrapping_of(checkpoint.tensors, family, family.read_config(source.config))
        removed = sorted({wrapping.removed(tensor.name) for tensor in tensors} - {""})
        stored = tuple((wrapping.strip(tensor.name), tensor.shape) for tensor in tensors)
        size, files = sum(tensor.nbytes for tensor in tensors), checkpoint.files()
        if all(name.endswith(".safetensors") for name in files) and not removed:
            return Weights(stored, size)
        file = TensorFile(view / SAFETENSORS, [(wrapping.strip(t.name), t.dtype, t.shape, t.nbytes) for t in tensors])
        for tensor in tensors:
            for chunk in checkpoint.chunks(tensor.name):
                file.append(chunk)
        file.finish()
    finally:
        checkpoint.close()
    indexes = [f"{name}.index.json" for name in FILES.values()]
    said = ", ".join([f"{SAFETENSORS} was made of {', '.join(files[:4])}", *removed])
    return Weights(stored, size, (*files, *(name for name in indexes if source.has(name))), (said,))


def local_config(source: Source, view: Path) -> Iterator[str]:
    """config.json as a repo has it: the code is that of the folder, and no path is local.

    A model that came from the Hub names its code there, and one that fully_shard wrapped names torch's.
    """
    config = dict(source.config)
    references = config.get("auto_map")
    if isinstance(references, dict):
        config["auto_map"] = {auto: _local(value, source, view) for auto, value in references.items()}
    config = portable(config)
    if config != source.config:
        _write(view / "config.json", config)
        yield "config.json named code of a Hub repo or of torch, or a local path: the code is that of this folder"


def _local(reference: object, source: Source, view: Path) -> object:
    if isinstance(reference, str) and (sharded := SHARDED_CLASS.fullmatch(reference)):
        return next((f"{module}.{sharded[1]}" for module in _defining(sharded[1], source, view)), reference)
    if not isinstance(reference, str) or "--" not in reference:
        return reference
    name = reference.rpartition("--")[2]
    file = f"{name.partition('.')[0]}.py"
    return name if source.has(file) or (view / file).is_file() else reference


def _defining(name: str, source: Source, view: Path) -> Iterator[str]:
    """The modules of the folder, and of what was made anew, that define a class."""
    for folder in (source.fetch("config.json").parent, view):
        for path in sorted(folder.glob("modeling_*.py")):
            if f"\nclass {name}(" in path.read_text(encoding="utf-8"):
                yield path.stem


def uncut_tokenizer(folder: Path, view: Path) -> Iterator[str]:
    """tokenizer.json without the truncation and padding of the last call, which the raw library would go on with."""
    path = folder / FILE
    parsed = read_json(path, FILE) if path.is_file() else {}
    if isinstance(parsed, dict) and (parsed.get("truncation") or parsed.get("padding")):
        cut = parsed.get("truncation") or {}
        _write(view / FILE, {**parsed, "truncation": None, "padding": None})
        to = f" to {cut['max_length']} tokens" if isinstance(cut, dict) and "max_length" in cut else ""
        yield f"{FILE} cut or padded every text{to}, as its last call before it was saved: it no longer does"


def lent_tokenizer(folder: Path, origin: Path, view: Path) -> Iterator[str]:
    """The tokenizer of the repo from before, where the model was saved without one."""
    if tokenizer_in(folder).exists:
        return
    for name in tokenizer_in(origin).files:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        (view / name).write_bytes((origin / name).read_bytes())
    yield "the tokenizer is that of the repo from before: the model was saved without one"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
