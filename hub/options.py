"""The options of a push that every converting command takes beside its own."""

from __future__ import annotations

from dataclasses import dataclass

from ..convert.options import option

PANEL = "Share"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where a converted repo goes, and how."""

    push_to_hub: str | None = option(None, "Push the repo to this Hub id (user/name) once it stands.", panel=PANEL)
    private: bool | None = option(
        None,
        "Of a Hub repo that the push makes. [default: private where the source is gated or private]",
        flag="--private/--public",
        panel=PANEL,
    )
    license: str | None = option(
        None, "License, where the source's card names none. [default: the source's]", panel=PANEL
    )
    create_pr: bool = option(False, "Open a pull request instead of committing.", panel=PANEL)
    commit_message: str | None = option(None, "First line of the commit.", panel=PANEL)
