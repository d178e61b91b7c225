"""Keeps a conversion that failed its checks (`--keep-failed`), in a form that no command accepts as a repo.

The kept folder has `effconv-failed.json` instead of effconv.json, and a README that explains what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .errors import CheckFailedError, joined_hints
from .io.staging import Staging
from .repo.manifest import CARD, FAILED

AGAIN = "run again with --keep-failed to keep the failed repo for inspection"


def refused(error: CheckFailedError, staging: Staging, manifest: Mapping[str, Any], *, keep: bool) -> CheckFailedError:
    """Adds to the error where the failed repo was kept or, if it was not, the option that keeps it."""
    if not keep:
        error.hint = joined_hints(error.hint, AGAIN)
        return error
    try:
        _mark(staging, error, manifest)
        kept = staging.keep_failed(FAILED)
    except OSError as problem:
        error.hint = joined_hints(error.hint, f"the failed repo could not be kept ({problem.strerror})")
        return error
    says = f"{FAILED} lists the failed checks" + (f" (in {kept})" if error.where else "")
    error.where = error.where or str(kept)
    error.hint = joined_hints(error.hint, f"{says}; effconv does not load or push that folder")
    return error


def _mark(staging: Staging, error: CheckFailedError, manifest: Mapping[str, Any]) -> None:
    """Marks the staging folder as failed, before it is renamed: no kept folder is ever unmarked."""
    checks = [asdict(result) for result in error.measured]
    stated = {**manifest, "failed": error.what.splitlines(), "measurements": {"checks": checks}}
    text = json.dumps(stated, indent=2, ensure_ascii=False) + "\n"
    (staging.folder / FAILED).write_text(text, encoding="utf-8")
    (staging.folder / CARD).write_text(
        f"# A conversion that failed its checks\n\n"
        f"Do not use or share this folder. effconv {manifest['effconv']} made it from {manifest['source']['name']} "
        f"({manifest['target']}), and kept it for inspection (`--keep-failed`):\n\n```\n{error.what}\n```\n\n"
        f"`{FAILED}` has the measured value of every check.\n",
        encoding="utf-8",
    )
