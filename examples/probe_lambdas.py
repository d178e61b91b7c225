"""Probe what λ keeps of a text: read a property of the text off it, layer by layer, with a linear classifier.

    python examples/probe_lambdas.py REPO                    # does a text have a given word? Texts are drawn
    python examples/probe_lambdas.py REPO --data rows.jsonl  # rows with "text" and an integer "label"

With `output_lambda_params=True` the outputs' `attentions` are λ, one tensor a layer: (b, h, c, v) in a repo of
`effconv lambda` or `effconv new lambda`, (b, k, v) in one with --groups 1. The model stays as it is; half of the texts
train the classifiers, the other half measure them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


def drawn_texts(words: Sequence[str], count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of random words, half of them with the first word somewhere (label 1)."""
    draw = random.Random(seed)
    texts, labels = [], []
    for index in range(count):
        text = draw.choices(words[1:], k=draw.randint(12, 24))
        if index % 2:
            text[draw.randrange(len(text))] = words[0]
        texts.append(" ".join(text))
        labels.append(index % 2)
    return texts, labels


@torch.no_grad()
def lambdas(model, tokenizer, texts: Sequence[str], batch: int = 16) -> list[Tensor]:
    """λ of each layer, (texts, features)."""
    found = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(list(texts[start : start + batch]), return_tensors="pt", padding=True, truncation=True)
        found.append(model(**inputs, output_lambda_params=True).attentions)
    return [torch.cat(layer).flatten(1) for layer in zip(*found, strict=True)]


def probe(features: Tensor, labels: Tensor, steps: int = 200) -> float:
    """Accuracy of a linear classifier on the second half of the texts, trained on the first."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    half, classes = len(labels) // 2, int(labels.max()) + 1
    weight = torch.zeros(features.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=1.0)
    for _ in range(steps):
        loss = F.cross_entropy(features[:half] @ weight + bias, labels[:half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predicted = (features[half:] @ weight + bias).argmax(-1)
    return float((predicted == labels[half:]).float().mean())


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Prints and returns the accuracy of each layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo")
    parser.add_argument("--data", help="JSONL with text and label. [default: drawn texts]")
    parser.add_argument("--texts", type=int, default=400, help="number of drawn texts")
    asked = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(asked.repo, trust_remote_code=True)
    model = AutoModel.from_pretrained(asked.repo, trust_remote_code=True).eval()
    if asked.data:
        with open(asked.data, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        random.Random(0).shuffle(rows)
        texts, labels = [row["text"] for row in rows], [int(row["label"]) for row in rows]
    else:
        words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
        texts, labels = drawn_texts(words[:30], asked.texts)
    truth = torch.tensor(labels)
    majority = float(truth[len(truth) // 2 :].bincount().max()) / (len(truth) - len(truth) // 2)
    accuracies = [probe(layer, truth) for layer in lambdas(model, tokenizer, texts)]
    for index, accuracy in enumerate(accuracies):
        print(f"layer {index}: accuracy {accuracy:.3f} (majority class {majority:.3f})")
    return accuracies


if __name__ == "__main__":
    main()
