"""A source whose weights have a wrapper's prefix, as a folder that transformers reads: links, and weights renamed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import EffconvError
from ..families.registry import FAMILIES
from ..families.wrappers import Wrapping, wrapping_of
from .checkpoint import Checkpoint
from .reader import FILES, open_checkpoint
from .source import Source
from .tensorfile import TensorFile

WEIGHTS = tuple(FILES.values())


def readable_folder(source: Source) -> Path:
    """The folder with config and weights under the names that transformers reads; most often the source's own.

    Otherwise it is a temporary folder, removed when the process ends.
    """
    folder = source.path("config.json").parent
    family = FAMILIES.get(str(source.config.get("model_type")))
    if family is None or not any(source.has(name) or source.has(f"{name}.index.json") for name in WEIGHTS[:2]):
        return folder
    try:
        checkpoint = open_checkpoint(source)
    except EffconvError:  # what the conversion read with --allow-pickle, and nothing else will
        return folder
    try:
        wrapping = wrapping_of(checkpoint.tensors, family, family.read_config(source.config))
        if not any(wrapping.removed(name) for name in checkpoint.tensors):
            return folder
        return _renamed(folder, source.root, checkpoint, wrapping)
    finally:
        checkpoint.close()


def _renamed(folder: Path, root: str, checkpoint: Checkpoint, wrapping: Wrapping) -> Path:
    top = folder.parents[len(Path(root).parts) - 1] if root else folder
    made = tempfile.mkdtemp(prefix="effconv-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    copied = Path(made) / (top.name or "source")

    def left_out(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith((*WEIGHTS, ".", *checkpoint.files()))]

    def link(file: str, copy: str) -> None:
        os.symlink(os.path.realpath(file), copy)

    shutil.copytree(top, copied, copy_function=link, ignore=left_out, ignore_dangling_symlinks=True)
    result = copied / root
    described = checkpoint.tensors.items()
    file = TensorFile(
        result / FILES["safetensors"],
        [(wrapping.strip(name), tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in described],
    )
    for name in checkpoint.tensors:
        for chunk in checkpoint.chunks(name):
            file.append(chunk)
    file.finish()
    return result
