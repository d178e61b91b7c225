"""Reads files and datasets into documents and tokens, and keeps held-out documents out of the training text.

Contract: a document is a row of a dataset, of a JSONL or of a parquet file; in a text file, what stands under a top
heading as WikiText has them (` = Title = `), and where there are none, one of some twenty parts that are cut at empty
lines. Held-out documents are those of the smallest hashes, whatever the order. A training document that shares a run of
`SHARED` tokens with one of them is left out, and counted.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import BadInputError, HubError, UsageError
from ..convert.text import check_tokens, read_utf8, special_ends
from .files import require_files, table_form
from .tables import FORMS, csv_texts, mappings, no_column, rows_of, texts_of

HEADING = re.compile(r"^ = [^=].*[^=] = ?$", re.MULTILINE)
PARTS = 20  # of a text without documents
HELDOUT_SHARE, HELDOUT_CHARACTERS = 0.1, 400_000
STREAM_LOOKAHEAD = 1_000  # documents of a stream among which the held-out ones are chosen
SHARED = 64  # tokens in a row

Tokens = np.ndarray  # (n, 2) int32: the id, and whether a word begins there


@dataclass
class Corpus:
    """Text as tokens.

    Attributes:
        train: the training documents of an epoch, in its order; the same for the same epoch.
        heldout: documents that training never sees.
        prefix, suffix: special tokens around a text.
        record: for the manifest: names, sha256, counts. findings: what is worth telling.
    """

    train: Callable[[int], Iterator[Tokens]]
    heldout: list[Tokens]
    prefix: list[int]
    suffix: list[int]
    record: dict[str, Any]
    findings: list[str] = field(default_factory=list)


def read_corpus(
    data: Sequence[str],
    heldout: Sequence[str],
    tokenizer: Any,
    rows: int,
    *,
    seed: int,
    column: str = "text",
    streaming: bool = False,
    token: str | None = None,
) -> Corpus:
    """Reads, splits by document, tokenizes, and keeps held-out text out of the training text.

    Args:
        data: files, or datasets as `name`, `name:configuration`, `name@split`. heldout: the same, or empty.
        rows: of the model's table of words.
        seed: of the order of training documents.
        column: that holds the text, in files and datasets that have columns.

    Raises:
        BadInputError: no text, an unreadable file, or nothing to train on besides the held-out documents.
    """

    def open_data() -> Iterator[str]:
        return itertools.chain.from_iterable(_documents(name, column, streaming, token, "--data") for name in data)

    encode = _encoder(tokenizer)
    texts = list(itertools.islice(open_data(), STREAM_LOOKAHEAD)) if streaming else list(open_data())
    if not any(text.strip() for text in texts):
        raise BadInputError("the data contains no text", where=", ".join(data), hint="give files with text in them")
    if heldout:
        apart = [text for name in heldout for text in _documents(name, column, False, token, "--heldout")]
        kept = {_sha256(text) for text in apart}
    else:
        kept = _held_out(texts)
        apart = [text for text in texts if _sha256(text) in kept]
    held = [encode(text) for text in apart]
    shared = Overlap(held)
    record: dict[str, Any] = {
        "data": [Path(name).name if Path(name).exists() else name for name in data],
        "heldout": [Path(name).name if Path(name).exists() else name for name in heldout] or "documents of the data",
        "heldout_documents": len(held),
        "heldout_tokens": sum(map(len, held)),
        "heldout_sha256": _sha256("".join(sorted(kept))),
    }
    prefix, suffix = special_ends(tokenizer)

    if streaming:
        probe = [tokens for tokens in map(encode, texts) if not shared.with_any(tokens)]

        def stream(epoch: int) -> Iterator[Tokens]:
            return (tokens for tokens in map(encode, open_data()) if len(tokens) and not shared.with_any(tokens))

        train, record["streamed"] = stream, True
    else:
        encoded = [tokens for tokens in map(encode, (t for t in texts if _sha256(t) not in kept)) if len(tokens)]
        probe = [tokens for tokens in encoded if not shared.with_any(tokens)]
        record |= {
            "sha256": _sha256("".join(map(_sha256, texts))),
            "documents": len(probe),
            "tokens": sum(map(len, probe)),
            "left_out": len(encoded) - len(probe),
        }

        def shuffled(epoch: int) -> Iterator[Tokens]:
            order = np.random.default_rng([seed, epoch]).permutation(len(probe))
            return (probe[i] for i in order)

        train = shuffled
    if not probe:
        raise BadInputError(
            "all training text is also in the held-out text",
            where="--data, --heldout",
            hint="give other held-out text, or more documents",
        )
    unknown, findings = check_tokens(
        np.concatenate([x[:, 0] for x in (*probe[:200], *held)]).tolist() + prefix + suffix,
        tokenizer,
        rows,
        ", ".join(data),
    )
    if record.get("left_out", 0) > len(probe) / 4:
        findings.append(f"{record['left_out']} training documents share text with the held-out ones and were left out")
    record["unknown_share"] = round(unknown, 4)
    return Corpus(train, held, prefix, suffix, record, findings)


class Overlap:
    """Whether a document shares `SHARED` tokens in a row (or all of its own, if fewer) with held-out ones."""

    def __init__(self, heldout: Iterable[Tokens]) -> None:
        hashes = [_runs(document[:, 0]) for document in heldout]
        self._known = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)

    def with_any(self, document: Tokens) -> bool:
        return bool(np.isin(_runs(document[:, 0]), self._known).any())


def _runs(ids: np.ndarray) -> np.ndarray:
    """A hash (uint64) of every run of `SHARED` ids."""
    size = min(SHARED, len(ids))
    count = len(ids) - size + 1
    hashes = np.full(count, size, np.uint64)
    for i in range(size):  # wraps at 2^64, which is what a hash may do
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + ids[i : i + count].astype(np.uint64) + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _held_out(texts: Sequence[str]) -> set[str]:
    """sha256 of the documents to hold out: a tenth of the text, at least one document, never all."""
    sizes = {_sha256(text): len(text) for text in texts if text.strip()}
    if len(sizes) < 2:
        raise BadInputError(
            "the data is a single document, so no document can be held out",
            where="--data",
            hint="give held-out text with --heldout, or more documents. Documents are rows of a table, or the parts of "
            "a text file between headings such as ` = Title = ` (without headings: between empty lines)",
        )
    most = min(HELDOUT_SHARE * sum(sizes.values()), HELDOUT_CHARACTERS)
    chosen: set[str] = set()
    for digest in sorted(sizes)[: len(sizes) - 1]:
        if chosen and sum(sizes[d] for d in chosen) + sizes[digest] > most:
            break
        chosen.add(digest)
    return chosen


def _documents(name: str, column: str, streaming: bool, token: str | None, where: str) -> Iterator[str]:
    path = Path(name)
    require_files([name], where)
    if not path.exists():
        return dataset_rows(name, column, streaming, token)
    if table_form(path):
        return table_rows(path, column)
    return iter(text_documents(read_utf8(path, where)))


def text_documents(text: str) -> list[str]:
    """The documents of a text file."""
    starts = [match.start() for match in HEADING.finditer(text)]
    if len(starts) > 1:
        return [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
    parts: list[str] = [""]
    for paragraph in re.split(r"(?<=\n)[ \t]*\n", text):
        if len(parts[-1]) > len(text) / PARTS:
            parts.append("")
        parts[-1] += paragraph + "\n"
    return parts


def table_texts(
    path: Path, column: str, *, id_column: str | None = None, flag: str | None = "--text-column"
) -> Iterator[tuple[Any, str | None]]:
    """Id and text of each row of a file with columns, as `texts_of`.

    Raises:
        BadInputError: it cannot be read, has no such column, or a value is not a text.
    """
    if table_form(path) == "parquet":
        rows = mappings(_selected(table(path, streaming=True), {column: flag, id_column: "--id-column"}, str(path)))
    else:
        rows = rows_of(path)
        if table_form(path) == "csv":
            rows = csv_texts(rows, column)
    return texts_of(rows, column, str(path), id_column=id_column, flag=flag)


def table_rows(path: Path, column: str, flag: str | None = "--text-column") -> Iterator[str]:
    """The texts of a file with columns. Rows without text are passed over.

    Raises:
        BadInputError: as `table_texts`.
    """
    return (text for _, text in table_texts(path, column, flag=flag) if text is not None)


def dataset_rows(name: str, column: str, streaming: bool, token: str | None) -> Iterator[str]:
    """The texts of a dataset. Rows without text are passed over."""
    rows = _selected(dataset(name, token, split="train", streaming=streaming), {column: "--text-column"}, name)
    return (text for _, text in texts_of(mappings(rows), column, name) if text is not None)


def _selected(rows: Any, columns: dict[str | None, str | None], where: str) -> Iterator[dict[str, Any]]:
    """Some columns of each row that `datasets` reads, and its errors as errors of the data."""
    wanted = {name: flag for name, flag in columns.items() if name is not None}
    names = rows.column_names  # None where only the rows tell
    for name, flag in wanted.items():
        if names is not None and name not in names:
            raise no_column(name, names, where, flag)
    try:
        yield from rows if names is None else rows.select_columns(list(wanted))
    except Exception as error:  # each format fails in its own way
        raise _unread(error, where) from None


def table(path: Path, streaming: bool = False) -> Any:
    """All columns of a file that has some, as `datasets` reads them.

    Raises:
        BadInputError: it cannot be read, or has no rows.
    """
    form = str(table_form(path))
    if form != "parquet":
        for _ in rows_of(path):  # raises for damaged rows, of which `datasets` shifts or drops some
            pass
    datasets = _datasets()
    try:
        return datasets.load_dataset(form, data_files=str(path), split="train", streaming=streaming)
    except Exception as error:  # each format fails in its own way
        raise _unread(error, str(path)) from None


def _unread(error: Exception, where: str) -> BadInputError:
    said = _first_line(error.__cause__ or error)  # "an error occurred while generating" has the reason as its cause
    empty = "corresponds to no data" in said or said == "StopIteration"  # the latter of an empty JSONL file
    return BadInputError("the file has no rows" if empty else f"cannot read the file ({said})", where=where, hint=FORMS)


def dataset(name: str, token: str | None, *, split: str | None, streaming: bool = False) -> Any:
    """A dataset of the Hub, given as `name`, `name:configuration` or `name@split`.

    Args:
        split: where the name states none; None for all splits by name.

    Raises:
        HubError: it cannot be fetched. BadInputError: there is none of that name.
    """
    datasets = _datasets()
    identifier, _, stated = name.partition("@")
    identifier, _, configuration = identifier.partition(":")
    try:
        return datasets.load_dataset(
            identifier, configuration or None, split=stated or split, streaming=streaming, token=token
        )
    except ConnectionError as error:
        raise HubError(
            f"there is no file {name} here, and the dataset could not be fetched from the Hub ({_first_line(error)})",
            where=name,
            hint="check the name, the network and HF_ENDPOINT. With --offline, only datasets in the cache can be read",
        ) from None
    except Exception as error:  # the Hub, the dataset's files: all of them mean that it is not here
        raise BadInputError(
            f"no file or dataset of this name ({_first_line(error)})",
            where=name,
            hint="give files, or a dataset as name, name:configuration or name@split",
        ) from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "the package datasets is not installed", where="--data", hint="pip install 'effconv[adapt]'"
        ) from None
    from huggingface_hub.utils import logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs is in the errors that it raises
    logging.set_verbosity(logging.CRITICAL)
    return datasets


def encoded(texts: Sequence[str], tokenizer: Any, *, words: bool = True) -> list[Tokens]:
    """The tokens of each text, without special tokens.

    Args:
        words: whether to say where words begin. Without it, every token is said to begin one.
    """
    if not texts:
        return []
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    words &= tokenizer.is_fast
    return [_tokens(ids, found.word_ids(i) if words else None) for i, ids in enumerate(found["input_ids"])]


def _tokens(ids: Sequence[int], words: Sequence[int | None] | None) -> Tokens:
    tokens = np.ones((len(ids), 2), np.int32)
    tokens[:, 0] = ids
    if words is not None:
        tokens[:, 1] = np.fromiter((a != b for a, b in itertools.pairwise([-1, *words])), np.int32, len(ids))
    return tokens


def _encoder(tokenizer: Any) -> Callable[[str], Tokens]:
    return lambda text: encoded([text], tokenizer)[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
