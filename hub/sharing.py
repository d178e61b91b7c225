"""`--push-to-hub` of a converting command: what can fail at once does so before it converts, the push comes after."""

from __future__ import annotations

from pathlib import Path

from ..convert.errors import EffconvError, UsageError
from ..convert.options import Progress, Settings
from .connection import refuse_offline
from .content import require_identifier
from .options import PushOptions
from .push import Pushed, check_reachable, push


def check_sharing(options: PushOptions, settings: Settings) -> None:
    """Raises what would keep the push from beginning: offline mode, a bad name, a bad token, options without a push."""
    if options.push_to_hub is None:
        if options != PushOptions():
            raise UsageError(
                "an option of the push without a push",
                where="--private, --license, --create-pr, --commit-message",
                hint="pass --push-to-hub user/name too",
            )
        return
    require_identifier(options.license)
    refuse_offline(settings.offline)
    check_reachable(options.push_to_hub, settings.token, offline=settings.offline, create_pr=options.create_pr)


def push_converted(output: Path, options: PushOptions, settings: Settings, progress: Progress) -> Pushed:
    """Pushes a repo that has just been published.

    Raises:
        EffconvError: as `push`; it says that the folder stands.
    """
    try:
        return push(
            output,
            options.push_to_hub,
            private=options.private,
            license=options.license,
            create_pr=options.create_pr,
            commit_message=options.commit_message,
            token=settings.token,
            offline=settings.offline,
            progress=progress,
        )
    except EffconvError as error:
        again = f"the converted repo stands: effconv push-to-hub {output} {options.push_to_hub}"
        error.hint = f"{error.hint}; {again}" if error.hint else again
        raise
