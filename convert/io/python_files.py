"""Python files of a source, read as text: which files beside it one of them imports. Nothing is run."""

from __future__ import annotations

import re

# How transformers and sentence-transformers find the files that must come along.
RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.([\w.]+)\s+import|import\s+\.([\w.]+)\s*$)", re.MULTILINE)


def imported_files(text: str) -> list[str]:
    """Names of the files that a Python file imports relatively, `from .module import` among them, in order.

    Args:
        text: of the Python file.
    """
    modules = (first or second for first, second in RELATIVE_IMPORT.findall(text))
    return [f"{module.lstrip('.').replace('.', '/')}.py" for module in modules]
