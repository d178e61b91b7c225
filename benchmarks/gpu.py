"""What effconv's code does on a GPU: is it right, how fast is it, does it train.

    python -m benchmarks.gpu [--out FILE.json] [--parts correctness layers models training] [--published FILE]
    python -m benchmarks.gpu --device cpu --tiny --out FILE.json
    python -m benchmarks.gpu --show FILE.json

Needs a checkout with its development requirements, and CUDA; `--device cpu --tiny` is a trial of the command itself,
whose figures say nothing of a GPU. The file is written after every entry, so that a run that is cut off leaves what it
has. `--show` prints its tables, or puts them into docs/reference/gpu.md with --into; --plot draws the layer's times.

The exit code is 1 if something was not right or not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PARTS = ("correctness", "layers", "models", "training")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few small cases of each part")
    parser.add_argument("--only", default="", help="of correctness, the jobs whose name contains this")
    parser.add_argument("--processes", type=int, help="how many jobs of correctness run at once; 0 for this process")
    parser.add_argument("--seconds", type=float, default=240, help="the time for correctness")
    parser.add_argument("--published", type=Path, help="lsg_self_attention.py of the published package")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a JSON file")
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="with --show: put them there, into the block `gpu`"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="with --show: draw the layer's times")
    asked = parser.parse_args(arguments)
    if asked.show:
        return show(asked.show, asked.into, asked.plot)
    return measure(asked)


def show(results: Path, into: Path | None, picture: Path | None) -> int:
    """Prints the tables or puts them into a Markdown file, and draws the plot if one is asked for."""
    from benchmarks import gpu_tables
    from effconv.convert.repo.card_blocks import with_block

    found = json.loads(results.read_text(encoding="utf-8"))
    if into is None:
        print(gpu_tables.markdown(found))
    else:
        into.write_text(with_block(into.read_text("utf-8"), "gpu", gpu_tables.markdown(found)), encoding="utf-8")
    if picture is not None:
        gpu_tables.plot(found, picture)
    return 0


def measure(asked: argparse.Namespace) -> int:
    import torch

    from benchmarks import gpu_tables

    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this measurement needs an NVIDIA GPU: torch.cuda.is_available() is False here")
    results: dict[str, Any] = {"machine": machine(asked.device, asked.tiny)}
    print(json.dumps(results["machine"]), flush=True)
    for part in asked.parts:
        begin = time.perf_counter()
        results[part] = []
        for entry in entries(part, asked):
            results[part].append(entry)
            print(line(part, entry), flush=True)
            results[f"{part}_seconds"] = round(time.perf_counter() - begin, 1)
            if asked.out:
                asked.out.write_text(gpu_tables.text(results), encoding="utf-8")
    return 0 if all(sound(part, entry) for part in asked.parts for entry in results[part]) else 1


def entries(part: str, asked: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """What a part yields; each is imported when it is asked for, since it may fail by itself."""
    if part == "correctness":
        from benchmarks import gpu_correctness

        processes = max(1, min(12, (os.cpu_count() or 2) - 2)) if asked.processes is None else asked.processes
        return gpu_correctness.run(asked.device, asked.tiny, processes, asked.seconds, asked.only)
    from benchmarks import gpu_layers

    if part == "layers":
        shapes = [(1, gpu_layers.SHORTEST + 127), (2, 512)] if asked.tiny else gpu_layers.SHAPES
        return gpu_layers.run(asked.device, shapes, asked.published)
    if part == "models":
        from benchmarks import gpu_models

        shapes = [(1, 512), (2, 512)] if asked.tiny else gpu_models.SHAPES
        return gpu_models.run(asked.device, asked.tiny, ("auto", "plain"), shapes)
    from benchmarks import gpu_training

    return gpu_training.run(asked.device, asked.tiny, 1.0 if asked.tiny else 12.0)


def sound(part: str, entry: dict[str, Any]) -> bool:
    """Whether an entry is right, or measured. Layers that are only compared with may lack what a length needs."""
    if part == "correctness":
        return not entry["error"] and all(far <= limit for far, limit in entry["checks"].values())
    return "error" not in entry or "LSG" not in entry.get("layer", "LSG")


def line(part: str, entry: dict[str, Any]) -> str:
    """An entry as a line of progress."""
    if part != "correctness":
        return json.dumps({key: round(x, 3) if isinstance(x, float) else x for key, x in entry.items()})
    if entry["error"]:
        return f"ERROR  {entry['case']}\n{entry['error']}"
    wrong = {what: far for what, (far, limit) in entry["checks"].items() if not far <= limit}
    return f"WRONG  {entry['case']}: {wrong}" if wrong else f"right  {entry['case']}"


def machine(device: str, tiny: bool) -> dict[str, Any]:
    """The card, versions, and what limits it, measured."""
    import torch
    import transformers

    from benchmarks import gpu_layers

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    flops, bandwidth = gpu_layers.limits(device)
    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else "CPU, as a trial", "tiny": tiny,
        "torch": torch.__version__, "triton": version, "transformers": transformers.__version__,
        "cuda": torch.version.cuda, "tflops": flops / 1e12, "gb_per_second": bandwidth / 1e9,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
