# SPDX-License-Identifier: Apache-2.0
"""What LSG adds to an encoder: global tokens in front of the input, and their removal at the end.

The globals are learned embeddings without position or segment; they pass the stock LayerNorm and dropout of the
embeddings. A LayerNorm works row by row, so normalising them apart equals putting them in front before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficient_encoder import EncoderMixin
from .lsg_configuration import MAX_GLOBAL_TOKENS, sparse_chunk_size, uses_sparse_keys


class LSGEncoderMixin(EncoderMixin):
    """An encoder with LSG attention: local, sparse and global keys (arXiv 2210.15497)."""

    def adapt(self) -> None:
        self.config.validate_lsg()
        super().adapt()
        width = self.get_input_embeddings().embedding_dim
        # All rows are kept whatever num_global_tokens says, so that it can be changed when the model is loaded.
        self.globals_module().global_embeddings = nn.Embedding(MAX_GLOBAL_TOKENS, width)

    def globals_module(self) -> nn.Module:
        """The module that holds the table of global embeddings."""
        return self.embeddings

    def embed_globals(self, batch: int, device: torch.device) -> Tensor:
        """The global tokens' embeddings (b, g, e), normalised as those of the other tokens are."""
        table = self.globals_module().global_embeddings
        rows = table(torch.arange(self.config.num_global_tokens, device=device))
        return self.normalize(rows.expand(batch, -1, -1))  # expanded first: every example draws its own dropout

    def begin(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        batch, length, _ = x.shape
        padding = self.visible_padding(length)
        if mask is None and (config.mask_first_token or padding):
            mask = torch.ones((batch, length), dtype=torch.bool, device=x.device)
        if config.mask_first_token:
            mask = mask.clone()
            mask[:, 0] = False
        if config.num_global_tokens:
            x = torch.cat([self.embed_globals(batch, x.device).to(x.dtype), x], dim=1)
        if mask is not None:
            mask = F.pad(F.pad(mask, (config.num_global_tokens, 0), value=True), (0, padding))
        if self.projects_padding:
            return self.project(F.pad(x, (0, 0, 0, padding))), mask
        return self.add_padding(self.project(x), padding), mask

    def add_padding(self, x: Tensor, rows: int) -> Tensor:
        """Rows of padding behind the projected embeddings, as the published model has them."""
        return F.pad(x, (0, 0, 0, rows)) if rows else x

    def visible_padding(self, length: int) -> int:
        """Rows of padding that the layers themselves must see.

        The attention pads to whole blocks by itself, and what it pads with is masked. Only the published form of
        "bos_pooling" lets padding be seen, and there it must be what the published model has: rows that start at zero
        after the LayerNorm of the embeddings (or after the projection, unless `projects_padding`) and change from layer
        to layer.
        """
        config = self.config
        seen = (
            config.bos_pooling_padding == "published"
            and config.sparsity_type == "bos_pooling"
            and uses_sparse_keys(config)
            and config.adaptive
            and length > 2 * config.block_size
        )
        return -length % config.block_size if seen else 0

    def padding_counts(self) -> bool:
        """Whether padding changes what a real token gets; the attention's own padding to whole blocks never does.

        A text of up to two blocks has full attention by itself, and blocks in a longer batch. Both see the same, but
        where the sparse list shows a block some keys a second time: with one entry a block (`sparse_starts`), and where
        chunks reach across the end of the second block.
        """
        config = self.config
        if not config.adaptive:
            return True  # then lengths are whole blocks
        if not uses_sparse_keys(config):
            return False
        chosen_in_chunks = config.sparsity_type in ("norm", "lsh") and config.sparsity_factor > 1
        return (
            config.sparsity_factor == config.block_size
            or (chosen_in_chunks and config.block_size % sparse_chunk_size(config) != 0)
            or (config.bos_pooling_padding == "published" and config.sparsity_type in ("bos_pooling", "lsh"))
        )

    def end(self, x: Tensor, length: int) -> Tensor:
        first = self.config.num_global_tokens
        tokens = x[:, first : first + length]
        if first and self.config.pool_with_global:
            tokens = torch.cat([x[:, :1], tokens[:, 1:]], dim=1)
        return tokens
