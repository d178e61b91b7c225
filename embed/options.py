"""Options of `effconv embed` and `effconv pieces`: flags, help and valid values. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..convert.options import LINES_HELP, option, require_sound

FORMS = (".parquet", ".npy")
DANGER = "Dangerous: only for sources you trust"


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """Options of `effconv embed`."""

    data: tuple[str, ...] = option((), "Text, .jsonl, .csv or .parquet file, can be repeated. [required]")
    output: Path | None = option(
        None,
        "FILE.parquet, or FILE.npy with the rows' ids in FILE.ids.jsonl. [default: REPO.parquet]",
        short="-o",
    )
    chunks: int | None = option(
        None,
        "Tokens per chunk, such as 512: one vector per chunk, in the context of its text (with --pieces: the average "
        "of its pieces). [default: one per text]",
    )
    pieces: int | None = option(
        None,
        "Tokens per piece, such as 30: a vector is the average of short pieces, each embedded by itself.",
    )
    whiten: bool = option(
        False,
        "With --pieces: take out what all pieces have in common, and weight them so that none is drowned out. "
        "Also writes NAME.whitening.safetensors, for queries.",
    )
    whitening: Path | None = option(
        None, "With --pieces: the .whitening.safetensors file of an earlier run, for more texts or for queries."
    )
    text_column: str = option("text", "Column with the text in .jsonl, .csv and .parquet files.")
    id_column: str | None = option(None, "Column with the id of a text. [default: FILE#ROW]")
    lines: bool = option(False, LINES_HELP)
    batch_size: int = option(8, "Texts per run of the model.")
    normalize: bool = option(False, "Scale vectors to length 1, also if the model does not.")
    device: str | None = option(None, "Device, such as cuda. [default: a GPU if there is one]")
    overwrite: bool = option(False, "Replace an existing output file, after the new one is complete.")
    trust_remote_code: bool = option(
        False, "Allow Python code that came with the source (tokenizer, modules) to run.", panel=DANGER
    )

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        if not self.data:
            faults.append("data is missing: give files with texts")
        if self.chunks is not None and self.chunks < 1:
            faults.append(f"chunks must be at least 1, got {self.chunks}")
        if self.pieces is not None and self.pieces < 1:
            faults.append(f"pieces must be at least 1, got {self.pieces}")
        if self.pieces is None and (self.whiten or self.whitening is not None):
            faults.append(
                f"{'whiten' if self.whiten else 'whitening'} needs pieces: give a number of tokens, such as 30"
            )
        if self.whiten and self.whitening is not None:
            faults.append("whiten fits a new whitening and whitening takes a given one: leave out one of them")
        if self.batch_size < 1:
            faults.append(f"batch_size must be at least 1, got {self.batch_size}")
        if self.output is not None and Path(self.output).suffix not in FORMS:
            faults.append(f"output must end in {' or '.join(FORMS)}, got {self.output}")
        require_sound("embed", faults, self)


@dataclass(frozen=True, slots=True)
class PiecesOptions:
    """Options of `effconv pieces`."""

    data: tuple[str, ...] = option(
        (),
        "Text, .jsonl, .csv or .parquet file with the documents to be found, can be repeated. The whitening is fitted "
        "to them. [required without --whitening]",
    )
    whitening: Path | None = option(
        None, "Instead of --data: the .whitening.safetensors file that effconv embed --pieces --whiten wrote."
    )
    pieces: int = option(
        30,
        "Tokens per piece. The vector of a document is a weighted average of the vectors of its pieces, which are "
        "whitened: what all pieces have in common is taken out.",
    )
    max_length: int = option(65_536, "Maximum length of a document in tokens. The rest is cut off.", flag="--max-len")
    text_column: str = option("text", "Column with the text in .jsonl, .csv and .parquet files.")
    lines: bool = option(False, LINES_HELP)
    output: Path | None = option(None, "Folder of the new repo. [default: REPO-pieces]", short="-o")
    batch_size: int = option(8, "Texts per run of the model.")
    device: str | None = option(None, "Device, such as cuda. [default: a GPU if there is one]")
    overwrite: bool = option(False, "Replace an existing output folder, after the new one is complete.")
    trust_remote_code: bool = option(
        False, "Allow Python code that came with the source (tokenizer, modules) to run.", panel=DANGER
    )

    def __post_init__(self) -> None:
        """Raises UsageError with all invalid values."""
        faults = []
        if bool(self.data) == (self.whitening is not None):
            faults.append(
                "data and whitening cannot both be given: leave out one of them"
                if self.data
                else "data is missing: give files with the documents to be found, or whitening"
            )
        faults += [
            f"{name} must be at least 1, got {value}"
            for name, value in (
                ("pieces", self.pieces),
                ("max_length", self.max_length),
                ("batch_size", self.batch_size),
            )
            if value < 1
        ]
        require_sound("pieces", faults, self)
