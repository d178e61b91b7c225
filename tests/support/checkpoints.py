"""Checkpoints in the forms in which people have them: rewrite a saved tiny one, convert it, read what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import effconv
from effconv.convert.run import Result

Tensors = dict[str, torch.Tensor]
SMALL = {"max_length": 128, "block_size": 16, "sparse_block_size": 16, "verify": False}


def convert(source: Path, output: Path | None, **options: Any) -> Result:
    """A conversion to 128 tokens in blocks of 16, not verified (verify has tests of its own)."""
    return effconv.convert(source, "lsg", output=output, **{**SMALL, **options})


def emitted(source: Path, output: Path, **options: Any) -> Tensors:
    """The tensors of a converted source."""
    convert(source, output, **options)
    return read(output)


def read(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files, read by the library."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[Tensors], Mapping[str, torch.Tensor]]) -> Path:
    """The folder with its tensors changed."""
    write(folder, change(read(folder)))
    return folder


def write(folder: Path, tensors: Mapping[str, torch.Tensor], form: str = "safetensors", shards: int = 1) -> Path:
    """The folder with these tensors as its only weights.

    Args:
        folder: with whatever weights it has, which go.
        tensors: by stored name.
        form: `safetensors`, `bin` (a zip, as torch writes now) or `legacy` (a bare pickle, as torch wrote before 1.6).
        shards: files to spread them over, with an index if there are several.
    """
    for old in [*folder.glob("*.safetensors*"), *folder.glob("pytorch_model*")]:
        old.unlink()
    stem, suffix = ("model", ".safetensors") if form == "safetensors" else ("pytorch_model", ".bin")
    names = list(tensors)
    files = {
        f"{stem}{suffix}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}{suffix}": names[i::shards]
        for i in range(shards)
    }
    for file, chosen in files.items():
        state = {name: tensors[name].contiguous() for name in chosen}
        if form == "safetensors":
            save_file({name: value.clone() for name, value in state.items()}, folder / file, metadata={"format": "pt"})
        else:
            torch.save(state, folder / file, _use_new_zipfile_serialization=form == "bin")
    if shards > 1:
        weight_map = {name: file for file, chosen in files.items() for name in chosen}
        write_json(folder / f"{stem}{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def edit_json(path: Path, **fields: Any) -> Path:
    """A JSON object with some fields changed; None removes one."""
    parsed = json.loads(path.read_text(encoding="utf-8")) | fields
    write_json(path, {key: value for key, value in parsed.items() if value is not None})
    return path.parent


def edit_config(folder: Path, **fields: Any) -> Path:
    return edit_json(folder / "config.json", **fields)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether both hold the same names with the same bytes."""
    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)


def bits(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and bytes: equal only for tensors that are the same bit for bit, NaN and signed zeros included."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), raw


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
