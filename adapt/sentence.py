"""Reads the modules of a sentence-transformers repo after its encoder. No heavy imports."""

from __future__ import annotations

import json
from pathlib import Path

from ..convert.errors import UnsupportedError, UsageError
from ..convert.repo.sentence import kind_of, modules_of


def pooling_of(repo: Path) -> str:
    """How a sentence-transformers repo pools: "cls" or "mean"; "mean" also if it is not such a repo.

    Raises:
        UnsupportedError: another pooling.
    """
    try:
        fields = json.loads((repo / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    # Older files have a flag a mode, newer ones a name.
    chosen = {name for name in ("cls", "mean") if fields.get(f"pooling_mode_{name}_token{'s' * (name == 'mean')}")}
    chosen |= {fields["pooling_mode"]} if isinstance(fields.get("pooling_mode"), str) else set()
    if chosen not in ({"cls"}, {"mean"}):
        raise UnsupportedError(
            f"its pooling must be mean or cls, got ({', '.join(sorted(chosen)) or 'none of them'})",
            where=str(repo / "1_Pooling" / "config.json"),
            hint="pass --objective hidden, which needs no pooling",
        )
    return chosen.pop()


def require_whitenable(repo: Path) -> None:
    """Raises UsageError if there is no pooled embedding to whiten, or already a dense layer after it."""
    kinds = [kind_of(module) for module in modules_of(repo)]
    if "Pooling" not in kinds:
        raise UsageError(
            "the repo is not a sentence encoder: it has no sentence-transformers pooling module",
            where="--whiten",
            hint="leave out this option, or convert a sentence-transformers model",
        )
    if "Dense" in kinds:
        raise UsageError(
            "the repo already has a dense layer after its pooling",
            where="--whiten",
            hint="leave out --whiten, or start from the repo before whitening",
        )
    pooling_of(repo)
