"""The cost of converting random checkpoints of BERT's size, against cp, sync and sha256sum of the same weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import Bar, Section
from effconv.bench.conversion import measure
from effconv.bench.timing import Spread
from effconv.convert.families.bert import BERT
from effconv.convert.families.grammar import shape_of
from effconv.convert.io.tensorfile import TensorFile

SHAPES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16},
}


PIECE = 1 << 20  # bytes made at a time


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


def sections(runs: int, sizes: Sequence[str] = ("base", "large")) -> Iterator[Section]:
    """The bars: base and large."""
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="effconv-bench-", dir=os.environ.get("TMPDIR") or ".") as name:
            folder = Path(name)
            source = make_source(folder / "source", size)
            cost = measure(source, [source / "model.safetensors"], ["lsg"], runs, folder)
        what = f"conversion, {size} ({cost.bytes / 1e6:,.0f} MB), against cp + sync + sha256sum"
        peak = Spread.of([cost.peak_bytes / 1e6])
        yield Section(
            f"Conversion of BERT-{size}, {cost.bytes / 1e6:,.0f} MB, whole processes, wall s",
            {"effconv lsg --no-verify": cost.seconds, "cp + sync + sha256sum": cost.copy_seconds},
            [
                Bar(what, cost.ratio, 1.2 if size == "base" else 1.0, at_most=True),
                Bar(f"conversion, {size}, peak memory", peak, 80, at_most=True, unit="MB"),
            ],
            unit="s",
        )
