"""Text for training tiny models: documents of the tiny tokenizers' own words, all of them different."""

from __future__ import annotations

import random
from pathlib import Path

from tiny import WORDS


def documents(count: int, words: int = 300, seed: int = 0) -> list[str]:
    """Documents of random words; a word is followed by one of few, so that there is something to predict."""
    rng = random.Random(seed)
    follow = {word: rng.sample(WORDS, 3) for word in WORDS}
    found = []
    for _ in range(count):
        text = [rng.choice(WORDS)]
        while len(text) < words:
            text.append(rng.choice(follow[text[-1]]))
        found.append(" ".join(text))
    return found


def write_wiki(path: Path, count: int = 12, words: int = 300, seed: int = 0) -> Path:
    """A text file as WikiText's: a heading a document."""
    path.write_text("".join(f" = on {i} = \n\n {text} \n\n" for i, text in enumerate(documents(count, words, seed))))
    return path
