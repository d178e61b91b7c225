"""The code of a model that another program saved: it must be effconv's, of this version or of the one that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.errors import CheckFailedError, UnsupportedError, listing
from ..convert.families.grammar import Family
from ..convert.io.tensorfile import file_sha256
from ..convert.repo.emit import code_files
from ..convert.repo.heads import head_named
from ..convert.repo.manifest import belongs
from ..convert.repo.origin import code_sha256, own_code
from ..convert.repo.own_modules import own_modules
from ..convert.target import Target
from ..version import __version__


def missing_code(folder: Path, before: Mapping[str, Any], target: Target, family: Family) -> dict[str, str]:
    """The code files that the folder lacks, as {name: text}; all that it has are compared.

    Args:
        folder: where the model was saved. before: what is known of its repo: the hashes of its files, or one of its
            code.

    Raises:
        CheckFailedError: a file is not what effconv writes today, nor what it wrote for that repo.
    """
    own = head_named(target, family, str(before["architecture"]))
    if own is None:
        raise UnsupportedError(
            f"this effconv makes no {before['architecture']} from a {before['family']}",
            where=f"{folder}: config.json",
            hint="upgrade effconv",
        )
    today = {**code_files(target, family, own), **own_modules(folder)}
    there = {name: text for name, text in own_code(folder, before).items() if belongs(Path(name))}
    other = sorted(name for name, text in there.items() if today.get(name) != text)
    if not other:
        return {name: text for name, text in today.items() if name not in there}
    if before.get("code_sha256") == code_sha256(there):  # as it was when an older effconv made the repo
        return {}
    hashes = before.get("files") or {}
    changed = [name for name in other if hashes.get(name) != file_sha256(folder / name)]
    if not changed and all((folder / name).is_file() for name in hashes if name.endswith(".py") and "/" not in name):
        return {}
    raise CheckFailedError(
        f"code that effconv did not write:\n{listing([f'{name}: {_what(name, today)}' for name in changed or other])}",
        where=str(folder),
        hint="put the files of the repo that was trained in their place, or give that repo: "
        f"effconv adopt {folder} --from REPO",
    )


def _what(name: str, today: Mapping[str, str]) -> str:
    return f"differs from that of effconv {__version__}" if name in today else "no file of such a repo"
