"""Names of files and datasets: which are refused, and which have columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..convert.errors import BadInputError, UsageError
from ..convert.text import require_readable

TABULAR = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # and their names in datasets


TEXTS = (".txt", ".text", ".md")


PATHS = ("/", "./", "../", "~")  # what no dataset's name begins with


def require_files(names: Sequence[str], where: str) -> None:
    """Raises for folders, unreadable text files and missing files.

    Args:
        names: files or datasets. where: the option that lists them.
    """
    for name in names:
        if Path(name).is_dir():
            raise UsageError(f"{name} is a folder", where=where, hint="give its files, such as folder/*.txt")
        if not Path(name).exists() and (name.startswith(PATHS) or Path(name).suffix in (*TABULAR, *TEXTS)):
            raise BadInputError(f"no such file: {name}", where=where, hint="check the name and the current folder")
    require_readable([Path(name) for name in names if Path(name).exists() and not has_columns(name)], where)


def is_text(name: str) -> bool:
    """Whether an argument is a text file (there or misspelt) rather than a model."""
    path = Path(name)
    return not path.is_dir() and (path.exists() or path.suffix in (*TABULAR, *TEXTS))


def has_columns(name: str) -> bool:
    return Path(name).suffix in TABULAR or not Path(name).exists()
