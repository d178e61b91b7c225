"""Removes local paths and Hub tokens from the JSON files of a source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from .source import read_json
from .tokenizer_classes import VOCABULARIES

LOCAL_PATH = re.compile(r"(?:~?/|~\\|[A-Za-z]:[\\/])[^\s/\\]+[/\\]\S.*")  # of two parts at least: "/" may be a token
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
FREE = (*VOCABULARIES, "added_tokens.json")  # any text may be a word of theirs


def portable(value: Any) -> Any:
    """The JSON value without fields that contain a local path or a Hub token."""
    if isinstance(value, dict):
        return {key: portable(entry) for key, entry in value.items() if not _is_private(str(key), entry)}
    return [portable(entry) for entry in value] if isinstance(value, list) else value


def copy_portable(source: Path, output: Path) -> None:
    """Copies a file of a source. The copy is identical unless it is JSON with local paths or tokens."""
    if source.suffix == ".json" and output.name not in FREE:
        parsed = read_json(source, output.name)
        kept = portable(parsed)
        if kept != parsed:
            output.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return
    shutil.copyfile(source, output)


def _is_private(key: str, value: object) -> bool:
    if not isinstance(value, str) or key == "content" or key.endswith("_token"):  # a word of the vocabulary
        return False
    return bool(LOCAL_PATH.fullmatch(value) or HUB_TOKEN.search(value))
