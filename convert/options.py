"""Options as dataclass fields with flag and help text, shared by the command line and the Python API."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import UsageError, listing

MAX_LENGTH_HELP = "Maximum input length in tokens."
CALIBRATE_HELP = (
    "Text, .jsonl, .csv or .parquet file (column text) to fit on, can be repeated. [default: built-in English text]"
)
LINES_HELP = (
    "Treat each line of a text file as one text. [default: the whole file, or each article of a file with headings "
    "such as ` = Title = `]"
)
DTypeName = Literal["float32", "float16", "bfloat16"]
NAME = re.compile(r"(?<![\w-])[a-z][a-z0-9_]*(?![\w-])")
SUBJECTS = re.compile(r"([a-z][a-z0-9_]*) and ([a-z][a-z0-9_]*)(?![\w-])")  # with which a fault begins
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
Progress = Callable[[str, int, int], None]  # called with a step, what of it is done, and how much there is


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    short: str | None = None,
    panel: str = "",
    fallback: Any = None,
    metavar: str = "FILE",
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        flag: the flag, if it differs from the field's name (`--max-len` for max_length).
        panel: heading of its section in the help.
        fallback: value for a source that states none. For options whose default (None) means "the source's value".
        metavar: of one value of an option that can be repeated, whose default is a tuple.
    """
    metadata = {
        "help": help, "flag": flag, "short": short, "panel": panel, "fallback": fallback, "metavar": metavar
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def from_source_or(fallback: Any, help: str, **more: Any) -> Any:
    """An option that defaults to the source's value or, if the source has none, to `fallback`."""
    return option(None, help, fallback=fallback, **more)


def is_open(field: dataclasses.Field[Any]) -> bool:
    """Whether an option defaults to the source's value."""
    return field.metadata.get("fallback") is not None


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of an option for a source that states no value."""
    return field.metadata["fallback"] if is_open(field) else field.default


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The long flag of a field."""
    return str(field.metadata.get("flag") or "--" + field.name.replace("_", "-"))


def changed(options: object, values: Mapping[str, Any], stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `values` that differ from their defaults, by flag.

    Args:
        stated: the source's values of options that default to them.
    """
    return {
        flag_of(field): values[field.name]
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
        if field.name in values and values[field.name] != (stated or {}).get(field.name, default_of(field))
    }


def require_sound(
    command: str, faults: Sequence[str], options: Any = None, also: Mapping[str, str] | None = None
) -> None:
    """Raises UsageError with all faults, if there are any.

    Args:
        options: whose fields the faults may name; they are shown as flags. also: other names, such as those that the
            config has for them, and their fields.
    """
    if not faults:
        return
    flags = {field.name: flag_of(field) for field in dataclasses.fields(options)} if options is not None else {}
    flags |= {name: flags[own] for name, own in (also or {}).items()}
    said = [_with_flags(fault, flags) for fault in faults]
    named = dict.fromkeys(flag for fault in said for flag in FLAG.findall(fault))
    raise UsageError(
        said[0] if len(said) == 1 else f"these options cannot be used:\n{listing(said)}",
        where=", ".join(named) or f"effconv {command}",
        hint=f"effconv {command} --help describes each option",
    )


def _with_flags(fault: str, flags: Mapping[str, str]) -> str:
    """A fault that names flags instead of fields.

    A field that is an ordinary word is one only at the beginning, as in "steps and epochs exclude each other".
    """
    subjects = SUBJECTS.match(fault)
    end = subjects.end() if subjects and {*subjects.groups()} <= flags.keys() else 1

    def flag(match: re.Match[str]) -> str:
        name = match[0]
        return flags[name] if name in flags and ("_" in name or match.start() < end) else name

    return NAME.sub(flag, fault)


@contextlib.contextmanager
def asked_by(command: str, owner: str, flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """Lets errors about options that a command shares with another one name the command that was run.

    Args:
        owner: the other command, which the errors name. flags: its flags that have other names here.
    """
    try:
        yield
    except UsageError as error:
        for name in ("what", "where", "hint"):
            said = getattr(error, name).replace(f"effconv {owner} --help", f"effconv {command} --help")
            said = f"effconv {command}" if said == f"effconv {owner}" else said
            setattr(error, name, FLAG.sub(lambda match: (flags or {}).get(match[0], match[0]), said))
        raise


def parse_size(text: str | int, where: str = "--max-shard-size", such_as: str = "5GB or 500MB") -> int:
    """Parses a size such as 5GB, 500MB, 16G, 2GiB or 1000000 into bytes.

    Raises:
        UsageError: for anything else.
    """
    decimal = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    units = {"": 1, "B": 1, **decimal, **{f"{letter}B": size for letter, size in decimal.items()}}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    number = str(text).strip()
    unit = number.lstrip("0123456789.").strip().upper()
    amount = number[: len(number) - len(unit)].strip() if unit else number
    try:
        size = int(float(amount) * units[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UsageError(f"{text!r} is not a size", where=where, hint=f"give a size such as {such_as}")
    return size


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that all converting commands share."""

    output: Path | None = option(
        None,
        "Output folder. [default: TARGET-SOURCE-LENGTH in the current folder, such as lsg-bert-base-uncased-4096]",
        short="-o",
    )
    architecture: str | None = option(
        None, "Head of the new model, such as ForSequenceClassification. [default: the source's]"
    )
    seed: int = option(123, "Random seed for new tensors.")
    dtype: DTypeName | None = option(None, "Cast the weights to this type. [default: keep]")
    drop: tuple[str, ...] = option(
        (),
        "Leave out stored tensors of this name, such as 'cls.species.*'. Can be repeated.",
        metavar="PATTERN",
    )
    max_shard_size: str = option("5GB", "Maximum size of one weights file, such as 500MB.")
    overwrite: bool = option(False, "Replace a non-empty output folder, after the new one is complete.")
    verify: bool = option(True, "Load the new repo in a fresh process and check it before it is saved.")
    keep_failed: bool = option(False, "Keep a repo that fails its checks as OUTPUT.failed, for inspection.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub source. [default: main]", panel="Hub")
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel="Hub")
    allow_pickle: bool = option(
        False,
        "Load .bin files with pickled objects, which can run code.",
        panel="Dangerous: only for sources you trust",
    )
    trust_remote_code: bool = option(
        False,
        "Allow the Python code of the source to run in the checks.",
        panel="Dangerous: only for sources you trust",
    )

    def __post_init__(self) -> None:
        """Raises UsageError for invalid values."""
        choices = ("float32", "float16", "bfloat16")
        if self.dtype is not None and self.dtype not in choices:
            raise UsageError(f"unknown dtype {self.dtype!r}", where="--dtype", hint="use one of " + ", ".join(choices))
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise UsageError(
                f"--seed must be an integer from 0 to 2^63 - 1, got {self.seed!r}",
                where="--seed",
                hint="give a number such as 123",
            )
        drop: object = self.drop  # Python users may give one pattern
        object.__setattr__(self, "drop", (drop,) if isinstance(drop, str) else tuple(self.drop))
        parse_size(self.max_shard_size)
        if self.keep_failed and not self.verify:
            raise UsageError(
                "--keep-failed needs checks, and --no-verify turns them off",
                where="--keep-failed --no-verify",
                hint="pass only one of the two",
            )
