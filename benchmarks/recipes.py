"""The published systems trained from random weights, at a size for one CPU, each beside a dense control.

`python -m benchmarks.recipes TEXT [TEXT ...] [--only NAME ...] [--scale 1.0] [--folder FOLDER]`

TEXT are text files: WikiText (documents begin at first-level headings), and any other file, which is one document.
Each recipe is a chain of `effconv` commands, printed as it is run. A control is a dense model of the same sizes, text,
steps, seed and optimizer. A seventh of the documents is never trained on and measured. FOLDER keeps repos and results,
so that a run goes on; `--scale` multiplies the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effconv.bench.machine import described, machine

HEADING = re.compile(r" = [^=].* = ")
WORDS = 4096  # of the tokenizers, which are trained on the texts
SIZE = ("--layers", "2", "--hidden", "128")
HEADS = ("--heads", "4")  # of all but BiGS, which has none
NEW = ("--no-verify", "-q", "--overwrite")
# A hundredth of the published steps or less, with a rate for models of this size.
COMMON = (
    *("--batch-size", "16", "--learning-rate", "2e-3", "--dropout", "0", "--sentences", "split"),
    *("--no-verify", "--json", "--overwrite"),
)


@dataclass(frozen=True)
class Stage:
    """A training, from a new model or from the one before, which grows to another length first."""

    length: int
    steps: int
    objective: str
    options: tuple[str, ...] = ()
    grow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A system beside its control.

    Attributes:
        models: what `effconv new` is asked for, by the name in the table.
        stages: trainings, one after the other.
        tokenizer: wordpiece or bpe.
    """

    models: dict[str, tuple[str, ...]]
    stages: tuple[Stage, ...]
    tokenizer: str = "wordpiece"


PAIRS = ("--architecture", "ForPreTraining")
ORDER = ("--architecture", "ForPreTrainingSOP")
LAMBDABERT = ("lambda", "--groups", "1")
UNIT = ("--position-std", "1")
LOCAL = ("--local-context", "15")  # without it, as published, the position lambda of a token sees that token alone
SCHEDULE = ("--schedule", "cosine", "--beta2", ".98", "--weight-decay", ".05")
LINFORMER = ("linformer", "--proj-dim", "32")
RECIPES = {
    "lambdabert-nsp": Recipe(
        {
            "LambdaBERT, published start": (*LAMBDABERT, *UNIT),
            "LambdaBERT, published start, local context": (*LAMBDABERT, *UNIT, *LOCAL),
            "LambdaBERT": LAMBDABERT,
            "LambdaBERT, local context": (*LAMBDABERT, *LOCAL),
            "BERT": ("dense", *PAIRS),
        },
        (Stage(64, 1000, "mlm+nsp", ("--batch-size", "32", "--schedule", "linear")),),
    ),
    "lambdabert-sop": Recipe(
        {"LambdaBERT, local context": (*LAMBDABERT, *LOCAL, *ORDER), "BERT": ("dense", *PAIRS)},
        (Stage(64, 1000, "mlm+sop", ("--batch-size", "32", "--schedule", "linear")),),
    ),
    "transnormer-clm": Recipe(
        {
            "TransNormer T1": ("transnormer", "--causal", "--variant", "t1"),
            "TransNormer T2": ("transnormer", "--causal", "--variant", "t2"),
            "GPT-like BERT": ("dense", "--causal"),
        },
        (Stage(256, 75, "clm", ("--across-documents", "--schedule", "inverse-sqrt", "--warmup-from", "1e-7")),),
    ),
    "transnormer-mlm": Recipe(
        {
            "TransNormer T1": ("transnormer", "--family", "roberta", "--variant", "t1"),
            "TransNormer T2": ("transnormer", "--family", "roberta", "--variant", "t2"),
            "RoBERTa": ("dense", "--family", "roberta"),
        },
        (Stage(256, 75, "mlm", ("--across-documents", "--short-share", "0", "--schedule", "polynomial")),),
        "bpe",
    ),
    "bigs": Recipe(
        {"BiGS": ("bigs",), "BERT": ("dense",)},
        (
            Stage(128, 150, "mlm", ("--max-predictions", "20", *SCHEDULE)),
            Stage(512, 20, "mlm", ("--max-predictions", "80", *SCHEDULE), ("bigs",)),
        ),
    ),
    "linformer": Recipe(
        {
            "Linformer, shared by heads": (*LINFORMER, "--sharing", "heads"),
            "Linformer, shared by keys and values": (*LINFORMER, "--sharing", "kv"),
            "Linformer, shared by layers": (*LINFORMER, "--sharing", "layers"),
            "BERT": ("dense",),
        },
        (Stage(256, 75, "mlm", ("--max-predictions", "40", "--eps", "1e-6", "--schedule", "linear")),),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints each command, a line for each training, and the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--folder", type=Path, help="keep repos and results here, and use those that are here")
    asked = parser.parse_args(arguments)
    print(described(machine()), flush=True)
    with tempfile.TemporaryDirectory(prefix="effconv-recipes-") as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        texts = prepared(asked.texts, folder)
        for name in asked.only:
            found = {model: trained(name, model, asked, texts, folder) for model in RECIPES[name].models}
            print(f"\n{name}\n" + "\n".join(table(RECIPES[name], found)) + "\n", flush=True)


def prepared(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """The texts as rows, a document each, and both tokenizers, trained on them."""
    documents = [document for path in paths for document in documents_of(path)]
    texts = {"data": folder / "documents.jsonl"}
    if not texts["data"].exists():
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        texts["data"].write_text("".join(rows), encoding="utf-8")
    for kind, make in (("wordpiece", wordpiece), ("bpe", bpe)):
        texts[kind] = folder / kind
        if not texts[kind].exists():
            make(documents, texts[kind])
    return texts


def documents_of(path: Path) -> list[str]:
    """The documents of a file: of WikiText the articles, each with its heading; of another the whole text."""
    text = path.read_text(encoding="utf-8")
    if not any(HEADING.fullmatch(line) for line in text.splitlines()):
        return [text]
    found: list[list[str]] = []
    for line in text.splitlines():
        if HEADING.fullmatch(line) or not found:
            found.append([])
        found[-1].append(line)
    return [text for lines in found if (text := "\n".join(lines)).strip()]


def wordpiece(documents: Sequence[str], folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(documents, vocab_size=WORDS, show_progress=False)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    BertTokenizerFast.from_pretrained(folder, do_lower_case=True).save_pretrained(folder)


def bpe(documents: Sequence[str], folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(documents, vocab_size=WORDS, special_tokens=special, show_progress=False)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)


def trained(name: str, model: str, asked: argparse.Namespace, texts: dict[str, Path], folder: Path) -> list[Any]:
    """The results of a model's stages; what a stage left in the folder is not run again."""
    recipe, slug = RECIPES[name], re.sub(r"\W+", "-", f"{name}-{model}").lower()
    results = []
    longest = max(stage.length for stage in recipe.stages)
    for number, stage in enumerate(recipe.stages):
        repo, out = f"{slug}-{number}-new", f"{slug}-{number}"
        kept = folder / f"{out}.json"
        if not kept.exists():
            kind, *options = recipe.models[model]
            # A dense model has the positions of the last stage from the beginning: it does not grow.
            length = longest if kind == "dense" else stage.length
            if number == 0:
                tokenizer = os.path.relpath(texts[recipe.tokenizer], folder)
                heads = () if kind == "bigs" else HEADS
                effconv(
                    folder, "new", kind, *options, *SIZE, *heads, "--length", length, "--tokenizer", tokenizer,
                    "--seed", asked.seed, *NEW, "-o", repo,
                )  # fmt: skip
            elif kind == "dense":
                repo = f"{slug}-{number - 1}"
            else:
                effconv(folder, *stage.grow, f"{slug}-{number - 1}", "--max-len", length, *NEW, "-o", repo)
            steps = max(1, round(stage.steps * asked.scale))
            found, seconds = effconv(
                folder, "pretrain", repo, "--data", "documents.jsonl", "--heldout-share", 1 / 7, "--objective",
                stage.objective, "--length", stage.length, "--steps", steps, "--warmup-steps", max(1, steps // 10),
                "--evaluate-every", max(1, steps // 4), "--heldout-examples", 1500 * 128 // stage.length,
                *COMMON, *stage.options, "--seed", asked.seed, "-o", out,
            )  # fmt: skip
            kept.write_text(json.dumps({**json.loads(found), "cpu_seconds": seconds}, indent=1), encoding="utf-8")
        results.append(json.loads(kept.read_text(encoding="utf-8")))
    return results


def effconv(folder: Path, *arguments: object) -> tuple[str, float]:
    """What a command prints, and its CPU seconds. It runs in the folder, on one thread."""
    words = [str(argument) for argument in arguments]
    print("effconv " + " ".join(words), flush=True)
    script = Path(sys.executable).with_name("effconv")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([script, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return run.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(recipe: Recipe, found: dict[str, list[Any]]) -> list[str]:
    """The held-out figures in Markdown, a row a model and stage, and of its quarters the loss."""
    rows = [
        "| | tokens | steps | loss at 0, ¼, ½, ¾, 1 | perplexity | accuracy | pairs | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, stages in found.items():
        for stage, result in zip(recipe.stages, stages, strict=True):
            (after,) = result["after"]
            words, pair = stage.objective.partition("+")[::2]
            losses = " ".join(f"{entry['rows'][0][f'{words}_loss']:.2f}" for entry in result["history"])
            rows.append(
                f"| {model} | {stage.length} | {result['steps']:,} | {losses} | {after['perplexity']:.1f} | "
                f"{after[f'{words}_accuracy']:.3f} | {pairs(after, pair)} | {result['cpu_seconds']:.0f} |"
            )
    return rows


def pairs(row: dict[str, Any], kind: str) -> str:
    """Accuracy of pairs, its standard error at chance, and how many of these it is above chance."""
    if not kind:
        return "–"
    accuracy, error = row[f"{kind}_accuracy"], 0.5 / math.sqrt(row["texts"])
    return f"{accuracy:.3f} of {row['texts']:,}: {(accuracy - 0.5) / error:+.1f} standard errors of {error:.3f}"


if __name__ == "__main__":
    main()
