"""The value of `--device`, checked before a model is loaded."""

from __future__ import annotations

from ..convert.errors import UsageError

WITHOUT = "or leave --device out"


def require_device(device: str | None) -> None:
    """Raises UsageError for a device that torch does not know, or that this machine does not have."""
    if device is None:
        return
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        raise UsageError(
            f"torch knows no device {device!r}", where="--device", hint=f"use cpu, cuda or mps, {WITHOUT}"
        ) from None
    if asked.type == "cpu":
        return
    kind = getattr(torch, asked.type, None) if asked.type != "mps" else torch.backends.mps
    if kind is None or not hasattr(kind, "is_available") or not kind.is_available():
        what = "torch finds no GPU" if asked.type == "cuda" else f"torch finds no device of the kind {asked.type}"
        raise UsageError(f"{what} for {device!r}", where="--device", hint=f"use --device cpu, {WITHOUT}")
    count = kind.device_count() if hasattr(kind, "device_count") else 1
    if asked.index is not None and asked.index >= count:
        raise UsageError(
            f"this machine has {count} {asked.type} device{'' if count == 1 else 's'}, counted from 0, got {device!r}",
            where="--device",
            hint=f"use --device {asked.type}:0, {WITHOUT}",
        )
