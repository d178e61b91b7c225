"""Writes everything but the weights: config, tokenizer, code, sentence-transformers files, shard index."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..execute import Written
from ..families.grammar import Family, Head
from ..io.dtypes import FLOATS, NAMES
from ..io.portable import copy_portable, portable
from ..io.source import Source
from ..io.tokenizer import CONFIG, edited, tokenizer_of
from ..io.tokenizer_classes import SETTINGS
from ..plan import Plan
from ..target import Context, Target
from .modelcode import StandaloneCode, StockCode, auto_map, class_name, model_type, render
from .origin import FIELD as ORIGIN
from .sentence import write_sentence_files

# Fields that repos of an older effconv have and that no code reads any more.
REMOVED_FIELDS = ("mkldnn_fp32_precision",)
# Fields of a source's config that name its own code or somebody's machine, or that the emitted repo states itself.
STALE_FIELDS = (
    *("_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype", "base_model_prefix"),
    *(ORIGIN, *REMOVED_FIELDS),
)
CARRIED = ("generation_config.json", "chat_template.jinja")


def emitted_config(target: Target, context: Context) -> dict[str, Any]:
    """config.json of the repo: the source's fields, the target's, a model_type of its own and the code to load."""
    if target.whole_config:
        return target.config(context)
    kept = {key: value for key, value in context.config.items() if key not in STALE_FIELDS}
    return {**portable(kept), **target.config(context), **code_fields(target, context.emits, context.emitted_head)}


def code_fields(target: Target, family: Family, own: Head) -> dict[str, Any]:
    """Fields of config.json that name what is in the code files of a repo with this head."""
    stated: dict[str, Any] = {
        "model_type": model_type(family.code, target.code),
        "architectures": [class_name(family.code, target.code, own.suffix)],
    }
    if isinstance(target.code, StockCode) or (isinstance(target.code, StandaloneCode) and not target.code.auto):
        return stated
    return {**stated, "auto_map": auto_map(family.code, target.code, _heads(target, family, own))}


def code_files(target: Target, family: Family, own: Head) -> dict[str, str]:
    """All code files of a repo with this head, as {name: text}."""
    return render(family.code, target.code, _heads(target, family, own))


def _heads(target: Target, family: Family, own: Head) -> dict[str, str]:
    """Auto class by head; the repo's own head comes last, so that it has the word where two share an Auto class."""
    heads = {head.suffix: head.auto for head in target.heads(family) if head != own}
    return {**heads, own.suffix: own.auto}


def emit(folder: Path, source: Source, target: Target, context: Context, plan: Plan, written: Written) -> list[str]:
    """Writes all files of a repo next to the weights in `folder`. Returns what the user should know of them."""
    types = [row.dtype for row in plan.rows if row.target and row.dtype in FLOATS]
    dtype = NAMES[max(set(types), key=types.count)] if types else "float32"
    _write(folder / "config.json", {"dtype": dtype, **context.emitted})
    if len(written.files) > 1:
        _write(
            folder / target.weights_format.index,
            {"metadata": {"total_size": plan.bytes_out}, "weight_map": dict(sorted(written.weight_map.items()))},
        )
    for name, text in code_files(target, context.emits, context.emitted_head).items():
        (folder / name).write_text(text, encoding="utf-8")
    max_length = int(context.options.max_length)
    _tokenizer(folder, source, max_length, context.family)
    for name in CARRIED:
        if source.has(name) or name in source.files:  # an old sentence-transformers source keeps some above its encoder
            copy_portable(source.path(name) if source.has(name) else source.fetch(name), folder / name)
    return write_sentence_files(folder, source, max_length)


def _tokenizer(folder: Path, source: Source, max_length: int, family: Family) -> None:
    """The tokenizer's files: settings and tokenizer.json with the new length, the others byte for byte."""
    tokenizer = tokenizer_of(source, family)
    for name in tokenizer.files:
        if (folder / name).exists():
            raise BadInputError(
                f"the tokenizer has a file {name}, which is also a file of the repo", where=name, hint="rename the file"
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        whole = re.fullmatch(r"tokenizer(\.[\d.]+)?\.json", name)
        if whole or name == CONFIG:
            parsed = edited(name, source.json(name), max_length, tokenizer, source.config)
            parsed = parsed if whole else portable(parsed)
            pretty = source.path(name).read_bytes()[:64].count(b"\n") > 0  # laid out as the source's
            text = json.dumps(parsed, ensure_ascii=False, indent=2 if pretty else None)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        elif name in SETTINGS:
            copy_portable(source.path(name), folder / name)
        else:
            shutil.copyfile(source.path(name), folder / name)
    if tokenizer.files and CONFIG not in tokenizer.settings:
        _write(folder / CONFIG, edited(CONFIG, {}, max_length, tokenizer, source.config))


def _write(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
