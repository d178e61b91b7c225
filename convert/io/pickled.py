"""Checkpoints in `.bin` files: pickles, loaded by torch with `weights_only=True`, which runs no code from them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, UnsupportedError, listing
from .checkpoint import CHUNK, Checkpoint, Tensor, damaged, stored_twice
from .dtypes import BY_NAME, Array, from_bytes
from .source import Source

if TYPE_CHECKING:
    import torch

MAGIC = (b"PK\x03\x04", b"\x80")  # a zip, and a bare pickle as torch wrote before 1.6
TORCHS_OWN = bytes.fromhex("6cfc9c46f9206aa85019")  # the number with which torch's bare pickles begin


class PickledCheckpoint(Checkpoint):
    """Tensors of `.bin` files (memory-mapped where the file is a zip).

    Args:
        loaded: by stored name, the file and the tensor in it.
    """

    def __init__(self, loaded: Mapping[str, tuple[str, torch.Tensor]], source: Source) -> None:
        self._loaded = {name: value for name, (_, value) in loaded.items()}
        super().__init__(
            (Tensor(name, BY_NAME[_dtype(value)], tuple(value.shape), file) for name, (file, value) in loaded.items()),
            source,
        )

    def read(self, name: str) -> Array:
        """The whole tensor as raw elements, in torch's own memory."""
        return from_bytes(self._raw(name), self.tensors[name].dtype, self.tensors[name].shape)

    def chunks(self, name: str, buffer: bytearray | None = None) -> Iterator[memoryview]:
        raw = self._raw(name)
        for start in range(0, len(raw), CHUNK):
            yield raw[start : start + CHUNK]

    def close(self) -> None:
        self._loaded = {}

    def _raw(self, name: str) -> memoryview:
        import torch

        value = self._loaded[name].detach()
        return memoryview(value.reshape(-1).view(torch.uint8).numpy()) if value.numel() else memoryview(b"")


def open_pickled(source: Source, names: list[str], *, allow_pickle: bool) -> PickledCheckpoint:
    """Opens the `.bin` files of a source.

    Args:
        allow_pickle: load files that `weights_only` refuses. They can run code: only for files you trust.

    Raises:
        BadInputError: a damaged file, one with more than plain tensors, or one that is not a state dict.
        UnsupportedError: tensors of a type that safetensors does not support.
    """
    loaded: dict[str, tuple[str, torch.Tensor]] = {}
    for name in names:
        for key, value in _state_dict(source.path(name), name, allow_pickle).items():
            if key in loaded:
                raise stored_twice(key, loaded[key][0], name)
            loaded[key] = (name, value)
    odd = [f"{key}: {_dtype(value)}" for key, (_, value) in loaded.items() if _dtype(value) not in BY_NAME]
    if odd:
        raise UnsupportedError(
            f"these tensors have a type that cannot be converted:\n{listing(odd)}",
            where=source.where(),
            hint="save the checkpoint with dense tensors in float32, float16 or bfloat16",
        )
    return PickledCheckpoint(loaded, source)


def _state_dict(path: Path, name: str, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    import torch

    with path.open("rb") as file:
        head = file.read(64)
    if not head.startswith(MAGIC):
        raise damaged(name, ["the file was not written by torch.save"])
    if head.startswith(MAGIC[1]) and TORCHS_OWN not in head:
        raise BadInputError(
            f"{name} was written by pickle.dump, which effconv does not read: loading it can run code",
            where=name,
            hint="if you trust the file, load it with pickle and save it with torch.save or safetensors",
        )
    try:
        state = _load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        if not allow_pickle:
            asked = re.search(r"GLOBAL \S+|Unsupported operand \d+", str(error))
            raise BadInputError(
                f"{name} contains more than plain tensors ({asked[0] if asked else 'damaged, or another format'}), "
                "so loading it can run code",
                where=name,
                hint="use safetensors weights if there are any. If you trust the file, pass --allow-pickle",
            ) from None
        state = _load_trusted(path, name)
    except Exception as error:
        raise damaged(name, [_said(error)]) from None
    if hasattr(state, "state_dict"):
        state = state.state_dict()
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and key.isprintable() and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise BadInputError(f"{name} is not a state dict", where=name, hint="save only model.state_dict()")
    return state


def _load_trusted(path: Path, name: str) -> Any:
    try:
        return _load(path, weights_only=False)
    except Exception as error:
        raise BadInputError(
            f"{name} could not be unpickled ({_said(error)})",
            where=name,
            hint="install the packages it was saved with, or use safetensors weights",
        ) from None


def _load(path: Path, *, weights_only: bool) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # its words are for the authors of torch
        try:
            return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=weights_only)  # torch before 1.6: cannot be mapped


def _dtype(value: torch.Tensor) -> str:
    """Torch's name of the dtype or, for a tensor without plain elements, of its kind."""
    if value.is_meta:
        return "no data (meta tensor)"
    layout, dtype = str(value.layout).removeprefix("torch."), str(value.dtype).removeprefix("torch.")
    return dtype if layout == "strided" else layout


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
