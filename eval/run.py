"""`effconv eval`: a repo, and its source beside it, measured on tasks by mteb; scores go into the model card."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adopt.view import as_repo
from ..convert.errors import OutputError, UnsupportedError, UsageError
from ..convert.io.source import Source, resolve, sentence_modules
from ..convert.io.staging import check_writable, output_errors
from ..convert.options import Progress
from ..convert.repo.manifest import CARD, NAME, read_manifest
from ..convert.repo.sentence import sentence_class
from ..convert.verify.against import source_of
from ..embed.device import require_device
from ..embed.loadable import require_loadable, require_modules, sentence_folder
from ..targets.registry import target_named
from .card import require_writable, write_card
from .options import EvalOptions
from .tasks import Task, find_tasks, load_data


@dataclass(frozen=True)
class Evaluated:
    """Result of `effconv eval`.

    Attributes:
        repo: the folder. card: the model card that has the scores, None if there is none.
        record: the scores, one entry per task, split and language, and how they were measured.
        notes: what a person should know.
    """

    repo: Path
    card: Path | None
    record: dict[str, Any]
    notes: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        card = None if self.card is None else str(self.card)
        return {"repo": str(self.repo), "card": card, **self.record, "notes": list(self.notes)}


def evaluate_repo(
    repo: str | os.PathLike[str],
    options: EvalOptions,
    *,
    progress: Progress = lambda step, done, total: None,
) -> Evaluated:
    """Measures a repo on tasks.

    Returns:
        The scores. The card of a repo that effconv made has them, too.

    Raises:
        EffconvError: the repo, a task, its data or an output cannot be used. Nothing was written.
    """
    folder = sentence_folder(repo)
    _require_packages()
    require_device(options.device)
    results = None if options.results is None else Path(os.path.expanduser(options.results)).absolute()
    if results is not None:
        _require_new(results, options)
    notes: list[str] = []
    with as_repo(folder, progress) as place:
        kept_elsewhere = place != folder
        manifest = read_manifest(place) if (place / NAME).is_file() or not (place / "modules.json").is_file() else None
        _require_sentence_encoder(place, folder)
        require_loadable(place, trust_remote_code=options.trust_remote_code or manifest is None)
        carded = manifest is not None and not kept_elsewhere and options.card
        if carded:
            require_writable(folder)
        elif options.card:
            notes.append(_no_card(folder, kept_elsewhere))
        source = None if options.against is None else _source(options.against, place, manifest, notes)
        with _quiet_libraries():
            tasks = find_tasks(options.tasks, options.split)
            load_data(tasks, progress)
            record, whole = _measured(folder, place, source, tasks, options, progress)
        if results is not None:
            with output_errors(results):
                _write_whole(results, whole)
        if carded and manifest is not None:
            with output_errors(folder):
                write_card(folder, read_manifest(folder), record)
    return Evaluated(folder, folder / CARD if carded else None, record, tuple(notes))


def _require_packages() -> None:
    missing = [name for name in ("mteb", "sentence_transformers") if importlib.util.find_spec(name) is None]
    if missing:
        package = missing[0].replace("_", "-")
        raise UsageError(
            f"the package {package} is not installed", where="effconv eval", hint="pip install 'effconv[eval]'"
        )


def _require_new(path: Path, options: EvalOptions) -> None:
    if path.is_dir() or (path.exists() and not options.overwrite):
        raise OutputError(
            "this is a folder" if path.is_dir() else "the results file exists",
            where=str(path),
            hint="choose another file with --results" + ("" if path.is_dir() else ", or pass --overwrite"),
        )
    if not path.parent.is_dir():
        raise OutputError("no such folder", where=str(path.parent), hint="make it, or choose another --results file")
    check_writable(path, "--results")


def _require_sentence_encoder(place: Path, folder: Path) -> None:
    kind = sentence_class(place)
    if not kind:
        require_modules(place, folder, "convert a sentence-transformers model; effconv fidelity measures any repo")
    if kind != "SentenceTransformer":
        raise UnsupportedError(
            f"the repo is a {kind}; effconv eval measures models with one vector per text",
            where=str(folder),
            hint=f"measure it with mteb in Python: mteb.evaluate({kind}(...), tasks)",
        )


def _no_card(folder: Path, elsewhere: bool) -> str:
    if elsewhere:
        return f"no card was written: another program saved the model; effconv adopt {folder} makes it a repo again"
    return "no card was written: effconv did not make this model"


def _source(against: str, place: Path, manifest: dict[str, Any] | None, notes: list[str]) -> Source:
    """The source to compare with.

    Raises:
        BadInputError: it cannot be loaded.
        UnsupportedError: it gives no sentence embeddings.
        UsageError: it cannot be the source of the repo.
    """
    found = resolve(against)
    if not sentence_modules(found):
        raise UnsupportedError(
            "the source gives no sentence embeddings: it has no modules.json",
            where=against,
            hint="give a sentence-transformers model, or leave out --against",
        )
    if found.folder is not None and found.hub_id is None:
        require_loadable(found.folder, trust_remote_code=True)  # its code is refused where it would run
    if manifest is not None:
        doubt = source_of(against, place, manifest, None, False, target_named(str(manifest["target"]))).doubt
        if doubt:
            notes.append(doubt)
    return found


def _measured(
    folder: Path,
    place: Path,
    source: Source | None,
    tasks: Sequence[Task],
    options: EvalOptions,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record, and all that mteb computed, by model."""
    import mteb

    from ..embed.encoder import load_model

    progress("models", 0, 0)
    settings: dict[str, Any] = {"device": options.device, "where": "effconv eval"}
    models = {"repo": load_model(place, options.trust_remote_code, **settings)}
    if source is not None:
        name = str(source.folder) if source.folder else str(source.hub_id)
        settings |= {"revision": source.commit} if source.hub_id else {}
        models["source"] = load_model(name, options.trust_remote_code, **settings)
    begun = time.perf_counter()
    encoding: Any = {"batch_size": options.batch_size, "show_progress_bar": False}
    encoding |= {"normalize_embeddings": True} if options.normalize else {}
    rows: list[dict[str, Any]] = []
    whole: dict[str, Any] = {name: [] for name in models}
    for asked in tasks:
        scores = {}
        for name, model in models.items():
            progress(f"measuring the {name} on {asked.name}", 0, 0)
            result = mteb.evaluate(
                model,
                asked.task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={**encoding},  # mteb adds to it
            ).task_results[0]
            whole[name].append(result.to_dict())
            scores[name] = _rows(asked, result.scores)
        asked.task.unload_data()
        rows += _compared(scores["repo"], scores.get("source"))
    record: dict[str, Any] = {
        "model": folder.absolute().name,
        "mteb": mteb.__version__,
        "max_length": int(models["repo"].max_seq_length or 0),
        "normalize": options.normalize,
        "against": None if source is None else source.hub_id or source.name,
        "against_max_length": None if source is None else int(models["source"].max_seq_length or 0),
        "results": rows,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return record, whole


def _rows(asked: Task, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per split and language, with the main metric of the task."""
    metadata = asked.task.metadata
    return [
        {
            "task": asked.name,
            "type": str(metadata.type),
            "dataset": asked.dataset,
            "path": metadata.dataset["path"],
            "revision": metadata.dataset["revision"],
            "local": asked.local,
            "split": split,
            "subset": entry["hf_subset"],
            "metric": metadata.main_score,
            "score": float(entry["main_score"]),
        }
        for split, entries in scores.items()
        for entry in entries
    ]


def _compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The rows, with the score of the source and the difference to it."""
    if theirs is None:
        return ours
    return [
        {**row, "against": other["score"], "difference": row["score"] - other["score"]}
        for row, other in zip(ours, theirs, strict=True)
    ]


def _write_whole(path: Path, whole: dict[str, Any]) -> None:
    """Writes the results file; it appears when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps mteb, datasets and transformers from writing to stderr: what a user should know is an error or a note."""
    import datasets
    import transformers

    named = logging.getLogger("mteb")
    level, bars = named.level, datasets.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    named.setLevel(logging.ERROR)
    datasets.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        named.setLevel(level)
        if bars:
            datasets.utils.logging.enable_progress_bar()
