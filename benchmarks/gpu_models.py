"""Whole models on a GPU in bfloat16, with random weights: time of a forward and of a step of training, and memory.

BERT-base with LSG attention in each form, dense BERT-base with stretched positions, and others of that size. A step of
training is a forward and a backward of the encoder under bfloat16 weights; no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu_layers import milliseconds, reason
from effconv.bench import models

BERT_BASE: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 99}
SHAPES = [(1, 1024), (1, 4096), (1, 8192), (1, 16384), (8, 1024), (8, 4096)]
LSG = {"sparsity_factor": 4}
DENSE, MODERNBERT = "BERT-base, dense (SDPA)", "ModernBERT-base"


def run(device: str, tiny: bool, forms: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Yields an entry for each model and shape: milliseconds, tokens a second, peak MB."""
    longest = max(length for _, length in shapes)
    config = BERT_BASE | (TINY if tiny else {})
    subjects = {f"BERT-base LSG, {form}": models.as_lsg(form, "", config, longest, LSG) for form in forms}
    subjects[DENSE] = models.stretched("dense", config, longest, 512)
    subjects[MODERNBERT] = models.shape("modernbert", config, longest)
    for name, subject in subjects.items():
        try:
            model = models.build(subject.described(), "bfloat16").to(device)
        except Exception as error:
            yield {"model": name, "error": reason(error)}
            continue
        if "LSG" in name:
            model.config.attention_form = name.rpartition(" ")[2]
        for batch, length in shapes:
            entry = {"model": name, "batch": batch, "tokens": length}
            try:
                yield entry | timed(model, batch, length, device)
            except Exception as error:
                yield entry | {"error": reason(error)}
        del model


def timed(model: Any, batch: int, length: int, device: str) -> dict[str, Any]:
    ids = torch.randint(5, model.config.vocab_size, (batch, length), device=device)
    found: dict[str, Any] = {}

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids)

    def train() -> None:
        model.zero_grad()
        model(input_ids=ids).last_hidden_state.float().square().mean().backward()

    for way, call in (("forward", forward), ("train", train)):
        model.train(way == "train")
        for module in model.modules():  # flash attention has dropout, but the forms are compared without
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        call()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        found[f"{way}_ms"] = milliseconds(call, device)
        if device == "cuda":
            found[f"{way}_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    model.eval()
    return found
