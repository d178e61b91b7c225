"""The check for sentence encoders: sentence-transformers gives the source's embedding, through all modules."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..io.portable import portable
from ..io.source import MODULE_DEPTH, checked_name, read_json
from ..repo.own_modules import AVERAGE, CODE, SETTINGS_OF_PIECES, average_of
from ..repo.sentence import (
    DOCUMENT_LENGTHS,
    MODEL_SETTINGS,
    MODULES,
    SETTINGS,
    SETTINGS_NAMES,
    foreign_types,
    sentence_class,
)
from .checks import worst_of
from .family_checks import put_back_attention
from .loaded import DoesNotApply, Loaded, difference
from .token_checks import LONG, TEXTS

PYLATE = "pylate.models.Dense.Dense"  # which sentence-transformers reads as its own
UNCOMPARED = ("max_seq_length", *DOCUMENT_LENGTHS, *SETTINGS_OF_PIECES)
SHARED = (
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "truncate_dim",
)  # attributes that must be the source's


def same_embedding(
    loaded: Loaded, put_back: Callable[[nn.Module, nn.Module], object] | None = None, **overrides: Any
) -> tuple[float, dict[str, Any]]:
    """The embedding of the repo and of its source, with plain attention put back into the repo's encoder.

    Prompts, lower-casing, pooling, dense layers, normalisation and truncation take part. Without sentence-transformers
    the files that say these things are compared.

    Args:
        put_back: gives the repo's encoder the attention of its source's.
        overrides: fields of the config that switch off what the target adds to the tokens.

    Raises:
        DoesNotApply: no sentence encoder, or one that sentence-transformers does not load.
        AssertionError: a setting that differs.
    """
    assert loaded.source is not None
    root = _root(loaded.source)
    kind = sentence_class(root)
    if not kind:
        raise DoesNotApply("not a sentence encoder")
    for name in (MODULES, MODEL_SETTINGS):
        if (root / name).is_file() and not (loaded.repo / name).is_file():
            raise AssertionError(f"the source is a sentence encoder, but the repo has no {name}")
    if sentence_class(loaded.repo) != kind:
        raise AssertionError(f"the repo is not a {kind} any more")
    if importlib.util.find_spec("sentence_transformers") is None:
        compared = _require_same_files(loaded.repo, root)
        return 0.0, {"sentence_transformers": "not installed: files were compared", "files": compared}
    code = [name for name in foreign_types(_modules(root)) if name != PYLATE]
    if code and not loaded.trust_remote_code:
        raise DoesNotApply(f"{', '.join(code)} is code of the source, which runs only with --trust-remote-code")
    ours, theirs = _models(loaded, root, kind, overrides)
    for name in SHARED:
        one, other = getattr(ours, name, None), getattr(theirs, name, None)
        if one != other:
            raise AssertionError(f"{name} is {one!r}, but {other!r} in the source")
    if ours.max_seq_length != loaded.max_length:
        raise AssertionError(f"max_seq_length is {ours.max_seq_length}, but the model takes {loaded.max_length} tokens")
    encoders = (ours[0].auto_model, theirs[0].auto_model)
    put_back(*encoders) if put_back is not None else put_back_attention(loaded, *encoders)
    reach = min(loaded.max_length, int(loaded.manifest["source_max_length"]))
    longest = min(theirs.max_seq_length or reach, reach)
    ours.max_seq_length = theirs.max_seq_length = longest
    for name in DOCUMENT_LENGTHS:
        if hasattr(ours[0], name):
            setattr(ours[0], name, getattr(theirs[0], name))
    texts = [*(text for text in TEXTS if text.strip()), LONG[: 12 * longest]]
    prompts = [None, *(theirs.prompts or {})]
    found = [
        difference(got, wanted)
        for prompt in prompts
        for got, wanted in zip(*(_embedded(model, kind, texts, prompt) for model in (ours, theirs)), strict=True)
    ]
    return worst_of(found), {"texts": len(texts), "prompts": len(prompts), "tokens": longest}


def _root(source: Path) -> Path:
    """The folder with modules.json of a source's encoder, which may be below it; the encoder's own without one."""
    for folder in source.parents[:MODULE_DEPTH] if not (source / MODULES).is_file() else ():
        modules = _modules(folder)
        if modules and (folder / str(modules[0].get("path") or "")).resolve() == source.resolve():
            return folder
    return source


def _modules(folder: Path) -> list[dict[str, Any]]:
    return list(read_json(folder / MODULES, MODULES)) if (folder / MODULES).is_file() else []


def _embedded(model: Any, kind: str, texts: list[str], prompt: str | None) -> list[torch.Tensor]:
    """The outputs of a model for the texts, as queries and as documents where it tells them apart."""
    options: dict[str, Any] = {"show_progress_bar": False, "batch_size": 4}
    if kind == "CrossEncoder":
        pairs = list(zip(texts, reversed(texts), strict=True))
        return [model.predict(pairs, convert_to_tensor=True, **options)]
    if kind == "MultiVectorEncoder":
        found = [
            *model.encode_query(texts, prompt_name=prompt, **options),
            *model.encode_document(texts, prompt_name=prompt, **options),
        ]
        return [torch.as_tensor(vectors) for vectors in found]
    sparse = {"convert_to_sparse_tensor": False} if kind == "SparseEncoder" else {}
    return [model.encode(texts, prompt_name=prompt, convert_to_tensor=True, **sparse, **options)]


def _models(loaded: Loaded, root: Path, kind: str, overrides: dict[str, Any]) -> tuple[Any, Any]:
    """The repo and its source as models of that class of sentence-transformers, in float32."""
    loaded.require_trusted_tokenizer()
    import sentence_transformers

    load = getattr(sentence_transformers, kind, None)
    if load is None:
        raise DoesNotApply(f"sentence-transformers {sentence_transformers.__version__} has no {kind}")
    try:
        with _dense(loaded, root) as folder:
            theirs = load(str(folder), device="cpu", trust_remote_code=loaded.trust_remote_code)
        theirs[0].auto_model  # noqa: B018 - a router, or an encoder of another kind, has none
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise DoesNotApply(
            f"sentence-transformers does not load the source as a text encoder ({type(error).__name__}: {reason[0]})"
        ) from None
    ours = load(str(loaded.repo), device="cpu", trust_remote_code=True, config_kwargs=dict(overrides))
    return ours.eval().to(torch.float32), theirs.eval().to(torch.float32)


@contextmanager
def _dense(loaded: Loaded, root: Path) -> Iterator[Path]:
    """The source's folder; of a source that was converted before, a view of it as the dense model of its weights.

    So none of its code runs, as in `Loaded.source_model`.
    """
    if "upgraded" not in loaded.manifest or loaded.source is None or loaded.source.resolve() != root.resolve():
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="effconv-") as name:
        view = Path(name)
        for path in root.resolve().iterdir():
            if path.name != "config.json" and path.suffix != ".py":
                (view / path.name).symlink_to(path, target_is_directory=path.is_dir())
        (view / "config.json").write_text(json.dumps(loaded.dense_fields()), encoding="utf-8")
        yield view


def _require_same_files(repo: Path, root: Path) -> list[str]:
    """Compares what the files of both say, but for the length and the place of the encoder; returns their names.

    What `effconv pieces` added to the repo is no difference: `encode`, which this check is of, passes it by.

    Raises:
        AssertionError: with every file that differs.
    """
    added = average_of(repo) is not None and average_of(root) is None
    theirs, ours = (dict(_settings(folder, without_pieces=added)) for folder in (root, repo))
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differing:
        raise AssertionError(f"these files differ from the source's: {', '.join(differing)}")
    return sorted(theirs)


def _settings(folder: Path, *, without_pieces: bool) -> Iterator[tuple[str, Any]]:
    modules = [dict(module) for module in _modules(folder)]
    if not modules:
        return
    if without_pieces:
        modules = [module for module in modules if module.get("type") != f"{CODE}.{AVERAGE}"]
        modules[0]["type"] = ""  # one of them is the other's encoder, in pieces
    encoder = folder / checked_name(modules[0]["path"], MODULES) if modules[0].get("path") else folder
    modules[0]["path"] = ""
    yield MODULES, portable(modules)
    if (folder / MODEL_SETTINGS).is_file():
        yield MODEL_SETTINGS, _without_lengths(read_json(folder / MODEL_SETTINGS, MODEL_SETTINGS))
    found = (read_json(encoder / name, name) for name in SETTINGS_NAMES if (encoder / name).is_file())
    yield SETTINGS, _without_lengths(next((settings for settings in found if settings), {}))
    for module in modules[1:]:
        path = checked_name(module["path"], MODULES) if module.get("path") else ""
        for file in sorted((folder / path).rglob("*")) if path else ():
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                yield name, portable(read_json(file, name)) if file.suffix == ".json" else file.read_bytes()


def _without_lengths(settings: dict[str, Any]) -> Any:
    return portable({key: value for key, value in settings.items() if key not in UNCOMPARED})
