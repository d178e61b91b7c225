"""Opens a source's weights: reads names, shapes and dtypes from headers and checks them before any tensor data is read.

safetensors (one file or sharded) is read by byte range, without decoding. `pickled` reads `.bin` files.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import BadInputError, listing
from .checkpoint import Checkpoint, Tensor, damaged, stored_twice
from .dtypes import SIZES
from .flax_msgpack import open_flax
from .layout import adapter_alone, checkpoints_hint
from .pickled import open_pickled
from .source import Source, checked_name, read_json, require_no_pointers

FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "msgpack": "flax_model.msgpack"}
DENSE_FORMATS = ("safetensors", "bin")
HEADER_LIMIT = 100_000_000  # bytes, the format's own bound


def open_checkpoint(
    source: Source,
    *,
    allow_pickle: bool = False,
    remote: bool = False,
    formats: Sequence[str] = DENSE_FORMATS,
) -> Checkpoint:
    """Reads the headers of a source's weights.

    Args:
        allow_pickle: load `.bin` files that `weights_only` refuses. They can run code: only for files you trust.
        remote: read the headers of a Hub source by range requests, without downloading tensor data.
        formats: accepted formats (keys of `FILES`), in order of preference.

    Raises:
        BadInputError: no weights, missing shards, a hostile index, a damaged header; every fault is listed.
    """
    for single in (FILES[name] for name in formats):
        index = f"{single}.index.json"
        if source.has(single) or source.has(index):
            weight_map = {} if source.has(single) else _weight_map(source, index)
            names = sorted(set(weight_map.values())) or [single]
            require_no_pointers(source, names)
            if single.endswith(".msgpack"):
                checkpoint: Checkpoint = open_flax(source, names)
            elif single.endswith(".bin"):
                checkpoint = open_pickled(source, names, allow_pickle=allow_pickle)
            else:
                checkpoint = Checkpoint(_merged(source, names, remote), source)
            _check_index(weight_map, checkpoint, index)
            return checkpoint
    if source.has("adapter_config.json"):
        raise adapter_alone(source)
    stored = [name for name in source.files if name.endswith((".msgpack", ".h5", ".onnx", ".gguf"))]
    raise BadInputError(
        f"no readable weights: expected {' or '.join(FILES[name] for name in formats)}, or an index of shards",
        where=source.where() + (f" (found {', '.join(stored[:4])})" if stored else ""),
        hint=checkpoints_hint(source)
        or (
            "load the model with transformers 4 (from_tf=True), and save it with save_pretrained"
            if any(name.endswith(".h5") for name in stored)
            else "load the model with transformers, and save it with save_pretrained"
            if stored
            else "download the weights, too: the folder has none"
        ),
    )


def parse_header(raw: bytes, name: str, file_size: int) -> list[Tensor]:
    """Tensors of one safetensors file from its first bytes (length, then JSON), everything checked.

    Raises:
        BadInputError: with every fault of the header.
    """
    if len(raw) < 8:
        raise damaged(name, ["the file is shorter than its header"])
    (length,) = struct.unpack("<Q", raw[:8])
    if length > HEADER_LIMIT or 8 + length > file_size or 8 + length > len(raw):
        raise damaged(name, [f"the header claims {length:,} bytes, the file has {file_size:,}"])
    try:
        header = json.loads(raw[8 : 8 + length].decode())
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise damaged(name, ["the header is not a JSON object"])
    return _tensors(header, name, 8 + length, file_size)


def _tensors(header: Mapping[str, Any], file: str, base: int, file_size: int | None) -> list[Tensor]:
    tensors, faults = [], []
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        fault = _entry_fault(entry) if key.isprintable() else "not a valid tensor name"
        if fault:
            faults.append(f"{ascii(key)[1:-1][:200]}: {fault}")
            continue
        start, end = entry["data_offsets"]
        tensor = Tensor(key, entry["dtype"], tuple(entry["shape"]), file, base + start)
        if end - start != tensor.nbytes:
            faults.append(f"{key[:200]}: {end - start:,} bytes stored, {tensor.nbytes:,} needed for {tensor.shape}")
        tensors.append(tensor)
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    if not faults:
        expected = base
        for tensor in tensors:
            if tensor.start != expected:
                faults.append(f"{tensor.name[:200]}: starts at byte {tensor.start - base:,}, not {expected - base:,}")
                break
            expected = tensor.start + tensor.nbytes
        else:
            if file_size is not None and expected != file_size:
                faults.append(f"the file has {file_size:,} bytes, its header describes {expected:,}")
    if faults:
        raise damaged(file, faults)
    return tensors


def _entry_fault(entry: object) -> str:
    def sizes(value: object) -> bool:
        return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "dtype, shape or data_offsets is missing"
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in SIZES:
        return f"unknown dtype {entry['dtype'][:40]!r}" if isinstance(entry["dtype"], str) else "dtype is not a string"
    if not sizes(entry["shape"]) or len(entry["shape"]) > 8:
        return "shape is not a list of sizes"
    if not sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        return "data_offsets are not two sizes"
    return "" if entry["data_offsets"][0] <= entry["data_offsets"][1] else "its data ends before it starts"


def _merged(source: Source, names: list[str], remote: bool) -> Iterator[Tensor]:
    seen: dict[str, str] = {}
    for name in names:
        for tensor in _header_of(source, name, remote):
            if tensor.name in seen:
                raise stored_twice(tensor.name, seen[tensor.name], name)
            seen[tensor.name] = name
            yield tensor


def _header_of(source: Source, name: str, remote: bool) -> list[Tensor]:
    if remote and source.remote_header is not None:
        return _tensors(source.remote_header(source.root + name), name, 0, None)
    path = source.path(name)
    with path.open("rb") as file:
        first, size = file.read(8), os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        raw = first + (file.read(length) if length <= min(HEADER_LIMIT, size) else b"")
        return parse_header(raw, name, size)


def _weight_map(source: Source, index: str) -> dict[str, str]:
    """The file of each tensor according to the index. Checks that all files exist."""
    parsed = read_json(source.path(index), index)
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{index} has no weight_map", where=index, hint="download the file again")
    weight_map = {tensor: checked_name(name, index) for tensor, name in weight_map.items()}
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not source.has(name)]
    if missing:
        raise BadInputError(
            f"{len(missing)} of {len(names)} shards are missing:\n{listing(missing)}",
            where=index,
            hint="download them, or use a complete checkpoint",
        )
    return weight_map


def _check_index(weight_map: Mapping[str, str], checkpoint: Checkpoint, index: str) -> None:
    """Refuses shards that do not match the index: they are from different checkpoints, or damaged."""
    stored = {name: tensor.file for name, tensor in checkpoint.tensors.items()}
    wrong = [f"{ascii(name)[1:-1]}: not in {file}" for name, file in weight_map.items() if stored.get(name) != file]
    if wrong:
        raise BadInputError(
            f"{index} and the shards do not agree:\n{listing(wrong)}",
            where=index,
            hint="download the index and the shards again, all from one commit",
        )
