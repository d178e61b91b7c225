"""How the command line ends: signals, a reader that has gone away, and the line on stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

import typer


def signals_as_ctrl_c() -> list[int]:
    """Lets SIGTERM and SIGHUP end a run as Ctrl-C does, with clean-up and report; returns those received."""
    from .convert.io.system import ending_signals

    came: list[int] = []

    def ended(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        raise KeyboardInterrupt

    for number in ending_signals():
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, ended)
    return came


def stop(signals: list[int], message: str) -> NoReturn:
    from .convert.errors import StoppedError

    complain(message)
    sys.exit(128 + signals[0] if signals else StoppedError.exit_code)


def end_unread() -> NoReturn:
    """Exits quietly with the exit code of SIGPIPE, as programs do when the reader of their output has closed it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is still buffered is discarded at exit
    sys.exit(128 + signal.SIGPIPE)


def complain(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr is closed
        typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(message, err=True)
