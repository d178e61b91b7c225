"""Training in processes of their own, forked from one that has imported all: killed ones, and two that work together.

`python adapt_worker.py kill|processes REPO TEACHER TEXT PLACE` prints what it found as JSON.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate  # noqa: F401  what a run imports on its way is imported here, once for all children
import torch
import transformers.models.auto.modeling_auto
import transformers.models.bert.modeling_bert  # noqa: F401
from safetensors.numpy import load_file

import effconv
import effconv.adapt.checkpoints
import effconv.adapt.results
import effconv.adapt.run
import effconv.adapt.trainer

STEPS, EVERY = 6, 2
effconv.adapt.results.draw = lambda path, record: False  # a third of a short run
gc.freeze()  # what is imported here need not be looked through in every child


def forked(work: Callable[[], object], **environment: str) -> int:
    """A child that does this work."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(environment)
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def adapt(output: Path, repo: Path | None = None, **options: object) -> object:
    options = {"lengths": "64", **options}
    return effconv.adapt(repo or REPO, teacher=TEACHER, data=TEXT, output=output, verify=False, **options)


def kill() -> dict[str, tuple[int, int, bool]]:
    """By moment: the step of the checkpoint that was left, the step of the kill, whether the weights are the same."""
    options = {"steps": STEPS, "checkpoint_every": EVERY, "batch_tokens": 128, "evaluate_every": 2}
    assert status_of(forked(lambda: adapt(PLACE / "whole", **options))) == 0
    wanted = (PLACE / "whole" / "model.safetensors").read_bytes()
    found = {}
    for moment in [*(f"step {i}" for i in range(1, STEPS)), "before rename", "after rename", "state half written"]:
        output = PLACE / moment.replace(" ", "-")
        reached = PLACE / f"{output.name}.reached"

        def ended(output=output, moment=moment, reached=reached):
            steps = [0]
            hit(moment, steps)

            def watch(tick):
                steps.append(tick.step)
                reached.write_text(str(tick.step))
                if moment == f"step {tick.step}":
                    os.kill(os.getpid(), signal.SIGKILL)

            adapt(output, watch=watch, **options)

        assert status_of(forked(ended)) == -signal.SIGKILL, moment
        assert not output.exists(), moment
        whole = [path for path in output.with_name(output.name + ".checkpoints").glob("step-*") if path.suffix == ""]
        kept = max((int(path.name[5:]) for path in whole), default=0)
        rest = {"resume": True} if kept else {"overwrite": True}
        assert status_of(forked(lambda o=output, r=rest: adapt(o, **r, **options))) == 0, moment
        same = (output / "model.safetensors").read_bytes() == wanted
        found[moment] = (kept, int(reached.read_text()), same)
    return found


def hit(moment: str, steps: list[int]) -> None:
    """Kills this process inside the second checkpoint's writing."""
    rename, save = Path.rename, torch.save

    def dying_rename(self, target):
        if self.name.endswith("000004.unfinished"):
            if moment == "after rename":
                rename(self, target)
            if moment.endswith("rename"):
                os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    def dying_save(value, file, *args, **options):
        if moment == "state half written" and "000004" in str(file):
            Path(file).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return save(value, file, *args, **options)

    Path.rename, torch.save = dying_rename, dying_save


def processes() -> dict[str, dict[str, float]]:
    """By objective: the largest difference between the weights of one process and of two, and how far they moved."""
    order = itertools.count()
    effconv.adapt.trainer.score = lambda rows: next(order)  # the last state is kept
    shared = {"steps": 20, "learning_rate": 1e-3, "evaluate_every": 20, "checkpoint_every": 0}
    long = {"lengths": "64,128", "batch_tokens": 384, "piece_tokens": 8}  # of 128 tokens: three texts a step
    return {
        "attention": adapted(REPO, **shared, objective="attention", batch_tokens=320),
        "contrastive": adapted(REPO.with_name("lsg"), **shared, objective="hidden+contrastive", **long),
    }


def adapted(repo: Path, **options: object) -> dict[str, float]:
    return one_and_two(repo, PLACE / repo.name, lambda output: adapt(output, repo, **options), "adapt")


def one_and_two(repo: Path, place: Path, train: Callable[[Path], object], command: str) -> dict[str, float]:
    """Trains a repo alone and as two processes, with outputs in `place`."""
    assert status_of(forked(lambda: train(place / "one"))) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [
        forked(lambda: train(place / "two"), RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in range(2)
    ]
    assert [status_of(child) for child in ranks] == [0, 0]
    start, one, two = (load_file(folder / "model.safetensors") for folder in (repo, place / "one", place / "two"))
    record = json.loads((place / "two" / "effconv.json").read_text())["measurements"][command][0]
    assert record["spent"]["processes"] == 2
    return {
        "largest": max(float(abs(one[name] - two[name]).max()) for name in one),
        "moved": max(float(abs(one[name] - start[name]).max()) for name in one),
    }


if __name__ == "__main__":
    REPO, TEACHER, TEXT, PLACE = (Path(word) for word in sys.argv[2:])
    print(json.dumps({"kill": kill, "processes": processes}[sys.argv[1]]()))
