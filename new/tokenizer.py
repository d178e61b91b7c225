"""A tokenizer for a new model: found in a folder or on the Hub, copied, and counted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError
from ..convert.families.grammar import Family
from ..convert.families.registry import FAMILIES
from ..convert.io.source import Source, located
from ..convert.io.tensorfile import file_sha256
from ..convert.io.tokenizer import CONFIG, TokenizerFiles, tokenizer_of
from ..convert.io.tokenizer_classes import FILE

ADDED = "added_tokens.json"


@dataclass(frozen=True, slots=True)
class FoundTokenizer:
    """A tokenizer at hand.

    Attributes:
        source: where its files are. files: which ones they are.
        settings: of its tokenizer_config.json, with the class to load.
        config: fields of the model's config.json that belong to it.
    """

    source: Source
    files: TokenizerFiles
    settings: Mapping[str, Any]
    config: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Identifies it: by Hub id and commit, or by name and content."""
        if self.source.hub_id:
            return {"hub_id": self.source.hub_id, "commit": self.source.commit}
        hashes = {name: file_sha256(self.source.path(name)) for name in self.files.vocabulary}
        return {"name": self.source.name, "sha256": hashes}

    def copy_to(self, folder: Path) -> None:
        """Copies its files, and names the class where no file does."""
        for name in self.files.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source.path(name), folder / name)
        (folder / CONFIG).write_text(json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def size(self, folder: Path, *, trust_remote_code: bool) -> int:
        """How many tokens it has: one more than the highest id.

        Args:
            folder: where it was copied to.
        """
        names = self.files.vocabulary
        ids: list[int] = []
        if not self.files.references and FILE in names:
            ids = list(_of_tokenizer_file(_json(folder / FILE)))
        elif not self.files.references and "vocab.json" in names:
            ids = _numbers(_json(folder / "vocab.json").values())
        elif not self.files.references and "vocab.txt" in names and not {"bpe.codes", "spiece.model"} & set(names):
            with (folder / "vocab.txt").open(encoding="utf-8", errors="replace") as lines:
                ids = [sum(1 for _ in lines) - 1]
        if not ids:  # only the library can tell
            return _counted(folder, trust_remote_code)
        if (folder / ADDED).is_file():
            ids += _numbers(_json(folder / ADDED).values())
        decoder = self.settings.get("added_tokens_decoder")
        ids += [int(key) for key in decoder if str(key).isdecimal()] if isinstance(decoder, dict) else []
        return max(ids) + 1


def find_tokenizer(
    name: str | os.PathLike[str], family: Family, *, revision: str | None, token: str | None, offline: bool
) -> FoundTokenizer:
    """Finds a tokenizer in a folder or on the Hub.

    Args:
        family: of the new model: its class is the last resort.

    Raises:
        BadInputError: there is none. HubError: the Hub cannot be reached.
    """
    source = located(name, revision=revision, token=token, offline=offline)
    config = source.json("config.json") if source.has("config.json") else {}
    source = replace(source, config=config)
    files = tokenizer_of(source, FAMILIES.get(str(config.get("model_type")), family))
    if not files.exists:
        raise BadInputError(
            "there is no tokenizer",
            where=os.fspath(name),
            hint="give a folder or a Hub id that has a tokenizer's files",
        )
    stated = source.json(CONFIG) if source.has(CONFIG) else {}
    settings = {**stated, "tokenizer_class": files.name} if files.name else dict(stated)
    own = config.get("auto_map")
    kept = {"auto_map": own} if files.references and isinstance(own, dict) and "auto_map" not in stated else {}
    return FoundTokenizer(source, files, settings, kept)


def _of_tokenizer_file(parsed: Mapping[str, Any]) -> Iterable[int]:
    model = parsed.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    elif isinstance(vocabulary, dict):
        yield from _numbers(vocabulary.values())
    added = parsed.get("added_tokens")
    yield from _numbers(entry.get("id") for entry in added or () if isinstance(entry, dict))


def _numbers(values: Iterable[object]) -> list[int]:
    return [value for value in values if type(value) is int]


def _json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path.name} is not readable JSON ({error})", where=path.name) from None
    return parsed if isinstance(parsed, dict) else {}


def _counted(folder: Path, trust_remote_code: bool) -> int:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise BadInputError(
            f"the tokenizer does not load ({type(error).__name__}: {str(error).strip().splitlines()[0:1]})",
            where="--tokenizer",
            hint="pass --vocab with the number of its tokens",
        ) from None
    return max(tokenizer.get_vocab().values(), default=len(tokenizer) - 1) + 1
