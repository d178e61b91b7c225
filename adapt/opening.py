"""How every training of a repo begins and stops: what can be trained here, where the result goes, what is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..convert.errors import EffconvError, OutputError, StoppedError, UnsupportedError
from ..convert.families.registry import ENCODER_DECODERS
from ..convert.io.staging import check_apart, check_output, check_room, output_errors
from ..convert.repo.old_card import old_card
from ..convert.repo.own_modules import average_of
from ..convert.target import Target

CHANGEABLE = (
    "resume",
    "overwrite",
    "output",
    "verify",
    "token",
    "offline",
    "tensorboard",
)  # from a run to its --resume


class Kept(Protocol):
    """The checkpoints of a run."""

    def last(self) -> Path | None: ...
    def clear(self) -> None: ...


def require_trainable(folder: Path, manifest: Mapping[str, Any], target: Target, command: str) -> None:
    """Raises UnsupportedError for a repo that this command cannot train on text."""
    refuse_pieces(folder)
    if target.weights_format.library != "transformers":
        raise UnsupportedError("JAX repos cannot be trained here", where=str(folder), hint="effconv jax2torch first")
    if manifest["family"] in ENCODER_DECODERS:
        raise UnsupportedError(
            f"effconv {command} cannot train encoder-decoder models",
            where=str(folder),
            hint="train the repo with Seq2SeqTrainer of transformers",
        )


def refuse_pieces(folder: Path) -> None:
    """Raises UnsupportedError for a repo whose whitening is of the weights as they are."""
    if average_of(folder) is not None:
        raise UnsupportedError(
            "the repo whitens the embeddings of these weights: after a training the whitening would be wrong",
            where=str(folder),
            hint="train the repo from before effconv pieces, then run effconv pieces on the result",
        )


def output_of(folder: Path, output: Path | None, ending: str) -> Path:
    """Where the result goes: by default to the repo's name with an ending."""
    return Path(os.path.expanduser(output or folder.name + ending)).absolute()


def require_place(
    folder: Path, manifest: Mapping[str, Any], output: Path, *, overwrite: bool, times: int, teacher: Path | None = None
) -> None:
    """Raises an error where the result could not be written.

    Args:
        folder: of the repo. times: its size as often is needed on the disk, checkpoints included.
    """
    old_card(folder, manifest)  # raises where it could not be written anew
    with output_errors(output):
        check_apart(folder, output)
        check_apart(teacher, output)
        check_output(output, overwrite=overwrite, of_models=True)
        size = sum((folder / name).stat().st_size for name in manifest["files"])
        check_room(output.parent, times * size + (64 << 20))


def by_name(values: Sequence[str]) -> list[str]:
    """Files by their name, never by their path; what is no file, such as a dataset of the Hub, as it is."""
    return [Path(item).name if Path(item).exists() else item for item in values]


def first_alone(accelerator: Any, work: Callable[[], None]) -> None:
    """Lets the first process work; all of them raise what it raised."""
    from accelerate.utils import broadcast_object_list

    raised: list[EffconvError | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except EffconvError as error:
            raised = [error]
    broadcast_object_list(raised)
    if raised[0] is not None:
        raise raised[0]


@contextmanager
def stoppable(checkpoints: Kept, every: str, log: Path | None = None) -> Iterator[None]:
    """A training that says what is kept of it if it is interrupted, and leaves no checkpoints without a state.

    Args:
        every: the option that says when checkpoints are made. log: a file that goes with the checkpoints.
    """
    try:
        yield
    except (KeyboardInterrupt, OutputError) as error:
        if checkpoints.last() is None:
            checkpoints.clear()
            if log is not None:
                log.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            raise
        raise _stopped(checkpoints, every) from None


def _stopped(checkpoints: Kept, every: str) -> StoppedError:
    last = checkpoints.last()
    if last is None:
        return StoppedError(
            "interrupted before the first checkpoint; no output was written",
            where=every,
            hint=f"run the command again to start from the beginning; {every} sets the steps between checkpoints",
        )
    return StoppedError(
        f"interrupted; the state of {last.name.replace('-', ' ')} is kept",
        where=str(last),
        hint="continue with --resume",
    )
