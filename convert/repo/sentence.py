"""Writes what sentence-transformers reads: modules.json, each module's folder and code, settings, lengths.

The encoder's settings are written under the one name that all versions write. Lengths of documents follow the new
length; those of queries stay, since a ColBERT pads every query to its length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..families.converted import named_classes
from ..io.portable import copy_portable, portable
from ..io.python_files import imported_files
from ..io.source import Source, checked_name, sentence_modules

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
# As sentence-transformers looks for them, in its order: before 1.0 the name was the architecture's.
SETTINGS_NAMES = (
    SETTINGS,
    *(f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta")),
    "sentence_xlnet_config.json",
)
MODEL_SETTINGS = "config_sentence_transformers.json"
COLBERT, COLBERT_SETTINGS = "HF_ColBERT", "artifact.metadata"  # of the Stanford ColBERT: its class and its settings
COLBERT_PROJECTION = "linear.weight"
DOCUMENT_LENGTHS = ("document_length", "doc_maxlen")  # tokens of a document: PyLate, sentence-transformers; Stanford
QUERY_LENGTHS = ("query_length", "query_maxlen")
OWN = "sentence_transformers."
NEED_NO_FILES = ("Transformer", "Normalize")  # the encoder's are looked for where they are read
CONFIGURED = ("Pooling", "Dense", "LayerNorm", "WeightedLayerPooling")  # modules with a config.json
STORED = ("Dense", "LayerNorm", "WeightedLayerPooling")  # modules with weights, in one of these files:
MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def write_sentence_files(folder: Path, source: Source, max_length: int) -> list[str]:
    """Writes all of it next to the weights; nothing for a source without any.

    Returns:
        What the user should know: lengths that changed or stayed, code that was carried.

    Raises:
        BadInputError: a module's folder or code has the name of another file, or its code is not there.
    """
    found: list[str] = []
    for name in (MODEL_SETTINGS, COLBERT_SETTINGS):  # an old source keeps some above its encoder
        stored = next((path for path in (source.root + name, name) if path in source.files), None)
        if stored:
            settings = source.object(stored)
            lengthened = with_lengths(settings, max_length)
            if lengthened == settings and name.endswith(".json"):
                copy_portable(source.fetch(stored), folder / name)
            else:
                _write(folder / name, portable(lengthened))
            found += _about_lengths(name, settings, max_length)
    modules = sentence_modules(source)
    if not modules:
        return found
    settings = encoder_settings(source)
    _write(folder / MODULES, portable([{**modules[0], "path": ""}, *modules[1:]]))
    _write(folder / SETTINGS, {**portable(with_lengths(settings, max_length)), "max_seq_length": max_length})
    found += _about_lengths(SETTINGS, settings, max_length)
    paths = list(dict.fromkeys(module["path"] for module in modules[1:] if module["path"]))
    for path in paths:
        _copy_module(folder, source, path)
    code = module_code(source, modules)
    for name in code:
        if any(name.startswith(f"{path}/") for path in paths):
            continue  # copied with its module
        if (folder / name).exists():
            raise BadInputError(
                f"the code of a sentence-transformers module, {name}, has the name of a file of the new repo",
                where=MODULES,
                hint="rename the file and the module's type",
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_portable(source.fetch(name), folder / name)
    if code:
        found.append(
            f"modules.json names code of the source, which the repo carries as it is: {', '.join(code)}. It runs in "
            "sentence-transformers with trust_remote_code, and in the checks with --trust-remote-code"
        )
    elsewhere = sorted({kind for kind in foreign_types(modules) if f"{kind.partition('.')[0]}.py" not in code})
    if elsewhere:
        found.append(f"modules.json names {', '.join(elsewhere)}: the package that has it must be installed")
    return found


def modules_of(repo: Path) -> list[dict[str, Any]]:
    """The entries of a repo's modules.json in their order; [] if it is not a sentence-transformers repo."""
    try:
        found = json.loads((repo / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def kind_of(module: Mapping[str, Any]) -> str:
    """The class of a module without its package, which differs between versions: Transformer, Pooling, Dense."""
    return str(module.get("type") or "").rpartition(".")[2]


def require_module_files(source: Source, modules: Sequence[Mapping[str, Any]]) -> None:
    """Raises BadInputError for modules of sentence-transformers without their files.

    The encoder loads without them, so that a conversion would succeed and its repo would not load. Modules with code of
    another package are not checked: only their code knows what they read.
    """
    missing: list[str] = []
    for module in modules:
        kind, path = kind_of(module), module.get("path")
        if not path or kind in NEED_NO_FILES or not str(module.get("type") or "").startswith(OWN):
            continue
        inside = {name.removeprefix(f"{path}/") for name in source.files if name.startswith(f"{path}/")}
        if not inside:
            missing.append(f"the folder {path}")
        elif kind in CONFIGURED and "config.json" not in inside:
            missing.append(f"{path}/config.json")
        elif kind in STORED and not inside.intersection(MODULE_WEIGHTS):
            missing.append(f"{path}/{MODULE_WEIGHTS[0]}")
    if missing:
        raise BadInputError(
            f"modules.json names modules whose files are missing: {', '.join(missing)}",
            where=f"{source.where()}: {MODULES}",
            hint="download them too, from the same repo",
        )


def foreign_types(modules: list[dict[str, Any]]) -> list[str]:
    """The modules' classes that are not sentence-transformers' own: code of the source, or of another package."""
    kinds = [str(module.get("type") or "") for module in modules]
    return [kind for kind in kinds if kind and not kind.startswith(OWN)]


def encoder_settings(source: Source) -> dict[str, Any]:
    """The settings of the encoder's module, from the first of the names that has any."""
    found = (source.json(name) for name in SETTINGS_NAMES if source.has(name))
    return next((settings for settings in found if settings), {})


def with_lengths(settings: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Settings with the new length of documents, where they state one."""
    return {
        key: max_length if key in DOCUMENT_LENGTHS and type(value) is int else value for key, value in settings.items()
    }


def module_code(source: Source, modules: list[dict[str, Any]]) -> list[str]:
    """Python files of the source that its modules name as `file.Class`, and what these import from beside them.

    Raises:
        BadInputError: one of them is not there.
    """
    waiting = [
        f"{file}.py"
        for file, _, name in (kind.partition(".") for kind in foreign_types(modules))
        if name.isidentifier() and f"{file}.py" in source.files
    ]
    found: list[str] = []
    while waiting:
        name = checked_name(waiting.pop(0), MODULES)
        if name in found:
            continue
        found.append(name)
        text = source.fetch(name).read_text(encoding="utf-8", errors="replace")
        for imported in imported_files(text):
            if imported not in source.files:
                raise BadInputError(
                    f"{name} imports {imported}, which is not in the source",
                    where=MODULES,
                    hint="download the file again, from the same repo",
                )
            waiting.append(imported)
    return found


def sentence_class(repo: Path) -> str:
    """The class of sentence-transformers that loads a repo; "" for one that is none of its models."""
    if COLBERT in named_classes(_object(repo / "config.json")):
        return "MultiVectorEncoder"
    if not (repo / MODULES).is_file():
        return ""
    named = _object(repo / MODEL_SETTINGS).get("model_type")
    if named in ("MultiVectorEncoder", "ColBERT"):  # the latter is PyLate's
        return "MultiVectorEncoder"
    return str(named) if named in ("SparseEncoder", "CrossEncoder") else "SentenceTransformer"


def _about_lengths(name: str, settings: Mapping[str, Any], max_length: int) -> Iterator[str]:
    stay = [f"{key} stays {settings[key]}" for key in QUERY_LENGTHS if type(settings.get(key)) is int]
    for key in DOCUMENT_LENGTHS:
        if type(settings.get(key)) is int:
            yield "; ".join([f"{name}: {key} {settings[key]} is now {max_length}", *stay])


def _copy_module(folder: Path, source: Source, path: str) -> None:
    if (folder / path).is_file():
        raise BadInputError(
            f"a sentence-transformers module has the folder {path}, which is also a file of the repo",
            where=MODULES,
            hint="rename the folder",
        )
    (folder / path).mkdir(parents=True, exist_ok=True)
    for name in source.files:
        if name.startswith(f"{path}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_portable(source.fetch(name), folder / name)


def _object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; {} for one that is missing or cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
