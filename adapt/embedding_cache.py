"""Embeddings on disk, so that a comparison with another repo embeds only what is new."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..convert.io.staging import output_errors
from ..convert.io.tensorfile import file_sha256
from ..convert.repo.digest import model_files

FORMAT = 1  # of the files; another number, and what was stored is not read
READ = (".json", ".safetensors", ".bin", ".py", ".msgpack", ".h5", ".txt", ".model")

Made = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and JSON values


class Cache:
    """A folder of embeddings by what they are of; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, of: Mapping[str, Any], make: Callable[[], Made]) -> Made:
        """What is stored of these values, or what `make` makes, which is stored then."""
        if self._folder is None:
            return make()
        key = json.dumps({"format": FORMAT, **of}, sort_keys=True)
        path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                names, values = file.keys(), json.loads(file.metadata()["values"])
                return {name: file.get_tensor(name) for name in names}, values
        tensors, values = make()
        with output_errors(path, "--cache"):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, partial, metadata={"of": key, "values": json.dumps(values)})
            partial.replace(path)
        return tensors, values


def digest_of(texts: Sequence[Tensor] | Tensor) -> str:
    """sha256 of token ids."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.int64(len(text)).tobytes() + np.ascontiguousarray(text.numpy(), dtype=np.int64).tobytes())
    return digest.hexdigest()


def digest_of_model(folder: Path, *more: object) -> str:
    """sha256 of a model's files: those of the folder, and of the modules of a sentence-transformers repo.

    Args:
        more: what else decides its outputs.
    """
    found = {name: file_sha256(path) for name, path in model_files(folder).items() if path.suffix in READ}
    found.pop("effconv.json", None)  # says what was measured, and decides nothing
    return hashlib.sha256(json.dumps([found, *map(str, more)], sort_keys=True).encode()).hexdigest()
