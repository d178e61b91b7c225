"""The forms in which an emitted repo's weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ops import Shape
from .flax_msgpack import FlaxFile, tree_order
from .tensorfile import StreamedFile, TensorFile


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are stored.

    Attributes:
        single: name of a single file.
        library: that loads it, as the Hub calls it.
        file: the class that streams one from (name, dtype, shape, bytes) of its tensors.
        order: the names in the one order in which a file can hold them; None where any will do.
        flax: whether tensors have the names and the layout of JAX.
    """

    single: str
    library: str
    file: Callable[[Path, Sequence[tuple[str, str, Shape, int]]], StreamedFile]
    order: Callable[[Sequence[str]], list[str]] | None = None
    flax: bool = False

    @property
    def index(self) -> str:
        """The file that says which shard a tensor is in."""
        return f"{self.single}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The name of shard `number`, from 1, of `count`."""
        stem, _, ending = self.single.rpartition(".")
        return self.single if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.{ending}"


SAFETENSORS = Form("model.safetensors", "transformers", TensorFile)
FLAX = Form("flax_model.msgpack", "jax", FlaxFile, tree_order, flax=True)
