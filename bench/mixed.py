"""A padded batch of documents of mixed length: left padded, unpadded as the models do it, and one document by one.

`python -m effconv.bench.mixed` prints CPU milliseconds of one thread and ratios from one run. Layers of BERT-base's
shape with LSG attention, float32, forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BertConfig, BertModel

from ..inmemory import lsgify
from .timing import interleaved, median, ratio

LENGTHS = (4096, 2600, 1900, 1300, 900, 600, 420, 242)
LAYERS, VOCABULARY = 2, 1000
PADDED, UNPADDED, ONE_BY_ONE = "padded", "unpadded (as the model does it)", "one document by one"
ROUNDS = 3


def main() -> None:
    """Prints one line a form and one a ratio."""
    times = measure()
    real, padded = sum(LENGTHS), len(LENGTHS) * max(LENGTHS)
    print(
        f"{len(LENGTHS)} documents, {real:,} of {padded:,} tokens real (ratio {padded / real:.2f}), {LAYERS} layers of"
    )
    print(f"BERT-base's shape with LSG attention, float32, CPU ms of one thread (median of {ROUNDS})")
    for name in times:
        print(f"  {name:36s} {median(times, name):9.0f}")
    for name in (UNPADDED, ONE_BY_ONE):
        middle, low, high = ratio(times, PADDED, name)
        bar = f", bar {0.9 * padded / real:.2f}" if name == UNPADDED else ""
        print(f"  padded against {name:36s} {middle:5.2f} x ({low:.2f} to {high:.2f}){bar}")


def measure() -> dict[str, list[float]]:
    """CPU milliseconds of each form in every round."""
    with torch.inference_mode():
        return interleaved(_forms(), ROUNDS)


def _forms() -> dict[str, Callable[[], Any]]:
    """Each form as a call without arguments, on the same random documents."""
    torch.manual_seed(0)
    # A vocabulary of any size: a look-up costs next to nothing.
    dense = BertModel(BertConfig(num_hidden_layers=LAYERS, vocab_size=VOCABULARY, bos_token_id=2))
    model = lsgify(dense, max_length=max(LENGTHS), global_init="random").eval()
    ids = torch.randint(5, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]

    def batch(unpad: bool) -> Any:
        model.config.unpad_inputs = unpad
        return model(input_ids=ids, attention_mask=mask)

    return {
        PADDED: lambda: batch(unpad=False),
        UNPADDED: lambda: batch(unpad=True),
        ONE_BY_ONE: lambda: [model(input_ids=row[None, :n]) for row, n in zip(ids, LENGTHS, strict=True)],
    }


if __name__ == "__main__":
    main()
