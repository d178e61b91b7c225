"""Options of the LSG target. The fields of the emitted config among them keep their published names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Literal

from ..convert.options import option, require_sound

ROWS = 512  # of the table of global embeddings
LONGEST = 1 << 24  # tokens: a bound on the position table, which is made in memory

SparsityType = Literal["none", "norm", "lsh", "pooling", "stride", "block_stride", "bos_pooling"]
PARITY = "For parity with published LSG models"


@dataclass(frozen=True, slots=True)
class LSGOptions:
    """What `effconv lsg` takes beside the common options."""

    max_length: int = option(4096, "Tokens that the emitted model takes.", flag="--max-len")
    block_size: int = option(128, "Tokens in a block; a token sees its own block and the two beside it.")
    sparse_block_size: int = option(128, "Sparse keys on each side of the local ones; 0 for none.")
    sparsity_factor: int = option(2, "One sparse key stands for this many tokens.")
    sparsity_type: SparsityType = option("norm", "How sparse keys are chosen or made.")
    num_global_tokens: int = option(1, "Learned tokens that see all and are seen by all; 0 to 512.")
    mask_first_token: bool = option(False, "Hide the first token; a global token stands in for it.")
    pool_with_global: bool = option(True, "Return the first global token in place of the first token.")
    pass_global_tokens_to_decoder: bool = option(True, "Let a decoder beside the encoder see the global tokens.")
    global_init: Literal["mask", "random"] = option(
        "mask", "Start the globals from the mask token, or from a random sample."
    )
    global_positional_stride: int = option(64, "Distance of the positions that the first globals take.")
    keep_first_global_token: bool = option(False, "Of a source that is LSG already, keep the first global token.")
    positions: Literal["repeat", "interpolate"] = option("repeat", "How the position table grows.")
    use_token_ids: bool = option(True, "Add token type 0 to the globals where the family has types.", panel=PARITY)
    adaptive: bool = option(True, "Pad inputs to whole blocks inside the model.", panel=PARITY)
    lsh_num_pre_rounds: int = option(1, "Rounds of hashing before the one that makes the sparse keys.", panel=PARITY)
    causal_globals: Literal["globals", "published"] = option("globals", "What globals see in a decoder.", panel=PARITY)
    bos_pooling_padding: Literal["masked", "published"] = option(
        "masked", "Whether bos_pooling hides groups that are all padding.", panel=PARITY
    )
    decoder_first_token: Literal["seen", "published"] = option(
        "seen", "Whether a decoder sees a masked first token.", panel=PARITY
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every option that makes no sense."""
        from ..templates.lsg_configuration import lsg_faults

        faults = lsg_faults(SimpleNamespace(**asdict(self), lsh_seed=0))
        if type(self.max_length) is not int or not 1 <= self.max_length <= LONGEST:
            faults.append(f"max_length is {self.max_length!r}: give a number of tokens from 1 to {LONGEST:,}")
        if type(self.global_positional_stride) is not int or not 1 <= self.global_positional_stride <= ROWS:
            faults.append(f"global_positional_stride is {self.global_positional_stride}: give 1 to {ROWS}")
        for name, values in (("global_init", ("mask", "random")), ("positions", ("repeat", "interpolate"))):
            if getattr(self, name) not in values:
                faults.append(f"{name} is {getattr(self, name)!r}: give one of {', '.join(values)}")
        require_sound("lsg", faults)
