"""Options of `effconv eval`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..convert.options import option, require_sound

DANGER = "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Options of `effconv eval`."""

    tasks: tuple[str, ...] = option(
        (),
        "Tasks of mteb, separated by commas, or a folder with a retrieval task: corpus.jsonl, queries.jsonl and "
        "qrels/SPLIT.tsv, as BEIR has them. Can be repeated. [required]",
        metavar="NAMES|FOLDER",
    )
    against: str | None = option(None, "Source model (folder or Hub id): measure it too, and report the difference.")
    split: str | None = option(None, "Split to measure on. [default: those of the task; test for a folder]")
    batch_size: int = option(8, "Texts per run of the model.")
    normalize: bool = option(False, "Scale vectors to length 1, also if the model does not.")
    device: str | None = option(None, "Device, such as cuda. [default: a GPU if there is one]")
    card: bool = option(True, "Write the scores into the model card (README.md) of a repo that effconv made.")
    results: Path | None = option(None, "FILE.json for all scores that mteb computes.")
    overwrite: bool = option(False, "Replace an existing --results file.")
    trust_remote_code: bool = option(
        False, "Allow Python code that came with the source (tokenizer, modules) to run.", panel=DANGER
    )

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        if not any(name.strip() for value in self.tasks for name in value.split(",")):
            faults.append("tasks is missing: give names of mteb's tasks, or a folder with a retrieval task")
        if self.batch_size < 1:
            faults.append(f"batch_size must be at least 1, got {self.batch_size}")
        if self.split is not None and (not self.split or "/" in self.split):
            faults.append(f"split must be a name such as test, got {self.split!r}")
        if self.results is not None and Path(self.results).suffix != ".json":
            faults.append(f"results must end in .json, got {self.results}")
        require_sound("eval", faults, self)
