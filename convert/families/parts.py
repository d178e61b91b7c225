"""Parts of which families are made: tables, projections, layers and heads as stock modeling code names them."""

from __future__ import annotations

from textwrap import dedent

from .grammar import LABELS, Weight, linear, norm

# The config's own field names, as they stand in shapes.
H, V, E, INNER = "hidden_size", "vocab_size", "embedding_size", "intermediate_size"


DM = "d_model"  # BART's hidden size


def body(text: str) -> tuple[str, ...]:
    """The lines of a rendered class's body, from an indented text; it may name `Tensor`, `Module` and `ModuleList`."""
    return tuple(dedent(text).strip().splitlines())


def tables(width: str, *, types: bool = True) -> tuple[Weight, ...]:
    """Word, position and (where a family has them) type embeddings."""
    return (
        Weight("embeddings.word_embeddings.weight", (V, width)),
        Weight("embeddings.position_embeddings.weight", ("max_position_embeddings", width)),
        *((Weight("embeddings.token_type_embeddings.weight", ("type_vocab_size", width)),) if types else ()),
    )


def embeddings(width: str, *, types: bool = True) -> tuple[Weight, ...]:
    """The tables, and the norm of their sum."""
    return (*tables(width, types=types), *norm("embeddings.LayerNorm", width))


def projections(path: str) -> tuple[Weight, ...]:
    """Query, key, value and output projection of a stock attention block of BERT."""
    names = ("self.query", "self.key", "self.value", "output.dense")
    return tuple(weight for name in names for weight in linear(f"{path}.{name}", H, H))


def attention(path: str) -> tuple[Weight, ...]:
    """A stock attention block of BERT: the projections, and the norm after them."""
    return (*projections(path), *norm(f"{path}.output.LayerNorm", H))


def pre_norm_attention(path: str) -> tuple[Weight, ...]:
    """The same with the norm before the projections."""
    return (*projections(path), *norm(f"{path}.self_attn_layer_norm", H))


POOLER = linear("pooler.dense", H, H)


CLASSIFIER = linear("classifier", H, LABELS)


CLASSIFIER_WITH_DENSE = (*linear("classifier.dense", H, H), *linear("classifier.out_proj", H, LABELS))


QA_OUTPUTS = linear("qa_outputs", H, LABELS)


CHOICE = linear("classifier", H, 1)


WORDS = "embeddings.word_embeddings.weight"


BRACKETED = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}


ANGLED = {"bos": "<s>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "pad": "<pad>"}
