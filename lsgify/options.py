"""Options of the LSG target. Those that are fields of the new config keep their published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

from ..convert.options import default_of, from_source_or, option, require_sound

ROWS = 512  # of the table of global embeddings
LONGEST = 1 << 24  # tokens: a bound on the position table, which is made in memory

SparsityType = Literal["none", "norm", "lsh", "pooling", "stride", "block_stride", "bos_pooling"]
PARITY = "Compatibility with published LSG models"
SPEED = "Speed (same outputs)"
AttentionForm = Literal["auto", "plain", "flex", "triton"]
UPGRADE = "Existing LSG models as source (their settings are kept unless given here)"


@dataclass(frozen=True, slots=True)
class LSGOptions:
    """Options of `effconv lsg`, in addition to the common ones.

    None means the value of an LSG source, else the default; `filled` resolves it.
    """

    max_length: int = from_source_or(4096, "Maximum input length in tokens.", flag="--max-len")
    block_size: int = from_source_or(128, "Tokens per block. A token attends to its block and both neighbours.")
    sparse_block_size: int = from_source_or(128, "Sparse keys on each side of the local keys. 0 for none.")
    sparsity_factor: int = from_source_or(2, "Tokens per sparse key. 0 for no sparse keys.")
    sparsity_type: SparsityType = from_source_or(
        "norm",
        "How sparse keys are made. norm: keys of the largest norm, a good first choice. pooling: means of neighbours. "
        "bos_pooling: means weighted by the first token's query. lsh: means of similar keys. stride, block_stride: "
        "every n-th key. none: local attention only, the fastest, whatever --sparsity-factor and --sparse-block-size "
        "say.  [default: norm; MPNet and T5: bos_pooling]",
    )
    num_global_tokens: int = from_source_or(1, "Learned global tokens, which attend to all tokens: 0 to 512.")
    mask_first_token: bool = from_source_or(False, "Mask the first token (CLS). A global token replaces it.")
    pool_with_global: bool = from_source_or(
        True, "Use the first global token's output as the output of the first token (CLS)."
    )
    pass_global_tokens_to_decoder: bool = from_source_or(True, "Let the decoder attend to the global tokens.")
    global_init: Literal["mask", "random"] = option(
        "mask", "Initial global tokens: the mask token's embedding, or random."
    )
    global_positional_stride: int = option(
        64,
        "Distance between the position embeddings of new global tokens. 64: the first global token starts with that of "
        "position 0, the next with 64, then 128.  [1 to 512]",
    )
    positions: Literal["repeat", "interpolate"] = option(
        "repeat", "How position embeddings are extended to the new length."
    )
    reset_global_tokens: bool = option(False, "Re-initialise the global tokens.", panel=UPGRADE)
    keep_first_global_token: bool = option(
        False,
        "Re-initialise all global tokens except the first.",
        panel=UPGRADE,
    )
    use_token_ids: bool = option(True, "Add the embedding of token type 0 to the global tokens.", panel=PARITY)
    adaptive: bool = from_source_or(True, "Pad inputs to whole blocks inside the model.", panel=PARITY)
    lsh_num_pre_rounds: int = from_source_or(
        1, "Rounds of hashing (sparsity type lsh) before the one that makes the sparse keys.", panel=PARITY
    )
    causal_globals: Literal["globals", "published"] = from_source_or(
        "globals", "What global tokens attend to in a decoder: globals only, or as published.", panel=PARITY
    )
    bos_pooling_padding: Literal["masked", "published"] = from_source_or(
        "masked",
        "Groups that hold only padding, with sparsity type bos_pooling: masked, or visible as published.",
        panel=PARITY,
    )
    decoder_first_token: Literal["seen", "published"] = from_source_or(
        "seen",
        "Whether the decoder sees the first encoder token when --mask-first-token is set. published: it does not.",
        panel=PARITY,
    )
    attention_form: AttentionForm = from_source_or(
        "auto",
        "Implementation on a GPU; auto takes the fastest that can run. On CPUs only plain has an effect.",
        panel=SPEED,
    )

    def __post_init__(self) -> None:
        """Raises UsageError with every invalid option."""
        require_sound("lsg", self.filled({}).faults(), self)

    def filled(self, stated: Mapping[str, Any]) -> LSGOptions:
        """The options with None replaced: by the source's value, else by the default."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if None not in values.values():
            return self
        usual = {field.name: default_of(field) for field in fields(self)} | dict(stated)
        return replace(self, **{name: usual[name] for name, value in values.items() if value is None})

    def faults(self) -> list[str]:
        """The faults of resolved options, one sentence each."""
        from ..templates.lsg_configuration import lsg_faults

        faults = lsg_faults(SimpleNamespace(**asdict(self), lsh_seed=0))
        if type(self.max_length) is not int or not 1 <= self.max_length <= LONGEST:
            faults.append(f"max_length must be an integer from 1 to {LONGEST:,}, got {self.max_length!r}")
        if type(self.global_positional_stride) is not int or not 1 <= self.global_positional_stride <= ROWS:
            faults.append(
                f"global_positional_stride must be an integer from 1 to {ROWS}, got {self.global_positional_stride!r}"
            )
        for name, values in (("global_init", ("mask", "random")), ("positions", ("repeat", "interpolate"))):
            if getattr(self, name) not in values:
                faults.append(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        return faults


def label(options: Mapping[str, Any]) -> str:
    """Block and sparse keys in a few words."""
    sparse = options["sparse_block_size"] and options["sparsity_factor"] and options["sparsity_type"] != "none"
    if not sparse:
        return f"LSG, block {options['block_size']}, no sparse keys"
    kind = f"{options['sparse_block_size']} × {options['sparsity_factor']} {options['sparsity_type']}"
    return f"LSG, block {options['block_size']}, sparse {kind}"
