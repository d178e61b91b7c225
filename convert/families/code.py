"""Where a family's attention sits in its stock modeling code: a `FamilyCode` for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FamilyCode:
    """What the rendered files need to know of a family.

    Args:
        module: the family in file names, such as `xlm_roberta`.
        model_type: as in config.json, such as `xlm-roberta`.
        class_prefix: of the stock classes, such as `XLMRoberta`.
        special_positions: rows of the position table that no token uses.
        layers_path: attribute path from the base model to its list of layers.
        attention_path: attribute path from a layer to its self-attention.
        projections: names of the query, key and value projections in it.
        attention_lines: further lines of the attention class's body.
        model_lines: further lines of the body of the base model, or of its encoder where the base model has a decoder.
        encoder: attribute path from the base model to its encoder, where the base model has a decoder too; then
            `layers_path` begins at the encoder.
        decoder_heads: suffixes of the classes that consist of the decoder alone.
    """

    module: str
    model_type: str
    class_prefix: str
    special_positions: int = 0
    layers_path: str = "encoder.layer"
    attention_path: str = "attention.self"
    projections: tuple[str, str, str] = ("query", "key", "value")
    attention_lines: tuple[str, ...] = ()
    model_lines: tuple[str, ...] = ()
    encoder: str = ""
    decoder_heads: tuple[str, ...] = ()

    @property
    def config_class(self) -> str:
        return f"{self.class_prefix}Config"
