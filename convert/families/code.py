"""Where a family's attention sits in its stock modeling code: a `FamilyCode` for each."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderCode:
    """How the encoder beside a decoder differs among BART's kin.

    Args:
        words: the embeddings of `input_ids`, as an expression of the rendered code.
        places: those of the positions `first`, `first` + 1, ... for the rows of `words`, likewise.
        embedding_norm: whether there is a norm after the embeddings.
        last_norm: whether there is one after the last layer.
    """

    words: str = "self.embed_tokens(input_ids)"
    places: str = "self.embed_positions(words[:, :, -1], first)"
    embedding_norm: bool = True
    last_norm: bool = False


@dataclass(frozen=True, slots=True)
class FamilyCode:
    """What the rendered files need to know of a family.

    Args:
        module: the family in file names, such as `xlm_roberta`.
        model_type: as in config.json, such as `xlm-roberta`.
        class_prefix: of the stock classes, such as `XLMRoberta`.
        special_positions: rows of the position table that no token uses.
        after_padding: whether positions begin behind that of the padding token, at `pad_token_id` + 1.
        layers_path: attribute path from the base model to its list of layers; empty where `model_lines` have
            `layer_lists`.
        attention_path: attribute path from a layer to its self-attention.
        projections: names of the query, key and value projections in it.
        attention_lines: further lines of the attention class's body.
        model_lines: further lines of the base model's body.
        encoder: where the base model has a decoder too; then `layers_path` begins at the encoder.
        decoder_heads: suffixes of the classes that consist of the decoder alone.
        score_bias: whether attention adds a bias to scores. Then `model_lines` have `bias_by_distance`.
        stock_config: the stock config class, where it is not named as the models are.
        config_fields: the config class to build on in place of the stock one, as (module, class) of a copied file.
        stock_parts: classes of the stock modeling file that the lines name.
    """

    module: str
    model_type: str
    class_prefix: str
    special_positions: int = 0
    after_padding: bool = False
    layers_path: str = "encoder.layer"
    attention_path: str = "attention.self"
    projections: tuple[str, str, str] = ("query", "key", "value")
    attention_lines: tuple[str, ...] = ()
    model_lines: tuple[str, ...] = ()
    encoder: EncoderCode | None = None
    decoder_heads: tuple[str, ...] = ()
    score_bias: bool = False
    stock_config: str = ""
    config_fields: tuple[str, str] | None = None
    stock_parts: tuple[str, ...] = ()

    @property
    def attention(self) -> str:
        """`attention_path` in Python: `layer[0].SelfAttention` of `layer.0.SelfAttention`."""
        return re.sub(r"\.(\d+)", r"[\1]", self.attention_path)

    @property
    def config_class(self) -> str:
        return self.stock_config or f"{self.class_prefix}Config"

    @property
    def lines(self) -> str:
        """All lines of the rendered code that this family writes itself."""
        return "\n".join(self.attention_lines + self.model_lines)
