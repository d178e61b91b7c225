# SPDX-License-Identifier: Apache-2.0
"""Modules of sentence-transformers: a document as the whitened average of its pieces.

`encode_document` cuts a text into pieces of `piece_tokens` tokens, nearly equally long, and runs each by itself. The
modules behind the encoder (pooling, dense layers, normalisation) see pieces in place of texts. `WhitenedAverage`, the
last module, whitens the pieces: with m and W as stored, x becomes (x - m) W, scaled to length 1. Of the pieces of a
text it makes a weighted average that is about equally near to each of them. `encode_query` whitens the embedding of a
query alike. `encode` is left as it is without these modules.

A document may have `document_tokens` tokens, of which there can be more than the encoder takes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from sentence_transformers.base.modules import Module, Transformer
except ImportError:  # before sentence-transformers 5.4
    from sentence_transformers.models import Module, Transformer

ROWS = 256  # pieces that run at once


class DocumentPieces(Transformer):
    """The encoder, which runs documents in pieces.

    Args:
        piece_tokens: tokens of a piece at most, special ones and those of a prompt not counted.
        document_tokens: tokens of a document at most; what is behind them is cut off.
        *args, **kwargs: those of `Transformer`.
    """

    config_keys: ClassVar[list[str]] = [*Transformer.config_keys, "piece_tokens", "document_tokens"]
    forward_kwargs: ClassVar[set[str]] = {*Transformer.forward_kwargs, "task"}

    def __init__(self, *args: Any, piece_tokens: int = 30, document_tokens: int = 65_536, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.piece_tokens = piece_tokens
        self.document_tokens = document_tokens
        body, whole = (self.tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
        self.prefix_tokens = next(i for i in range(len(whole)) if whole[i : i + len(body)] == body)
        self.suffix_tokens = len(whole) - len(body) - self.prefix_tokens

    def preprocess(self, inputs: Any, prompt: str | None = None, task: str | None = None, **kwargs: Any) -> Any:
        """Token ids, of documents up to `document_tokens` of them."""
        if task == "document":
            kwargs.setdefault("max_length", self.document_tokens)
        return super().preprocess(inputs, prompt=prompt, task=task, **kwargs)

    def tokenize(self, texts: Any, *args: Any, task: str | None = None, **kwargs: Any) -> Any:
        """What `preprocess` does, in versions of sentence-transformers before it."""
        if hasattr(Transformer, "preprocess"):
            return self.preprocess(texts, *args, task=task, **kwargs)
        if task != "document":
            return super().tokenize(texts, *args, **kwargs)
        own, self.max_seq_length = self.max_seq_length, self.document_tokens
        try:
            return super().tokenize(texts, *args, **kwargs)
        finally:
            self.max_seq_length = own

    def forward(self, features: dict[str, Any], task: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Token embeddings (b, n, w); of documents those of all pieces, (pieces, n, w), and how many each has."""
        if task != "document":
            return super().forward(features, **kwargs)
        rows, counts = self._pieces(features)
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        runs = [
            super(DocumentPieces, self).forward({"input_ids": some, "attention_mask": its_mask}, **kwargs)
            for some, its_mask in zip(ids.split(ROWS), mask.split(ROWS), strict=True)
        ]
        states = torch.cat([run["token_embeddings"] for run in runs])
        others = {name: value for name, value in features.items() if name != "token_type_ids"}
        counted = torch.tensor(counts, device=ids.device)
        return {**others, "input_ids": ids, "attention_mask": mask, "token_embeddings": states, "pieces": counted}

    def _pieces(self, features: dict[str, Any]) -> tuple[list[Tensor], list[int]]:
        """Ids of each piece, special tokens and prompt around it, and how many pieces each text has."""
        rows: list[Tensor] = []
        counts: list[int] = []
        for padded, mask in zip(features["input_ids"], features["attention_mask"], strict=True):
            ids = padded[mask.bool()]
            # The tokens of a prompt, special ones before it included, stand before every piece.
            first = int(features.get("prompt_length") or 0) or self.prefix_tokens
            behind = len(ids) - self.suffix_tokens
            body = ids[first:behind]
            count = max(1, -(-len(body) // self.piece_tokens))
            rows += [torch.cat([ids[:first], piece, ids[behind:]]) for piece in body.tensor_split(count)]
            counts.append(count)
        return rows, counts


class WhitenedAverage(Module):
    """The last module: whitens queries and the pieces of documents, and averages the pieces.

    The average of pieces X (n, w) is generalised max pooling (Murray and Perronnin, arXiv 1406.0312): the vector v with
    the least |X v - 1|² + r n |v|², which is Xᵀ (X Xᵀ + r n I)⁻¹ 1, scaled to length 1. A plain average would be near
    to what many pieces say, and far from the one piece that is looked for.

    Args:
        width: numbers of an embedding. ridge: r.

    Attributes:
        mean (w,), matrix (w, w): the whitening, float32.
    """

    config_keys: ClassVar[list[str]] = ["width", "ridge"]
    forward_kwargs: ClassVar[set[str]] = {"task"}

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int, ridge: float = 0.05) -> None:
        super().__init__()
        self.width = width
        self.ridge = ridge
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    def forward(self, features: dict[str, Any], task: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Embeddings (b, w) of length 1 of documents and queries; others are left as they are."""
        if task not in ("document", "query"):
            return features
        vectors = F.normalize(features["sentence_embedding"].float(), dim=-1)
        whitened = F.normalize((vectors - self.mean.float()) @ self.matrix.float(), dim=-1)
        if "pieces" in features:
            texts = whitened.split(features["pieces"].tolist())
            whitened = torch.stack([self.average(pieces) for pieces in texts])
        return {**features, "sentence_embedding": whitened}

    def average(self, pieces: Tensor) -> Tensor:
        """Whitened pieces (n, w) of a text → its vector (w,) of length 1."""
        count, width = pieces.shape
        ridge = self.ridge * count * torch.eye(min(count, width), device=pieces.device)
        if count <= width:
            found = torch.linalg.solve(pieces @ pieces.T + ridge, pieces.new_ones(count)) @ pieces
        else:  # the same vector, by the smaller matrix
            found = torch.linalg.solve(pieces.T @ pieces + ridge, pieces.sum(0))
        return F.normalize(found, dim=-1)

    def get_sentence_embedding_dimension(self) -> int:
        return self.width

    get_embedding_dimension = get_sentence_embedding_dimension  # its name since sentence-transformers 5.4

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> WhitenedAverage:
        names = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in names if name in kwargs}
        model = cls(**cls.load_config(model_name_or_path, **where))
        return cls.load_torch_weights(model_name_or_path, model=model, **where)
