"""A source's tokenizer: its class, the files that belong to it, its special tokens. Files are read as JSON and text.

Saving a tokenizer with a library may change it. Editing two numbers in its JSON does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError, UsageError
from ..families.grammar import Family
from .source import Source, read_json
from .tokenizer_classes import AS_STORED, FILE, GENERIC, SETTINGS, VOCABULARIES, class_named
from .tokenizer_code import auto_map, code_files, may_read, own_references
from .vocabulary import token_ids

CONFIG, MAP, ADDED = SETTINGS
UNPORTABLE = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "cache_dir")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the special tokens; None where the tokenizer has none."""

    bos: int | None = None
    cls: int | None = None
    mask: int | None = None
    sep: int | None = None
    pad: int | None = None
    eos: int | None = None


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What there is of a tokenizer.

    Attributes:
        name: the class that AutoTokenizer loads; "" where no file names one and no family is known.
        vocabulary: files that hold its vocabulary. settings: tokenizer_config.json and the like.
        references: its classes with Python code of their own, as auto_map names them. code: the files of that code.
        foreign: the vocabulary files are none that the class reads.
    """

    name: str = ""
    vocabulary: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is a vocabulary. From settings alone, transformers makes an empty tokenizer."""
        kind = class_named(self.name)
        of_bytes = kind is not None and not kind.files and bool(self.settings)  # bytes or characters are its vocabulary
        return bool(self.vocabulary or self.references or of_bytes)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that is carried into a repo."""
        return (*self.settings, *self.vocabulary, *self.code)

    def described(self) -> str:
        """In words, as `effconv inspect` shows it."""
        if not self.exists:
            return "none"
        own = f"with Python code of its own ({', '.join(self.code or self.references)}), " if self.references else ""
        held = ", ".join(self.vocabulary) or "no vocabulary files"
        return f"{self.name}: {own}{'which does not read ' if self.foreign else ''}{held}"


def tokenizer_of(source: Source, family: Family | None = None) -> TokenizerFiles:
    """The tokenizer of a source, or of a repo.

    Raises:
        BadInputError: a damaged settings file, or a missing code file.
    """
    names = [name.removeprefix(source.root) for name in source.files if name.startswith(source.root)]
    settings = source.json(CONFIG) if source.has(CONFIG) else {}

    def text(name: str) -> str:
        return source.path(name).read_text(encoding="utf-8", errors="replace")

    return _found(names, settings, source.config, text, family)


def tokenizer_in(folder: Path) -> TokenizerFiles:
    """The tokenizer in a local folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def parsed(name: str) -> Mapping[str, Any]:
        value = read_json(folder / name, name) if name in names else {}
        return value if isinstance(value, dict) else {}

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8", errors="replace")

    return _found(names, parsed(CONFIG), parsed("config.json"), text)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer: more than settings."""
    return tokenizer_in(folder).exists


def require_tokenizer(repo: Path, *, trust_remote_code: bool) -> None:
    """Raises BadInputError for a folder without a tokenizer, UsageError for one with code that must not run."""
    found = tokenizer_in(repo)
    if not found.exists:
        raise BadInputError(
            "the folder has no tokenizer",
            where=str(repo),
            hint="give a model with its tokenizer's files, such as tokenizer.json. A repo that effconv made has them "
            "if its source has them",
        )
    if found.references and not trust_remote_code:
        raise UsageError(
            f"the repo's tokenizer has Python code of its source ({', '.join(found.code or found.references)})",
            where=str(repo),
            hint="read the code; if you trust it, pass --trust-remote-code to run it",
        )


def special_tokens(source: Source, family: Family) -> SpecialTokens:
    """Ids of the special tokens, read from the tokenizer's files without a tokenizer library.

    Raises:
        BadInputError: a damaged file, or vocabulary files that the tokenizer's class does not read.
    """
    found = tokenizer_of(source, family)
    kind = class_named(found.name) if not found.references else None
    if found.foreign and kind:
        raise BadInputError(
            f"the tokenizer is a {found.name}, which reads {' or '.join(kind.files)}, "
            f"but the source has {' and '.join(found.vocabulary)}",
            where="tokenizer_config.json: tokenizer_class",
            hint="name the class that made these files, or add the files of this class",
        )
    names: dict[str, str | None] = dict(kind.special if kind and kind.special else family.special_tokens)
    settings = source.json(CONFIG) if source.has(CONFIG) else {}
    stated = [settings]
    if source.has(MAP) and "added_tokens_decoder" not in settings:  # transformers no longer reads it beside that field
        stated.append(source.json(MAP))
    for key, value in (item for file in stated for item in file.items()):
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and (content is None or isinstance(content, str)):
            names[key.removesuffix("_token")] = content
    known = {key: name for key, name in names.items() if name}
    stand_ins = {f"in place of {key}": token for key, token in family.stand_ins.items()}
    ids = token_ids(source, kind, {**known, **stand_ins})
    known = {**family.stand_ins, **known}
    return SpecialTokens(**{key: ids.get(known.get(key, "")) for key in ("bos", "cls", "mask", "sep", "pad", "eos")})


def edited(
    name: str, parsed: Mapping[str, Any], max_length: int, tokenizer: TokenizerFiles, config: Mapping[str, Any]
) -> dict[str, Any]:
    """A tokenizer file's JSON with the new maximum length, the class to load and no stale truncation.

    Args:
        config: the source's config.json.
    """
    result = dict(parsed)
    if name == CONFIG:
        for key in UNPORTABLE:  # paths of somebody's machine
            result.pop(key, None)
        if tokenizer.references:
            result["auto_map"] = auto_map(parsed, config)
        result["model_max_length"] = max_length
        result["tokenizer_class"] = tokenizer.name
        for key in ("max_length", "truncation", "max_len"):
            result.pop(key, None)
    else:
        # The raw library cuts and pads by these two sections, whatever model_max_length says (MiniLM's cuts at 128).
        result["truncation"] = None
        result["padding"] = None
    return result


def _found(
    names: list[str],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    read: Callable[[str], str],
    family: Family | None = None,
) -> TokenizerFiles:
    references = own_references(settings, config)
    code = code_files(references, names.__contains__, read)
    name = _class_to_load(settings, config, FILE in names, references, family)
    stated = tuple(file for file in SETTINGS if file in names)
    if references:
        vocabulary = may_read(names, map(read, code))
        return TokenizerFiles(name, tuple(vocabulary), stated, tuple(references), tuple(code))
    kind = class_named(name)
    own = [file for file in (kind.files if kind else VOCABULARIES) if file in names]
    if FILE in own and isinstance(versions := settings.get("fast_tokenizer_files"), list):
        own += [file for file in versions if file in names and file not in own]  # for some versions of transformers
    foreign = [] if own or (kind and not kind.files) else [file for file in VOCABULARIES if file in names]
    return TokenizerFiles(name, tuple(own or foreign), stated, foreign=bool(foreign))


def _class_to_load(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    whole: bool,
    references: list[str],
    family: Family | None,
) -> str:
    """The tokenizer class that AutoTokenizer uses for the source. The new model_type would not lead to it.

    It is the one that tokenizer_config.json names, else config.json, else the family's. For some families transformers
    5 loads tokenizer.json as it stands, whatever the files name.

    Args:
        whole: whether there is a tokenizer.json.
    """
    stock = family is not None and config.get("model_type") == family.code.model_type
    if family is not None and family.tokenizer_as_stored and stock and whole and not references:
        return AS_STORED
    named = [file.get("tokenizer_class") for file in (settings, config)]
    own = [references[0].rpartition(".")[2]] if references else []
    name = next((name for name in (*named, *own) if isinstance(name, str) and name), "")
    if name in GENERIC and whole and not references:
        return AS_STORED  # transformers 4 does not know the other name
    return name or (family.tokenizer_class if family else "")
