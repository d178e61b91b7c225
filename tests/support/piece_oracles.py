"""Pieces and whitening by plain loops: over sentence-transformers one piece at a time, numpy and scipy."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pieces_of(model, text, size, prompt=""):
    """Embeddings of the pieces of a text, each run alone by sentence-transformers, with the prompt's ids before it."""
    tokenizer = model.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    parts = np.array_split(ids, max(1, -(-len(ids) // size)))
    rows = []
    for part in parts:
        whole = torch.tensor([[*before, *map(int, part), tokenizer.sep_token_id]])
        with torch.no_grad():
            features = model({"input_ids": whole, "attention_mask": torch.ones_like(whole)})
        rows.append(features["sentence_embedding"][0].numpy())
    return unit(np.array(rows))


def whitened(sample, rows, floor=0.01):
    """Rows by the formula, in float64."""
    covariance = np.cov(sample.T.astype(np.float64))
    width = len(covariance)
    root = np.real(scipy.linalg.sqrtm(np.linalg.inv(covariance + floor * np.trace(covariance) / width * np.eye(width))))
    return unit((rows - sample.mean(0)) @ root)


def even(rows, ridge=0.05):
    """The vector whose products with the rows are nearest to 1, by least squares with a row more for each number."""
    count, width = rows.shape
    system = np.concatenate([rows, np.sqrt(ridge * count) * np.eye(width)]).astype(np.float64)
    return unit(np.linalg.lstsq(system, np.concatenate([np.ones(count), np.zeros(width)]), rcond=None)[0])
