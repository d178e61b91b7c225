"""Pretraining in processes of their own: a killed one that is continued, and two that work together.

`python pretrain_worker.py kill|processes REPO TEXT PLACE` prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from adapt_worker import forked, one_and_two, status_of

import effconv.pretrain.results
import effconv.pretrain.trainer

effconv.pretrain.results.draw = lambda path, record: False
RUN = {
    "documents": "heading", "length": 48, "batch_size": 5, "heldout_share": 0.2, "learning_rate": 1e-3,
    "objective": "mlm+nsp", "verify": False,
}  # fmt: skip


def kill() -> dict[str, object]:
    """The step of the checkpoint of a killed run, and whether continuing it gives the weights of an unbroken one."""
    options = {**RUN, "data": TEXT, "steps": 6, "checkpoint_every": 2, "dropout": 0.1}
    assert status_of(forked(lambda: effconv.pretrain(REPO, output=PLACE / "whole", **options))) == 0

    def die(tick: object) -> None:
        if tick.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = PLACE / "killed"
    assert status_of(forked(lambda: effconv.pretrain(REPO, output=killed, watch=die, **options))) == -signal.SIGKILL
    left = [path.name for path in killed.with_name("killed.checkpoints").glob("step-*")]
    assert status_of(forked(lambda: effconv.pretrain(REPO, output=killed, resume=True, **options))) == 0
    one, other = ((PLACE / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    lines = [json.loads(line)["step"] for line in killed.with_name("killed.log.jsonl").read_text().splitlines()]
    return {"left": left, "same": one == other, "lines": lines}


def processes() -> dict[str, float]:
    """The largest difference between the weights of one process and of two, and how far they moved."""
    options = {**RUN, "data": TEXT, "steps": 12, "checkpoint_every": 0, "dropout": 0.0}
    return one_and_two(REPO, PLACE, lambda output: effconv.pretrain(REPO, output=output, **options), "pretrain")


if __name__ == "__main__":
    REPO, TEXT, PLACE = (Path(word) for word in sys.argv[2:])
    print(json.dumps({"kill": kill, "processes": processes}[sys.argv[1]]()))
