"""`--push-to-hub` of a converting command: what can fail at once does so before it converts, the push comes after."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ..convert.errors import EffconvError, UsageError
from ..convert.options import Progress, Settings, flag_of
from .connection import refuse_offline, require_repo_id
from .content import require_identifier
from .options import PushOptions
from .push import Pushed, check_reachable, push


def require_sound_sharing(options: PushOptions) -> None:
    """Raises UsageError for what a look at the options shows: a bad name or license, options without a push."""
    if options.push_to_hub is not None:
        require_repo_id(options.push_to_hub, "--push-to-hub")
        require_identifier(options.license)
        return
    given = [_flag(field, options) for field in fields(options) if getattr(options, field.name) != field.default]
    if given:
        raise UsageError(
            f"{', '.join(given)} {'applies' if len(given) == 1 else 'apply'} only with --push-to-hub",
            where=", ".join(given),
            hint="pass --push-to-hub user/name too",
        )


def _flag(field: Field[Any], options: PushOptions) -> str:
    """The flag as it was given: of --private/--public the first for True, the second for False."""
    on, _, off = flag_of(field).partition("/")
    return off if off and not getattr(options, field.name) else on


def check_sharing(options: PushOptions, settings: Settings) -> None:
    """Raises what would keep the push from beginning: offline mode, a bad name, a bad token, options without a push."""
    require_sound_sharing(options)
    if options.push_to_hub is None:
        return
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
