"""The options of a push that every converting command takes beside its own."""

from __future__ import annotations

from dataclasses import dataclass

from ..convert.options import option

PANEL = "Share on the Hub"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where a converted repo goes, and how."""

    push_to_hub: str | None = option(
        None, "Push to this Hub id (user/name) after the conversion succeeds.", panel=PANEL
    )
    private: bool | None = option(
        None,
        "Visibility of a newly created Hub repo. [default: private if the source is gated or private]",
        flag="--private/--public",
        panel=PANEL,
    )
    license: str | None = option(
        None, "License if the source's card names none, such as apache-2.0. [default: the source's]", panel=PANEL
    )
    create_pr: bool = option(False, "Open a pull request instead of committing.", panel=PANEL)
    commit_message: str | None = option(None, "First line of the commit message.", panel=PANEL)
