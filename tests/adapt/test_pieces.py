"""`benchmarks.pieces`: the whitening is that of a formula, and its command ranks documents."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from adapt_text import write_wiki

from benchmarks import pieces
from tiny import save_tiny_sentence_encoder


def test_whitened_vectors_have_the_cosines_of_the_inverse_covariance():
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(200, 6, generator=random) @ torch.randn(6, 6, generator=random) + 3
    covariance = np.cov(sample.numpy().T.astype(np.float64))
    root = scipy.linalg.sqrtm(np.linalg.inv(covariance + 0.1 * covariance.trace() / 6 * np.eye(6)))
    wanted = (sample.numpy() - sample.numpy().mean(0)) @ root
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = pieces.whitening(sample, 0.1)(sample).numpy()
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)


def test_the_command_prints_a_row_for_each_way(tmp_path, capsys):
    source = save_tiny_sentence_encoder(tmp_path / "source")
    text = write_wiki(tmp_path / "text.txt", count=6, words=400)
    sizes = ["--tokens", "202", "--reach", "64", "--queries", "2", "--piece", "20", "--vectors", "1", "2"]
    pieces.main([str(text), "--fit", str(text), "--source", str(source), *sizes])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 3 * 2
    assert all(0 <= float(row.split("|")[3].split("±")[0]) <= 1 for row in rows[1:])
