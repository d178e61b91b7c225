"""Sizes and published models by name. An entry is data: sizes, options of the target, and where they are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of an encoder."""

    layers: int
    hidden: int
    heads: int
    inner: int


@dataclass(frozen=True, slots=True)
class Preset:
    """A model that `--like` names.

    Attributes:
        source: where the numbers are from.
        sizes: of the encoder.
        family: of the stock model; "" for the target's usual one.
        length: longest input in tokens.
        vocab: tokens, where no tokenizer belongs to it.
        tokenizer: Hub id of the tokenizer that it was published with; an error names it where none is given.
        fields: of the config. options: of the target. causal: whether it predicts the next token.
        head: the head of the model; "" for the usual one.
    """

    source: str
    sizes: Sizes
    family: str = ""
    length: int = 512
    vocab: int | None = None
    tokenizer: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False
    head: str = ""


BERT_SIZES = "BERT (arXiv 1810.04805)"
SMALL_SIZES = "BERT miniatures (arXiv 1908.08962)"
# Of any target and family.
SIZES: Mapping[str, Preset] = {
    "tiny": Preset(SMALL_SIZES, Sizes(2, 128, 2, 512)),
    "mini": Preset(SMALL_SIZES, Sizes(4, 256, 4, 1024)),
    "small": Preset(SMALL_SIZES, Sizes(4, 512, 8, 2048)),
    "base": Preset(BERT_SIZES, Sizes(12, 768, 12, 3072)),
    "large": Preset(BERT_SIZES, Sizes(24, 1024, 16, 4096)),
}

BIGS = "BiGS (arXiv 2212.10544, JunxiongWang/BiGS_128)"
CEREBRAS = "Linformer of the Cerebras model zoo, release 1.7.1"
LAMBDABERT = "LambdaBERT (gsarti/lambda-bert), defaults of its config"
TRANSNORMER = "TransNormer (arXiv 2210.10340)"
LRA = f"{TRANSNORMER}, script_lra.py of OpenNLPLab/Transnormer"


def _transnormer(variant: str, *, causal: bool) -> Preset:
    """The language models of the paper: GLU of width 8/3 · hidden, whose "swish" is the identity in the authors' code.

    The causal ones are decoders with BERT's layers; the bidirectional ones are RoBERTa's.
    """
    return Preset(
        TRANSNORMER,
        Sizes(12, 768, 12, 2048),
        family="bert" if causal else "roberta",
        tokenizer="" if causal else "roberta-base",
        fields={"hidden_act": "linear"},
        options={"variant": variant, "ffn": "glu"},
        causal=causal,
    )


def _lra(layers: int, hidden: int, heads: int, ratio: float, length: int, vocab: int, labels: int) -> Preset:
    """A model of the Long Range Arena: local attention, linear attention and feed-forward in each layer, norms first.

    The authors' norms there are batch norms over all processes; these are layer norms. T1; --variant t2 for the other.
    """
    return Preset(
        LRA,
        Sizes(layers, hidden, heads, int(hidden * ratio)),
        family="roberta-prelayernorm",
        length=length,
        vocab=vocab,
        fields={"num_labels": labels},
        options={"variant": "t1", "layer_order": "both", "position_encoding": "rotary"},
        head="ForSequenceClassification",
    )


# By target.
PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "bigs": {
        "published": Preset(BIGS, Sizes(23, 1024, 0, 3072), length=128, tokenizer="bert-large-uncased"),
    },
    "linformer": {
        "cerebras-base": Preset(
            CEREBRAS,
            Sizes(12, 768, 12, 3072),
            tokenizer="bert-base-cased",
            options={"proj_dim": 256, "init": "truncated-normal"},
        ),
        "cerebras-large": Preset(
            CEREBRAS,
            Sizes(24, 1024, 16, 4096),
            tokenizer="bert-large-cased",
            options={"proj_dim": 128, "init": "truncated-normal"},
        ),
    },
    "lambda": {
        "published": Preset(
            LAMBDABERT,
            Sizes(12, 768, 12, 3072),
            tokenizer="bert-base-uncased",
            options={"groups": "1", "position_std": 1.0},
        ),
    },
    "transnormer": {
        "t1": _transnormer("t1", causal=True),
        "t2": _transnormer("t2", causal=True),
        "roberta-t1": _transnormer("t1", causal=False),
        "roberta-t2": _transnormer("t2", causal=False),
        # Vocabularies: operators, brackets and digits; bytes; grey levels; each with tokens for padding and the like.
        "lra-listops": _lra(4, 128, 8, 4, 2048, 32, 10),
        "lra-text": _lra(4, 128, 8, 4, 4096, 264, 2),
        "lra-retrieval": _lra(4, 128, 4, 4, 4000, 264, 2),
        "lra-image": _lra(12, 128, 4, 2, 1024, 264, 10),
        "lra-pathfinder": _lra(4, 128, 8, 1, 1024, 264, 2),
    },
}


def presets_of(target: str) -> dict[str, Preset]:
    """Everything that `--like` takes for a target."""
    return {**SIZES, **PRESETS.get(target, {})}


def default_preset(target: str) -> str:
    """The one that a target has without `--like`."""
    return "published" if target == "bigs" else "base"
