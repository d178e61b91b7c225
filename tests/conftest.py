"""Fixtures of several files: processes that begin with torch and transformers imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

import preforked as forks
import pytest
from environments import stranger

from effconv.convert import verify


@pytest.fixture(scope="session")
def preforked(tmp_path_factory) -> Iterator[Callable[[str], list[str]]]:
    """Gives the command that stands for a Python: its processes begin with torch and transformers imported.

    They know nothing of effconv and of this process. What is said of a fresh process itself needs one of its own.
    """
    with ExitStack() as servers:

        @cache
        def command(python: str) -> list[str]:
            if not hasattr(os, "pidfd_open"):
                return [python]
            folder = tmp_path_factory.mktemp("forks")
            server = subprocess.Popen(
                [python, forks.__file__, "serve", str(folder / "socket")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**stranger(folder), "OMP_NUM_THREADS": "1"},
            )
            servers.enter_context(server)  # which closes its stdin, and so ends it
            assert server.stdout.readline() == b"ready\n"
            return [sys.executable, "-I", "-S", forks.__file__, "run", str(folder / "socket")]

        yield command


@pytest.fixture(scope="session")
def verified_in_forks(preforked) -> Callable[[], AbstractContextManager[None]]:
    """Gives a context in which conversions are verified in processes of `preforked`."""

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verify, "PYTHON", preforked(sys.executable))
            yield

    return context
