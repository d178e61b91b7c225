# SPDX-License-Identifier: Apache-2.0
"""LSG attention in models of an encoder and a decoder: BART and its kin.

The encoder's self-attention is replaced. The decoder is the stock one, with its dense attention and its cache, so that
generate() works as it does for the stock model; its cross-attention sees the encoder's global tokens too, if
`pass_global_tokens_to_decoder` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import visible_tokens
from .lsg_encoder import LSGEncoderMixin


class LSGSeq2SeqEncoderMixin(LSGEncoderMixin):
    """An encoder of BART's kind with LSG attention; the small methods' values are BART's.

    `last_hidden_state` is (b, g + t, e) if the global tokens are passed to the decoder, else (b, t, e); so are all
    `hidden_states`.
    """

    def globals_module(self) -> nn.Module:
        return self

    def embed_words(self, input_ids: Tensor) -> Tensor:
        """Word embeddings (b, t, e), scaled where the config says so."""
        return self.embed_tokens(input_ids)

    def embed_places(self, x: Tensor, first: int) -> Tensor:
        """Embeddings of the positions `first`, `first` + 1, ... for the rows of x (b, t, e)."""
        return self.embed_positions(x[:, :, -1], first)

    def embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        first: int = 0,
    ) -> Tensor:
        if position_ids is not None or token_type_ids is not None:
            raise ValueError("this model does not take position_ids or token_type_ids: leave them out")
        words = self.embed_words(input_ids) if inputs_embeds is None else inputs_embeds
        return self.normalize(words + self.embed_places(words, first))

    def normalize(self, x: Tensor) -> Tensor:
        norm = getattr(self, "layernorm_embedding", None)  # Pegasus has none
        return F.dropout(x if norm is None else norm(x), p=self.dropout, training=self.training)

    def add_padding(self, x: Tensor, rows: int) -> Tensor:
        """The published model pads ids, so its padding has embeddings and positions."""
        if not rows:
            return x
        ids = torch.full((len(x), rows), self.config.pad_token_id, device=x.device)
        tokens = x.shape[1] - self.config.num_global_tokens
        return torch.cat([x, self.embed(ids, None, None, None, first=tokens)], dim=1)

    def order(self) -> Iterator[nn.Module]:
        """The layers as they are run; in training, layerdrop leaves some out (arXiv 1909.11556)."""
        for layer in self.unique_layers():
            if not (self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop):
                yield layer

    def final(self, x: Tensor) -> Tensor:
        norm = getattr(self, "layer_norm", None)  # BART has none
        return x if norm is None else norm(x)

    def end(self, x: Tensor, length: int) -> Tensor:
        if self.config.pass_global_tokens_to_decoder:
            return x[:, : self.config.num_global_tokens + length]
        return super().end(x, length)


class Seq2SeqModelMixin:
    """A stock base model with an LSG encoder; goes before the stock class in the bases."""

    encoder_class: ClassVar[type[LSGSeq2SeqEncoderMixin]]
    supports_gradient_checkpointing = True
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.adapt()
        self.post_init()  # again: there are new parameters to initialise

    def adapt(self) -> None:
        """Give the finished stock model its encoder, as `HeadMixin` gives a task class its base."""
        self.encoder.__class__ = self.encoder_class
        self.encoder.adapt()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run encoder and decoder; all arguments are those of the stock model.

        Args:
            input_ids: token ids (b, t) of the encoder; either these, `inputs_embeds` or `encoder_outputs`.
            attention_mask: (b, t), nonzero for real tokens; None where all are.
            decoder_input_ids: token ids (b, s) of the decoder.
            decoder_attention_mask: (b, s).
            encoder_outputs: what the encoder returned, in place of running it.
            inputs_embeds: word embeddings (b, t, e) in place of ids.
            return_dict: False for a plain tuple.
            kwargs: further ones, handed to the stock decoder.

        Raises:
            ValueError: for what the encoder does not support, and for inputs whose shapes do not fit.
        """
        if return_dict is None:
            return_dict = self.config.return_dict
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                head_mask=kwargs.pop("head_mask", None),
                output_attentions=kwargs.get("output_attentions"),
                output_hidden_states=kwargs.get("output_hidden_states"),
                return_dict=return_dict,
            )
        return super().forward(
            input_ids,  # from which the stock model makes decoder_input_ids, if there are none
            attention_mask=self.cross_mask(attention_mask, encoder_outputs[0]),
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            return_dict=return_dict,
            **kwargs,
        )

    def cross_mask(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """Which of the encoder's states (b, g + t, e) or (b, t, e) the decoder sees, from the tokens' mask (b, t)."""
        if mask is None:
            return None
        batch, rows, _ = states.shape
        added = rows - mask.shape[-1]
        if added not in (0, self.config.num_global_tokens):
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, but the encoder returned {tuple(states.shape)}: give the mask "
                "of the tokens that the encoder read"
            )
        visible_tokens(mask, (batch, rows - added))
        if self.config.mask_first_token and self.config.decoder_first_token == "published":
            mask = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], dim=1)
        return F.pad(mask, (added, 0), value=1)


class DecoderMixin:
    """A stock class that is the decoder alone; goes before it in the bases."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load it; from the checkpoint of a whole model too, which stores the embeddings once, as `shared`."""
        untied = not getattr(kwargs.get("config"), "tie_word_embeddings", True)  # then it stores the decoder's too
        if untied or "key_mapping" in kwargs:
            return super().from_pretrained(*args, **kwargs)
        mapping = {r"^(model\.)?shared\.": "model.decoder.embed_tokens."}
        loaded = super().from_pretrained(*args, key_mapping=mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # transformers 5 would undo the renaming when the model is saved
        return loaded
