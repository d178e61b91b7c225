"""What a folder is that is not simply a checkpoint: an adapter, a run of Trainer, a Router of several encoders."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, EffconvError, UnsupportedError

if TYPE_CHECKING:
    from .source import Source

CHECKPOINT = re.compile(r"(checkpoint-(\d+))/(?:config|adapter_config)\.json")  # as Trainer names them
MERGE = "merge it into its base model first (peft: merge_and_unload, then save_pretrained)"


def adapter_alone(source: Source) -> UnsupportedError:
    """The error for a source that is an adapter without a model."""
    return UnsupportedError("the source is an adapter, not a model", where=source.where(), hint=MERGE)


def without_config(source: Source) -> EffconvError:
    """The error for a source without config.json: what it is instead, and what to give."""
    if source.has("adapter_config.json"):
        return adapter_alone(source)
    checkpoints = checkpoints_hint(source)
    folders = list(itertools.islice(_model_folders(source), 4))
    hint = "give the folder or Hub id of a transformers checkpoint"
    if checkpoints:
        hint = checkpoints
    elif folders:
        hint = f"give one of the folders that have one: {', '.join(_place(source, name) for name in folders)}"
    what = "no config.json"
    if checkpoints:
        what = "no config.json: this is the output folder of a training, whose checkpoints are in subfolders"
    return BadInputError(what, where=source.where(), hint=hint)


def is_model_config(config: object) -> bool:
    """Whether a config.json is that of a model, not that of a module such as a pooling."""
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


def _model_folders(source: Source) -> Iterator[str]:
    """Subfolders that have the config of a model."""
    for name in source.files:
        if name.endswith("/config.json"):
            with contextlib.suppress(EffconvError):  # a file that only helps the hint
                if is_model_config(source.object(name)):
                    yield str(PurePosixPath(name).parent)


def checkpoints_hint(source: Source) -> str:
    """Which checkpoint of a run of transformers' Trainer to give, the newest and the best; "" for another folder."""
    found = {int(match[2]): match[1] for match in map(CHECKPOINT.fullmatch, source.files) if match}
    if not found:
        return ""
    newest = found[max(found)]
    best = _best(source, newest)
    also = f", or the best one: {_place(source, best)}" if best in found.values() and best != newest else ""
    return f"give the newest checkpoint: {_place(source, newest)}{also}"


def refuse_adapter(source: Source) -> None:
    """Raises UnsupportedError for a model with an adapter in its folder, which transformers loads with the model."""
    if source.has("adapter_config.json"):
        raise UnsupportedError(
            "the folder also has an adapter, which transformers would load with the model",
            where=f"{source.where()}: adapter_config.json",
            hint="merge it into the model first (peft: merge_and_unload, then save_pretrained), or move the adapter's "
            "files out of the folder",
        )


def refuse_router(source: Source, modules: Sequence[Mapping[str, Any]]) -> None:
    """Raises UnsupportedError for a Router of sentence-transformers that has encoders in subfolders."""
    for module in modules:
        if str(module.get("type", "")).rpartition(".")[2] not in ("Router", "Asym"):
            continue
        path = f"{module['path']}/" if module.get("path") else ""
        settings = next((name for name in ("router_config.json", "config.json") if path + name in source.files), None)
        types = source.object(path + settings).get("types") if settings else None
        folders = [
            f"{path}{name}"
            for name in (types if isinstance(types, dict) else ())
            if f"{path}{name}/config.json" in source.files and f"{path}{name}/tokenizer_config.json" in source.files
        ]
        if folders:
            raise UnsupportedError(
                f"the model is a Router of sentence-transformers with {len(folders)} "
                f"encoder{'s' if len(folders) > 1 else ''} in subfolders",
                where=f"{source.where()}: {path}{settings}",
                hint=f"convert each encoder: {', '.join(_place(source, name) for name in folders)}. Then build the "
                "Router again from the converted ones",
            )


def _best(source: Source, newest: str) -> str:
    """The folder's name of the best checkpoint according to the newest one; "" if none was chosen."""
    state = f"{newest}/trainer_state.json"
    try:
        best = source.object(state).get("best_model_checkpoint") if state in source.files else None
    except EffconvError:  # a file that only helps the hint
        return ""
    return PurePosixPath(best).name if isinstance(best, str) else ""


def _place(source: Source, name: str) -> str:
    """A subfolder as the user may give it: only a local one has a path."""
    return str(source.folder / name) if source.folder and not source.hub_id else f"{name} (download it first)"
