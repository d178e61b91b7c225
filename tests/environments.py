"""The two environments in which emitted repos must load: this one, and one with transformers 4."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parent.parent / ".venv-compat" / "bin" / "python"
COMPAT_PYTHON = os.environ.get("EFFCONV_COMPAT_PYTHON") or (str(_BESIDE) if _BESIDE.exists() else None)

needs_compat = [
    pytest.mark.compat,
    pytest.mark.skipif(
        not COMPAT_PYTHON,
        reason="no environment with transformers 4: `make venv-compat` makes one, or EFFCONV_COMPAT_PYTHON names it",
    ),
]
FIVE = pytest.param(sys.executable, id="transformers5")
FOUR = pytest.param(COMPAT_PYTHON, id="transformers4", marks=needs_compat)


def stranger(folder: Path) -> dict[str, str]:
    """The environment variables of a process that knows of no checkout, opens no socket and asks nothing."""
    variables = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables.pop("PYTHONPATH", None)
    return variables
