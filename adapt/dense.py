"""Dense layers after the pooling of a sentence encoder: reads, fits (`--whiten`) and writes them.

Few directions rule the embeddings of most encoders, and so all their cosines, while what tells one text from another
lies in the many others. Whitening makes them equally strong (Su et al., arXiv 2103.15316). With C the covariance of
normalised embeddings of training text and c the mean of its eigenvalues, embeddings x (rows) become

    x W,    W = a (C + c I)^(-1/2),

symmetric, so that they stay as near to what they were as such embeddings can be (Kessy et al., arXiv 1512.00809, call
it ZCA). c I is shrinkage towards "all equal already": it keeps directions that some thousand texts tell little of from
being blown up. The paper's mean is not subtracted: short and long texts have different ones. a keeps lengths as they
were, on average. The layer stands in the repo as sentence-transformers' own Dense, between pooling and normalisation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert.errors import BadInputError, UnsupportedError
from ..convert.repo.sentence import MODULES, kind_of, modules_of
from ..convert.windows import windows
from ..data.documents import Corpus
from ..embed.whitening import root
from .models import Pair
from .teacher import pooled

PIECES = 2048  # that a layer is fitted to, where the text has so many
AT_ONCE = 32  # pieces in a run of the model
TYPE = "sentence_transformers.models.Dense"  # the name that every version knows
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}


def dense_layers(repo: Path) -> nn.Module:
    """The dense layers of a sentence-transformers repo, one after the other; of any other repo, the identity.

    Raises:
        UnsupportedError: an activation that is not known here.
    """
    from safetensors.torch import load_file

    layers: list[nn.Module] = []
    for module in modules_of(repo):
        if kind_of(module) != "Dense":
            continue
        folder = repo / str(module["path"])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
        if name not in ACTIVATIONS or config.get("use_residual"):
            raise UnsupportedError(
                f"the dense layer after the pooling has an unsupported activation or form ({name})",
                where=str(folder / "config.json"),
                hint=f"supported: dense layers with {' or '.join(ACTIVATIONS)}, without a residual",
            )
        linear = nn.Linear(config["in_features"], config["out_features"], bias=bool(config.get("bias", True)))
        if (folder / "model.safetensors").is_file():
            weights = load_file(folder / "model.safetensors")
        else:
            weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
        layers += [linear, ACTIVATIONS[name]()]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def pieces_of(corpus: Corpus, size: int, least: int) -> Tensor:
    """Consecutive pieces of `size` training tokens, special tokens around them: (n, t) ids, n up to `PIECES`.

    Raises:
        BadInputError: there are fewer than `least` of them.
    """
    tokens: list[int] = []
    for document in corpus.train(0):
        tokens += document[:, 0].tolist()
        if len(tokens) >= PIECES * size:
            break
    count = min(PIECES, len(tokens) // size)
    if count < least:
        raise BadInputError(
            f"whitening needs at least {least} passages of {size} tokens, and the training text has {count}",
            where="--data, --whiten",
            hint=f"give more text ({least * size:,} tokens at least), or leave out --whiten",
        )
    length = len(corpus.prefix) + size + len(corpus.suffix)
    return windows(tokens, range(0, count * size, size), length, corpus.prefix, corpus.suffix)


@torch.no_grad()
def fitted(pair: Pair, pieces: Tensor, device: torch.device) -> Tensor:
    """The whitening (w, w) of the student's embeddings of pieces (n, t)."""
    was_training = pair.student.training
    pair.student.eval()
    try:
        found = [
            pooled(pair.student(rows.to(device), output_hidden_states=True).hidden_states[-1], pair.pooling).cpu()
            for rows in torch.split(pieces, AT_ONCE)
        ]
    finally:
        pair.student.train(was_training)
    return whitening(torch.cat(found))


def whitening(embeddings: Tensor) -> Tensor:
    """W (w, w) float32 of embeddings (n, w), as above: symmetric, computed in float64."""
    unit = F.normalize(embeddings.double(), dim=-1)
    matrix = root(torch.cov(unit.T, correction=0), floor=1.0)
    scale = (unit.square().sum() / (unit @ matrix).square().sum()).sqrt()
    return (matrix * scale).float()


def add_dense(folder: Path, matrix: Tensor) -> None:
    """Writes a dense layer (w, w) without bias or activation behind the pooling of the repo in `folder`."""
    from safetensors.torch import save

    modules = modules_of(folder)
    place = 1 + next(i for i, module in enumerate(modules) if kind_of(module) == "Pooling")
    path = f"{place}_Dense"
    modules.insert(place, {"idx": place, "name": str(place), "path": path, "type": TYPE})
    numbered = [{**module, "idx": i, "name": str(i)} for i, module in enumerate(modules)]
    (folder / path).mkdir()
    config = {
        "in_features": matrix.shape[1],
        "out_features": matrix.shape[0],
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / path / "config.json", config)
    (folder / path / "model.safetensors").write_bytes(save({"linear.weight": matrix.contiguous()}))
    _write(folder / MODULES, numbered)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
