"""Fine-tuning in processes of their own, forked from one that has imported all: killed ones, and two together.

`python finetune_worker.py NAME REPO DATA EVAL PLACE` prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import datasets  # noqa: F401  what a run imports on its way is imported here, once for all children
import sklearn.metrics  # noqa: F401
from adapt_worker import forked, status_of
from safetensors.numpy import load_file

import effconv
import effconv.finetune.results
import effconv.finetune.run
import effconv.finetune.trainer

STEPS, EVERY = 6, 2


def finetune(output: Path, **options: object) -> object:
    options = {"batch": 4, "steps": STEPS, "evaluate_every": EVERY, "learning_rate": 1e-3, **options}
    return effconv.finetune(REPO, data=DATA, eval=EVAL, output=output, verify=False, **options)


def kept_last() -> None:
    """Makes the last state the one that is kept: a tie of metrics would keep another."""
    effconv.finetune.trainer._Steps.on_evaluate = _counted


def _counted(self, args, state, control, metrics=None, **_):
    for name in metrics:
        if name == f"eval_{self.metric}":
            metrics[name] = float(state.global_step)


def killed(moments: list[str]) -> dict[str, tuple[int, float]]:
    """By moment: the step of the checkpoint that was left, and the largest difference to an unbroken run's weights."""
    kept_last()
    assert status_of(forked(lambda: finetune(PLACE / "whole"))) == 0
    found = {}
    for moment in moments:
        output = PLACE / moment.replace(" ", "-")

        def ended(output=output, moment=moment):
            hit(moment)
            finetune(output, watch=lambda tick: stop(moment, tick.step))

        assert status_of(forked(ended)) == -signal.SIGKILL, moment
        assert not output.exists(), moment
        beside = output.with_name(output.name + ".checkpoints")
        left = [path for path in beside.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
        kept = max((int(path.name.split("-")[1]) for path in left), default=0)
        rest = {"resume": True} if kept else {"overwrite": True}
        assert status_of(forked(lambda o=output, r=rest: finetune(o, **r))) == 0, moment
        assert not beside.exists()
        found[moment] = (kept, difference(PLACE / "whole", output))
    return found


def stop(moment: str, step: int) -> None:
    if moment == f"step {step}":
        os.kill(os.getpid(), signal.SIGKILL)


def hit(moment: str) -> None:
    """Kills this process while the second checkpoint is written."""
    import torch
    from transformers import TrainerState

    save, write = torch.save, TrainerState.save_to_json

    def dying_save(value, file, *args, **options):
        if moment == "optimizer half written" and "checkpoint-4" in str(file):
            Path(file).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return save(value, file, *args, **options)

    def dying_write(self, path):
        if moment == "before the end" and "checkpoint-4" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, path)

    torch.save, TrainerState.save_to_json = dying_save, dying_write


def together(**options: object) -> dict[str, float]:
    """Trains alone and as two processes; the largest difference between their weights, and how far they moved."""
    kept_last()
    options = {"dropout": 0.0, "steps": 12, "evaluate_every": 6, **options}
    assert status_of(forked(lambda: finetune(PLACE / "one", **options))) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [
        forked(lambda: finetune(PLACE / "two", **options), RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(2)
    ]
    assert [status_of(child) for child in ranks] == [0, 0]
    record = json.loads((PLACE / "two" / "effconv.json").read_text())["measurements"]["finetune"][0]
    alone = json.loads((PLACE / "one" / "effconv.json").read_text())["measurements"]["finetune"][0]
    assert record["spent"]["processes"] == 2
    metrics = [abs(record["before"][name] - alone["before"][name]) for name in record["metrics"]]
    moved = difference(REPO, PLACE / "one")
    return {"largest": difference(PLACE / "one", PLACE / "two"), "moved": moved, "metrics": max(metrics)}


def difference(one: Path, two: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, two))
    compared = a.keys() & b.keys() - {"qa_outputs.bias"}  # the same for all positions: only rounding moves it
    return max(float(abs(a[name] - b[name]).max()) for name in compared)


WORK = {
    "daily": lambda: {"killed": killed(["step 3"]), "together": together()},
    "killed": lambda: killed([*(f"step {i}" for i in range(1, STEPS)), "optimizer half written", "before the end"]),
    "tokens": lambda: together(task="tokens", accumulation=2),
    "question": lambda: together(task="question", max_length=32),
    "summarize": lambda: together(task="summarize", target_length=8),
}

if __name__ == "__main__":
    REPO, DATA, EVAL, PLACE = (Path(word) for word in sys.argv[2:])
    print(json.dumps(WORK[sys.argv[1]]()))
