"""Masks for masked language modelling: one function for masks made while training and for those written once.

BERT (arXiv 1810.04805): of the chosen tokens 80 % become the mask, 10 % any token of the vocabulary, and 10 % stay.
"""

from __future__ import annotations

import numpy as np

IGNORED = -100  # the label of a token that is not predicted


def mask_tokens(
    ids: np.ndarray,
    special: np.ndarray,
    begins: np.ndarray | None,
    *,
    share: float,
    mask_id: int,
    vocabulary: int,
    random: np.random.Generator,
    whole_words: bool = False,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Texts with tokens masked, and the labels.

    Args:
        ids: (b, t) token ids.
        special: (b, t) or (t,), true where a token is never masked: special tokens and padding.
        begins: (b, t), true where a word begins. Read only with `whole_words`.
        share: of the tokens (or words) of each text that are chosen, at least one.
        mask_id: id of the mask token. vocabulary: number of ids to draw the random tokens from.
        random: draws, row by row: an order of the tokens or words, a number a chosen token, the random tokens.
        whole_words: choose all tokens of a word or none.
        most: predictions of a text, at most. A word that does not fit is passed over.

    Returns:
        The masked ids (b, t), and labels (b, t) of the ids' type, `IGNORED` where nothing is predicted.
    """
    masked, labels = ids.copy(), np.full(ids.shape, IGNORED, ids.dtype)
    for row in range(len(ids)):
        body = np.flatnonzero(~(special if special.ndim == 1 else special[row]).astype(bool))
        if not len(body):
            continue
        words = _words(body, begins[row]) if whole_words and begins is not None else np.arange(len(body))
        places = body[_chosen(words, share, most, random)[words]]
        labels[row, places] = ids[row, places]
        kind = random.random(len(places))
        masked[row, places[kind < 0.8]] = mask_id
        swapped = places[(kind >= 0.8) & (kind < 0.9)]
        masked[row, swapped] = random.integers(0, vocabulary, len(swapped))
    return masked, labels


def _words(body: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The number of its word for each place of the body. A word does not reach over a special token."""
    starts = begins[body].astype(bool)
    starts[0] = True
    starts[1:] |= np.diff(body) > 1
    return np.cumsum(starts) - 1


def _chosen(words: np.ndarray, share: float, most: int | None, random: np.random.Generator) -> np.ndarray:
    """Which words are chosen, (words,) bool."""
    sizes = np.bincount(words)
    wanted = max(1, round(share * len(sizes)))
    order = random.permutation(len(sizes))
    chosen = np.zeros(len(sizes), bool)
    if most is None or most >= sizes.sum():
        chosen[order[:wanted]] = True
        return chosen
    left = most
    for word in order:
        if not wanted or not left:
            break
        if sizes[word] <= left:
            chosen[word] = True
            wanted, left = wanted - 1, left - sizes[word]
    return chosen
