# SPDX-License-Identifier: Apache-2.0
"""BiGS: an encoder that mixes tokens by two state-space models and a gate, without attention (arXiv 2212.10544).

Parameter names are those of the published torch port. Time and memory are linear in the length but for a logarithm, and
nothing but the table of positions bounds it.

One file of over 400 lines, because a repo carries its code as files and a reader follows one model in one of them.

What the outputs hold: `hidden_states` has one entry a layer and one for the embeddings; the last equals
`last_hidden_state`. `attentions` is always None, there is no attention.

As published, the attention mask touches the pooler only: padding flows through the layers, so pad to the length that
the model was trained with, or set `mask_mode="inert"`, under which padding changes no real token's output.

In bfloat16 or float16 the dense layers run in that type and the convolutions in float32, their parameters too.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils import ModelOutput, logging

from .bigs_ssm import ACTIVATION_FORMS, S4D, convolve_both, initial_frequencies
from .configuration_bigs import BiGSConfig, check_config

logger = logging.get_logger(__name__)

GATE_ROWS = 512  # positions whose gate is computed at a time on a CPU: the wide states then stay in the caches


class BiGSEmbeddings(nn.Module):
    """LayerNorm(word + token type + position), and dropout."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """From word embeddings (b, l, d), segment ids (b, l), zeros by default, and positions (b, l) or (1, l)."""
        length = words.shape[1]
        if position_ids is None:  # never a buffer: transformers 5 leaves garbage in those that are not saved
            position_ids = torch.arange(length, device=words.device)[None]
        if token_type_ids is None:
            token_type_ids = position_ids.new_zeros((1, length))
        # Summed in the order of the published model.
        states = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(states))


class BiGSLayer(GradientCheckpointingLayer):
    """x + mix(LayerNorm(x)), or LayerNorm(x + mix(x)) without `pre_norm`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.pre_norm, self.activation = config.pre_norm, ACTIVATION_FORMS[config.layer_gelu]
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dv = nn.Linear(width, inner)
        self.du_forward = nn.Linear(width, width)
        self.du_backward = nn.Linear(width, width)
        self.duc_forward = nn.Linear(width, width)
        self.duc_backward = nn.Linear(width, width)
        self.dol = nn.Linear(width, inner)
        self.do = nn.Linear(inner, width)
        self.fs4 = S4D(config.num_ssm, config.num_ssm_heads)
        self.bs4 = S4D(config.num_ssm, config.num_ssm_heads)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """States (b, l, d) to states; `real` (b, l, 1) is 0 for tokens that no other may see, or None."""
        if self.pre_norm:
            return x + self.mix(self.LayerNorm(x), real)
        return self.LayerNorm(x + self.mix(x, real))

    def mix(self, x: Tensor, real: Tensor | None) -> Tensor:
        forward, backward = self.gelu(self.du_forward(x)), self.gelu(self.du_backward(x))
        if real is not None:
            # What enters neither convolution is seen by no one, wherever it stands.
            forward, backward = forward * real, backward * real
        forward, backward = convolve_both(self.fs4, self.bs4, forward, backward)
        context = self.duc_forward(forward) * self.duc_backward(backward)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return self.gate(context, x)
        parts = zip(context.split(GATE_ROWS, dim=1), x.split(GATE_ROWS, dim=1), strict=True)
        return torch.cat([self.gate(*part) for part in parts], dim=1)

    def gate(self, context: Tensor, x: Tensor) -> Tensor:
        return self.do(self.gelu(self.dol(context)) * self.gelu(self.dv(x)))

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.activation)


class BiGSEncoder(nn.Module):
    """The layers, under the names of the published models."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BiGSLayer(config) for _ in range(config.num_hidden_layers))


class BiGSPooler(nn.Module):
    """tanh(dense(mean over positions))."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.over_mask = config.pooler_type == "non_padding_mean" or config.mask_mode == "inert"

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """From states (b, l, d) and mask (b, l); a row without any real token gives tanh(bias), never NaN."""
        if self.over_mask and mask is not None:
            weights = mask.float()[..., None]
            mean = (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        else:
            mean = states.float().mean(dim=1)
        return torch.tanh(self.dense(mean.to(states.dtype)))


class BiGSPredictions(nn.Module):
    """LayerNorm(act(dense(x))) E + bias, E the word embeddings where tied."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.activation = ACT2FN[config.hidden_act]
        # The bias stands apart: shared with the decoder, as it was published, it cannot be saved as safetensors.
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        states = self.transform["LayerNorm"](self.activation(self.transform["dense"](states)))
        return self.decoder(states) + self.bias

    def fit_bias(self, size: int) -> None:
        """Follow a vocabulary that was resized: new words start with a bias of 0."""
        if size != len(self.bias):
            kept = self.bias.detach()[:size]
            self.bias = nn.Parameter(F.pad(kept, (0, size - len(kept))), requires_grad=self.bias.requires_grad)


class BiGSHeads(nn.Module):
    """The pretraining heads, under the names of the published models."""

    def __init__(self, config: Any, *, predictions: bool, relationship: bool) -> None:
        super().__init__()
        if predictions:
            self.predictions = BiGSPredictions(config)
        if relationship:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BiGSPreTrainedModel(PreTrainedModel):
    """How a BiGS model starts, and what transformers should know of it."""

    config_class = BiGSConfig
    base_model_prefix = "bigs"
    supports_gradient_checkpointing = True
    _no_split_modules = ("BiGSLayer", "BiGSEmbeddings")
    _keep_in_fp32_modules_strict = ("fs4", "bs4")  # the convolutions' parameters, whatever dtype is asked for

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        check_config(config)
        super().__init__(config, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # nn.init only: transformers 5 makes these skip what a checkpoint filled.
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, BiGSPredictions):
            nn.init.zeros_(module.bias)
        elif isinstance(module, S4D):
            self._init_convolution(module)

    def _init_convolution(self, module: S4D) -> None:
        part = module.kernel
        nn.init.ones_(module.D)
        nn.init.normal_(part.C, std=0.5**0.5)
        nn.init.constant_(part.A_re, -0.5)
        nn.init.uniform_(part.log_step, math.log(0.01), math.log(1.0))
        if not getattr(part.A_im, "_is_hf_initialized", False):  # there is no nn.init for a table of values
            values = part.A_im.new_tensor(initial_frequencies(self.config.scaling, self.config.num_ssm))
            with torch.no_grad():
                part.A_im.copy_(values.expand_as(part.A_im))


class BiGSModel(BiGSPreTrainedModel):
    """The encoder, with a pooler unless told otherwise."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BiGSEmbeddings(config)
        self.encoder = BiGSEncoder(config)
        self.pooler = BiGSPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Run the encoder.

        Args:
            input_ids: token ids (b, l); either these or `inputs_embeds`.
            attention_mask: (b, l), nonzero for real tokens; None where all are.
            token_type_ids: segment ids (b, l), zeros by default.
            position_ids: (b, l) or (1, l).
            inputs_embeds: word embeddings (b, l, d) in place of ids.
            output_attentions: has no effect but a warning: there is no attention.
            output_hidden_states: whether to return the states before and after every layer.
            return_dict: False for a plain tuple.

        Raises:
            ValueError: for inputs whose shapes do not fit.
        """
        config = self.config
        if output_attentions:
            logger.warning_once("output_attentions has no effect: BiGS has no attention, so attentions is None")
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if return_dict is None:
            return_dict = config.return_dict

        words = self._words(input_ids, inputs_embeds, position_ids)
        mask = _checked_mask(attention_mask, words)
        x = self.embeddings(words, token_type_ids, position_ids)
        real = None if mask is None or config.mask_mode != "inert" else mask.to(x.dtype)[..., None]
        hidden = (x,) if output_hidden_states else None
        for layer in self.encoder.layer:
            x = layer(x, real)
            hidden = None if hidden is None else (*hidden, x)
        pooled = None if self.pooler is None else self.pooler(x, mask)
        if return_dict:
            return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled, hidden_states=hidden)
        return tuple(value for value in (x, pooled, hidden) if value is not None)

    def _words(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """Word embeddings (b, l, d), refused where the table of positions is too short for them."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        length = (inputs_embeds if input_ids is None else input_ids).shape[1]
        longest = self.config.max_position_embeddings
        if position_ids is None and length > longest:
            raise ValueError(
                f"the input has {length} tokens, but this model takes at most {longest}. Truncate it (tokenizer(..., "
                f"truncation=True, max_length={longest})) or convert the source again with a larger --max-len"
            )
        return self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds


class _BiGSHead(BiGSPreTrainedModel):
    """A task model on the encoder; subclasses add their layers, and say what they score and learn."""

    pools = False  # whether the encoder has a pooler
    output_class: ClassVar[type[ModelOutput]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bigs = BiGSModel(config, add_pooling_layer=self.pools)
        self.add_head(config)
        self.post_init()

    def add_head(self, config: Any) -> None:
        raise NotImplementedError

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        """What the head makes of the encoder's outputs, by the names that the output has for it."""
        raise NotImplementedError

    def loss(self, scores: dict[str, Tensor], labels: Any) -> Tensor | None:
        """The loss of these scores; `labels` are as the class says, or None."""
        return None if labels is None else _cross_entropy(scores["logits"], labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """As BiGSModel; `labels` are as the class says."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(inputs, labels, return_dict, options)

    def run(
        self, inputs: tuple[Tensor | None, ...], labels: Any, return_dict: bool | None, options: dict[str, Any]
    ) -> Any:
        """Encode, score and learn; inputs are ids, mask, segments, positions and embeddings."""
        found = self.encode(inputs, options)
        scores = self.scores(found)
        output = self.output_class(loss=self.loss(scores, labels), **scores, hidden_states=found.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def encode(self, inputs: tuple[Tensor | None, ...], options: dict[str, Any]) -> BaseModelOutputWithPooling:
        return self.bigs(*inputs, **{**options, "return_dict": True})


class _BiGSWithPredictions(_BiGSHead):
    """A task model whose head predicts words by the (tied) word embeddings."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bigs.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.cls.predictions.decoder = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.cls.predictions.fit_bias(embeddings.num_embeddings)
        return embeddings


class BiGSForMaskedLM(_BiGSWithPredictions):
    """Predicts the words behind masks: logits (b, l, vocabulary). Labels (b, l): word ids, -100 for no loss."""

    output_class = MaskedLMOutput

    def add_head(self, config: Any) -> None:
        self.cls = BiGSHeads(config, predictions=True, relationship=False)

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        return {"logits": self.cls.predictions(found.last_hidden_state)}


class BiGSForPreTraining(_BiGSWithPredictions):
    """Predicts masked words and whether the second text follows the first."""

    pools = True
    output_class = BertForPreTrainingOutput

    def add_head(self, config: Any) -> None:
        self.cls = BiGSHeads(config, predictions=True, relationship=True)

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        return {
            "prediction_logits": self.cls.predictions(found.last_hidden_state),
            "seq_relationship_logits": self.cls.seq_relationship(found.pooler_output),
        }

    def loss(self, scores: dict[str, Tensor], labels: Any) -> Tensor | None:
        pairs = zip(scores.values(), labels, strict=True)
        losses = [_cross_entropy(logits, wanted) for logits, wanted in pairs if wanted is not None]
        return sum(losses) if losses else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """As BiGSModel; `labels` (b, l) are word ids, `next_sentence_label` (b,), 0 where the second text follows."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(inputs, (labels, next_sentence_label), return_dict, options)


class BiGSForNextSentencePrediction(_BiGSHead):
    """Predicts whether the second text follows the first: logits (b, 2). Labels (b,): 0 where it does, else 1."""

    pools = True
    output_class = NextSentencePredictorOutput

    def add_head(self, config: Any) -> None:
        self.cls = BiGSHeads(config, predictions=False, relationship=True)

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        return {"logits": self.cls.seq_relationship(found.pooler_output)}


class _BiGSClassifier(_BiGSHead):
    """A task model with dropout and one dense layer on the pooled output, or on the states without a pooler."""

    def add_head(self, config: Any) -> None:
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(
            config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        )
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.dropout(found.pooler_output if self.pools else found.last_hidden_state))}


class BiGSForSequenceClassification(_BiGSClassifier):
    """Classifies texts, or fits numbers to them: logits (b, labels).

    Labels (b,) or (b, labels), by config.problem_type, which is guessed where it is not set.
    """

    pools = True
    output_class = SequenceClassifierOutput

    def loss(self, scores: dict[str, Tensor], labels: Any) -> Tensor | None:
        return None if labels is None else _classification_loss(scores["logits"], labels, self.config)


class BiGSForTokenClassification(_BiGSClassifier):
    """Classifies tokens: logits (b, l, labels). Labels (b, l), -100 for no loss."""

    output_class = TokenClassifierOutput


class BiGSForMultipleChoice(_BiGSClassifier):
    """Scores choices: inputs (b, c, l), with an axis of choices; logits (b, c). Labels (b,): the right ones."""

    pools = True
    output_class = MultipleChoiceModelOutput

    def add_head(self, config: Any) -> None:
        super().add_head(config)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def encode(self, inputs: tuple[Tensor | None, ...], options: dict[str, Any]) -> BaseModelOutputWithPooling:
        choices = next((value.shape[1] for value in (inputs[0], inputs[-1]) if value is not None), 1)
        found = super().encode(tuple(None if value is None else value.flatten(0, 1) for value in inputs), options)
        found.pooler_output = found.pooler_output.unflatten(0, (-1, choices))
        return found

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        return {"logits": super().scores(found)["logits"].squeeze(-1)}


class BiGSForQuestionAnswering(_BiGSHead):
    """Finds where an answer starts and ends: two logits (b, l)."""

    output_class = QuestionAnsweringModelOutput

    def add_head(self, config: Any) -> None:
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def scores(self, found: BaseModelOutputWithPooling) -> dict[str, Tensor]:
        start, end = self.qa_outputs(found.last_hidden_state).unbind(dim=-1)
        return {"start_logits": start, "end_logits": end}

    def loss(self, scores: dict[str, Tensor], labels: Any) -> Tensor | None:
        if any(position is None for position in labels):
            return None
        losses = []
        for logits, position in zip(scores.values(), labels, strict=True):
            position, length = position.reshape(-1), logits.shape[1]
            losses.append(_cross_entropy(logits, position.masked_fill((position < 0) | (position >= length), -100)))
        return sum(losses) / 2

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """As BiGSModel; positions (b,) beyond the input count as not to be learned."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(inputs, (start_positions, end_positions), return_dict, options)


def _checked_mask(mask: Tensor | None, words: Tensor) -> Tensor | None:
    """The padding mask as bool (b, l).

    Raises:
        ValueError: for masks of other shapes.
    """
    if mask is None:
        return None
    if tuple(mask.shape) != tuple(words.shape[:2]):
        raise ValueError(
            f"attention_mask must have the shape of the input, {tuple(words.shape[:2])}, got {tuple(mask.shape)}: "
            "(batch, tokens), 1 for real tokens and 0 for padding"
        )
    return mask.bool()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, -2), labels.reshape(-1))


def _classification_loss(logits: Tensor, labels: Tensor, config: Any) -> Tensor:
    """Squared error, cross entropy or binary cross entropy: by config.problem_type, else by the labels' type."""
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        else:
            single = not labels.is_floating_point()
            config.problem_type = "single_label_classification" if single else "multi_label_classification"
    if config.problem_type == "regression":
        return F.mse_loss(logits.float().reshape(labels.shape), labels.float())
    if config.problem_type == "single_label_classification":
        return _cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
