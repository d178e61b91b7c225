"""Runs scripts one after the other, each in a fork of one process that has imported what they all need.

    python recipes_worker.py SCRIPT...

What a script writes goes to SCRIPT.log, and its exit status to SCRIPT.status. A script sees nothing of the others.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path

import datasets  # noqa: F401 - each of these takes seconds
import peft  # noqa: F401
import sentence_transformers  # noqa: F401
from transformers import BertModel, Trainer  # noqa: F401


def run(script: str) -> None:
    """In a fork; never returns."""
    log = os.open(f"{script}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        runpy.run_path(script, run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


for script in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        run(script)
    Path(f"{script}.status").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
