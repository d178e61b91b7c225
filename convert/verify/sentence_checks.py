"""The check for sentence encoders: SentenceTransformer gives the source's embedding, through all modules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..io.portable import portable
from ..io.source import checked_name, read_json
from .checks import worst_of
from .family_checks import put_back_attention
from .loaded import DoesNotApply, Loaded, difference
from .token_checks import LONG, TEXTS

MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
MODEL_SETTINGS = "config_sentence_transformers.json"
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
    root = next((folder for folder in (loaded.source, loaded.source.parent) if (folder / MODULES).is_file()), None)
    if root is None:
        raise DoesNotApply("not a sentence encoder")
    if not (loaded.repo / MODULES).is_file():
        raise AssertionError("the source is a sentence encoder, but the repo has no modules.json")
    if importlib.util.find_spec("sentence_transformers") is None:
        compared = _require_same_files(loaded.repo, root)
        return 0.0, {"sentence_transformers": "not installed: files were compared", "files": compared}
    ours, theirs = _models(loaded, root, overrides)
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
    texts = [*(text for text in TEXTS if text.strip()), LONG[: 12 * longest]]
    prompts = [None, *(theirs.prompts or {})]
    options: dict[str, Any] = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": 4}
    found = [
        difference(
            ours.encode(texts, prompt_name=prompt, **options), theirs.encode(texts, prompt_name=prompt, **options)
        )
        for prompt in prompts
    ]
    return worst_of(found), {"texts": len(texts), "prompts": len(prompts), "tokens": longest}


def _models(loaded: Loaded, root: Path, overrides: dict[str, Any]) -> tuple[Any, Any]:
    """The repo and its source as sentence encoders in float32."""
    from sentence_transformers import SentenceTransformer

    loaded.require_trusted_tokenizer()
    try:
        theirs = SentenceTransformer(str(root), device="cpu", trust_remote_code=loaded.trust_remote_code)
        theirs[0].auto_model  # noqa: B018 - a router, or an encoder of another kind, has none
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise DoesNotApply(
            f"sentence-transformers does not load the source as a text encoder ({type(error).__name__}: {reason[0]})"
        ) from None
    ours = SentenceTransformer(str(loaded.repo), device="cpu", trust_remote_code=True, config_kwargs=dict(overrides))
    return ours.eval().to(torch.float32), theirs.eval().to(torch.float32)


def _require_same_files(repo: Path, root: Path) -> list[str]:
    """Compares what the files of both say, but for the length and the place of the encoder; returns their names.

    Raises:
        AssertionError: with every file that differs.
    """
    theirs, ours = (dict(_settings(folder)) for folder in (root, repo))
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differing:
        raise AssertionError(f"these files differ from the source's: {', '.join(differing)}")
    return sorted(theirs)


def _settings(folder: Path) -> Iterator[tuple[str, Any]]:
    modules = [dict(module) for module in read_json(folder / MODULES, MODULES)]
    encoder = folder / checked_name(modules[0]["path"], MODULES) if modules[0].get("path") else folder
    modules[0]["path"] = ""
    yield MODULES, portable(modules)
    if (folder / MODEL_SETTINGS).is_file():
        yield MODEL_SETTINGS, portable(read_json(folder / MODEL_SETTINGS, MODEL_SETTINGS))
    if (encoder / SETTINGS).is_file():
        yield SETTINGS, {**portable(read_json(encoder / SETTINGS, SETTINGS)), "max_seq_length": None}
    for module in modules[1:]:
        path = checked_name(module["path"], MODULES) if module.get("path") else ""
        for file in sorted((folder / path).rglob("*")) if path else ():
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                yield name, portable(read_json(file, name)) if file.suffix == ".json" else file.read_bytes()
