"""Every family by name. To add one: an entry in a file of this folder, and its name here."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .albert import ALBERT
from .bart import BART, MBART, PEGASUS
from .bert import BERT, CAMEMBERT, DATA2VEC_TEXT, ERNIE, ROBERTA, ROBERTA_PRELAYERNORM, XLM_ROBERTA, XLM_ROBERTA_XL
from .distilbert import DISTILBERT
from .electra import ELECTRA
from .grammar import Family
from .megatron_bert import MEGATRON_BERT
from .mpnet import MPNET
from .rembert import REMBERT
from .t5 import MT5, T5
from .xmod import XMOD

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(BERT, ROBERTA, CAMEMBERT, XLM_ROBERTA, ELECTRA, DISTILBERT, ALBERT),
        *(XLM_ROBERTA_XL, ROBERTA_PRELAYERNORM, DATA2VEC_TEXT, ERNIE),
        *(MEGATRON_BERT, REMBERT, XMOD),
        *(BART, MBART, PEGASUS),
        *(MPNET,),
        *(T5, MT5),
    )
}

# Families with an encoder and a decoder that is left as it is.
ENCODER_DECODERS = tuple(name for name, family in FAMILIES.items() if family.code.encoder)


def families_for(abilities: Collection[str]) -> tuple[str, ...]:
    """Names of the families that a target with these abilities can take."""
    return tuple(name for name, family in FAMILIES.items() if family.requirements <= set(abilities))
