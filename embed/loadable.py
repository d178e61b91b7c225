"""Whether sentence-transformers can load a folder, as far as its files tell. Imports no torch.

sentence-transformers itself says little: it makes an empty tokenizer and a pooling that nobody chose where files are
missing, and ends with an error of json or safetensors where they are damaged.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..convert.errors import BadInputError, UnsupportedError
from ..convert.io.layout import without_config
from ..convert.io.reader import FILES, open_checkpoint
from ..convert.io.source import Source, located, require_no_pointers, rooted, sentence_modules
from ..convert.io.tokenizer import require_tokenizer
from ..convert.repo.manifest import refuse_export, repo_folder
from ..convert.repo.own_modules import PIECES
from ..convert.repo.sentence import MODULES, kind_of, require_module_files

ENCODERS = ("Transformer", PIECES)
UNCHECKED = "the whitening does not say which model it was fitted with, so effconv cannot tell whether it fits this one"
MEAN_POOLING = (
    "no modules.json: mean pooling of the last states, vectors of any length. Nothing says that the model was trained "
    "to embed texts"
)


def sentence_folder(repo: str | os.PathLike[str]) -> Path:
    """The folder of a model as a user names it.

    Raises:
        BadInputError: there is no such folder, or `effconv export` wrote it.
    """
    folder = repo_folder(repo, "a folder with a sentence-transformers model, converted or not")
    refuse_export(folder)
    return folder


def require_modules(place: Path, folder: Path, hint: str) -> None:
    """Raises UnsupportedError for a folder, given as `folder` and read at `place`, without modules.json."""
    if not (place / MODULES).is_file():
        raise UnsupportedError(
            "the repo gives no sentence embeddings: it has no modules.json", where=str(folder), hint=hint
        )


def require_loadable(folder: Path, *, trust_remote_code: bool) -> None:
    """Raises what keeps a folder from being loaded: by its config, modules, tokenizer and weights.

    Args:
        trust_remote_code: let Python code run that came with the tokenizer.

    Raises:
        BadInputError: a file is missing or damaged.
        UsageError: the tokenizer has code that must not run.
    """
    refuse_export(folder)
    source = located(folder)
    modules = sentence_modules(source)
    if MODULES in source.files and not modules:
        raise BadInputError(
            "modules.json names no modules", where=str(folder / MODULES), hint="download the file again"
        )
    source = rooted(source, modules)
    require_module_files(source, modules)
    if modules and kind_of(modules[0]) not in ENCODERS:
        return  # such as StaticEmbedding, which has files of its own
    if not source.has("config.json") and not source.has("adapter_config.json"):  # an adapter's model is elsewhere
        raise without_config(source)
    require_tokenizer(folder / source.root, trust_remote_code=trust_remote_code)
    if source.has("config.json"):
        source = replace(source, config=source.json("config.json"))
        _require_weights(source)


def _require_weights(source: Source) -> None:
    stored = {form: source.has(name) or source.has(f"{name}.index.json") for form, name in FILES.items()}
    if source.has("adapter_config.json") or source.config.get("quantization_config"):
        return  # of types and names that only their libraries know
    if stored["safetensors"] or not stored["bin"]:
        open_checkpoint(source, formats=("safetensors",)).close()  # reads headers; says where there are no weights
    else:
        require_no_pointers(source, [FILES["bin"]])
