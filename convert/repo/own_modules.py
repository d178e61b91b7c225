"""The modules of sentence-transformers that effconv writes into repos: their code, and which repos have them.

`document_pieces.py` embeds documents as whitened averages of pieces (`effconv pieces`).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from ... import templates
from .sentence import SETTINGS_NAMES, modules_of

CODE, PIECES, AVERAGE = "document_pieces", "DocumentPieces", "WhitenedAverage"
PIECE_TOKENS, DOCUMENT_TOKENS = SETTINGS_OF_PIECES = ("piece_tokens", "document_tokens")


def module_code() -> str:
    """The text of `document_pieces.py`."""
    return (resources.files(templates) / f"{CODE}.py").read_text(encoding="utf-8")


def own_modules(repo: Path) -> dict[str, str]:
    """The code files of the modules that a repo names, as {name: text of today}; {} where it names none."""
    return {f"{CODE}.py": module_code()} if average_of(repo) is not None else {}


def piece_settings(repo: Path) -> dict[str, int]:
    """`SETTINGS_OF_PIECES` of a repo that embeds documents by pieces."""
    settings = (repo / name for name in SETTINGS_NAMES)
    found = (json.loads(path.read_text(encoding="utf-8")) for path in settings if path.is_file())
    stated = next(stated for stated in found if PIECE_TOKENS in stated)
    return {name: int(stated[name]) for name in SETTINGS_OF_PIECES}


def average_of(repo: Path) -> Path | None:
    """The folder of the module that averages pieces, inside the repo; None for a repo that has none."""
    modules = modules_of(repo)
    paths = [str(module.get("path")) for module in modules if module.get("type") == f"{CODE}.{AVERAGE}"]
    return repo / paths[0] if paths else None
