"""The process that runs one model: reads commands from stdin, one a line as JSON, and answers each with one line.

Run as `python -m effconv.bench.worker` by `bench.whole`, never by hand. The first command is the model:

    {"subject": ..., "dtype": ..., "device": ...}     → {"resident": bytes} or {"failed": why}

then cases, one at a time. The first answer of a case comes after a warm-up and one run whose memory was measured:

    {"length": ..., "rows": ..., "real": [...], "train": ..., "threads": ..., "set": {...}}
                                                      → {"peak": bytes, "working": bytes} or {"failed": why}
    "go"                                              → {"seconds": of one run}
    "end"                                             → {}

On a CPU, every case is a fork of the process that has loaded the model: as fresh as a new one, and the memory of one
case is not that of another. The process itself never computes on more than one thread, so that forks can.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import torch
from torch import Tensor

from . import memory
from .models import build
from .timing import clock

WARM_UP = 32  # tokens of a first run, which loads what every later one uses
FIRST_ID = 5  # below are special tokens, in the vocabularies that have them
LEARNING_RATE = 1e-5


def serve(commands: TextIO, say: Callable[[Mapping[str, Any]], None]) -> None:
    """Answers until the commands end."""
    job = json.loads(commands.readline())
    torch.set_num_threads(1)
    if job["device"] != "cpu" and not _available(job["device"]):
        return say({"failed": f"no device {job['device']} on this machine", "usage": True})
    try:
        model = build(job["subject"], job["dtype"])
    except Exception as error:
        return say({"failed": reason(error)})
    read_weights(model)
    held = memory.resident()
    say({"resident": held, "parameters": sum(parameter.numel() for parameter in model.parameters())})
    forks = job["device"] == "cpu" and sys.platform == "linux"
    for line in iter(commands.readline, ""):
        case = json.loads(line)
        if not forks:
            run_case(model, case, job["device"], held, commands, say)
            continue
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as score:
                    score.write(b"1000")  # where memory runs out, this process goes, and not somebody else's
                run_case(model, case, job["device"], held, commands, say)
                status = 0
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended:
            say({"died": True, "failed": "out of memory" if ended == -9 else f"the process ended with {ended}"})
    return None


def run_case(
    model: Any,
    case: Mapping[str, Any],
    device: str,
    held: int | None,
    commands: TextIO,
    say: Callable[[Mapping[str, Any]], None],
) -> None:
    """Runs one case as commands say."""
    try:
        run, found = prepared(model, case, device, held)
    except Exception as error:
        return say({"failed": reason(error)})
    say(found)
    now = clock(case["threads"] if device == "cpu" else 0)
    for line in iter(commands.readline, ""):
        if json.loads(line) == "end":
            return say({})
        begin = now()
        run()
        say({"seconds": now() - begin})
    return None


def prepared(
    model: Any, case: Mapping[str, Any], device: str, held: int | None
) -> tuple[Callable[[], None], dict[str, Any]]:
    """What one run is, after a warm-up and one run; and the peak of that one's memory (bytes).

    `working` is what the run took beyond the loaded model; `peak` adds what the process held then: `held` on a CPU.
    """
    torch.set_num_threads(case["threads"])
    if case["set"]:
        for name, value in case["set"].items():
            setattr(model.config, name, value)
        model.config.validate_lsg()
    model.to(device)
    step = training_step(model) if case["train"] else forward(model)
    short = min(WARM_UP, case["length"])
    step(*inputs(model, 1, short, [short], device))
    if hasattr(model, "set_attention_type"):  # BigBird leaves its sparse attention for good once it met a short text
        model.set_attention_type("block_sparse")
    batch = inputs(model, case["rows"], case["length"], case["real"], device)
    read_weights(model)
    if device == "cpu":
        before = memory.begin()
        step(*batch)
        if before is None or held is None:
            return lambda: step(*batch), {"peak": None, "working": None}
        working = max(0, memory.peak() - before)
        return lambda: step(*batch), {"peak": held + working, "working": working}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step(*batch)
    peak = torch.cuda.max_memory_allocated(device)

    def synchronised() -> None:
        step(*batch)
        torch.cuda.synchronize(device)

    synchronised()
    return synchronised, {"peak": peak, "working": peak - before}


def read_weights(model: Any) -> None:
    """Reads a value of every page of the weights: those that are mapped from a file count as memory once they are."""
    for parameter in model.parameters():
        parameter.detach().flatten()[:: 1024 // parameter.element_size()].sum()


def inputs(model: Any, rows: int, length: int, real: list[int], device: str) -> tuple[Tensor, Tensor]:
    """Random ids and their mask, (rows, length) each: row i has real[i] tokens, the rest is padding."""
    vocabulary = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(min(FIRST_ID, vocabulary - 1), vocabulary, (rows, length), generator=generator)
    mask = torch.arange(length) < torch.tensor(real)[:, None]
    pad = getattr(model.config, "pad_token_id", None)
    ids = ids.masked_fill(~mask, 0 if pad is None else int(pad))
    return ids.to(device), mask.long().to(device)


def forward(model: Any) -> Callable[[Tensor, Tensor], None]:
    model.eval()

    @torch.inference_mode()
    def step(ids: Tensor, mask: Tensor) -> None:
        model(input_ids=ids, attention_mask=mask)

    return step


def training_step(model: Any) -> Callable[[Tensor, Tensor], None]:
    """Forward with the config's dropout, the mean square of the last states as the loss, backward, AdamW."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step(ids: Tensor, mask: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        states = model(input_ids=ids, attention_mask=mask)[0]
        states.float().square().mean().backward()
        optimizer.step()

    return step


def reason(error: BaseException) -> str:
    """One line; every way to run out of memory by its name."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return "out of memory"
    return f"{type(error).__name__}: {text[:300]}"


def _available(device: str) -> bool:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True


def main() -> None:
    """Speaks on what was stdout; whatever models print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    serve(sys.stdin, say)


if __name__ == "__main__":
    main()
    os._exit(0)  # all is said; to take torch and transformers down module by module would keep the user waiting
