"""Names and folders as tasks of mteb. Their data is loaded before a model is, so that what is missing shows early."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, EffconvError, HubError, UnsupportedError, UsageError, listing
from ..convert.io.source import HTTP_LIBRARIES
from ..convert.options import Progress
from .folder import FolderTask, read_folder

SUGGESTED = re.compile(r"Did you mean: '(.+)'\?")
PATHS = (os.sep, f".{os.sep}", f"..{os.sep}", "~")  # how a folder begins and a task's name does not


@dataclass(frozen=True, slots=True)
class Task:
    """A task to measure on.

    Attributes:
        task: of mteb. dataset: its name for people. local: whether it is a folder of the user's.
    """

    task: Any
    dataset: str
    local: bool

    @property
    def name(self) -> str:
        return str(self.task.metadata.name)


def split_names(values: Sequence[str]) -> list[str]:
    """The names in values of --tasks, each once. A value that is a folder is one name, whatever commas it has."""
    found: list[str] = []
    for value in values:
        folder = Path(os.path.expanduser(value)).is_dir()
        found += [value] if folder else [name.strip() for name in value.split(",") if name.strip()]
    return list(dict.fromkeys(found))


def find_tasks(values: Sequence[str], split: str | None) -> list[Task]:
    """The tasks of these names and folders.

    Raises:
        BadInputError: a folder is missing, or its files are broken.
        UnsupportedError: a task is not made of texts, or it is several tasks.
        UsageError: mteb has no such task, or the task has no such split.
    """
    names = split_names(values)
    folders = {name: Path(os.path.expanduser(name)) for name in names if _is_folder(name)}
    absent = [name for name, folder in folders.items() if not folder.is_dir()]
    if absent:
        raise BadInputError(f"no such folder: {absent[0]}", where="--tasks", hint="check the name, or name mteb's task")
    titles = [folder.absolute().name for folder in folders.values()] + [name for name in names if name not in folders]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise UsageError(
            f"several tasks are called {twice[0]}, and their scores could not be told apart",
            where="--tasks",
            hint="rename a folder, or measure them in separate runs",
        )
    own = {name: read_folder(folder, split) for name, folder in folders.items()}
    hub = _of_mteb([name for name in names if name not in folders], split)
    return [_own_task(own[name]) if name in own else hub[name] for name in names]


def _is_folder(name: str) -> bool:
    return name.startswith(PATHS) or os.sep in name or Path(name).is_dir()


def _of_mteb(names: Sequence[str], split: str | None) -> dict[str, Task]:
    import mteb

    found: dict[str, Task] = {}
    unknown = []
    for name in names:
        try:
            task = mteb.get_task(name, eval_splits=None if split is None else [split])
        except KeyError as error:
            close = SUGGESTED.search(str(error))
            unknown.append(f"{name}. Did you mean {close[1]}?" if close else name)
            continue
        found[name] = Task(task, f"MTEB {task.metadata.name}", local=False)
    if unknown:
        raise UsageError(
            f"mteb has no task {unknown[0]}" if len(unknown) == 1 else f"mteb has no such tasks:\n{listing(unknown)}",
            where="--tasks",
            hint="mteb.get_tasks() in Python lists its tasks; a folder with a task of your own is named with a /",
        )
    for name, asked in found.items():
        _require_usable(name, asked.task, split)
    return found


def _require_usable(name: str, task: Any, split: str | None) -> None:
    if task.is_aggregate:
        parts = ",".join(part.metadata.name for part in task.metadata.tasks)
        raise UnsupportedError(
            f"{name} is the mean of several tasks", where="--tasks", hint=f"name them: --tasks {parts}"
        )
    if set(task.metadata.modalities) != {"text"}:
        raise UnsupportedError(
            f"{name} is a task on {', '.join(task.metadata.modalities)}; a text encoder reads text only",
            where="--tasks",
            hint="name a task on text",
        )
    splits = task.metadata.eval_splits
    if split is not None and split not in splits:
        raise UsageError(
            f"{name} has no split {split!r} to measure on", where="--split", hint=f"use one of {', '.join(splits)}"
        )


def _own_task(read: FolderTask) -> Task:
    """A folder's task, as a task of mteb that loads nothing from the Hub."""
    from datasets import Dataset
    from mteb import TaskMetadata
    from mteb.abstasks import AbsTaskRetrieval

    class FolderRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=read.name,
            description="A retrieval task of the user's own.",
            type="Retrieval",
            category="t2t",
            dataset={"path": read.name, "revision": read.sha256},
            eval_splits=[read.split],
            eval_langs=["und-Zyyy"],  # undetermined: nothing in the folder says it
            main_score="ndcg_at_10",
        )

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            rows: Any = {
                "corpus": Dataset.from_list(read.corpus),
                "queries": Dataset.from_list(read.queries),
                "relevant_docs": read.relevant,
                "top_ranked": None,
            }
            self.dataset = {"default": {read.split: rows}}
            self.data_loaded = True

    return Task(FolderRetrieval(), read.name, local=True)


def load_data(tasks: Sequence[Task], progress: Progress) -> None:
    """Loads the data of all tasks: from the folder, the cache of datasets or the Hub.

    Raises:
        BadInputError: mteb cannot load it, for any other reason than the network.
        HubError: it cannot be downloaded.
    """
    for asked in tasks:
        progress(f"loading the data of {asked.name}", 0, 0)
        try:
            asked.task.load_data()
        except MemoryError:
            raise
        except Exception as error:  # each task of mteb has code of its own, with whatever it raises
            raise _not_loaded(asked, error) from error


def _not_loaded(asked: Task, error: Exception) -> EffconvError:
    dataset = asked.task.metadata.dataset
    where = f"{dataset['path']} at {dataset['revision']}"
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError):
        return UsageError(f"{asked.name} needs another package: {said}", where="--tasks", hint="install that package")
    # OSError: of datasets and of the Hub's client, too.
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES:
        return HubError(
            f"the data of {asked.name} cannot be downloaded ({said})",
            where=where,
            hint="check the network, HF_TOKEN for a dataset that is not public, and HF_HUB_OFFLINE; or measure on a "
            "folder of your own (--tasks FOLDER)",
        )
    return BadInputError(
        f"mteb cannot load the data of {asked.name} ({said})",
        where=where,
        hint="choose another task, or another version of mteb",
    )
