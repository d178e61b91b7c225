"""Documents as sentences, read as a stream: what ends a document, and what a sentence is. One function an option.

A stream is an iterator of sentences, with None after the last one of each document. A file is read in pieces, so memory
does not grow with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..convert.errors import BadInputError
from ..convert.text import unreadable
from .documents import HEADING, dataset_rows, table_rows
from .files import require_files, table_form
from .pretraining_options import PretrainingOptions

PIECE = 1 << 20  # characters of a line that are read at once: a longer line is several sentences

Stream = Iterator[str | None]


def read_sentences(
    names: Sequence[str],
    options: PretrainingOptions,
    *,
    token: str | None = None,
    where: str = "--data",
    read: Callable[[str], None] | None = None,
) -> Stream:
    """The sentences of files and datasets, and None after each document. Documents without text are left out.

    Args:
        names: text files, files with columns, or datasets of the Hub.
        where: the option that lists them.
        read: called with each line, before any document is left out.

    Raises:
        BadInputError: a file cannot be read, none has text, or none has a heading or separator where one is asked for.
    """
    require_files(names, where)
    open_document = any_text = False
    for sentence in _sentences(names, options, token, where, read):
        if sentence is not None or open_document:
            yield sentence
        open_document = sentence is not None
        any_text |= open_document
    if not any_text:
        raise BadInputError(
            "the texts contain no text", where=", ".join(map(str, names)), hint="give files with text in them"
        )


def _sentences(
    names: Sequence[str],
    options: PretrainingOptions,
    token: str | None,
    where: str,
    read: Callable[[str], None] | None,
) -> Stream:
    split = sentences_by_rule if options.sentences == "split" else sentences_by_line
    for name in names:
        for line in _documents(name, options, token, where):
            if line is None:
                yield None
                continue
            if read is not None:
                read(line)
            yield from split(line)


def _documents(name: str, options: PretrainingOptions, token: str | None, where: str) -> Stream:
    path = Path(name)
    if not path.exists() or table_form(path):
        rows = (
            table_rows(path, options.text_column)
            if path.exists()
            else dataset_rows(name, options.text_column, True, token)
        )
        for row in rows:
            yield from row.splitlines()
            yield None
        return
    lines = _lines(path, where)
    if options.documents == "heading":
        yield from documents_by_heading(lines, name, keep=not options.pairs)
    elif options.documents == "separator":
        yield from documents_by_separator(lines, str(options.multiple_docs_separator), name)
    elif options.documents == "blank":
        yield from documents_by_blank_line(lines)
    else:
        yield from lines
    yield None


# Documents


def documents_by_blank_line(lines: Iterable[str]) -> Stream:
    """A line without text ends a document."""
    for line in lines:
        yield line if line.strip() else None


def documents_by_separator(lines: Iterable[str], separator: str, name: str) -> Stream:
    r"""A line that is the separator ends a document. `\n` stands for a blank line, as in Cerebras's scripts.

    Raises:
        BadInputError: the text has no such line.
    """
    wanted, found, text = separator.replace("\\n", "\n").strip(), False, False
    for line in lines:
        text = text or bool(line.strip())
        if line.strip() == wanted:
            found = True
            yield None
        else:
            yield line
    if text and not found:
        raise BadInputError(
            f"no line of the text is the separator {separator!r}",
            where=name,
            hint="give the line between documents with --multiple-docs-separator, or --documents file for a document "
            "a file",
        )


def documents_by_heading(lines: Iterable[str], name: str, *, keep: bool) -> Stream:
    """A first-level heading as WikiText has them (` = Title = `) begins a document.

    Args:
        keep: the heading as the document's first sentence. Pairs are made without it, as LambdaBERT's are.

    Raises:
        BadInputError: the text has none.
    """
    found = text = False
    for line in lines:
        text = text or bool(line.strip())
        if HEADING.match(line):
            found = True
            yield None
            if keep:
                yield line
        else:
            yield line
    if text and not found:
        raise BadInputError(
            "no heading found in the text",
            where=name,
            hint="documents begin at lines such as ` = Title = ` (one space, one equals sign). Choose another end of "
            "documents with --documents",
        )


# Sentences


def sentences_by_line(line: str) -> Iterator[str]:
    """A line is a sentence. A line without text is none."""
    text = line.strip()
    if text:
        yield text


# A sentence ends at . ! ? … (and closing quotes or brackets) before a space and what can begin one: a capital, a digit,
# an opening quote or bracket, or a letter without case. Chinese and Japanese full stops need no space.
END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*\s?[^\W_])|(?<=[。！？])(?![”’」』）])")
ABBREVIATIONS = re.compile(
    r"mrs?|ms|dr|prof|rev|hon|gen|col|capt|lt|sgt|sen|rep|gov|st|mt|jr|sr|inc|ltd|co|corp|no|vol|pp|vs|etc|eg|ie|al|cf|fig|"
    r"dept|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    re.IGNORECASE,
)
LAST_WORD = re.compile(r"([\w.]+?)\.[\"'”’)\]]*$")


def sentences_by_rule(line: str) -> Iterator[str]:
    """The sentences of a line by a rule for languages with capitals, and for Chinese and Japanese.

    A full stop behind an initial, a known abbreviation or a word with full stops in it (`U.S.`) ends no sentence, nor
    does one before a small letter.
    """
    begin = 0
    for match in END.finditer(line):
        sentence = line[begin : match.end()].strip()
        following = line[match.end() :].lstrip("\"'“‘([ \t")[:1]
        if following.islower() or _abbreviated(sentence):
            continue
        if sentence:
            yield sentence
        begin = match.end()
    rest = line[begin:].strip()
    if rest:
        yield rest


def _abbreviated(sentence: str) -> bool:
    match = LAST_WORD.search(sentence[-40:])
    if match is None:
        return False
    word = match[1]
    return (
        "." in word or ABBREVIATIONS.fullmatch(word) is not None or (len(word) == 1 and word.isupper() and word != "I")
    )


def _lines(path: Path, where: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(PIECE):
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, where) from None
