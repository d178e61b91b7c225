"""Checkpoints of a run: those of transformers' Trainer, in a folder that knows what the run was started with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ..adapt.checkpoints import Checkpoints

STEP = re.compile(r"checkpoint-(\d+)")
COMPLETE = "trainer_state.json"  # what Trainer writes last


class TrainerCheckpoints(Checkpoints):
    """The folder of a run; `begin` checks that the same run left it."""

    def last(self) -> Path | None:
        """The newest complete checkpoint: a killed run may leave half of one."""
        return max(filter(self._complete, self._all()), default=None, key=lambda path: int(path.name.split("-")[1]))

    def remove_unfinished(self) -> None:
        for path in self._all():
            if not self._complete(path):
                shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [path for path in found if STEP.fullmatch(path.name)]

    def _complete(self, path: Path) -> bool:
        try:
            json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return True
