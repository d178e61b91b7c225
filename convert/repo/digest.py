"""The sha256 of a model: of all files that decide its outputs, or of its weights alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..io.tensorfile import file_sha256
from .own_modules import average_of
from .sentence import modules_of


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a folder and of its sentence-transformers modules, by name inside the folder, sorted."""
    folders = [folder, *(folder / str(module["path"]) for module in modules_of(folder) if module.get("path"))]
    paths = sorted({path for place in folders for path in place.glob("*") if path.is_file()})
    return {path.relative_to(folder).as_posix(): path for path in paths}


def weights_digest(files: Mapping[str, str]) -> str:
    """sha256 of weights, given that of each file by name: of the one file, or of the hashes of several."""
    found = [digest for _, digest in sorted(files.items())]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def embedding_digest(folder: Path, known: Mapping[str, str]) -> str:
    """sha256 of the weights that make a model's plain embeddings: without the whitening of `effconv pieces`.

    Args:
        known: sha256 by name, of files that are not read again.
    """
    average = average_of(folder)
    files = {name: path for name, path in model_files(folder).items() if path.parent != average}
    weights = {name: path for name, path in files.items() if path.suffix == ".safetensors"}
    stored = {path.parent for path in weights.values()}
    pickled = {
        name: path
        for name, path in files.items()
        if path.suffix == ".bin" and path.name.startswith("pytorch_model") and path.parent not in stored
    }
    return weights_digest({name: known.get(name) or file_sha256(path) for name, path in (weights | pickled).items()})
