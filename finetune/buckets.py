"""Batches of texts of similar length: an order of rows that is a function of seed and epoch alone.

The order is made for the batch of a whole step. Any number of processes and parts takes consecutive rows of it, so all
of them see the same steps, and a resumed run goes on where it stopped. The last batch of an epoch is filled up with
rows of its beginning, since equal batches let every process count the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

AROUND = 50  # batches whose rows are sorted together: more would let epochs resemble each other


def epoch_order(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[int]:
    """Rows of an epoch: batch after batch, texts of similar length in each, the longest of all in the first batch.

    A run that does not fit into memory so ends with its first step.

    Args:
        lengths: of the rows, in tokens. batch: rows a step.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    order = np.resize(order, -(-len(order) // batch) * batch)  # repeats from the beginning
    sizes = np.asarray(lengths)
    window = AROUND * batch
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    rows = np.concatenate([part[np.argsort(-sizes[part], kind="stable")] for part in parts]).reshape(-1, batch)
    rows = rows[random.permutation(len(rows))]
    longest = int(sizes[rows].max(1).argmax())
    rows[[0, longest]] = rows[[longest, 0]]
    return [int(row) for row in rows.ravel()]


class Buckets:
    """The sampler of a training: rows of `epoch_order`, in the order of the epoch that `set_epoch` names."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.batch, self.seed, self.epoch))

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch) * self.batch


def steps_of(rows: int, batch: int) -> int:
    """Steps of an epoch."""
    return -(-rows // batch)
