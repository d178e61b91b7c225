# SPDX-License-Identifier: Apache-2.0
"""The options of LSG attention, added to a stock config under the names and defaults that LSG checkpoints have."""

from __future__ import annotations

import warnings
from typing import Any

MAX_GLOBAL_TOKENS = 512  # rows of the table of global embeddings
# Of attention beyond two blocks: "auto" and "plain" run everywhere, the others are what a GPU runs.
ATTENTION_FORMS = ("auto", "plain", "flex", "triton")
SPARSITY_TYPES = ("none", "norm", "lsh", "pooling", "stride", "block_stride", "bos_pooling")


class LSGConfigMixin:
    """Goes before a stock config class in the bases.

    Args:
        adaptive: pad inputs longer than two blocks to a multiple of `block_size`; else they must have such a length.
        block_size: tokens in a block; a token sees its own block and the two beside it. Inputs of up to two blocks get
            full attention.
        sparse_block_size: sparse keys on each side of the local ones; 0 for none.
        sparsity_factor: one sparse key stands for this many tokens; 0 for no sparse keys.
        sparsity_type: how sparse keys are chosen or made: "norm" (those of largest norm), "pooling" (means),
            "bos_pooling" (means weighted by the first token's query), "lsh" (means of similar keys), "stride" (every
            n-th, another phase in each head), "block_stride" (a part of every block, another in each head), or "none".
        num_global_tokens: learned tokens in front of the input, seen by all and seeing all; 0 to 512.
        mask_first_token: hide the first token (the first global token stands in for it).
        pool_with_global: return the first global token's row in place of the first token's.
        lsh_num_pre_rounds: rounds of hashing before the one that makes the sparse keys.
        lsh_seed: seed of the random projections of "lsh", so that inference repeats.
        causal_globals: what global tokens do in a decoder: "globals" lets them see each other only, so that nothing
            leaks from the future; "published" returns their raw query projection, as the published code does.
        bos_pooling_padding: "masked" hides groups of "bos_pooling" that are all padding; "published" leaves them
            visible, as the published code does.
        attention_form: how attention beyond two blocks is computed on a GPU: "plain" in plain torch, "flex" by
            FlexAttention, "triton" by a kernel in Triton, where one that cannot run there is an error; "auto" takes the
            kernel in Triton where it can run, else plain torch. On a CPU all but "plain" take the kernel for CPUs. A
            graph of torch.export, ONNX or torch.jit.trace holds the plain form.

    Raises:
        ValueError: for values that have no meaning, all of them named in one message.
    """

    has_cache = False  # block attention keeps no keys and values

    def __init__(
        self,
        adaptive: bool = True,
        block_size: int = 128,
        sparse_block_size: int = 128,
        sparsity_factor: int = 2,
        sparsity_type: str = "norm",
        num_global_tokens: int = 1,
        mask_first_token: bool = False,
        pool_with_global: bool = True,
        lsh_num_pre_rounds: int = 1,
        lsh_seed: int = 0,
        causal_globals: str = "globals",
        bos_pooling_padding: str = "masked",
        attention_form: str = "auto",
        **kwargs: Any,
    ) -> None:
        if not self.has_cache:
            kwargs["use_cache"] = False  # generate() reads this
        super().__init__(**kwargs)
        self.adaptive = adaptive
        self.block_size = block_size
        self.sparse_block_size = sparse_block_size
        self.sparsity_factor = sparsity_factor
        self.sparsity_type = sparsity_type
        self.num_global_tokens = num_global_tokens
        self.mask_first_token = mask_first_token
        self.pool_with_global = pool_with_global
        self.lsh_num_pre_rounds = lsh_num_pre_rounds
        self.lsh_seed = lsh_seed
        self.causal_globals = causal_globals
        self.bos_pooling_padding = bos_pooling_padding
        self.attention_form = attention_form
        self.validate_lsg()

    def validate_lsg(self) -> None:
        """Check the options together; the model calls this again, as from_pretrained sets overrides late."""
        faults = lsg_faults(self)
        if faults:
            raise ValueError("these LSG options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
        if self.mask_first_token:
            self.pool_with_global = True
        if (
            self.sparsity_type in ("stride", "block_stride")
            and uses_sparse_keys(self)
            and self.sparsity_factor > self.num_attention_heads
        ):
            warnings.warn(
                f"sparsity_type={self.sparsity_type!r} with sparsity_factor={self.sparsity_factor} and "
                f"{self.num_attention_heads} heads: some tokens are no head's sparse key; a factor of at most the "
                "number of heads reaches all",
                stacklevel=2,
            )


class LSGSeq2SeqConfigMixin(LSGConfigMixin):
    """The fields of `LSGConfigMixin`, for a model of an encoder and a decoder; they are those of the encoder.

    Args:
        pass_global_tokens_to_decoder: the encoder returns its global tokens in front of the others, and the decoder's
            cross-attention sees them; else they are dropped after the last layer.
        decoder_first_token: with `mask_first_token`, "seen" lets the decoder see what the encoder returns for the first
            token; "published" hides it where an attention_mask is given, as the published code does.
    """

    has_cache = True  # the stock decoder's

    def __init__(
        self, pass_global_tokens_to_decoder: bool = True, decoder_first_token: str = "seen", **kwargs: Any
    ) -> None:
        self.pass_global_tokens_to_decoder = pass_global_tokens_to_decoder
        self.decoder_first_token = decoder_first_token
        super().__init__(**kwargs)


def uses_sparse_keys(config: Any) -> bool:
    """Whether blocks get sparse keys at all."""
    return config.sparsity_type != "none" and config.sparse_block_size > 0 and config.sparsity_factor > 0


def sparse_chunk_size(config: Any) -> int:
    """Tokens in a chunk of which "norm" and "lsh" keep one in `sparsity_factor`."""
    return min(config.block_size, config.sparse_block_size)


def lsg_faults(config: Any) -> list[str]:
    """What is wrong with the LSG fields of a config, one sentence each, with what to do."""
    ranges = {
        "block_size": (1, None),
        "sparse_block_size": (0, None),
        "sparsity_factor": (0, None),
        "num_global_tokens": (0, MAX_GLOBAL_TOKENS),
        "lsh_num_pre_rounds": (0, None),
        "lsh_seed": (0, 2**32 - 1),
    }
    choices = {
        "sparsity_type": SPARSITY_TYPES,
        "causal_globals": ("globals", "published"),
        "bos_pooling_padding": ("masked", "published"),
        "attention_form": ATTENTION_FORMS,
    }
    switches = ["adaptive", "mask_first_token", "pool_with_global"]
    if hasattr(config, "decoder_first_token"):  # a model of an encoder and a decoder
        choices["decoder_first_token"] = ("seen", "published")
        switches.append("pass_global_tokens_to_decoder")
    faults = []
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if type(value) is not int or value < low or (high is not None and value > high):
            wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
            faults.append(f"{name} must be an integer {wanted}, got {value!r}")
    for name, values in choices.items():
        if getattr(config, name) not in values:
            faults.append(f"{name} must be one of {', '.join(values)}, got {getattr(config, name)!r}")
    for name in switches:
        if type(getattr(config, name)) is not bool:
            faults.append(f"{name} must be true or false, got {getattr(config, name)!r}")
    return faults or combined_faults(config)


def combined_faults(config: Any) -> list[str]:
    """What is wrong with fields that are sound one by one."""
    faults = []
    if config.mask_first_token and config.num_global_tokens == 0:
        faults.append(
            "mask_first_token needs a global token to replace the first token: set num_global_tokens to 1 or more, "
            "or mask_first_token to false"
        )
    block, factor, chunk = config.block_size, config.sparsity_factor, sparse_chunk_size(config)
    if not uses_sparse_keys(config) or factor == 1:
        return faults
    if block % factor:
        faults.append(
            f"block_size {block} must be divisible by sparsity_factor {factor}: choose a factor that divides it, or "
            'sparsity_type "none"'
        )
    elif config.sparsity_type in ("norm", "lsh") and chunk % factor:
        faults.append(
            f"sparsity_type {config.sparsity_type!r} works on chunks of min(block_size, sparse_block_size) = {chunk} "
            f"tokens, which is not divisible by sparsity_factor {factor}: choose a sparse_block_size that is"
        )
    return faults
