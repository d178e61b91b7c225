"""One run of the teacher on a batch, and what is kept of it; texts beyond its length are run window by window."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..targets.teacher import AttentionRun, attention_sites, watch
from .models import Pair


@dataclass
class Lesson:
    """What the teacher did with ids (b, t).

    Attributes:
        states: (b, t, w) before each layer and after the last.
        inputs: (b, t, w) what each layer's attention gets: the states, or where norms come first, normalised ones.
        attended: (b, t, w) what it adds, after its output projection.
        logits: of its head, or None.
        embedding: (b, w) of each text: the pooled last states, or the mean of those of its windows, normalised.

    Of a text that was run on windows there are states and the embedding, and no more.
    """

    states: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    attended: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None
    embedding: Tensor | None = None


@torch.no_grad()
def lesson(pair: Pair, ids: Tensor) -> Lesson:
    """Runs the teacher on texts without padding, special tokens around them."""
    return _whole(pair, ids) if ids.shape[1] <= pair.reach else _on_windows(pair, ids)


def _on_windows(pair: Pair, ids: Tensor) -> Lesson:
    """Windows of consecutive tokens, nearly equally long, each with the special tokens that the whole text has."""
    first, last = pair.ends
    head, body, tail = ids[:, :first], ids[:, first : ids.shape[1] - last], ids[:, ids.shape[1] - last :]
    windows = -(-body.shape[1] // (pair.reach - first - last))
    parts = [_whole(pair, torch.cat([head, part, tail], 1)) for part in body.tensor_split(windows, 1)]
    kept = Lesson()
    for states in zip(*(part.states for part in parts), strict=True):
        inner = [x[:, first : x.shape[1] - last] for x in states]
        kept.states.append(torch.cat([states[0][:, :first], *inner, states[-1][:, states[-1].shape[1] - last :]], 1))
    embeddings = [F.normalize(part.embedding, dim=-1) for part in parts if part.embedding is not None]
    kept.embedding = torch.stack(embeddings).mean(0)
    return kept


def _whole(pair: Pair, ids: Tensor) -> Lesson:
    assert pair.family is not None
    kept = Lesson()

    def receive(run: AttentionRun) -> None:
        kept.inputs.append(run.inputs)
        kept.attended.append(run.output)

    sites = attention_sites(pair.teacher.base_model, pair.family, pair.base.config.to_dict())
    with watch([(site, receive) for site in sites]):
        output = pair.teacher(ids, output_hidden_states=True)
    kept.states = list(output.hidden_states)
    kept.logits = output.logits if "logits" in output else None
    kept.embedding = pooled(kept.states[-1], pair.pooling)
    return kept


def pooled(states: Tensor, pooling: str) -> Tensor:
    """States (b, t, w) of texts without padding → (b, w): the mean, or the first token's ("cls")."""
    return states[:, 0] if pooling == "cls" else states.mean(1)
