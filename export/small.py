"""Smaller forms of an ONNX graph: 8-bit weights for CPUs, 16-bit ones for GPUs, and what they change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..convert.text import measuring_text
from .checks import cosines, random_batch, runner
from .graphs import LARGEST_FILE, WEIGHTS_BESIDE, quiet, session
from .loaded import Exported

# Products with weights, and the rows of embedding tables. Products of two activations stay in float32.
QUANTIZED = ("MatMul", "Gather")
TEXTS = 8  # that a form is compared on, of each length
LENGTHS = (128, 512)  # tokens, beside the longest
ROUNDS = 3


def write_int8(source: Path, path: Path) -> None:
    """Quantises weights to 8 bits, one scale a column; activations are quantised as they come ("dynamic").

    Weights use 7 of the 8 bits: on CPUs without instructions for 8-bit products (VNNI) a sum of two products must fit
    in 16 bits, and full weights lose more there than the eighth bit is worth.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_large(source),
        )


def write_fp16(source: Path, path: Path) -> None:
    """Converts weights and operations to 16 bits; inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=_large(source))
        beside: dict[str, Any] = (
            {"save_as_external_data": True, "location": path.stem + WEIGHTS_BESIDE} if _large(source) else {}
        )
        onnx.save_model(model, path, **beside)


def _large(path: Path) -> bool:
    return sum(file.stat().st_size for file in path.parent.glob(path.stem + ".onnx*")) > LARGEST_FILE


def measured(
    exported: Exported, tokenizer: Any, files: Mapping[str, Path], names: Sequence[str], longest: int
) -> list[dict[str, Any]]:
    """Each form beside the repo's model on text: cosine of the last output, and seconds a text.

    Args:
        tokenizer: of the repo; None for random tokens.
        files: ONNX files by the name of their form. names: of the inputs.

    Returns:
        One row for each length, with `cosine` and `seconds` by form; `torch` among the seconds.
    """
    rows = []
    sessions = {form: session(path) for form, path in files.items()}
    for length in sorted({min(length, longest) for length in (*LENGTHS, longest)}):
        texts = texts_of(exported, tokenizer, length, names)
        with torch.no_grad():
            wanted = [exported(*text)[-1] for text in texts]
        runs = {form: runner(one, names) for form, one in sessions.items()}
        got = {form: [run(text)[-1] for text in texts] for form, run in runs.items()}
        cosine = {
            form: sum(cosines(one, other) for one, other in zip(outputs, wanted, strict=True)) / len(texts)
            for form, outputs in got.items()
        }
        seconds = {"torch": _seconds(lambda text=texts[0]: _torch(exported, text))}
        seconds |= {form: _seconds(lambda run=run, text=texts[0]: run(text)) for form, run in runs.items()}
        rows.append({"tokens": length, "texts": len(texts), "cosine": cosine, "seconds": seconds})
    return rows


def _torch(exported: Exported, text: Sequence[Tensor]) -> None:
    with torch.no_grad():
        exported(*text)


def _seconds(call: Any) -> float:
    """The least of a few runs, which other processes disturb least."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return round(min(found), 6)


def texts_of(exported: Exported, tokenizer: Any, length: int, names: Sequence[str]) -> list[list[Tensor]]:
    """Inputs of single texts of so many tokens: from the built-in text, or random without a tokenizer."""
    segments = "token_type_ids" in names
    count = TEXTS if length <= LENGTHS[-1] else 2
    if tokenizer is None or "MultipleChoice" in type(exported.model).__name__:
        return [random_batch(exported, [length], segments, seed) for seed in range(count)]
    words = measuring_text().split()
    pieces = [" ".join((words[start:] + words)[: 2 * length]) for start in range(0, len(words), len(words) // count)]
    texts = []
    for piece in pieces[:count]:
        tokens = tokenizer([piece], truncation=True, max_length=length, return_tensors="pt")
        texts.append([tokens[name] if name in tokens else torch.zeros_like(tokens["input_ids"]) for name in names])
    return texts
