"""A user's own retrieval task: a folder in the layout of BEIR.

    corpus.jsonl      {"_id": "d1", "title": "...", "text": "..."} a line; a title may be missing
    queries.jsonl     {"_id": "q1", "text": "..."} a line; those of all splits
    qrels/SPLIT.tsv   query-id, corpus-id and score, separated by tabs, below a line with these names

A score is a whole number; a document with a score above 0 is relevant. Queries that the split does not name are left
out. Every broken line is reported, with its number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, joined_hints, listing

COLUMNS = ["query-id", "corpus-id", "score"]
DEFAULT_SPLIT = "test"
LAYOUT = "the folder must have corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, as BEIR has them"


@dataclass(frozen=True, slots=True)
class FolderTask:
    """A retrieval task that was read from a folder.

    Attributes:
        name: of the folder.
        corpus: documents, with id, title and text. queries: those of the split, with id and text.
        relevant: scores by query id and document id.
        sha256: of the three files, one after the other.
    """

    name: str
    split: str
    corpus: list[dict[str, str]]
    queries: list[dict[str, str]]
    relevant: dict[str, dict[str, int]]
    sha256: str


def read_folder(folder: Path, split: str | None) -> FolderTask:
    """Reads a task.

    Raises:
        BadInputError: a file is missing, or lines are broken; the message names all of them.
    """
    split = split or DEFAULT_SPLIT
    names = ["corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"]
    missing = [f"{name}: no such file" for name in names if not (folder / name).is_file()]
    if missing:
        others = sorted(path.stem for path in folder.glob("qrels/*.tsv"))
        hint = f"give another split with --split, such as {others[0]}" if others else ""
        raise _broken(folder, missing, joined_hints(hint, LAYOUT))
    digest, faults = hashlib.sha256(), list[str]()
    lines = {name: list(_lines(folder, name, digest, faults)) for name in names}
    corpus = _texts(names[0], lines[names[0]], faults, title=True)
    queries = _texts(names[1], lines[names[1]], faults, title=False)
    relevant = _relevant(names[2], lines[names[2]], faults, set(queries), set(corpus))
    if not faults and not any(score > 0 for scores in relevant.values() for score in scores.values()):
        faults.append(f"{names[2]}: no score is above 0, so no document is relevant")
    if faults:
        raise _broken(folder, faults, joined_hints("mend these lines", LAYOUT))
    return FolderTask(
        name=folder.absolute().name,
        split=split,
        corpus=list(corpus.values()),
        queries=[row for name, row in queries.items() if name in relevant],
        relevant=relevant,
        sha256=digest.hexdigest(),
    )


def _broken(folder: Path, faults: list[str], hint: str) -> BadInputError:
    return BadInputError(f"the retrieval task cannot be read:\n{listing(faults)}", where=str(folder), hint=hint)


def _lines(folder: Path, name: str, digest: Any, faults: list[str]) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers from 1."""
    try:
        with (folder / name).open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    faults.append(f"{name} line {number}: not valid UTF-8 ({error.reason})")
                    continue
                if text.strip():
                    yield number, text
    except OSError as error:
        faults.append(f"{name}: {error.strerror}")


def _texts(name: str, lines: list[tuple[int, str]], faults: list[str], *, title: bool) -> dict[str, dict[str, str]]:
    """The rows of a .jsonl file by their id."""
    found: dict[str, dict[str, str]] = {}
    before = len(faults)
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"{name} line {number}: not JSON ({error})")
            continue
        fault = _fault(row, found)
        if fault:
            faults.append(f"{name} line {number}: {fault}")
            continue
        own = {"id": str(row["_id"]), "text": row["text"]}
        found[own["id"]] = own | ({"title": row.get("title") or ""} if title else {})
    if not found and len(faults) == before:
        faults.append(f"{name}: no rows")
    return found


def _fault(row: Any, known: dict[str, dict[str, str]]) -> str:
    """What is wrong with a row of a .jsonl file; "" if nothing is."""
    if not isinstance(row, dict):
        return "not an object with _id and text"
    if not isinstance(row.get("_id"), str) and type(row.get("_id")) is not int:
        return "_id must be a string"
    if not isinstance(row.get("text"), str) or not isinstance(row.get("title") or "", str):
        return "text must be a string" if not isinstance(row.get("text"), str) else "title must be a string"
    if str(row["_id"]) in known:
        return f"_id {row['_id']} is there twice"
    try:
        json.dumps([row["_id"], row["text"], row.get("title")], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "text with half a character (an unpaired surrogate)"
    return ""


def _relevant(
    name: str, lines: list[tuple[int, str]], faults: list[str], queries: set[str], corpus: set[str]
) -> dict[str, dict[str, int]]:
    """Scores by query id and document id."""
    found: dict[str, dict[str, int]] = {}
    if not lines or lines[0][1].split("\t") != COLUMNS:
        faults.append(f"{name} line {lines[0][0] if lines else 1}: must be {', '.join(COLUMNS)}, separated by tabs")
        return found
    broken = bool(faults)  # ids of rows that could not be read would be reported twice
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            faults.append(f"{name} line {number}: {len(cells)} columns, expected {len(COLUMNS)}, separated by tabs")
            continue
        query, document, score = cells
        if not re.fullmatch(r"-?[0-9]+", score):
            faults.append(f"{name} line {number}: score must be a whole number, got {score!r}")
        elif not broken and query not in queries:
            faults.append(f"{name} line {number}: no query {query!r} in queries.jsonl")
        elif not broken and document not in corpus:
            faults.append(f"{name} line {number}: no document {document!r} in corpus.jsonl")
        elif document in found.get(query, {}):
            faults.append(f"{name} line {number}: {query} and {document} are there twice")
        else:
            found.setdefault(query, {})[document] = int(score)
    if len(lines) == 1:
        faults.append(f"{name}: no rows")
    return found
