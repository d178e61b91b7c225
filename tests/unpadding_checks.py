"""For the workers that run emitted repos as a stranger does: a batch unpadded in front of the layers, and left padded."""

from __future__ import annotations

import torch


def compare_unpadded(model, inputs, states="hidden_states", tolerance=1e-5):
    """Asserts that real tokens get the same states in every layer, and that attention took fewer tokens."""
    real = inputs["attention_mask"].bool()
    found, taken = [], []
    for unpad in (True, False):
        model.config.unpad_inputs = unpad
        tokens = []
        hooks = [
            module.register_forward_hook(lambda mix, x, y: tokens.append(x[0].shape[0] * x[0].shape[2]))
            for name, module in model.named_modules()
            if name.endswith(".mix")
        ]
        with torch.no_grad():
            found.append(model(**inputs, output_hidden_states=True)[states])
        taken.append(sum(tokens))
        for hook in hooks:
            hook.remove()
    assert 0 < taken[0] < 0.7 * taken[1], taken
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        first = one.shape[1] - real.shape[1]  # an encoder may return global tokens in front
        difference = (one - other)[:, first:][real].abs().max().item()
        assert difference <= tolerance * max(1.0, other[:, first:][real].abs().max().item()), difference
