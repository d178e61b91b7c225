"""The file formats of a converted repo's weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ops import Shape
from .flax_msgpack import FlaxFile, tree_order
from .tensorfile import StreamedFile, TensorFile


@dataclass(frozen=True, slots=True)
class Form:
    """A file format of weights.

    Attributes:
        single: name of a single file.
        library: the library that loads it, as named on the Hub.
        file: the class that writes a file from (name, dtype, shape, bytes) of its tensors.
        order: sorts tensor names into the order that the format requires; None if any order is valid.
        flax: whether tensors have JAX names and layout.
    """

    single: str
    library: str
    file: Callable[[Path, Sequence[tuple[str, str, Shape, int]]], StreamedFile]
    order: Callable[[Sequence[str]], list[str]] | None = None
    flax: bool = False

    @property
    def index(self) -> str:
        """Name of the index file, which maps tensors to shards."""
        return f"{self.single}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The name of shard `number`, from 1, of `count`."""
        stem, _, ending = self.single.rpartition(".")
        return self.single if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.{ending}"


SAFETENSORS = Form("model.safetensors", "transformers", TensorFile)
FLAX = Form("flax_model.msgpack", "jax", FlaxFile, tree_order, flax=True)
