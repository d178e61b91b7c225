"""A repo's model with every part that branches on lengths or values replaced by one that a graph can hold."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from . import bigs
from .linear import LambdaForm, LinformerForm, TransNormerForm
from .lsg import LSGForm, Shared

FORMS = {"LambdaAttention": LambdaForm, "TransNormerAttention": TransNormerForm, "LinformerAttention": LinformerForm}
LSG = ("LSGAttention", "BiasedLSGAttention")


@contextlib.contextmanager
def traceable(model: Any, longest: int) -> Iterator[Any]:
    """The model in a form for graphs, with the parameters of this one, which stays as it is.

    Args:
        longest: tokens of the longest input.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    changed = copy.deepcopy(model, tensors)
    changed.config.unpad_inputs = False
    changed.config.use_cache = False
    shared = Shared()
    for module in list(changed.modules()):
        mix: Any = getattr(module, "mix", None)
        name = type(mix).__name__
        if name in LSG:
            module.mix = LSGForm(mix, shared)
        elif isinstance(mix, nn.Module) and name in FORMS:
            module.mix = FORMS[name](mix)
        if hasattr(module, "visible_padding"):
            _pad_always(module)
        if hasattr(module, "lang_adapter"):
            module.lang_adapter = partial(_default_language, module, changed.config.default_language)
    with _without_fft(changed, longest):
        yield changed


def _pad_always(encoder: Any) -> None:
    """Rows of padding that LSG's layers must see come with every length; up to two blocks nothing sees them."""
    config = encoder.config
    if encoder.visible_padding(2 * config.block_size + 1):
        from .lsg import blocks_of

        block = config.block_size
        encoder.visible_padding = lambda length: blocks_of(length, block) * block - length
        encoder.add_padding = lambda x, rows: F.pad(x, (0, 0, 0, rows))
    else:
        encoder.visible_padding = lambda length: 0


def _default_language(output: Any, language: str, lang_ids: Tensor, x: Tensor) -> Tensor:
    """X-MOD's adapter of one language, for texts (b, t, e) in it: the stock code sorts texts by language."""
    normed = x
    if output.adapter_layer_norm is not None:
        normed = output.adapter_layer_norm(x)
    elif output.adapter_reuse_layer_norm:
        normed = output.LayerNorm(x)
    return output.adapter_modules[language](normed) + (normed if output.ln_before_adapter else x)


@contextlib.contextmanager
def _without_fft(model: Any, longest: int) -> Iterator[None]:
    """BiGS's layers call a function of their module; it is another one while the graph is made."""
    layer = next((module for module in model.modules() if type(module).__name__ == "BiGSLayer"), None)
    if layer is None:
        yield
        return
    bigs.store_taps(model, longest)
    code: Any = sys.modules[type(layer).__module__]
    stock = code.convolve_both
    code.convolve_both = bigs.convolve_both
    try:
        yield
    finally:
        code.convolve_both = stock
