"""The contrastive objective: a long text's embedding against the teacher's embeddings of short pieces.

Beyond the teacher's length nothing says what the embedding of a whole text should be; the mean over windows is only as
good as that mean, so there this objective takes the place of those that match windows. A text is to be found by its own
pieces: short stretches of it, cut anywhere, embedded by the teacher as a query would be. With d the student's embedding
of a text, q of one of its pieces, N the pieces of other texts (those of the same batch and of the batches before) and s
the cosine over `TEMPERATURE`,

    loss = −log( exp s(d, q) / (exp s(d, q) + Σ_{n ∈ N} exp s(d, n)) ),    the mean over pieces and texts:

InfoNCE (arXiv 1807.03748, eq. 4), with in-batch negatives as sentence-transformers' MultipleNegativesRankingLoss has
them. The teacher does not change, so pieces of earlier batches are as good as new ones (a memory bank, arXiv
1805.01978, without its staleness). Every process embeds the pieces of all texts of a batch, so what a text is compared
with, and the loss, do not depend on how many processes there are.

Axes: b text, p piece, n negative, w width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..convert.windows import around
from .batches import Batch
from .models import Pair
from .teacher import pooled

TEMPERATURE = 0.05  # of cosines, as sentence-transformers' scale of 20
PIECES = 16  # of a text
REMEMBERED = 32  # steps
AT_ONCE = 32  # pieces in a run of the teacher


def cut_pieces(ids: Tensor, special: Tensor, count: int, size: int, seed: Sequence[int]) -> Tensor:
    """Pieces (b, count, size) of each text, from anywhere in it, without special tokens.

    Args:
        ids: (b, t). special: (t,) bool, True at special tokens. seed: the same gives the same pieces.
    """
    body = ids[:, ~special]
    size = min(size, body.shape[1])
    starts = np.random.default_rng(list(seed)).integers(0, body.shape[1] - size + 1, (len(body), count))
    places = torch.from_numpy(starts)[:, :, None] + torch.arange(size)
    return body[:, None].expand(-1, count, -1).gather(2, places)


@torch.no_grad()
def embedded(pair: Pair, ids: Tensor, pieces: Tensor, device: torch.device) -> Tensor:
    """The teacher's normalised embeddings (b, p, w) of pieces (b, p, size), in the special tokens of texts (b, t)."""
    first, last = pair.ends
    rows = around(pieces.flatten(0, 1), ids[0, :first].tolist(), ids[0, ids.shape[1] - last :].tolist())
    states = [pair.teacher.base_model(part.to(device)).last_hidden_state for part in torch.split(rows, AT_ONCE)]
    found = torch.cat([pooled(part, pair.pooling).float() for part in states])
    return F.normalize(found, dim=-1).view(*pieces.shape[:2], -1)


class Pieces:
    """Gives each global batch its pieces, and those of the batches before as negatives.

    Args:
        size: tokens of a piece. seed: of where pieces are cut; with the step's number it says all.
    """

    def __init__(self, pair: Pair, size: int, seed: int, device: torch.device) -> None:
        self._pair, self._size, self._seed, self._device = pair, size, seed, device
        self._before: deque[Tensor | None] = deque(maxlen=REMEMBERED)

    def add(self, batch: Batch, step: int) -> Batch:
        """The batch of this step with its pieces' embeddings, which are remembered."""
        if batch.ids.shape[1] <= self._pair.reach:  # its own embedding is what is wanted there
            self._before.append(None)
            return batch
        cut = cut_pieces(batch.ids, batch.special, PIECES, self._size, (self._seed, 3, step))
        pieces = embedded(self._pair, batch.ids, cut, self._device)
        before = [x for x in self._before if x is not None]
        self._before.append(pieces.flatten(0, 1))
        return replace(
            batch,
            places=torch.arange(batch.rows),
            pieces=pieces,
            before=torch.cat(before) if before else pieces.new_empty(0, pieces.shape[-1]),
        )


def contrastive_loss(got: Tensor, batch: Batch) -> Tensor:
    """InfoNCE (nats) of embeddings (b, w), mean over pieces and the texts of the global batch."""
    assert batch.pieces is not None
    assert batch.places is not None
    assert batch.before is not None
    documents = F.normalize(got.float(), dim=-1)
    if batch.rows == 1 and not len(batch.before):
        return 0.0 * documents.sum()  # the first text of all, which there is nothing to tell from
    scores = torch.einsum("bw,apw->bap", documents, batch.pieces) / TEMPERATURE
    own = torch.arange(batch.rows, device=got.device) == batch.places[:, None]  # b a
    right = scores[own]  # b p
    others = scores.masked_fill(own[..., None], float("-inf")).flatten(1)
    wrong = torch.cat([others, documents @ batch.before.T / TEMPERATURE], 1).logsumexp(1, keepdim=True)
    return (torch.logaddexp(right, wrong) - right).mean(1).sum() / batch.rows
