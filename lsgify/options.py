"""Options of the LSG target. The fields of the emitted config among them keep their published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

from ..convert.options import default_of, open_option, option, require_sound

ROWS = 512  # of the table of global embeddings
LONGEST = 1 << 24  # tokens: a bound on the position table, which is made in memory

SparsityType = Literal["none", "norm", "lsh", "pooling", "stride", "block_stride", "bos_pooling"]
PARITY = "For parity with published LSG models"
SPEED = "How attention is computed; the outputs are the same"
AttentionForm = Literal["auto", "plain", "flex", "triton"]
UPGRADE = "For sources that are LSG already (what they have is kept unless asked)"


@dataclass(frozen=True, slots=True)
class LSGOptions:
    """What `effconv lsg` takes beside the common options.

    Those that are left open (None) are what the source has where it is LSG already; `filled` says what they are.
    """

    max_length: int = open_option(4096, "Tokens that the emitted model takes.", flag="--max-len")
    block_size: int = open_option(128, "Tokens in a block; a token sees its own block and the two beside it.")
    sparse_block_size: int = open_option(128, "Sparse keys on each side of the local ones; 0 for none.")
    sparsity_factor: int = open_option(2, "One sparse key stands for this many tokens.")
    sparsity_type: SparsityType = open_option("norm", "How sparse keys are chosen or made.")
    num_global_tokens: int = open_option(1, "Learned tokens that see all and are seen by all; 0 to 512.")
    mask_first_token: bool = open_option(False, "Hide the first token; a global token stands in for it.")
    pool_with_global: bool = open_option(True, "Return the first global token in place of the first token.")
    pass_global_tokens_to_decoder: bool = open_option(True, "Let a decoder beside the encoder see the global tokens.")
    global_init: Literal["mask", "random"] = option(
        "mask", "Start the globals from the mask token, or from a random sample."
    )
    global_positional_stride: int = option(64, "Distance of the positions that the first globals take.")
    positions: Literal["repeat", "interpolate"] = option("repeat", "How the position table grows or shrinks.")
    reset_global_tokens: bool = option(False, "Make the global tokens anew.", panel=UPGRADE)
    keep_first_global_token: bool = option(
        False,
        "Make the global tokens anew, but for the first.",
        panel=UPGRADE,
    )
    use_token_ids: bool = option(True, "Add token type 0 to the globals where the family has types.", panel=PARITY)
    adaptive: bool = open_option(True, "Pad inputs to whole blocks inside the model.", panel=PARITY)
    lsh_num_pre_rounds: int = open_option(
        1, "Rounds of lsh's hashing before the one that makes the sparse keys.", panel=PARITY
    )
    causal_globals: Literal["globals", "published"] = open_option(
        "globals", "What globals see in a decoder.", panel=PARITY
    )
    bos_pooling_padding: Literal["masked", "published"] = open_option(
        "masked", "Whether bos_pooling hides groups that are all padding.", panel=PARITY
    )
    decoder_first_token: Literal["seen", "published"] = open_option(
        "seen", "Whether a decoder sees a masked first token.", panel=PARITY
    )
    attention_form: AttentionForm = open_option(
        "auto", "Form that a GPU runs; auto: the fastest that can. On CPUs only plain changes it.", panel=SPEED
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every option that makes no sense for a dense source."""
        require_sound("lsg", self.filled({}).faults())

    def filled(self, stated: Mapping[str, Any]) -> LSGOptions:
        """The options with a value for each that was left open: what the source states, else the usual one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if None not in values.values():
            return self
        usual = {field.name: default_of(field) for field in fields(self)} | dict(stated)
        return replace(self, **{name: usual[name] for name, value in values.items() if value is None})

    def faults(self) -> list[str]:
        """What is wrong with options that are filled in, one sentence each."""
        from ..templates.lsg_configuration import lsg_faults

        faults = lsg_faults(SimpleNamespace(**asdict(self), lsh_seed=0))
        if type(self.max_length) is not int or not 1 <= self.max_length <= LONGEST:
            faults.append(f"max_length is {self.max_length!r}: give a number of tokens from 1 to {LONGEST:,}")
        if type(self.global_positional_stride) is not int or not 1 <= self.global_positional_stride <= ROWS:
            faults.append(f"global_positional_stride is {self.global_positional_stride}: give 1 to {ROWS}")
        for name, values in (("global_init", ("mask", "random")), ("positions", ("repeat", "interpolate"))):
            if getattr(self, name) not in values:
                faults.append(f"{name} is {getattr(self, name)!r}: give one of {', '.join(values)}")
        return faults
