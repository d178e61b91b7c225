"""How texts become pretraining examples: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..convert.options import option, require_sound

Objective = Literal["mlm", "mlm+nsp", "mlm+sop", "clm"]
Documents = Literal["blank", "separator", "heading", "file"]
Sentences = Literal["line", "split"]
Masks = Literal["dynamic", "static"]
PAIRS = ("mlm+nsp", "mlm+sop")  # objectives whose examples are pairs of texts
TEXT, PACKING, MASKING, DANGER = "Text", "Examples", "Masks", "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class PretrainingOptions:
    """How texts become examples, for `effconv prepare` and for training on texts."""

    objective: Objective = option("mlm", "What is trained: mlm, mlm+nsp, mlm+sop (pairs of texts) or clm.")
    length: int = option(128, "Tokens of an example, at most, special tokens included.")
    text_column: str = option("text", "Column with the text in JSONL, CSV, parquet and datasets.", panel=TEXT)
    documents: Documents = option(
        "blank",
        "What ends a document of a text file: a blank line, a line with the separator, a WikiText heading "
        "(` = Title = `), or the end of the file. A row of a table is always a document.",
        panel=TEXT,
    )
    multiple_docs_separator: str | None = option(
        None, "Line between documents, such as '[SEP]'. Implies --documents separator.", panel=TEXT
    )
    sentences: Sentences = option("line", "What is a sentence: a line, or what a rule finds in it (split).", panel=TEXT)
    across_documents: bool = option(
        False, "Let examples cross documents, with a separator token between them.", panel=PACKING
    )
    separator_token: str | None = option(
        None, "Token between documents. [default: the tokenizer's end or separator token]", panel=PACKING
    )
    overlap: int = option(0, "Tokens that an example repeats from the one before it.", panel=PACKING)
    short_share: float | None = option(
        None, "Share of examples that are shorter, of random length. [default: 0.1, clm 0]", panel=PACKING
    )
    shortest: int = option(2, "Least length of such an example, without special tokens: below --length.", panel=PACKING)
    copies: int = option(1, "Times that the texts are used, with other masks and pairs.", panel=PACKING)
    buffer: int = option(1000, "Documents among which mlm+nsp draws the random one.", panel=PACKING)
    shuffle: int = option(0, "Examples in the buffer that shuffles them. 0 keeps the order of the text.", panel=PACKING)
    masks: Masks = option(
        "dynamic", "static: write masks. dynamic: effconv pretrain makes them, with its own options.", panel=MASKING
    )
    mask_share: float = option(
        0.15,
        "Fraction of tokens that are masked. Only for --masks static, which pretrain then uses as they are.",
        panel=MASKING,
    )
    max_predictions: int | None = option(
        None, "Masked tokens of an example, at most. Only for --masks static. [default: any]", panel=MASKING
    )
    whole_words: bool = option(False, "Mask whole words.", panel=MASKING)
    heldout_share: float = option(
        0.0, "Share of documents to keep apart for evaluation, chosen by their hash.", panel=TEXT
    )
    seed: int = option(123, "Random seed for lengths, pairs, order and static masks.")

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        if self.multiple_docs_separator is not None and self.documents == "blank":
            object.__setattr__(self, "documents", "separator")
        require_sound("prepare", [*self._wrong_numbers(), *self._wrong_choices()], PretrainingOptions)

    @property
    def pairs(self) -> bool:
        return self.objective in PAIRS

    @property
    def short(self) -> float:
        """The share of short examples."""
        return self.short_share if self.short_share is not None else 0.0 if self.objective == "clm" else 0.1

    def _wrong_numbers(self) -> list[str]:
        least = {"length": 8, "overlap": 0, "shortest": 1, "copies": 1, "buffer": 2, "shuffle": 0, "max_predictions": 1}
        given = {name: getattr(self, name) for name in least}
        faults = [
            f"{name} must be at least {least[name]}, got {value}"
            for name, value in given.items()
            if value is not None and value < least[name]
        ]
        if self.shortest >= self.length >= least["length"]:
            faults.append(f"shortest must be less than --length, got {self.shortest} and {self.length}")
        if not 0 < self.mask_share < 1:
            faults.append(f"mask_share must be between 0 and 1, got {self.mask_share}")
        if not 0 <= self.heldout_share < 1:
            faults.append(f"heldout_share must be at least 0 and below 1, got {self.heldout_share}")
        if self.short_share is not None and not 0 <= self.short_share <= 1:
            faults.append(f"short_share must be from 0 to 1, got {self.short_share}")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"seed must be from 0 to 2^32 - 1, got {self.seed}")
        return faults

    def _wrong_choices(self) -> list[str]:
        faults = [
            f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
            for name, known in (
                ("objective", Objective.__args__),  # type: ignore[attr-defined]
                ("documents", Documents.__args__),  # type: ignore[attr-defined]
                ("sentences", Sentences.__args__),  # type: ignore[attr-defined]
                ("masks", Masks.__args__),  # type: ignore[attr-defined]
            )
            if getattr(self, name) not in known
        ]
        if self.documents == "separator" and not self.multiple_docs_separator:
            faults.append("documents is separator, and multiple_docs_separator names none")
        if self.documents != "separator" and self.multiple_docs_separator is not None:
            faults.append(f"multiple_docs_separator has no meaning with documents {self.documents}")
        if self.pairs and (self.overlap or self.across_documents):
            faults.append(
                f"objective {self.objective} makes pairs within documents, without --overlap and across_documents"
            )
        if self.objective == "clm" and self.masks == "static":
            faults.append("objective clm has no masks")
        if self.separator_token is not None and not self.across_documents:
            faults.append("separator_token needs across_documents")
        return faults


@dataclass(frozen=True, slots=True)
class PrepareOptions(PretrainingOptions):
    """Options of `effconv prepare`."""

    tokenizer: str | None = option(None, "Model whose tokenizer is used: a folder or a Hub id.")
    output: Path | None = option(None, "Output folder. [default: TEXT-OBJECTIVE-LENGTH]", short="-o")
    overwrite: bool = option(False, "Replace a prepared folder, after the new one is complete.")
    token: str | None = option(None, "Hub access token. [default: HF_TOKEN, else the stored login]", panel="Hub")
    offline: bool = option(False, "Use no network. Read Hub files from the local cache.", panel="Hub")
    trust_remote_code: bool = option(False, "Allow the Python code of the tokenizer to run.", panel=DANGER)
