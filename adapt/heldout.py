"""Fidelity on held-out documents: before, during and after training, always on the same texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError
from .batches import Batch, masked
from .documents import Corpus
from .models import Pair
from .objectives import Scales, scales_of
from .teacher import lesson

TEXTS = 8  # of each length in the measurement before and after
WATCHED_TEXTS = 2  # of each length in those during training


class HeldOut:
    """The held-out texts, and what the teacher makes of them.

    Args:
        lengths: of texts, special tokens included. A length that no held-out text fills is left out.
        teacher: whether there is one; without it masked tokens are predicted.
    """

    def __init__(
        self, pair: Pair, corpus: Corpus, lengths: Sequence[int], mask_share: float, device: torch.device
    ) -> None:
        self._pair, self._device = pair, device
        self._texts = {n: ids for n in sorted(set(lengths)) if (ids := _windows(corpus, n, TEXTS)) is not None}
        if not self._texts:
            raise BadInputError(
                f"the held-out text is shorter than {min(lengths)} tokens",
                where="--data, --heldout",
                hint="give longer documents, or shorter --lengths",
            )
        self._states: dict[int, Tensor] = {}
        self._masked: dict[int, Batch] = {}
        for length, ids in self._texts.items():
            if pair.teacher is not None:
                self._states[length] = torch.cat([lesson(pair, row[None].to(device)).states[-1] for row in ids])
            else:
                special = torch.zeros(length, dtype=torch.bool)
                special[: len(corpus.prefix)] = True
                special[length - len(corpus.suffix) :] = True
                batch = Batch(ids, special, torch.ones(ids.shape, dtype=torch.bool), len(ids))
                vocabulary = pair.student.config.vocab_size
                self._masked[length] = masked(
                    batch, mask_share, pair.tokenizer.mask_token_id, vocabulary, False, (0, length)
                ).to(device)

    @property
    def lengths(self) -> list[int]:
        return list(self._texts)

    def scales(self) -> Scales:
        """How much the teacher's values vary on these texts."""
        rows = [ids[i : i + 1] for ids in self._texts.values() for i in range(min(WATCHED_TEXTS, len(ids)))]
        return scales_of([lesson(self._pair, row.to(self._device)) for row in rows])

    def measure(self, student: Any, texts: int = TEXTS, lengths: Collection[int] | None = None) -> list[dict[str, Any]]:
        """One entry a length: token and sentence cosine to the teacher, or the loss on masked tokens without one.

        Args:
            texts: of each length, at most.
            lengths: only these, where there are any of them.
        """
        chosen = [length for length in self._texts if lengths is None or length in lengths] or self.lengths
        was_training = student.training
        student.eval()
        try:
            return [self._measure(student, n, min(texts, len(self._texts[n]))) for n in chosen]
        finally:
            student.train(was_training)

    @torch.no_grad()
    def _measure(self, student: Any, length: int, texts: int) -> dict[str, Any]:
        row = {"tokens": length, "texts": texts}
        if self._masked:
            batch = self._masked[length]
            assert batch.masked_ids is not None
            assert batch.labels is not None
            logits = torch.cat([student(batch.masked_ids[i : i + 1]).logits for i in range(texts)])
            return {**row, "mlm_loss": float(F.cross_entropy(logits.flatten(0, 1), batch.labels[:texts].flatten()))}
        ids, wanted = self._texts[length][:texts].to(self._device), self._states[length][:texts]
        got = torch.cat([student(ids[i : i + 1], output_hidden_states=True).hidden_states[-1] for i in range(texts)])
        return {
            **row,
            "token_cosine": float(F.cosine_similarity(got, wanted, dim=-1).mean()),
            "sentence_cosine": float(F.cosine_similarity(got.mean(1), wanted.mean(1), dim=-1).mean()),
        }


def score(rows: Sequence[dict[str, Any]]) -> float:
    """One number to keep the best state by, higher is better: the mean cosine, or minus the mean loss."""
    return float(
        np.mean([-r["mlm_loss"] if "mlm_loss" in r else (r["token_cosine"] + r["sentence_cosine"]) / 2 for r in rows])
    )


def _windows(corpus: Corpus, length: int, count: int) -> Tensor | None:
    """Up to `count` texts (count, length), evenly spread over the held-out documents, one after the other."""
    around = len(corpus.prefix) + len(corpus.suffix)
    stream = np.concatenate([tokens[:, 0] for tokens in corpus.heldout]).astype(np.int64)
    size = length - around
    available = len(stream) // size
    if not available:
        return None
    starts = sorted({round(i * (available - 1) / max(count - 1, 1)) for i in range(min(count, available))})
    rows = [[*corpus.prefix, *stream[i * size : (i + 1) * size].tolist(), *corpus.suffix] for i in starts]
    return torch.tensor(rows)
