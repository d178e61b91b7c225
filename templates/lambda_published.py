# SPDX-License-Identifier: Apache-2.0
"""LambdaBERT as published: one λ shared by all heads, 1-D convolutions, batch norms, NSP and SOP pretraining heads.

Contract: a checkpoint of the published implementation loads by its own key names and gives its outputs (`mask_mode:
"published"`, where padding takes part). With the default `mask_mode: "masked"` neither padding nor, in eval mode, batch
mates change a real token. Beside it in the repo: `lambda_attention.py`.

Source: "LambdaNetworks: Modeling Long-Range Interactions without Attention", arXiv 2102.08602, equations 1 to 3.
Axes: b batch, t position (m: position attended to), h lambda queries ("heads"), k key depth, u intra depth, v value
width D / h, j offset in the local context, D hidden size.

One file of over 400 lines, because a repo carries its code as files and a reader follows one model in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from .lambda_attention import apply_windows

# A full position table grows with the square of the length; bytes a layer in float32 up to which one is made.
FULL_TABLE_LIMIT = 256 * 2**20
GLOBAL_POSITIONS = ("diagonal", "published", "paper")
MASK_MODES = ("masked", "published")


class LambdaBertConfig(PretrainedConfig):
    """Configuration of a LambdaBERT in the published layout.

    `local_context_size`: odd window r, or None for global positions, which come in three forms (`global_positions`):
    "diagonal" stores (n, u, k), "published" stores the published (n, n, u, k) of which only the diagonal is used,
    "paper" uses all of it: Σ_m P[t,m] V[m], quadratic in the length.
    `position_std`: standard deviation of a new position table. 1 is published; .02 leaves the content term its weight.
    `batch_norm`: False leaves norm_q and norm_v out. `mask_mode`: "masked" or "published" (padding takes part).
    """

    model_type = "lambda-published"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        num_lambda_queries: int = 8,
        key_depth: int = 8,
        intra_depth: int = 4,
        local_context_size: int | None = None,
        output_lambda_params: bool = True,
        hidden_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float | None = None,
        pad_token_id: int = 0,
        batch_norm: bool = True,
        global_positions: str = "diagonal",
        mask_mode: str = "masked",
        tie_word_embeddings: bool = True,
        position_std: float = 1.0,
        **kwargs: object,
    ) -> None:
        # The published configuration spells it layer_norm_epsilon.
        published_eps = kwargs.pop("layer_norm_epsilon", None)
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        # transformers 5 has neither field in its base class unless it is set here.
        self.pad_token_id, self.tie_word_embeddings = pad_token_id, tie_word_embeddings
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.num_lambda_queries = num_lambda_queries
        self.key_depth = key_depth
        self.intra_depth = intra_depth
        self.local_context_size = local_context_size
        self.output_lambda_params = output_lambda_params
        self.hidden_dropout_prob = hidden_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps if layer_norm_eps is not None else (published_eps or 1e-12)
        self.batch_norm = batch_norm
        self.global_positions = global_positions
        self.mask_mode = mask_mode
        self.position_std = position_std
        faults = list(_config_faults(self))
        if faults:
            raise ValueError("LambdaBertConfig: " + "; ".join(faults))


def _config_faults(config: LambdaBertConfig) -> list[str]:
    faults = []
    if config.hidden_size % config.num_lambda_queries:
        faults.append(
            f"num_lambda_queries must divide hidden_size {config.hidden_size}, got {config.num_lambda_queries}"
        )
    if config.local_context_size is not None and config.local_context_size % 2 == 0:
        faults.append(f"local_context_size must be odd, got {config.local_context_size}")
    if config.global_positions not in GLOBAL_POSITIONS:
        faults.append(f"global_positions must be one of {', '.join(GLOBAL_POSITIONS)}, got {config.global_positions!r}")
    if config.mask_mode not in MASK_MODES:
        faults.append(f"mask_mode must be one of {', '.join(MASK_MODES)}, got {config.mask_mode!r}")
    size = 4 * config.max_position_embeddings**2 * config.intra_depth * config.key_depth
    if config.local_context_size is None and config.global_positions != "diagonal" and size > FULL_TABLE_LIMIT:
        faults.append(
            f"a full position table of {config.max_position_embeddings} positions takes {size / 2**20:.0f} MB a layer"
            f" (limit {FULL_TABLE_LIMIT / 2**20:.0f}): use global_positions='diagonal' or a local_context_size"
        )
    return faults


class LambdaLayer(nn.Module):
    """The lambda layer (arXiv 2102.08602, eq. 1-3): x (b, t, D) → y (b, t, D), λc (b, k, v)."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.h, self.k, self.u = config.num_lambda_queries, config.key_depth, config.intra_depth
        self.v = config.hidden_size // self.h
        self.r = config.local_context_size
        self.max_positions = config.max_position_embeddings
        self.global_positions, self.mask_mode = config.global_positions, config.mask_mode
        self.query = nn.Conv1d(config.hidden_size, self.h * self.k, 1, bias=False)
        self.key = nn.Conv1d(config.hidden_size, self.k * self.u, 1, bias=False)
        self.value = nn.Conv1d(config.hidden_size, self.v * self.u, 1, bias=False)
        self.norm_q = nn.BatchNorm1d(self.h * self.k) if config.batch_norm else None
        self.norm_v = nn.BatchNorm1d(self.v * self.u) if config.batch_norm else None
        n = config.max_position_embeddings
        if self.r is not None:
            self.rel_pos_embed = nn.Parameter(torch.randn(self.k, self.u, 1, self.r))
        elif self.global_positions == "diagonal":
            self.pos_diagonal = nn.Parameter(torch.randn(n, self.u, self.k))
        else:
            self.pos_embed = nn.Parameter(torch.randn(n, n, self.u, self.k))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Takes x (b, t, D) and a bool mask (b, t), True where a token is real, or None; returns y and λc."""
        if self.mask_mode == "published":
            mask = None
        t = x.shape[1]
        if self.r is None and t > self.max_positions:
            raise ValueError(
                f"the input has {t} tokens, but the global position table has {self.max_positions}: shorten the input"
            )
        # A 1x1 convolution over (b, D, t) is a Linear over (b, t, D); the transposes are saved.
        q = _normalise(F.linear(x, self.query.weight.squeeze(-1)), self.norm_q, mask)
        v = _normalise(F.linear(x, self.value.weight.squeeze(-1)), self.norm_v, mask)
        s = F.linear(x, self.key.weight.squeeze(-1))
        if mask is not None:
            s = s.masked_fill(~mask[..., None], torch.finfo(s.dtype).min)
            v = v.masked_fill(~mask[..., None], 0)
        q = q.unflatten(-1, (self.h, self.k))  # b t h k
        v = v.unflatten(-1, (self.v, self.u)).transpose(2, 3)  # b t u v: rows of a window are (j u)
        # One softmax over positions a channel (k u); float32, since 4,096 terms of a half sum badly.
        p = s.float().softmax(1).to(v.dtype).unflatten(-1, (self.k, self.u))
        # λc[k, v] = Σ_u Σ_t K[u, k, t] V[u, v, t]: u and t are one contraction.
        lambda_c = p.transpose(2, 3).flatten(1, 2).transpose(1, 2) @ v.flatten(1, 2)  # b k v
        y = (q.flatten(1, 2) @ lambda_c).view(*q.shape[:3], self.v) + self._positions(q, v)
        return y.flatten(2), lambda_c

    def _positions(self, q: Tensor, v: Tensor) -> Tensor:
        """From q (b, t, h, k) and v (b, t, u, v), q·λp (b, t, h, v): the query goes before the sum over positions."""
        t = q.shape[1]
        if self.r is not None:
            table = self.rel_pos_embed.squeeze(2).transpose(1, 2).flatten(1)  # k (j u)
            return apply_windows(q @ table.to(q.dtype), v)
        if self.global_positions == "paper":
            table = self.pos_embed[:t, :t]  # t m u k
            return torch.einsum("bthk,tmuk,bmuv->bthv", q, table.to(q.dtype), v)
        if self.global_positions == "diagonal":
            diagonal = self.pos_diagonal[:t]  # t u k
        else:
            diagonal = position_diagonal(self.pos_embed)[:t]
        return q @ diagonal.to(q.dtype).transpose(1, 2) @ v


def position_diagonal(table: Tensor) -> Tensor:
    """P[t, t] as (t, u, k) from a published table (t, m, u, k): its einsum writes one index for both positions."""
    return table.diagonal(dim1=0, dim2=1).permute(2, 0, 1)


def _normalise(x: Tensor, norm: nn.BatchNorm1d | None, mask: Tensor | None) -> Tensor:
    """Batch norm of x (b, t, c) over real tokens only, so that padding moves neither batch nor running statistics."""
    if norm is None:
        return x
    if mask is None or not norm.training:
        return norm(x.flatten(0, 1)).view_as(x)
    out = torch.zeros_like(x)
    return out.masked_scatter(mask[..., None], norm(x[mask]).to(x.dtype))


class LambdaSelfOutput(nn.Module):
    """dense, dropout, residual, LayerNorm; serves after the lambda layer and after the feed-forward."""

    def __init__(self, config: LambdaBertConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(y)) + x)


class LambdaBlock(nn.Module):
    """`lambdalayer.self` and `lambdalayer.output`."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.self = LambdaLayer(config)
        self.output = LambdaSelfOutput(config, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        y, lambda_c = self.self(x, mask)
        return self.output(y, x), lambda_c


class LambdaIntermediate(nn.Module):
    """The wide half of the feed-forward."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class LambdaEncoderLayer(nn.Module):
    """A lambda layer and a feed-forward, each with its residual and LayerNorm."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.lambdalayer = LambdaBlock(config)
        self.intermediate = LambdaIntermediate(config)
        self.output = LambdaSelfOutput(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x, lambda_c = self.lambdalayer(x, mask)
        return self.output(self.intermediate(x), x), lambda_c


class LambdaEncoder(nn.Module):
    """`layer.{i}`: the model loops over them."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(LambdaEncoderLayer(config) for _ in range(config.num_hidden_layers))


class LambdaEmbeddings(nn.Module):
    """BERT's embeddings: words, positions counted from 0, types."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, embeds: Tensor | None = None) -> Tensor:
        x = self.word_embeddings(input_ids) if embeds is None else embeds
        # Positions are counted here, not kept as a buffer: a stored `position_ids` is then an ignored key.
        longest = self.position_embeddings.num_embeddings
        if x.shape[1] > longest:
            raise ValueError(f"the input has {x.shape[1]} tokens, but this model takes at most {longest}: truncate it")
        positions = torch.arange(x.shape[1], device=x.device)
        if token_type_ids is None:
            token_type_ids = positions.new_zeros(x.shape[:2])
        x = x + self.position_embeddings(positions) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x))


class LambdaPooler(nn.Module):
    """The first token through dense and tanh."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))


class LambdaTransform(nn.Module):
    """dense, activation, LayerNorm before the decoder."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))


class LambdaLMHead(nn.Module):
    """`transform`, `decoder` (tied to the word embeddings) and `bias` (tied to the decoder's)."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.transform = LambdaTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder.bias = self.bias

    def _tie_weights(self) -> None:  # transformers 4 calls it once the parameters have left the meta device
        self.decoder.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class LambdaPretrainingHeads(nn.Module):
    """`cls.predictions` and `cls.seq_relationship`, as in BERT."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.predictions = LambdaLMHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class LambdaSentenceOrderHead(nn.Module):
    """`sop_classifier.classifier` on the pooled output."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier(self.dropout(pooled))


@dataclass
class LambdaModelOutput(ModelOutput):
    """last_hidden_state (b, t, D), pooler_output (b, D), hidden_states, attentions: λc (b, k, v) a layer."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LambdaPretrainingOutput(ModelOutput):
    """loss, prediction_logits (b, t, vocabulary), pair_logits (b, 2: next-sentence or sentence-order)."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    pair_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class LambdaBertPreTrainedModel(PreTrainedModel):
    """Loading, saving and the published initialisation."""

    config_class = LambdaBertConfig
    base_model_prefix = "lambdabert"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_unexpected = [r"position_ids$"]  # noqa: RUF012 - transformers 4 adds a list to it

    def _init_weights(self, module: nn.Module) -> None:
        # Convolutions keep torch's default, as published. They and position tables must be drawn here again,
        # since from_pretrained builds on the meta device and asks this method for what a checkpoint lacks.
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv1d | nn.LayerNorm | nn.BatchNorm1d):
            module.reset_parameters()
        elif isinstance(module, LambdaLayer):
            for name in ("rel_pos_embed", "pos_diagonal", "pos_embed"):
                if hasattr(module, name):
                    nn.init.normal_(getattr(module, name), 0.0, self.config.position_std)
        elif isinstance(module, LambdaLMHead):
            nn.init.zeros_(module.bias)


class LambdaBertModel(LambdaBertPreTrainedModel):
    """The encoder; `attentions` are λc (b, k, v) a layer unless `output_lambda_params` is false."""

    def __init__(self, config: LambdaBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = LambdaEmbeddings(config)
        self.encoder = LambdaEncoder(config)
        self.pooler = LambdaPooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
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
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_lambda_params: bool | None = None,
        return_dict: bool | None = None,
        **_: object,
    ) -> LambdaModelOutput | tuple[Tensor, ...]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        config = self.config
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_lambdas = config.output_lambda_params if output_lambda_params is None else output_lambda_params
        mask = None if attention_mask is None else attention_mask.bool()
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        states, lambdas = [x], []
        for layer in self.encoder.layer:
            if self.gradient_checkpointing and self.training:
                x, lambda_c = self._gradient_checkpointing_func(layer.__call__, x, mask)
            else:
                x, lambda_c = layer(x, mask)
            states.append(x)
            lambdas.append(lambda_c)
        output = LambdaModelOutput(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x),
            hidden_states=tuple(states) if with_states else None,
            attentions=tuple(lambdas) if with_lambdas else None,
        )
        return output if _as_dict(config, return_dict) else output.to_tuple()


def _tied(head: str) -> dict[str, str] | list[str]:
    """The tied keys of a language-model head: a map in transformers 5, a list before."""
    tied = {
        f"{head}.decoder.weight": "lambdabert.embeddings.word_embeddings.weight",
        f"{head}.decoder.bias": f"{head}.bias",
    }
    return tied if int(transformers.__version__.split(".")[0]) >= 5 else list(tied)


class _ForPreTraining(LambdaBertPreTrainedModel):
    """What both pretraining models share; a subclass names its heads and its pair label."""

    def __init__(self, config: LambdaBertConfig) -> None:
        super().__init__(config)
        self.lambdabert = LambdaBertModel(config)
        self._add_heads(config)
        self.post_init()

    def _add_heads(self, config: LambdaBertConfig) -> None:
        raise NotImplementedError

    def _lm_head(self) -> LambdaLMHead:
        raise NotImplementedError

    def _pair_head(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Module:
        return self._lm_head().decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        head = self._lm_head()
        head.decoder = value
        head.bias = value.bias

    def _losses(
        self, labels: Tensor | None, pair_label: Tensor | None, return_dict: bool | None, inputs: dict[str, object]
    ) -> LambdaPretrainingOutput | tuple[Tensor, ...]:
        base = self.lambdabert(return_dict=True, **inputs)
        scores, pair = self._lm_head()(base.last_hidden_state), self._pair_head(base.pooler_output)
        # The sum of both cross entropies as published; one alone where only one label comes.
        losses = []
        if labels is not None:
            losses.append(F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten()))
        if pair_label is not None:
            losses.append(F.cross_entropy(pair.float(), pair_label.flatten()))
        output = LambdaPretrainingOutput(
            loss=sum(losses[1:], losses[0]) if losses else None,
            prediction_logits=scores,
            pair_logits=pair,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


class LambdaBertForPreTrainingNSP(_ForPreTraining):
    """Masked language model and next-sentence prediction (label 1: a random second segment)."""

    _tied_weights_keys = _tied("cls.predictions")

    def _add_heads(self, config: LambdaBertConfig) -> None:
        self.cls = LambdaPretrainingHeads(config)

    def _lm_head(self) -> LambdaLMHead:
        return self.cls.predictions

    def _pair_head(self, pooled: Tensor) -> Tensor:
        return self.cls.seq_relationship(pooled)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: object,
    ) -> LambdaPretrainingOutput | tuple[Tensor, ...]:
        inputs.update(input_ids=input_ids, attention_mask=attention_mask)
        return self._losses(labels, next_sentence_label, return_dict, inputs)


class LambdaBertForPreTrainingSOP(_ForPreTraining):
    """Masked language model and sentence-order prediction (label 1: the segments are swapped)."""

    _tied_weights_keys = _tied("predictions")

    def _add_heads(self, config: LambdaBertConfig) -> None:
        self.predictions = LambdaLMHead(config)
        self.sop_classifier = LambdaSentenceOrderHead(config)

    def _lm_head(self) -> LambdaLMHead:
        return self.predictions

    def _pair_head(self, pooled: Tensor) -> Tensor:
        return self.sop_classifier(pooled)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: object,
    ) -> LambdaPretrainingOutput | tuple[Tensor, ...]:
        inputs.update(input_ids=input_ids, attention_mask=attention_mask)
        return self._losses(labels, sentence_order_label, return_dict, inputs)


def _as_dict(config: PretrainedConfig, return_dict: bool | None) -> bool:
    # The attribute is `return_dict` on both transformers 4.57 and 5.x; `use_return_dict` is gone in 5.x.
    return bool(getattr(config, "return_dict", True)) if return_dict is None else return_dict
