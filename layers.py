"""`effconv.layers`: block-local and LSG self-attention without parameters, for models that one patches oneself.

    from effconv.layers import LSGSelfAttention
    attention = LSGSelfAttention(block_size=128, sparsity_type="norm")
    context = attention(query, key, value, attention_mask)  # each (b, h, t, d), the mask (b, t)

They are the emitted code itself; docs/how-to/layers.md says how to use it without effconv.
"""

from __future__ import annotations

from .templates.lsg_layers import BlockLocalSelfAttention, LSGSelfAttention

__all__ = ["BlockLocalSelfAttention", "LSGSelfAttention"]
