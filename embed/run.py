"""`effconv embed`: the texts of files → vectors in a parquet file, or in a .npy file with the ids beside it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..convert.errors import OutputError, UsageError
from ..convert.io.staging import check_apart, check_writable, output_errors
from ..convert.options import Progress
from ..convert.repo.manifest import NAME, read_manifest
from ..convert.repo.own_modules import average_of
from ..convert.repo.sentence import MODULES
from ..data.named import NamedText, read_named
from .files import PARTIAL, Write, made_of, vectors_file
from .loadable import MEAN_POOLING, UNCHECKED, sentence_folder
from .options import EmbedOptions

if TYPE_CHECKING:
    from .encoder import ChunkEncoder

WHITENING = ".whitening.safetensors"
AT_ONCE = 8  # batches of texts that are read, embedded and written together


@dataclass(frozen=True)
class Embedded:
    """Result of `effconv embed`.

    Attributes:
        output: the file. record: texts, rows that were left out, vectors, width, tokens per chunk and per piece, texts
            that were cut, the file of the whitening, notes (what a person should know), seconds.
    """

    output: Path
    record: dict[str, Any]

    def described(self) -> dict[str, Any]:
        return {"output": str(self.output), **self.record}


def embed_texts(
    repo: str | os.PathLike[str],
    options: EmbedOptions,
    *,
    progress: Progress = lambda step, done, total: None,
) -> Embedded:
    """Embeds the texts of files with a repo.

    Returns:
        The output file, complete, and what is in it.

    Raises:
        EffconvError: the repo or a text cannot be used. No output was written.
    """
    folder = model_folder(repo)
    output = Path(os.path.expanduser(options.output or folder.absolute().name + ".parquet")).absolute()
    whitening = output.with_suffix(WHITENING)
    check_apart(folder, output)  # a file in a repo would be one that its manifest does not know
    _require_writable(output, [*made_of(output), *([whitening] if options.whiten else [])], options)
    read = read_named(options.data, column=options.text_column, id_column=options.id_column, lines=options.lines)
    texts: Iterator[NamedText] = itertools.chain([next(read)], read)  # raises before a model is loaded if there is none

    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    progress("models", 0, 0)
    encoder: Any = _encoder(folder, options)
    if options.whiten:
        texts = encoder.with_enough_pieces(texts, _text_of, options.chunks)
    begun = time.perf_counter()
    counts = {"texts": 0, "vectors": 0, "width": 0, "longer_than_the_model": 0}
    parts = _parts(texts, AT_ONCE * options.batch_size)
    partial = whitening.with_name(f".{whitening.name}{PARTIAL}")
    try:
        with output_errors(output), vectors_file(output) as write:
            if options.whiten:
                _write_whitened(encoder, parts, options, counts, write, partial, progress)
            else:
                for part in parts:
                    progress("embedding", 0, 0)
                    write(_rows(encoder, part, options, counts), _vectors(encoder, part, options, counts))
        if options.whiten:
            partial.replace(whitening)  # now that the vectors are there: an older file stays with its own
    finally:
        partial.unlink(missing_ok=True)
    record: dict[str, Any] = {"model": folder.absolute().name, "chunk_tokens": options.chunks, **counts}
    record["rows_without_text"] = read.rows_without_text
    if hasattr(encoder, "piece_tokens"):
        record["piece_tokens"] = encoder.piece_tokens
    if options.whiten or options.whitening is not None:
        record["whitening"] = str(whitening if options.whiten else options.whitening)
    record["notes"] = [] if (folder / MODULES).is_file() else [MEAN_POOLING]
    if options.whitening is not None and not encoder.whitening.model:
        record["notes"].append(UNCHECKED)
    record["seconds"] = round(time.perf_counter() - begun, 3)
    return Embedded(output, record)


def model_folder(repo: str | os.PathLike[str]) -> Path:
    """The folder of a repo that effconv made, or of another model of sentence-transformers.

    Raises:
        EffconvError: there is no such folder, or it holds neither.
    """
    folder = sentence_folder(repo)
    if not (folder / "modules.json").is_file() and not (folder / NAME).is_file():
        read_manifest(folder)  # raises
    return folder


def _encoder(folder: Path, options: EmbedOptions) -> ChunkEncoder:
    loading: dict[str, Any] = {"device": options.device, "trust_remote_code": options.trust_remote_code}
    if options.pieces is None and average_of(folder) is None:
        from .encoder import ChunkEncoder

        return ChunkEncoder(folder, **loading)
    from .pieces import PieceEncoder

    encoder = PieceEncoder(folder, piece_tokens=options.pieces, whitening=options.whitening, **loading)
    if options.whiten:
        encoder.whitening = None  # a new one is fitted
    return encoder


def _write_whitened(
    encoder: Any,
    parts: Iterator[list[NamedText]],
    options: EmbedOptions,
    counts: dict[str, int],
    write: Write,
    path: Path,
    progress: Progress,
) -> None:
    """Embeds pieces, fits the whitening to all of them, and writes it and the vectors.

    Until the whitening is known, the pieces are in a file without a name beside the output: 4 bytes a number.
    """
    import torch

    held: list[tuple[list[dict[str, Any]], list[int]]] = []  # rows, and the pieces of each
    with tempfile.TemporaryFile(dir=path.parent) as file:
        for part in parts:
            progress("embedding", 0, 0)
            texts = [text.text for text in part]
            pieces = encoder.pieces(texts, chunk_tokens=options.chunks, batch_size=options.batch_size)
            for text in pieces:
                file.write(text.vectors.numpy().tobytes())
            held.append((_rows(encoder, part, options, counts), [count for text in pieces for count in text.counts]))
        whitening = encoder.fit()
        width = counts["width"] = len(whitening.mean)
        file.seek(0)
        for rows, sizes in held:
            read = file.read(4 * width * sum(sizes))
            vectors = torch.frombuffer(bytearray(read), dtype=torch.float32).view(-1, width)
            write(rows, whitening.pooled(vectors, sizes).numpy())
    whitening.save(path)


def _require_writable(output: Path, made: list[Path], options: EmbedOptions) -> None:
    for path in made:
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise OutputError(
                "this is a folder" if path.is_dir() else "the output file exists",
                where=str(path),
                hint="choose another file with --output" + ("" if path.is_dir() else ", or pass --overwrite"),
            )
    check_writable(output)
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            "the package pyarrow, which writes parquet files, is not installed",
            where="--output",
            hint="pip install pyarrow, or write a .npy file with --output FILE.npy",
        )


def _parts(texts: Iterator[NamedText], size: int) -> Iterator[list[NamedText]]:
    while part := list(itertools.islice(texts, size)):
        yield part


def _text_of(text: NamedText) -> str:
    return text.text


def _rows(
    encoder: ChunkEncoder, part: list[NamedText], options: EmbedOptions, counts: dict[str, int]
) -> list[dict[str, Any]]:
    """The rows (id, chunk, start, end, tokens) of some texts; counts them."""
    texts = [text.text for text in part]
    rows: list[dict[str, Any]] = []
    longest = encoder.max_seq_length - encoder.tokenizer.num_special_tokens_to_add()
    if options.chunks is None:
        cut = [[chunk] for chunk in encoder.whole(texts)]
    else:
        cut = encoder.chunks(texts, options.chunks)
    for text, chunks in zip(part, cut, strict=True):
        counts["longer_than_the_model"] += sum(chunk.tokens for chunk in chunks) > longest
        for i, chunk in enumerate(chunks):
            rows.append({"id": text.id, "chunk": i, "start": chunk.start, "end": chunk.end, "tokens": chunk.tokens})
    counts["texts"] += len(part)
    counts["vectors"] += len(rows)
    return rows


def _vectors(encoder: ChunkEncoder, part: list[NamedText], options: EmbedOptions, counts: dict[str, int]) -> np.ndarray:
    """The vectors (rows, w) float32 of some texts."""
    texts = [text.text for text in part]
    if options.chunks is None and options.pieces is None:
        vectors = encoder.model.encode_document(
            texts,
            batch_size=options.batch_size,
            show_progress_bar=False,
            normalize_embeddings=options.normalize,
            convert_to_numpy=True,
        )
    else:
        found = encoder.encode(
            texts,
            chunk_tokens=options.chunks,
            batch_size=options.batch_size,
            normalize_embeddings=options.normalize,
        )
        vectors = np.concatenate(found)
    counts["width"] = vectors.shape[1]
    return np.asarray(vectors, dtype=np.float32)
