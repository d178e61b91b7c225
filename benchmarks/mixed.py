"""A padded batch of documents of mixed length: left padded, unpadded as the models do it, and one document by one.

Layers of BERT-base's shape with LSG attention, float32, forward, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import BertConfig, BertModel

from benchmarks.bars import Bar, Section
from effconv.bench.timing import clock_name, interleaved, ratio
from effconv.lsgify.inmemory import lsgify

LENGTHS = (4096, 2600, 1900, 1300, 900, 600, 420, 242)
LAYERS, VOCABULARY = 2, 1000
PADDED, UNPADDED, ONE_BY_ONE = "padded", "unpadded (as the model does it)", "one document by one"
SHARE = 0.9  # of the token ratio


def sections(threads: int, rounds: int, lengths: Sequence[int] = LENGTHS) -> Iterator[Section]:
    """Documents of these lengths."""
    with torch.inference_mode():
        times = interleaved(_forms(lengths), rounds, threads)
    real, padded = sum(lengths), len(lengths) * max(lengths)
    share = padded / real
    bar = Bar(
        f"LSG, {len(lengths)} documents of mixed length up to {max(lengths):,}, unpadded against padded",
        ratio(times[PADDED], times[UNPADDED]).scaled(1 / share),
        SHARE,
        unit=f"of the token ratio ({share:.2f})",
    )
    title = f"{len(lengths)} documents, {real:,} of {padded:,} tokens real, {LAYERS} LSG layers of BERT-base's shape"
    notes = [
        f"padded takes {ratio(times[PADDED], times[name]).median:.2f} × the time of {name}"
        for name in (UNPADDED, ONE_BY_ONE)
    ]
    yield Section(f"{title}, float32, {clock_name(threads)} ms", times, [bar], notes)


def _forms(lengths: Sequence[int]) -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random documents."""
    torch.manual_seed(0)
    # A vocabulary of any size: a look-up costs next to nothing.
    dense = BertModel(BertConfig(num_hidden_layers=LAYERS, vocab_size=VOCABULARY, bos_token_id=2))
    model: Any = lsgify(dense, max_length=max(lengths), global_init="random").eval()
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    def batch(unpad: bool) -> Any:
        model.config.unpad_inputs = unpad
        return model(input_ids=ids, attention_mask=mask)

    return {
        PADDED: lambda: batch(unpad=False),
        UNPADDED: lambda: batch(unpad=True),
        ONE_BY_ONE: lambda: [model(input_ids=row[None, :n]) for row, n in zip(ids, lengths, strict=True)],
    }
