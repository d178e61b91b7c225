"""Train a BiGS repo in JAX with optax: masked LM on text, or classification with frozen kernels.

    effconv torch2jax BiGS_128-torch -o bigs-jax
    python examples/bigs_jax.py mlm bigs-jax --data corpus.txt --length 128 --steps 1000 -o bigs-trained
    python examples/bigs_jax.py classify bigs-jax --data train.jsonl --eval dev.jsonl --freeze-kernels -o bigs-reviews
    effconv jax2torch bigs-trained

`mlm` reads text files, or a folder that `effconv prepare` wrote. `classify` reads JSONL files of `text`, `label` and,
for pairs, `pair`. The defaults are those of the BiGS authors (arXiv 2212.10544): AdamW with betas 0.9 and 0.98, a peak
rate of 6e-4 and weight decay 0.05 for masked LM; 2e-5 and 0.01 for classification. From the same weights, batches and
options the first gradient is within 1e-5 of torch's, and 20 losses are within 1e-4 (tests/targets/test_bigs_jax.py).
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import AutoTokenizer

IGNORED = -100  # a label without a loss
KERNELS = ("A_re", "A_im", "C", "D", "log_step")  # what the authors do not train in GLUE_freeze, with token types
UNDECAYED = ("bias", "scale", *KERNELS)
DEFAULTS = {"mlm": {"rate": 6e-4, "weight_decay": 0.05}, "classify": {"rate": 2e-5, "weight_decay": 0.01}}


def main(given=None):
    asked = arguments(given)
    tokenizer = AutoTokenizer.from_pretrained(asked.repo)
    code = modeling(asked.repo)
    if asked.task == "mlm":
        model = code.BiGSForMaskedLM.from_pretrained(asked.repo)
        texts = windows(asked.data, tokenizer, asked.length)
        batches = masked_batches(texts, tokenizer, model.config.vocab_size, asked)
        heldout = masked_once(windows(asked.eval, tokenizer, asked.length), tokenizer, model, asked)
        loss = word_loss
    else:
        rows, labels = read_rows(asked.data)
        model = code.BiGSForSequenceClassification.from_pretrained(asked.repo, num_labels=len(labels))
        batches = shuffled(encoded(rows, labels, tokenizer, asked.length), asked.batch, asked.seed)
        heldout = encoded(read_rows(asked.eval)[0], labels, tokenizer, asked.length) if asked.eval else None
        loss = label_loss
    optimizer = adamw(model.params, asked)
    params, _ = train(model, loss, optimizer, itertools.islice(batches, asked.steps), asked.dropout, asked.seed)
    model.params = jax.device_get(params)
    if heldout:
        print(f"held out: {describe(evaluate(model, loss, heldout, asked.batch))}")
    save(model, tokenizer, asked.repo, asked.output)


def arguments(given):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=DEFAULTS)
    parser.add_argument("repo", type=Path, help="a JAX repo on disk, as effconv torch2jax writes it")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--eval", nargs="*", type=Path, default=[], help="held-out files of the same kind")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text; shorter texts are padded to it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=0, help="steps; then the rate decays as a cosine to 0")
    parser.add_argument("--weight-decay", type=float, help="of matrices")
    parser.add_argument("--masked", type=float, default=0.15, help="share of tokens that are masked")
    parser.add_argument("--predictions", type=int, default=20, help="most masked tokens of a text")
    parser.add_argument("--freeze-kernels", action="store_true", help=f"leave {', '.join(KERNELS)} and token types")
    parser.add_argument("--dropout", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args(given)
    for name, value in DEFAULTS[asked.task].items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    return asked


def modeling(repo):
    """The repo's own code."""
    spec = importlib.util.spec_from_file_location("modeling_bigs_jax", repo / "modeling_bigs_jax.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# Training


def adamw(params, asked):
    """AdamW with a linear warmup and a cosine; frozen tensors get no update at all."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if asked.warmup else asked.rate, asked.rate, asked.warmup, max(asked.steps, asked.warmup + 1)
    )
    by_name = jax.tree_util.tree_map_with_path
    optimizer = optax.adamw(
        *(schedule, 0.9, 0.98, 1e-8),
        weight_decay=asked.weight_decay,
        mask=lambda tree: by_name(lambda path, _: path[-1].key not in UNDECAYED, tree),
    )
    if not asked.freeze_kernels:
        return optimizer
    kinds = by_name(lambda path, _: "frozen" if frozen([part.key for part in path]) else "trained", params)
    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, kinds)


def frozen(path):
    return path[-1] in KERNELS or "token_type_embeddings" in path


def train(model, loss, optimizer, batches, dropout=False, seed=0, log=20):
    """The trained parameters, and the loss of every step before its update."""

    @jax.jit
    def step(params, state, batch, key):
        value, grads = jax.value_and_grad(functools.partial(loss, model))(params, batch, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, key, losses = model.params, jax.random.key(seed), []
    state = optimizer.init(params)
    for number, batch in enumerate(batches):
        drawn = jax.random.fold_in(key, number) if dropout else None
        params, state, value = step(params, state, batch, drawn)
        losses.append(float(value))
        if not np.isfinite(losses[-1]):
            raise SystemExit(f"the loss of step {number + 1} is {losses[-1]}: use a lower --rate")
        if number % log == 0:
            print(f"step {number + 1}: loss {losses[-1]:.4f}", flush=True)
    return params, losses


def word_loss(model, params, batch, key=None):
    """Mean cross entropy over the masked tokens."""
    logits = outputs(model, params, batch, key)
    counted = batch["labels"] != IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, batch["labels"], 0))
    return (each * counted).sum() / jnp.maximum(counted.sum(), 1)


def label_loss(model, params, batch, key=None):
    """Mean cross entropy over the texts."""
    logits = outputs(model, params, batch, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()


def outputs(model, params, batch, key):
    """Logits, with dropout where there is a key."""
    inputs = [batch.get(name) for name in ("input_ids", "attention_mask", "token_type_ids")]
    rngs = None if key is None else {"dropout": key}
    return model.module.apply({"params": params}, *inputs, deterministic=key is None, rngs=rngs)["logits"]


def evaluate(model, loss, rows, size):
    """Mean loss of the batches, and the share of labels that are right."""
    run = jax.jit(lambda batch: (loss(model, model.params, batch), outputs(model, model.params, batch, None)))
    losses, right, count = [], 0, 0
    for start in range(0, len(rows["labels"]), size):
        batch = {name: table[start : start + size] for name, table in rows.items()}
        value, logits = run(batch)
        counted = batch["labels"] != IGNORED
        right += int(((np.asarray(logits).argmax(-1) == batch["labels"]) & counted).sum())
        losses.append(float(value))
        count += int(counted.sum())
    return {"loss": float(np.mean(losses)), "accuracy": right / max(count, 1)}


def describe(values):
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def save(model, tokenizer, repo, output):
    """The trained repo: config, weights, code and the source's tokenizer."""
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    shutil.copyfile(repo / "modeling_bigs_jax.py", output / "modeling_bigs_jax.py")


# Text


def windows(paths, tokenizer, length):
    """Texts of one length, as `effconv prepare` stored them or cut from files one after the other.

    Returns:
        input_ids, attention_mask, special (n, length) and, where masks are stored, labels.
    """
    if not paths:
        return None
    if all(path.is_dir() for path in paths):
        return prepared(paths, tokenizer, length)
    first, last = tokenizer("")["input_ids"]  # [CLS] and [SEP]
    body = length - 2
    ids = [token for path in paths for token in plain_ids(path, tokenizer)]
    texts = [[first, *ids[i : i + body], last] for i in range(0, len(ids) - body + 1, body)]
    if not texts:
        raise SystemExit(f"{paths[0]}: fewer tokens than one text of {length}")
    ids = np.asarray(texts, np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "special": np.isin(ids, tokenizer.all_special_ids)}


def plain_ids(path, tokenizer):
    """Token by token, a line at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from tokenizer(line, add_special_tokens=False, verbose=False)["input_ids"]


def prepared(folders, tokenizer, length):
    import pyarrow.parquet

    files = sorted(file for folder in folders for file in folder.rglob("*.parquet"))
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    if not rows:
        raise SystemExit(f"{folders[0]}: no rows in parquet files")
    long = sum(len(row["input_ids"]) > length for row in rows)
    if long:
        raise SystemExit(f"{folders[0]}: {long} texts are longer than --length {length}")
    table = functools.partial(padded, rows=rows, length=length)
    found = {
        "input_ids": table("input_ids", fill=tokenizer.pad_token_id),
        "attention_mask": padded("ones", [{"ones": [1] * len(row["input_ids"])} for row in rows], length, 0),
        "special": table("special_tokens_mask", fill=1).astype(bool),
    }
    if "token_type_ids" in rows[0]:
        found["token_type_ids"] = table("token_type_ids", fill=0)
    if "labels" in rows[0]:
        found["labels"] = table("labels", fill=IGNORED)
    return found


def padded(name, rows, length, fill):
    found = np.full((len(rows), length), fill, np.int32)
    for i, row in enumerate(rows):
        found[i, : len(row[name])] = row[name]
    return found


def masked_batches(texts, tokenizer, words, asked):
    """Endless batches in a new order each epoch, with new masks unless masks are stored."""
    random = np.random.default_rng(asked.seed)
    for batch in shuffled(texts, asked.batch, asked.seed):
        yield with_masks(batch, tokenizer.mask_token_id, words, asked, random)


def masked_once(texts, tokenizer, model, asked):
    random = np.random.default_rng([asked.seed, 1])
    return texts and with_masks(texts, tokenizer.mask_token_id, model.config.vocab_size, asked, random)


def with_masks(batch, mask_id, words, asked, random):
    """Of the chosen tokens 80 % become the mask, 10 % any token, 10 % stay (BERT, arXiv 1810.04805)."""
    found = {name: table for name, table in batch.items() if name != "special"}
    if "labels" in batch:
        return found
    ids, labels = batch["input_ids"].copy(), np.full_like(batch["input_ids"], IGNORED)
    for row, special in enumerate(batch["special"]):
        body = np.flatnonzero(~special)
        count = min(max(1, round(asked.masked * len(body))), asked.predictions, len(body))
        places = random.permutation(body)[:count]
        labels[row, places] = ids[row, places]
        kind = random.random(count)
        ids[row, places[kind < 0.8]] = mask_id
        swapped = places[(kind >= 0.8) & (kind < 0.9)]
        ids[row, swapped] = random.integers(0, words, len(swapped))
    return {**found, "input_ids": ids, "labels": labels}


def shuffled(rows, size, seed):
    """Batches without end; the rows that do not fill one at the end of an epoch wait for another epoch."""
    count = len(rows["input_ids"])
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(count)
        order = np.resize(order, max(count, size))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield {name: table[chosen] for name, table in rows.items()}


# Labelled rows


def read_rows(paths):
    rows = [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    return rows, sorted({row["label"] for row in rows})


def encoded(rows, labels, tokenizer, length):
    """Every text padded to one length, since padding flows through the layers of a published BiGS."""
    pairs = [row["pair"] for row in rows] if "pair" in rows[0] else None
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "np"}
    found = tokenizer([row["text"] for row in rows], pairs, return_token_type_ids=True, **options)
    unknown = sorted({str(row["label"]) for row in rows if row["label"] not in labels})
    if unknown:
        raise SystemExit(f"labels that no training row has: {', '.join(unknown)}")
    return {**found, "labels": np.asarray([labels.index(row["label"]) for row in rows])}


if __name__ == "__main__":
    main()
