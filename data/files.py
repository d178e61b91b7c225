"""Names of files and datasets: which are refused, and which have columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..convert.errors import BadInputError, UsageError
from ..convert.text import require_readable

TABULAR = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # and their names in datasets


TEXTS = (".txt", ".text", ".md")

OTHER_TABLES = {".tsv": ".csv", ".tab": ".csv", ".psv": ".csv", ".ndjson": ".jsonl"}  # not read, and what is instead


PATHS = ("/", "./", "../", "~")  # what no dataset's name begins with


def require_files(names: Sequence[str], where: str) -> None:
    """Raises for folders, unreadable files, missing files and tables of forms that are not read.

    Args:
        names: files or datasets. where: the option that lists them.
    """
    for name in names:
        if Path(name).is_dir():
            raise UsageError(f"{name} is a folder", where=where, hint="give its files, such as folder/*.txt")
        if not Path(name).exists() and (name.startswith(PATHS) or Path(name).suffix.lower() in (*TABULAR, *TEXTS)):
            raise BadInputError(f"no such file: {name}", where=where, hint="check the name and the current folder")
    require_forms([Path(name) for name in names if Path(name).exists()], where)


def require_forms(files: Iterable[Path], where: str) -> None:
    """Raises BadInputError for tables of forms that are not read, and for files that cannot be opened.

    Args:
        where: the option that lists the files.
    """
    files = list(files)
    for path in files:
        if path.suffix.lower() in OTHER_TABLES:
            form = OTHER_TABLES[path.suffix.lower()]
            raise BadInputError(
                f"{path} is a table of a form that is not read ({path.suffix})",
                where=where,
                hint=f"write it as {form}. Text, .jsonl, .json, .csv and .parquet files are read",
            )
    require_readable(files, where, binary=[path for path in files if table_form(path) == "parquet"])


def table_form(path: str | Path) -> str | None:
    """What `datasets` calls the form of a file with columns, by its name; None of a text file."""
    return TABULAR.get(Path(path).suffix.lower())


def is_text(name: str) -> bool:
    """Whether an argument is a text file (there or misspelt) rather than a model."""
    path = Path(name)
    return not path.is_dir() and (path.exists() or path.suffix.lower() in (*TABULAR, *TEXTS))


def has_columns(name: str) -> bool:
    return table_form(name) is not None or not Path(name).exists()
