"""The model of a task: a new repo of a target, and for pairs two encodings with the benchmark's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import effconv

from .examples import SPECIAL, Splits
from .presets import Size, options_of


def repo_of(target: str, size: Size, splits: Splits, folder: Path, seed: int) -> Path:
    """The repo with random weights; one that is there is taken."""
    path = folder / target
    if not (path / "effconv.json").is_file():
        command, further = options_of(target, size)
        fields = (f"num_labels={splits.classes}", *further.pop("set", ()))
        effconv.new(
            command,
            layers=size.layers,
            hidden=size.hidden,
            heads=None if target == "bigs" else size.heads,
            intermediate=size.inner,
            length=size.length,
            vocab=splits.vocabulary + SPECIAL,
            architecture="ForSequenceClassification",
            set=fields,
            seed=seed,
            verify=False,
            output=path,
            **further,
        )
    return path


def loaded(path: Path, classes: int, pair: bool, dropout: float) -> nn.Module:
    """The model of a repo, for one text or for pairs."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=True)
    rates = {name: dropout for name in names if hasattr(config, name)}
    kind = transformers.AutoModel if pair else transformers.AutoModelForSequenceClassification
    further = {} if pair else {"num_labels": classes}
    model = kind.from_pretrained(path, trust_remote_code=True, dtype=torch.float32, **rates, **further)
    return Pairs(model, classes) if pair else model


class Pairs(nn.Module):
    """Two texts encoded apart, and the benchmark's head: layers on [a, b, a b, a - b] of their first states.

    This is `classifier_head_dual` with the interaction "NLI" of the benchmark's code, as later works use it; its own
    script joins [a, b] alone. BiGS has no first state that sees the text by design: its pooled state takes that place.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        width = encoder.config.hidden_size
        self.head = nn.Sequential(
            *(nn.Linear(4 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 2 * width), nn.ReLU()),
            nn.Linear(2 * width, classes),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Ids and mask (b, 2, t) to logits (b, classes)."""
        found = self.encoder(input_ids=input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1))
        one, other = found.pooler_output.unflatten(0, (-1, 2)).unbind(1)
        return {"logits": self.head(torch.cat([one, other, one * other, one - other], dim=-1))}
