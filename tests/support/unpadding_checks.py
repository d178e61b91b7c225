"""For the workers that run emitted repos as a stranger does: a batch that is unpadded, against the padded one."""

from __future__ import annotations

import torch


def compare_unpadded(model, inputs, states="hidden_states", tolerance=1e-5):
    """Asserts that real tokens get the same states in every layer, and that attention took fewer tokens."""
    real = inputs["attention_mask"].bool()
    (found, taken), (expected, all_of_them) = (run(model, inputs, states, unpad) for unpad in (True, False))
    assert 0 < taken < 0.7 * all_of_them, (taken, all_of_them)
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if states != "decoder_hidden_states":  # an encoder may return global tokens in front
            one, other = (x[:, x.shape[1] - real.shape[1] :][real] for x in (one, other))
        difference = (one - other).abs().max().item()
        assert difference <= tolerance * max(1.0, other.abs().max().item()), difference


def run(model, inputs, states, unpad):
    """The states, and how many tokens attention took, over all layers."""
    model.config.unpad_inputs = unpad
    tokens = []
    hooks = [
        module.register_forward_hook(lambda mix, given, context: tokens.append(len(given[0]) * given[0].shape[2]))
        for name, module in model.named_modules()
        if name.endswith(".mix")
    ]
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)[states]
    for hook in hooks:
        hook.remove()
    return found, sum(tokens)
