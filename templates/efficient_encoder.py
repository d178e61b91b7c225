# SPDX-License-Identifier: Apache-2.0
"""Put another attention into a stock transformers encoder, without touching one parameter name.

A checkpoint's key names are attribute paths, so they are the same in every version of transformers; class names,
signatures and masks are not. Three pieces rely on the paths alone:

* `EfficientSelfAttention` takes the place of a layer's self-attention and adopts its projections;
* `EncoderMixin` gives the base model a forward of its own: stock embeddings, stock layers in a loop, stock pooler, with
  the padding mask handed to the attention as it came, so that nothing of size T * T is ever made;
* `HeadMixin` gives a stock task class that base.

A padded batch is unpadded in front of the layers, where that gives real tokens the same and saves enough: `Unpadded`.
That is in this file too, over 400 lines or not, so that a forward pass is followed in four: the modeling file, this
one, the attention, and the kernel that it picks.

Axes: b batch, t tokens (with what the target adds to them), n tokens that are kept, e embedding, h heads, d head size.

What the outputs hold: `hidden_states` has one entry a layer and one for the embeddings, each cut to the tokens that
came in; what they and `last_hidden_state` hold for padding has no meaning (zeros, where the batch was unpadded);
`attentions` is always None, because no matrix of attention weights is ever formed; `past_key_values` is always
None. Of the `attn_implementation` values, "eager" and "sdpa" run the same code here (they differ only in a decoder's
stock cross-attention; transformers 4 has no "sdpa" for ELECTRA); the others are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Layers of transformers 4 take a head mask in third place, and some require it; those of 5 know none.
HEAD_MASK = (None,) if transformers.__version__.startswith("4.") else ()
PART = 1024  # rows of a feed-forward at once; from four times as many on it is run in parts
WORTHWHILE = 0.9  # of a batch's tokens: where unpadding would keep more, the batch stays as it is
# Padding tokens that a group may hold before another group is worth its calls: what they cost on a CPU is a few tokens'
# share of a layer; on a GPU, where starting a kernel costs more than running it on little, they cost many.
GROUP_PADDING = {"cpu": 16}
GROUP_PADDING_ELSEWHERE = 1024


def attention_dropout(config: Any) -> float:
    """The dropout probability of attention weights, under either of the names that families give it."""
    probability = getattr(config, "attention_probs_dropout_prob", None)
    return config.attention_dropout if probability is None else probability


class EfficientSelfAttention(nn.Module):
    """A self-attention with the projections of the stock one, and another attention of what they give.

    That is a module, built as `attention_class(config, layer_index)`. It takes q, k and v of shape (b, h, t, d) and the
    mask, a bool tensor (b, t), True for what may be seen, or None, and returns (b, h, t, d).
    """

    attention_class: ClassVar[type[nn.Module]]
    projections: ClassVar[tuple[str, str, str]] = ("query", "key", "value")

    def __init__(self, stock: nn.Module, config: Any, layer_index: int) -> None:
        super().__init__()
        for name, child in stock.named_children():  # same modules under the same names: the same keys in a checkpoint
            self.add_module(name, child)
        self.heads = config.num_attention_heads
        self.mix = self.attention_class(config, layer_index)  # so its parameters are called in checkpoints

    def tail(self, context: Tensor, hidden_states: Tensor) -> Tensor:
        """What the family does inside this module after the attention, such as an output projection."""
        return context

    def forward(
        self,
        hidden_states: Tensor | None = None,
        attention_mask: Tensor | Unpadded | None = None,
        *_: Any,
        query: Tensor | None = None,
        mask: Tensor | Unpadded | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Layers call this in several ways, by family and by version; all of them hand over a state and a mask."""
        x = query if hidden_states is None else hidden_states
        visible = mask if attention_mask is None else attention_mask
        q, k, v = (getattr(self, name)(x).unflatten(-1, (self.heads, -1)) for name in self.projections)  # b t h d
        if isinstance(visible, Unpadded):
            context = visible.attend(self.mix, q, k, v)
        else:
            context = self.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible).transpose(1, 2)
        return self.tail(taking_part(context.flatten(2), self.mix.parameters()), x), None


def taking_part(x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """x, with a gradient of zero for those of the parameters that this input does not use.

    An attention may need some of its parameters for longer inputs only. DistributedDataParallel and other wrappers
    expect a gradient of every parameter in every step.
    """
    if not torch.is_grad_enabled():
        return x
    zeros = [parameter.flatten()[:0].sum() for parameter in parameters if parameter.requires_grad]
    return x + sum(zeros).to(x.dtype) if zeros else x


class AdaptedModel:
    """A stock class that `adapt` changes once it is built; goes before the stock class in the bases.

    Args:
        config: of the emitted class.
        stock: a finished model of the stock class, which this one takes the place of: what that holds goes over, and
            nothing is built anew.
        args, kwargs: the stock class's own.
    """

    supports_gradient_checkpointing = True
    gradient_checkpointing = False  # transformers sets it on the instance, with the function to call
    # The stock classes claim these backends; here they would be ignored, so transformers shall refuse them.
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any, *args: Any, stock: nn.Module | None = None, **kwargs: Any) -> None:
        if stock is None:
            super().__init__(config, *args, **kwargs)
        else:
            self.__dict__.update(stock.__dict__)
        self.adapt()
        self.post_init()  # again: there may be new parameters to initialise

    def adapt(self) -> None:
        """Put the new parts in place of stock ones."""
        raise NotImplementedError


class HeadMixin(AdaptedModel):
    """A stock task class on an efficient base."""

    base_class: ClassVar[type[AdaptedModel]]

    def adapt(self) -> None:
        # The head has just built its stock base, with the options that it wants (no pooler, say).
        stock = getattr(self, self.base_model_prefix)
        setattr(self, self.base_model_prefix, self.base_class(self.config, stock=stock))


class CausalHeadMixin(HeadMixin):
    """A stock causal language model on an efficient base: `generate()` reads the whole text at every step."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        """The inputs of one step. There is no key and value cache, whatever `use_cache` says."""
        passed = (
            "token_type_ids",
            "encoder_hidden_states",
            "encoder_attention_mask",
            *self.base_class.embedding_inputs,
        )
        inputs = {name: others[name] for name in passed if others.get(name) is not None}
        if attention_mask is not None and not self.base_model.special_positions:  # others count from padding themselves
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, **inputs}


class EncoderMixin(AdaptedModel):
    """A stock base model whose layers use an `EfficientSelfAttention`.

    The class attributes and small methods say how a family or a target differs; the values here are BERT's.
    """

    special_positions: int = 0  # rows of the position table that no token uses
    embedding_inputs: ClassVar[tuple[str, ...]] = ()  # ids that `embed` and `run` get beside the usual ones
    projects_padding: ClassVar[bool] = False  # whether rows of padding that a target adds go through `project` too

    def adapt(self) -> None:
        """Put the efficient attention into every layer; called once, on the finished stock model."""
        self.config.validate_unpadding()
        if getattr(self.config, "position_embedding_type", "absolute") != "absolute":
            raise ValueError(
                f"position_embedding_type={self.config.position_embedding_type!r} is not supported: use a "
                "checkpoint with absolute positions"
            )
        index = 0
        for layers in self.layer_lists():
            for place, layer in enumerate(layers):
                layers[place] = self.adapted_layer(layer, index)
                for module in layers[place].modules():  # in the layers of BERT's kin; DistilBERT and ALBERT
                    for name in ("feed_forward_chunk", "ff_chunk"):
                        if hasattr(module, name):
                            setattr(module, name, functools.partial(in_parts, getattr(module, name)))
                index += 1

    def adapted_layer(self, layer: nn.Module, index: int) -> nn.Module:
        """The stock layer with this model's parts in it, or what takes its place."""
        self.replace_attention(layer, index)
        for module in layer.modules():  # whose chunks need not divide the rows when a target adds some
            if hasattr(module, "chunk_size_feed_forward"):
                module.chunk_size_feed_forward = 0
        return layer

    def replace_attention(self, layer: nn.Module, index: int) -> None:
        """Put this model's self-attention in the place of the layer's stock one."""
        raise NotImplementedError

    def layer_lists(self) -> Iterable[nn.ModuleList]:
        """The lists of layers: each layer that has parameters of its own is in them once."""
        raise NotImplementedError

    def unique_layers(self) -> Iterable[nn.Module]:
        """Every layer that has parameters of its own, once."""
        return [layer for layers in self.layer_lists() for layer in layers]

    def order(self) -> Iterable[nn.Module]:
        """The layers as they are run; one that is shared comes several times."""
        return self.unique_layers()

    def embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        **further: Tensor,
    ) -> Tensor:
        """Token embeddings (b, t, e), normalised; `further` are those of `embedding_inputs` that were given."""
        return self.embeddings(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            **further,
        )

    def normalize(self, rows: Tensor) -> Tensor:
        """What the stock embeddings do to a row (b, t, e) once all embeddings are added."""
        return self.embeddings.dropout(self.embeddings.LayerNorm(rows))

    def project(self, x: Tensor) -> Tensor:
        """From the embedding size to the hidden size, where a family has two sizes."""
        return x

    def begin(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From the embeddings to what the layers take: projected, and with the rows that the target adds."""
        return self.project(x), mask

    def padding_counts(self) -> bool:
        """Whether a real token's output depends on how much padding there is, as in some published forms."""
        return False

    def kept(self, mask: Tensor | None, cross: tuple[Tensor | None, ...], **_: Tensor) -> Unpadded | None:
        """What the layers get of a padded batch; None for all of it, as it is."""
        # Cross-attention pairs the rows of two batches, so there every item keeps its row.
        if mask is None or cross or not self.config.unpad_inputs or self.padding_counts():
            return None
        return unpadded(mask) if values_are_at_hand(mask) else None

    def run_layers(
        self, x: Tensor, mask: Tensor | None, cross: tuple[Any, ...], length: int, keep_states: bool, **ids: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The output (b, t, hidden) for the `length` tokens that came in, and if kept the states before every layer."""
        kept = self.kept(mask, cross, **ids)
        if kept is not None:
            x, mask = kept.unpad(x), kept

        def returned(x: Tensor) -> Tensor:
            return self.end(x if kept is None else kept.pad(x), length)

        states = []
        for layer in self.order():
            if keep_states:
                states.append(returned(x))
            x = self.run(layer, x, mask, *cross, **ids)
        return returned(self.final(x)), states

    def run(self, layer: nn.Module, x: Tensor, mask: Tensor | Unpadded | None, *cross: Any, **_: Tensor) -> Tensor:
        """One layer of `order()`, checkpointed here where the stock layer does not do it by itself (ALBERT's)."""
        if self.gradient_checkpointing and self.training and not isinstance(layer, GradientCheckpointingLayer):
            return self._gradient_checkpointing_func(run_layer, layer, x, mask, *cross)
        return run_layer(layer, x, mask, *cross)

    def end(self, x: Tensor, length: int) -> Tensor:
        """Undo `begin`: the `length` rows that stand for the tokens that came in."""
        return x

    def final(self, x: Tensor) -> Tensor:
        """A norm after the last layer, where a family has one."""
        return x

    def pool(self, x: Tensor) -> Tensor | None:
        """The pooled output (b, e), where the model has a pooler."""
        pooler = getattr(self, "pooler", None)
        return None if pooler is None else pooler(x)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Run the encoder.

        Args:
            input_ids: token ids (b, t); either these or `inputs_embeds`.
            attention_mask: (b, t), nonzero for real tokens; None where all are.
            token_type_ids: segment ids (b, t).
            position_ids: (b, t) or (1, t).
            inputs_embeds: word embeddings (b, t, e) in place of ids.
            encoder_hidden_states: (b, s, hidden), for a decoder with cross-attention.
            encoder_attention_mask: (b, s), nonzero for real positions.
            head_mask: not supported.
            past_key_values: not supported, there is no cache. `generate()` passes none, whatever `use_cache` says.
            output_attentions: has no effect but a warning: no attention weights are formed.
            output_hidden_states: whether to return the state before and after every layer.
            return_dict: False for a plain tuple.
            others: ids that the family takes (`embedding_inputs`); anything else is left out.

        Raises:
            ValueError: for what is not supported, and for inputs whose shapes do not fit.
        """
        config = self.config
        refuse_unsupported(head_mask, past_key_values)
        if output_attentions if output_attentions is not None else config.output_attentions:
            logger.warning_once(
                "output_attentions has no effect: this attention computes no attention weights, so attentions is None"
            )
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = config.return_dict

        batch, length = self.token_shape(input_ids, inputs_embeds, position_ids)
        mask = visible_tokens(attention_mask, (batch, length))
        further = {name: others[name] for name in self.embedding_inputs if others.get(name) is not None}
        x = self.embed(input_ids, inputs_embeds, token_type_ids, position_ids, **further)
        x, mask = self.begin(x, mask)
        cross = self.cross_inputs(encoder_hidden_states, encoder_attention_mask, x.dtype)

        last, states = self.run_layers(x, mask, cross, length, output_hidden_states, **further)
        if output_hidden_states:
            states.append(last)

        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=self.pool(last),
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        if return_dict:
            return output
        # Stock heads read the tuple by position: where the family has a pooler, its place is kept even when unused.
        second = (output.pooler_output,) if hasattr(self, "pooler") else ()
        return (last, *second, *((output.hidden_states,) if output_hidden_states else ()))

    def token_shape(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None
    ) -> tuple[int, int]:
        """Batch size and number of tokens, refused where the position table is too short for them."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        batch, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        longest = self.config.max_position_embeddings - self.special_positions
        if position_ids is None and length > longest:
            raise ValueError(
                f"the input has {length} tokens, but this model takes at most {longest}. Truncate it (tokenizer(..., "
                f"truncation=True, max_length={longest})) or convert the source again with a larger --max-len"
            )
        return batch, length

    def cross_inputs(
        self, states: Tensor | None, mask: Tensor | None, dtype: torch.dtype
    ) -> tuple[()] | tuple[Tensor, Tensor | None]:
        """What the stock cross-attention of a decoder takes: the encoder's states and an additive mask (b, 1, 1, s)."""
        if states is None:
            return ()
        if not getattr(self.config, "add_cross_attention", False):
            raise ValueError("this model has no cross-attention: leave out encoder_hidden_states")
        visible = visible_tokens(mask, states.shape[:2], name="encoder_attention_mask")
        if visible is None:
            return states, None
        blocked = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return states, blocked.masked_fill(~visible, torch.finfo(dtype).min)[:, None, None, :]


def in_parts(feed_forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The feed-forward of states (b, t, e), of many rows on a CPU a part at a time.

    Its inner states are the largest tensors of a layer. Those of a part stay in the cache, and in memory that need not
    be asked for anew: a batch of eight texts of MiniLM (13,096 tokens) takes a tenth less time.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or not values_are_at_hand(x):
        return feed_forward(x)
    rows = x.flatten(0, -2)
    if len(rows) <= 4 * PART:
        return feed_forward(x)
    return torch.cat([feed_forward(part[None])[0] for part in rows.split(PART)]).unflatten(0, x.shape[:-1])


def run_layer(layer: nn.Module, x: Tensor, mask: Tensor | Unpadded | None, *cross: Tensor | None) -> Tensor:
    """One stock layer; x and all else that may need a gradient go by position, as reentrant checkpointing asks."""
    output = layer(x, mask, *HEAD_MASK, *cross)
    return output[0] if isinstance(output, tuple) else output


def visible_tokens(mask: Tensor | None, shape: tuple[int, int], name: str = "attention_mask") -> Tensor | None:
    """A padding mask as bool (b, t), True for real tokens; the caller's tensor is never written to.

    Raises:
        ValueError: for masks of other shapes.
    """
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(
            f"{name} must have the shape (batch, tokens), 1 for real tokens and 0 for padding, got {mask.dim()} "
            "dimensions: this attention never computes the tokens * tokens matrix that other masks apply to"
        )
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must have the shape of the input, {tuple(shape)}, got {tuple(mask.shape)}")
    return mask.bool()


def refuse_unsupported(head_mask: Any, past_key_values: Any) -> None:
    """Raise ValueError for arguments that would have no effect here but change what a caller expects."""
    if head_mask is not None:
        raise ValueError("this attention does not support head_mask: leave it out")
    if past_key_values is not None:
        raise ValueError(
            "this model has no key and value cache: leave out past_key_values. Its own generate() does so; that of a "
            "model around it, such as EncoderDecoderModel, needs use_cache=False"
        )


class Group(NamedTuple):
    """Items of the batch that attention takes together: the next `items` * `length` tokens of the row."""

    items: int
    length: int
    mask: Tensor | None  # bool (items, length), True for what may be seen; None where all may


class Unpadded(NamedTuple):
    """A padded batch without its padding, so that the layers work in proportion to what there is to read.

    Each item is cut after its last visible token, and what is left stands one item after the other in one row
    (1, n, e). Projections, norms and feed-forwards go token by token and never notice: to them it is one text of n
    tokens. Only attention must know where an item ends. It takes items of about the same length together, as a group,
    and a group is a view (items, h, length, d) of the row, so that nothing is copied for it.

    The layers hand it on as they do a mask. A tuple of tensors, numbers and tuples can be followed by whatever moves a
    layer's inputs to another device or dtype.
    """

    groups: tuple[Group, ...]
    index: Tensor  # int64 (n,): the kept ones among the b * t tokens, in the order of the row
    batch: int
    tokens: int

    def unpad(self, x: Tensor) -> Tensor:
        """What is kept of x (b, t, e), as a row (1, n, e)."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def pad(self, row: Tensor) -> Tensor:
        """The batch (b, t, e) of a row (1, n, e), zeros where nothing was kept."""
        batch = row.new_zeros((self.batch * self.tokens, row.shape[-1]))
        return batch.index_copy_(0, self.index, row[0]).unflatten(0, (self.batch, self.tokens))

    def attend(self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attention` of each group of q, k and v (1, n, h, d); the context (1, n, h, d)."""
        contexts, first = [], 0
        for items, length, mask in self.groups:
            rows = slice(first, first + items * length)
            group = (x[0, rows].unflatten(0, (items, length)).transpose(1, 2) for x in (q, k, v))  # items h length d
            contexts.append(attention(*group, mask).transpose(1, 2).flatten(0, 1))
            first = rows.stop
        return torch.cat(contexts)[None]


def unpadded(mask: Tensor) -> Unpadded | None:
    """What to keep of a batch with this mask, bool (b, t); None where leaving out the rest would save too little.

    An item keeps at least its first token, which poolers read. Reads the mask's values: on a GPU, the one time in a
    forward that the processor waits for it.
    """
    batch, tokens = mask.shape
    seen = mask.cpu()
    lengths = (seen * torch.arange(1, tokens + 1)).amax(1).clamp(min=1).tolist()
    groups = similar(lengths, GROUP_PADDING.get(mask.device.type, GROUP_PADDING_ELSEWHERE))
    longest = [lengths[items[0]] for items in groups]
    if sum(len(items) * length for items, length in zip(groups, longest, strict=True)) >= WORTHWHILE * batch * tokens:
        return None

    kept = [
        (torch.tensor(items)[:, None] * tokens + torch.arange(length)).flatten()
        for items, length in zip(groups, longest, strict=True)
    ]
    index = torch.cat(kept).to(mask.device)
    visible = mask.flatten()[index].split([len(part) for part in kept])
    return Unpadded(
        groups=tuple(
            Group(len(items), length, None if seen[items, :length].all() else part.view(len(items), length))
            for items, length, part in zip(groups, longest, visible, strict=True)
        ),
        index=index,
        batch=batch,
        tokens=tokens,
    )


def similar(lengths: list[int], padding: int) -> list[list[int]]:
    """Indices of lengths, longest first, in groups that need at most so much padding to be as long as their first."""
    groups: list[list[int]] = []
    added = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if groups:
            added += lengths[groups[-1][0]] - lengths[index]
        if not groups or added > padding:
            groups.append([])
            added = 0
        groups[-1].append(index)
    return groups


def values_are_at_hand(mask: Tensor) -> bool:
    """Whether a forward may depend on the mask's values: not while a graph is made that shall serve other masks too."""
    making_a_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (making_a_graph or mask.is_meta or (mask.is_cuda and torch.cuda.is_current_stream_capturing()))
