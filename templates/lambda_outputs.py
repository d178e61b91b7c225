# SPDX-License-Identifier: Apache-2.0
"""λ as outputs: with `output_lambda_params=True`, `attentions` holds what each layer summarised the text in.

One tensor (b, h, c, v) a layer, in the order in which the layers run: for each head h and landmark c the row λ[c] of
values v that a query weighs. The last of the c = key_depth · intra_depth + 1 landmarks is the mean of the values.
Without it `attentions` is None, as in every model of this kind. Set it in the config, at loading or in a call.

Whole batches are returned, so that a padded batch runs with its padding. Gradients flow through λ, but for layers that
are checkpointed.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from .efficient_encoder import EncoderMixin, HeadMixin, Unpadded


class LambdaEncoderMixin(EncoderMixin):
    """An encoder with lambda attention, which returns λ on request."""

    asked: bool | None = None  # by the head, for one call
    collecting = False

    @functools.wraps(EncoderMixin.forward)  # whose signature tells Trainer which inputs the model takes
    def forward(
        self, *args: Any, output_lambda_params: bool | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        wanted = next(
            value
            for value in (output_lambda_params, self.asked, getattr(self.config, "output_lambda_params", False))
            if value is not None
        )
        if not wanted:
            return super().forward(*args, return_dict=return_dict, **kwargs)
        # By their attribute: transformers 4 may load a file of the repo twice, and then has two classes of one name.
        mixes = [module for module in self.modules() if hasattr(module, "collected")]
        found: list[Tensor] = []
        # A layer that is checkpointed runs again in the backward, and must save as many tensors then.
        with_gradient = not (self.gradient_checkpointing and self.training)
        try:
            self.collecting = True
            for mix in mixes:
                mix.collected, mix.collects_gradient = found, with_gradient
            output = super().forward(*args, return_dict=True, **kwargs)
        finally:
            self.collecting = False
            for mix in mixes:
                mix.collected = None
        output["attentions"] = tuple(found)
        if return_dict if return_dict is not None else self.config.return_dict:
            return output
        second = (output.pooler_output,) if hasattr(self, "pooler") else ()
        states = () if output.hidden_states is None else (output.hidden_states,)
        return (output.last_hidden_state, *second, *states, output.attentions)

    def kept(self, mask: Tensor | None, cross: tuple[Tensor | None, ...], **ids: Tensor) -> Unpadded | None:
        return None if self.collecting else super().kept(mask, cross, **ids)


class LambdaHeadMixin(HeadMixin):
    """A stock task class on such an encoder, whose call takes `output_lambda_params` too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock = cls.forward
        if getattr(stock, "returns_lambda", False):  # of a class that transformers 4 derives from ours
            return

        @functools.wraps(stock)
        def forward(self: Any, *args: Any, output_lambda_params: bool | None = None, **inputs: Any) -> Any:
            base = self.base_model
            base.asked = output_lambda_params
            try:
                return stock(self, *args, **inputs)
            finally:
                base.asked = None

        forward.returns_lambda = True
        cls.forward = forward
