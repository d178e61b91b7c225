"""Embeds texts with a repo as a stranger does, by sentence-transformers alone, and saves the model again.

python pieces_worker.py REPO TEXTS.json VECTORS.npz SAVED
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main() -> None:
    repo, texts, vectors, saved = sys.argv[1:]
    asked = json.loads(Path(texts).read_text(encoding="utf-8"))
    model = SentenceTransformer(repo, trust_remote_code=True, device="cpu")
    np.savez(
        vectors,
        documents=model.encode_document(asked["documents"], batch_size=3),
        queries=model.encode_query(asked["queries"]),
        plain=model.encode(asked["queries"]),
    )
    model.save(saved)


if __name__ == "__main__":
    main()
