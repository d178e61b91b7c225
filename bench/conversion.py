"""A whole conversion against what it cannot avoid: `cp`, `sync` and `sha256sum` of the same file.

Wall time of whole processes, interleaved, median of five, with the spread; peak memory of the conversion. The source is
a random checkpoint of BERT's size, made once in a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.families import BERT
from ..convert.family import shape_of
from ..convert.tensorfile import TensorFile

SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16},
}
PIECE = 1 << 20  # bytes made at a time: a child's peak memory counts what its parent held when it was started
COMMON = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522, "max_position_embeddings": 512,
    "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "pad_token_id": 0,
}  # fmt: skip


def make_source(folder: Path, size: str) -> Path:
    """A random BertForMaskedLM checkpoint with a WordPiece vocabulary."""
    folder.mkdir(parents=True)
    config: dict[str, Any] = {**COMMON, **SHAPES[size]}
    (folder / "config.json").write_text(json.dumps(config))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(config["vocab_size"] - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    weights = BERT.weights(config, BERT.head("ForMaskedLM"))
    base = {weight.name for weight in BERT.base_weights(config)}
    tensors = []
    for weight in weights:
        name = f"bert.{weight.name}" if weight.name in base else weight.name
        shape = shape_of(weight, config)
        tensors.append((name, "F32", shape, 4 * int(np.prod(shape))))
    file = TensorFile(folder / "model.safetensors", tensors)
    random = np.random.default_rng(0)
    for _, _, _, nbytes in tensors:
        for start in range(0, nbytes, PIECE):
            values = random.standard_normal(min(PIECE, nbytes - start) // 4, dtype=np.float32)
            file.append(memoryview(values * np.float32(0.02)).cast("B"))
    file.finish()
    return folder


def measure(size: str, runs: int) -> dict[str, Any]:
    """Medians and ranges of both, their ratio pair by pair, and the conversion's peak memory in bytes."""
    with tempfile.TemporaryDirectory(prefix="effconv-bench-", dir=os.environ.get("TMPDIR") or ".") as name:
        folder = Path(name)
        source = make_source(folder / "source", size)
        weights = source / "model.safetensors"
        command = [sys.executable, "-m", "effconv.cli", "lsg", str(source), "-o", str(folder / "out"), "--no-verify"]
        plain = f"cp {weights} {folder}/copy && sync {folder}/copy && sha256sum {folder}/copy"
        ours, theirs, peaks = [], [], []
        for turn in range(runs + 1):
            begin = time.monotonic()
            peaks.append(_peak(command))
            between = time.monotonic()
            subprocess.run(["sh", "-c", plain], check=True, capture_output=True)
            ours.append(between - begin)
            theirs.append(time.monotonic() - between)
            shutil.rmtree(folder / "out")
            (folder / "copy").unlink()
            if turn == 0:  # the warm-up
                ours, theirs, peaks = [], [], []
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        return {
            "what": f"conversion, {size} ({weights.stat().st_size / 1e6:.0f} MB)",
            "seconds": _spread(ours),
            "cp + sync + sha256sum": _spread(theirs),
            "ratio": _spread(ratios),
            "peak_rss_mb": max(peaks) / 1e6,
        }


def main() -> None:
    """Prints one line a size; sizes and runs may be given: `python -m effconv.bench.conversion base large 5`."""
    sizes = [word for word in sys.argv[1:] if word in SHAPES] or ["base"]
    runs = next((int(word) for word in sys.argv[1:] if word.isdigit()), 5)
    for size in sizes:
        found = measure(size, runs)
        print(
            f"{found['what']}: {_text(found['seconds'])} s, "
            f"cp + sync + sha256sum {_text(found['cp + sync + sha256sum'])} s, "
            f"ratio {_text(found['ratio'])}, peak {found['peak_rss_mb']:.0f} MB"
        )


def _peak(command: list[str]) -> int:
    """Peak resident memory of a finished command, in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(errors.decode())
    return int(usage.ru_maxrss * 1024)


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _text(spread: tuple[float, float, float]) -> str:
    return f"{spread[0]:.2f} ({spread[1]:.2f} to {spread[2]:.2f})"


if __name__ == "__main__":
    main()
