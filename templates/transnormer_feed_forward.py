# SPDX-License-Identifier: Apache-2.0
"""The gated feed-forward of TransNormer (arXiv 2210.10340, section 4.3): l3(act(l1 x) ⊙ l2 x).

A stock feed-forward down(act(up x)) is one whose gate l2 is constantly 1 (weight 0, bias 1), so a converted layer
starts as the dense one, exactly. Families keep up and down under their own names; the gate is the one new dense layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def add_gate(layer: nn.Module, width: int, inner: int) -> None:
    """Give a stock layer's feed-forward a gate; its own parameters keep their names."""
    if hasattr(layer, "intermediate"):  # BERT and its kin
        switch(layer.intermediate, GatedIntermediate, width, inner)
    elif hasattr(layer.ffn, "lin1"):  # DistilBERT
        switch(layer.ffn, GatedFFN, width, inner)
    else:  # ALBERT, whose feed-forward is a method of the layer
        switch(layer, GatedLayer, width, inner)


def switch(module: nn.Module, mixin: type, width: int, inner: int) -> None:
    """Put `mixin` before the module's class and add the gate; nothing else of the module changes."""
    stock = type(module)
    module.__class__ = type(f"Gated{stock.__name__}", (mixin, stock), {"__module__": __name__})
    module.gate = nn.Linear(width, inner)
    with torch.no_grad():
        nn.init.zeros_(module.gate.weight)
        nn.init.ones_(module.gate.bias)


class GatedIntermediate:
    """act(up x) ⊙ gate(x); the stock output module follows as it is."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * self.gate(hidden_states)


class GatedFFN:
    """dropout(down(act(up x) ⊙ gate(x)))."""

    def ff_chunk(self, input: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(input)) * self.gate(input)))


class GatedLayer:
    """down(act(up x) ⊙ gate(x)) inside a layer."""

    def ff_chunk(self, attention_output: Tensor) -> Tensor:
        return self.ffn_output(self.activation(self.ffn(attention_output)) * self.gate(attention_output))
