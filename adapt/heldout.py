"""Fidelity on held-out documents: before, during and after training, always on the same texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.errors import BadInputError
from ..convert.text import six_digits
from ..convert.windows import spread_windows
from ..data.documents import Corpus
from .batches import Batch, masked
from .contrastive import PIECES, cut_pieces, embedded
from .models import Pair
from .objectives import Scales, scales_of
from .ranking import ranked, reciprocal
from .teacher import lesson, pooled

TEXTS = 8  # of each length in the measurement before and after
WATCHED_TEXTS = 2  # of each length in those during training


class HeldOut:
    """The held-out texts, and what the teacher makes of them.

    Args:
        lengths: of texts, special tokens included. A length that no held-out text fills is left out.
        mask_share: of the tokens that are to be predicted, where there is no teacher.
        piece_tokens: of pieces by which texts beyond the teacher's length are to be found; None where they are not.
    """

    def __init__(
        self,
        pair: Pair,
        corpus: Corpus,
        lengths: Sequence[int],
        mask_share: float,
        device: torch.device,
        piece_tokens: int | None = None,
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
        self._pieces: dict[int, Tensor] = {}
        for length, ids in self._texts.items():
            special = torch.zeros(length, dtype=torch.bool)
            special[: len(corpus.prefix)] = True
            special[length - len(corpus.suffix) :] = True
            if pair.teacher is not None:
                self._states[length] = torch.cat([lesson(pair, row[None].to(device)).states[-1] for row in ids])
                if piece_tokens and length > pair.reach and len(ids) > 1:
                    cut = cut_pieces(ids, special, PIECES, piece_tokens, (0, length))
                    self._pieces[length] = embedded(pair, ids, cut, device)
            else:
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

        Where pieces find texts, their mean reciprocal rank too, always among all texts of that length.

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
        row: dict[str, Any] = {"tokens": length, "texts": texts}
        if self._masked:
            batch = self._masked[length]
            assert batch.masked_ids is not None
            assert batch.labels is not None
            logits = torch.cat([student(batch.masked_ids[i : i + 1]).logits for i in range(texts)])
            loss = F.cross_entropy(logits.flatten(0, 1), batch.labels[:texts].flatten())
            return {**row, "mlm_loss": six_digits(float(loss))}
        pieces = self._pieces.get(length)
        texts = texts if pieces is None else len(pieces)
        ids, wanted = self._texts[length][:texts].to(self._device), self._states[length][:texts]
        got = torch.cat([student(ids[i : i + 1], output_hidden_states=True).hidden_states[-1] for i in range(texts)])
        row |= {
            "texts": texts,
            "token_cosine": six_digits(float(F.cosine_similarity(got, wanted, dim=-1).mean())),
            "sentence_cosine": six_digits(float(F.cosine_similarity(got.mean(1), wanted.mean(1), dim=-1).mean())),
        }
        if pieces is not None:
            similarity = pieces.flatten(0, 1) @ F.normalize(pooled(got, self._pair.pooling), dim=-1).T
            answers = torch.arange(texts, device=similarity.device).repeat_interleave(pieces.shape[1])
            row["piece_mrr"] = reciprocal(ranked(similarity, answers))
        return row


def score(rows: Sequence[Mapping[str, Any]]) -> float:
    """One number to keep the best state by, higher is better: the mean cosine, or minus the mean loss.

    Of a length at which pieces find texts, their rank alone counts: beyond its length the teacher has no states that a
    student could be faithful to, but those of windows, which is not what contrastive trains.
    """

    def one(row: Mapping[str, Any]) -> float:
        if "mlm_loss" in row:
            return -float(row["mlm_loss"])
        if "piece_mrr" in row:
            return float(row["piece_mrr"])
        return float(row["token_cosine"] + row["sentence_cosine"]) / 2

    return float(np.mean([one(row) for row in rows]))


def _windows(corpus: Corpus, length: int, count: int) -> Tensor | None:
    """Up to `count` texts (count, length), evenly spread over the held-out documents, one after the other."""
    stream = np.concatenate([tokens[:, 0] for tokens in corpus.heldout]).astype(np.int64)
    return spread_windows(torch.from_numpy(stream), length, count, corpus.prefix, corpus.suffix)
