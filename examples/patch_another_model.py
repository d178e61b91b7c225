"""Give a transformers model that effconv does not convert LSG attention: here ESM-2, a protein encoder.

    python examples/patch_another_model.py                                  # a tiny random model
    python examples/patch_another_model.py facebook/esm2_t6_8M_UR50D --tokens 4096

The weights stay what they are: the layer has no parameters. Any model works that gets its attention from transformers'
AttentionInterface, and that attends to itself (no cross-attention, no cache of keys).
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, EsmConfig, EsmModel
from transformers.masking_utils import flash_attention_mask

from effconv.layers import LSGSelfAttention


def use_lsg(model, **options):
    """Change the attention of all layers in place; options are those of the layer."""
    layer = LSGSelfAttention(**options)

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        if scaling is not None:  # ESM-2 scales its queries itself; the layer scales scores by 1 / sqrt(d)
            query = query * (scaling * math.sqrt(query.shape[-1]))
        return layer(query, key, value, attention_mask).transpose(1, 2).contiguous(), None

    AttentionInterface.register("lsg", attention)
    AttentionMaskInterface.register("lsg", flash_attention_mask)  # hands over the padding mask (b, t) as it came
    model.set_attn_implementation("lsg")
    return model


def tiny_protein_encoder():
    return EsmModel(
        EsmConfig(
            vocab_size=33,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            mask_token_id=32,
            pad_token_id=1,
            position_embedding_type="rotary",
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="name or folder of an ESM-2 checkpoint")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--block-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = (AutoModel.from_pretrained(arguments.model) if arguments.model else tiny_protein_encoder()).eval()
    short, long = (torch.randint(4, 24, (1, count)) for count in (2 * arguments.block_size, arguments.tokens))
    with torch.no_grad():
        stock = model(short).last_hidden_state, timed(model, long)
        use_lsg(model, block_size=arguments.block_size, sparsity_type="norm", sparsity_factor=4)
        patched = model(short).last_hidden_state, timed(model, long)
    print(f"{short.shape[1]} tokens: the largest difference is {(stock[0] - patched[0]).abs().max():.1e}")
    print(f"{long.shape[1]} tokens: {stock[1]:.2f} s before, {patched[1]:.2f} s after")


def timed(model, ids):
    start = time.perf_counter()
    model(ids)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
