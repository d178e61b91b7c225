"""Checkpoints of a run, read by `--resume`.

    FOLDER/run.json            what the run was started with, and hashes of repo, teacher and data
    FOLDER/step-000100/        accelerate's state, the best state so far, and how far the run was

A checkpoint is written under another name and renamed when complete. The previous one is then removed. A kill at any
moment leaves a complete checkpoint and loses only the training since then.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..convert.errors import BadInputError, OutputError, UsageError, listing
from ..convert.io.staging import output_errors
from ..convert.options import flag_of

RUN, PLACE, BEST = "run.json", "place.json", "best.safetensors"
STEP = re.compile(r"step-(\d{6,})")


@dataclass
class Place:
    """How far a run is.

    Attributes:
        phase, phase_step: of the next step. step: all steps so far. tokens: trained on so far.
        wall, cpu: seconds spent. share: of the phase that is done, 0 to 1.
        score, best_step: of the best state. history: one entry an evaluation.
    """

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    tokens: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    share: float = 0.0
    score: float = float("-inf")
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        folder: beside the output. started_with: what must be the same for a run to be continued.
        options: the class of the command's options, whose fields `started_with` has by name.
    """

    def __init__(self, folder: Path, started_with: Mapping[str, Any], options: type) -> None:
        self.folder, self._started_with = folder, json.loads(json.dumps(started_with))
        self._options = options

    def begin(self, *, resume: bool, overwrite: bool) -> None:
        """Creates the folder, or checks that the same run left it.

        Raises:
            OutputError: the folder has checkpoints of another run. UsageError: there is nothing to resume.
            BadInputError: the run to resume was started with other settings.
        """
        stated = self.folder / RUN
        if resume:
            if self.last() is None:
                raise UsageError("no checkpoint to continue from", where=str(self.folder), hint="leave out --resume")
            try:
                other = json.loads(stated.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise BadInputError(
                    f"{RUN} cannot be read ({error})", where=str(stated), hint="leave out --resume to start again"
                ) from None
            lines = self._differences(other)
            if lines:
                raise BadInputError(
                    f"the run to resume was started with other settings:\n{listing(lines)}",
                    where=str(stated),
                    hint="give the same settings, or pass --overwrite instead of --resume to start again",
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()) and not overwrite:
            raise OutputError(
                "there are checkpoints of an earlier run next to the output",
                where=str(self.folder),
                hint="pass --resume to continue that run, or --overwrite to discard it",
            )
        with output_errors(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            stated.write_text(json.dumps(self._started_with, indent=2) + "\n", encoding="utf-8")

    def _differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the settings that a run was started with, as a user gives them."""
        flags = {field.name: flag_of(field) for field in fields(self._options)}
        now = self._started_with
        differ = sorted(name for name in {*other, *now} if other.get(name) != now.get(name))
        lines = [
            f"{flags[name]}: started with {_typed(other.get(name))}, now {_typed(now.get(name))}"
            for name in differ
            if name in flags
        ]
        if "repo" in differ:
            lines.append("the repo to train is another one, or its files changed")
        if {"text", "rows"} & {*differ} and not {"data", "heldout", "dataset"} & {*differ}:
            lines.append("the data are others: files of the same names with other content, or other rows of them")
        before, after = other.get("recipe") or {}, now.get("recipe") or {}
        if not lines:  # else the recipe follows from what was given
            lines += [
                f"{flags.get(name, name)}: the default was {_typed(before.get(name))}, now it is {_typed(value)}"
                for name, value in after.items()
                if before.get(name) != value
            ]
        return lines or ["the run was started by another version of effconv"] * bool(differ)

    def last(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return max(
            (path for path in found if STEP.fullmatch(path.name)), default=None, key=lambda path: int(path.name[5:])
        )

    def save(self, accelerator: Any, place: Place, best: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint; called by every process.

        Raises:
            OutputError: it cannot be written. It is removed, and the previous one is kept.
        """
        from safetensors.torch import save_file

        whole = self.folder / f"step-{place.step:06d}"
        unfinished = whole.with_name(whole.name + ".unfinished")
        with self._writing(unfinished):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.rmtree(whole, ignore_errors=True)
                unfinished.mkdir()
            accelerator.wait_for_everyone()
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                save_file(dict(best), unfinished / BEST)
                (unfinished / PLACE).write_text(json.dumps(asdict(place)) + "\n", encoding="utf-8")
                unfinished.rename(whole)
                for path in self.folder.glob("step-*"):
                    if path != whole:
                        shutil.rmtree(path, ignore_errors=True)
            accelerator.wait_for_everyone()

    @contextmanager
    def _writing(self, unfinished: Path) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            with output_errors(self.folder):
                yield
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, (RuntimeError, SafetensorError)):  # theirs where a disk is full is no OSError
                why = str(error).splitlines()[0]
                last = self.last()
                raise OutputError(
                    f"cannot write the checkpoint, the disk may be full ({why})",
                    where=str(self.folder),
                    hint="free some space"
                    + (f"; then continue with --resume from {last.name.replace('-', ' ')}" if last else ""),
                ) from None
            raise

    def place(self) -> Place:
        """Where the last checkpoint was made."""
        found = self.last()
        assert found is not None
        return Place(**json.loads((found / PLACE).read_text(encoding="utf-8")))

    def restore(self, accelerator: Any) -> dict[str, Tensor]:
        """Loads what `accelerator` prepared from the last checkpoint; returns the best state so far."""
        from safetensors.torch import load_file

        found = self.last()
        assert found is not None
        accelerator.load_state(str(found))
        return load_file(found / BEST)

    def clear(self) -> None:
        """Removes the folder: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _typed(value: Any) -> str:
    """A value of an option as one gives it on the command line."""
    if value is None:
        return "the default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
