"""The log of a run as JSON lines: the figures of a step, and of the held-out examples where they were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.io.staging import output_errors


class Log:
    """A file of one line a step.

    Args:
        path: of the file. after: the last step that stays; lines of later ones are of a run that went no further.
    """

    def __init__(self, path: Path, after: int) -> None:
        self._path = path
        with output_errors(path):
            kept = [line for line in _lines(path) if line["step"] <= after] if after else []
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file, which a kill may have cut."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
