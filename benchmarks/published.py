"""Converts the published checkpoints from the Hub and checks them: one table of what passes, with figures.

`python -m benchmarks.published [--only NAME ...] [--max-len 4096] [--folder FOLDER] [--json FILE]`

For a machine that reaches the Hub, with some 10 GB of disk for all models. Each conversion runs with every check of its
target. BiGS models are asked for masked words, too, and compared with the probabilities of their README. A model that
fails does not stop the others; the exit code is 1 if anything failed. No token is needed. `--folder` keeps the repos.
The tests run it against a local Hub with tiny models in the place of the published ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effconv.api import convert
from effconv.convert.errors import CheckFailedError, EffconvError

PADDED = 128  # tokens of a text of the README: padding changes the outputs of a published BiGS
PROBABILITY = 1e-3  # tolerance: the README's figures were computed on another machine


@dataclass(frozen=True)
class Model:
    """A published model and what becomes of it.

    Attributes:
        target: the command. source: its id on the Hub. options: of the conversion. bounded: whether --max-len applies.
        says: for a text with one [MASK], words and their published probabilities.
    """

    target: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bounded: bool = False
    says: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.target} {self.source}"


MODELS = (
    Model("lsg", "bert-base-uncased", bounded=True),
    Model("lsg", "roberta-base", bounded=True),
    Model(
        "jax2torch",
        "JunxiongWang/BiGS_128",
        says={
            "The goal of life is [MASK].": {"happiness": 0.16052087, "love": 0.04306792, "peace": 0.03651363},
            "Paris is the [MASK] of France.": {"capital": 0.9981787},
        },
    ),
    Model("jax2torch", "JunxiongWang/BiGS_512"),
    Model("lsg", "ccdv/lsg-bert-base-uncased-4096"),
)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        passed: None for a figure without a bound, or a check that does not apply.
        found, bound: as text.
    """

    model: str
    check: str
    passed: bool | None
    found: str = ""
    bound: str = ""


def main(given: Sequence[str] | None = None) -> int:
    """Prints the table; 1 if a row failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="models whose source contains one of these words")
    parser.add_argument("--max-len", type=int, default=4096, help="of the LSG models made of dense ones")
    parser.add_argument("--folder", type=Path, help="keep the repos here")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    asked = parser.parse_args(given)
    chosen = [model for model in MODELS if not asked.only or any(word in model.source for word in asked.only)]
    if not chosen:
        parser.error("--only names none of " + ", ".join(model.source for model in MODELS))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="effconv-published-") as temporary:
        for model in chosen:
            print(f"{model.name} ...", file=sys.stderr, flush=True)
            rows += rows_of(model, asked.folder or Path(temporary), asked.max_len)
    print("\n".join(table(rows)))
    if asked.json:
        asked.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    failed = sum(row.passed is False for row in rows)
    print(f"\n{sum(row.passed is True for row in rows)} passed, {failed} failed")
    return int(failed > 0)


def rows_of(model: Model, folder: Path, max_length: int) -> list[Row]:
    """Converts a model, with all checks, and asks it for the published words."""
    output = folder / f"{model.target}-{model.source.replace('/', '-')}"
    further = {"max_length": max_length} if model.bounded else {}
    begin = time.monotonic()
    try:
        result = convert(model.source, model.target, output=output, overwrite=True, **further, **model.options)
    except CheckFailedError as error:
        return [*_checks(model, getattr(error, "measured", ())), Row(model.name, "converts", False, _short(error))]
    except EffconvError as error:
        return [Row(model.name, "converts", False, _short(error))]
    size = f"{result.plan.bytes_out / 1e6:,.0f} MB in {time.monotonic() - begin:,.0f} s, verified"
    rows = [Row(model.name, "converts", True, size), *_checks(model, result.measured or ())]
    rows += _figures(model, result.manifest["measurements"].get("fidelity", []))
    return [*rows, *probabilities(model, output)]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0]


def _checks(model: Model, measured: Sequence[Any]) -> list[Row]:
    return [
        Row(
            model.name,
            check.name,
            check.passed,
            check.why if check.value is None else f"{check.value:.1e}",
            "" if check.tolerance is None else f"{check.tolerance:.0e}",
        )
        for check in measured
    ]


def _figures(model: Model, fidelity: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Similarity to the source on the built-in text: no bound, reported."""
    for entry in fidelity:
        figures = {name: value for name, value in entry.items() if isinstance(value, float)}
        if figures:
            said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            yield Row(model.name, f"fidelity at {entry.get('length', entry.get('tokens', '?'))}", None, said)


def probabilities(model: Model, repo: Path) -> Iterator[Row]:
    """The published words with their probabilities."""
    if not model.says:
        return
    found = asked_for(repo)
    for text, words in model.says.items():
        by_word = found(text)
        for word, published in words.items():
            value = by_word(word)
            right = value is not None and abs(value - published) <= PROBABILITY
            said = "not in the vocabulary" if value is None else f"{value:.4f}"
            bound = f"{published:.4f} ± {PROBABILITY:.0e}"
            yield Row(model.name, f"{text} {word}", right, said, bound)


def asked_for(repo: Path) -> Callable[[str], Callable[[str], float | None]]:
    """Maps a text with a mask to the probability of each word there; None for a word that is not one token."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
    model = transformers.AutoModelForMaskedLM.from_pretrained(repo, trust_remote_code=True, dtype=torch.float32).eval()
    longest = min(PADDED, model.config.max_position_embeddings)

    def of_text(text: str) -> Callable[[str], float | None]:
        text = text.replace("[MASK]", tokenizer.mask_token)
        batch = tokenizer(text, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
        shares = logits[0].softmax(-1)

        def of_word(word: str) -> float | None:
            index = tokenizer.convert_tokens_to_ids(word)
            return None if index is None or index == tokenizer.unk_token_id else float(shares[index])

        return of_word

    return of_text


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    marks = {True: "passed", False: "FAILED", None: "–"}
    lines = ["| model | check | result | found | bound |", "|---|---|---|---|---|"]
    return lines + [
        f"| {row.model} | {row.check} | {marks[row.passed]} | {row.found.replace('|', '/')} | {row.bound} |"
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
