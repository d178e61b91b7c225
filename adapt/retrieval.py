"""`effconv retrieval`: a retrieval task made from any text, measured for the source and for converted models.

Which long document does a short passage from its later part come from? `ranking` and `whole` define the tasks, `ways`
the ways to embed a document. This file checks the options before torch is imported, and loads the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.errors import UnsupportedError, UsageError
from ..convert.families.registry import FAMILIES
from ..convert.io.staging import require_folder
from ..convert.io.tokenizer import require_tokenizer
from ..convert.options import Progress
from ..convert.repo.manifest import check_hashes, read_manifest, repo_folder
from ..convert.repo.own_modules import DOCUMENT_TOKENS, PIECE_TOKENS, average_of, piece_settings
from ..convert.text import Named, one_or_several
from ..convert.verify.against import source_of
from ..data.files import require_files, require_forms
from .controls import STRETCHED, chosen
from .sentence import pooling_of

if TYPE_CHECKING:
    from .ranking import Encoder, Task
    from .ways import Model

QUERIES = 16  # of a document: short, so that many cost little beside the documents
SENTENCES = 4  # of a whole document, which are cut out of it


@dataclass(frozen=True)
class _Asked:
    """What the task is made of."""

    files: Sequence[Path]
    documents: int
    tokens: int
    queries: int | None
    query_tokens: int
    seed: int
    column: str
    reach: int  # the source's maximum length


def retrieval(
    repos: Named | Sequence[Named],
    *,
    against: Named,
    data: Named | Sequence[Named],
    documents: int = 50,
    tokens: int = 2048,
    queries: int | None = None,
    query_tokens: int = 32,
    with_: str | None = None,
    whole: bool = False,
    chunk_tokens: int | None = None,
    seed: int = 123,
    text_column: str = "text",
    cache: Named | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Builds the task from text files and measures the source in several ways, and each repo.

    Args:
        repos: folder of a converted model, or several of one source.
        against: the dense source.
        data: a UTF-8 text file or a table (.jsonl, .json, .csv, .parquet), or several, which are joined.
        documents: number of documents, at most.
        tokens: length of a document; with `whole`, the length at which longer ones are cut.
        queries: queries from each document; by default 16, or as many as fit, and 4 with `whole`.
        query_tokens: length of a query; with `whole`, from half to twice as many.
        with_: ways to embed documents beside the repos, separated by commas: some of `controls.LABELS`. By default all
            that the source's family allows.
        whole: take whole documents (rows, articles under WikiText headings, files) in place of windows, and embed each
            without the sentences that are its queries.
        chunk_tokens: length of a chunk; by default as many as the source takes.
        seed: chooses the sentences.
        text_column: column of the text in tables.
        cache: folder in which embeddings are kept, so that they are not computed again.
        token: Hub token; by default HF_TOKEN, else the stored login.
        offline: open no socket; read a Hub id from the cache.
        trust_remote_code: let the source's own code run.
        progress: called with each step.

    Returns:
        "task" (documents, tokens, queries, query_tokens, and the number of independent `units`, of which `unit` says
        what they are) and "rows", one for each way to embed documents: "documents" (its name), "r@1", "mrr",
        "over_chunk_average" and "over_chunk_maximum" (by how much r@1 exceeds theirs), each with its standard error
        over units under the name and "_error" (None for a single unit), "vectors" (of a document), "cpu_seconds" and
        "peak_bytes" (what embedding a document takes; None where the system does not tell).

    Raises:
        EffconvError: a repo, the source or a text cannot be used.
    """
    ways = chosen(with_)
    folders, files = (
        [repo_folder(repo) for repo in one_or_several(repos)],
        [Path(path) for path in one_or_several(data)],
    )
    if not folders:
        raise UsageError("no repo to measure", where="REPO", hint="give at least one repo that effconv made")
    if documents < 2:
        raise UsageError("--documents must be at least 2", where="--documents", hint="give a number such as 50")
    if not files:
        raise UsageError("no text given", where="--data", hint="give one or more files with texts with --data")
    if cache is not None:
        cache = Path(cache).expanduser()
        require_folder(cache, "--cache")
    manifests = [_checked(folder, tokens, trust_remote_code) for folder in folders]
    if whole:
        require_files([str(path) for path in files], "--data")
    else:
        require_forms(files, "--data")
    given = [source_of(against, repo, stated, token, offline) for repo, stated in zip(folders, manifests, strict=True)]
    for repo, found in zip(folders, given, strict=True):
        if found.doubt:
            progress(f"{repo.name}: {found.doubt}", 0, 0)
    reach = min(int(manifest["source_max_length"]) for manifest in manifests)
    asked = _Asked(files, documents, tokens, queries, query_tokens, seed, text_column, reach)
    _require_room(asked, whole, min(map(_longest, folders, manifests)))
    ways = _possible(ways, with_ is not None, str(manifests[0]["family"]))

    import transformers

    from ..convert.text import special_ends
    from .embedding_cache import Cache
    from .ways import measure

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0], trust_remote_code=True)
    ends = special_ends(tokenizer)
    room = reach - sum(map(len, ends))
    size = room if chunk_tokens is None else chunk_tokens
    if not 1 <= size <= room:
        raise UsageError(
            f"a chunk has 1 to {room} tokens (the source takes {reach} with special ones), got {size}",
            where="--chunk-tokens",
            hint=f"give {room} or fewer",
        )
    task, shape, record = (_whole if whole else _windows)(asked, tokenizer, sum(map(len, ends)))
    models = _models(given[0].folder, folders, manifests, ends, ways, tokens, trust_remote_code)
    store = Cache(cache)
    rows = measure(task, models, size, reach, store, progress)
    shape |= {
        "tokens": tokens,
        "queries": len(task.queries),
        "query_tokens": query_tokens,
        "units": len(task.units.unique()),
        "chunk_tokens": size,
    }
    return {"task": {"documents": len(task.documents), **shape}, "data": record, "rows": rows}


def _require_room(asked: _Asked, whole: bool, longest: int) -> None:
    """Raises UsageError for documents that the source takes whole, or that have no room for their queries."""
    least = asked.queries or 1
    if whole and asked.tokens <= asked.reach:
        raise UsageError(
            f"documents are cut at {asked.tokens} tokens, which the source takes: it has {asked.reach}",
            where="--tokens",
            hint=f"give longer documents (the repos take {longest} tokens)",
        )
    if not whole and asked.tokens < asked.reach + least * asked.query_tokens:
        raise UsageError(
            f"queries come from after the first {asked.reach} tokens (the source's maximum), and documents of "
            f"{asked.tokens} tokens have no room there for {_queries(least)} of {asked.query_tokens} tokens",
            where="--tokens, --queries, --query-tokens",
            hint=f"give longer documents (the repos take {longest} tokens), or fewer or shorter queries",
        )


def _possible(ways: Sequence[str], named: bool, family: str) -> tuple[str, ...]:
    """The ways that a source of this family allows.

    Raises:
        UnsupportedError: one that was named is not.
    """
    if family in FAMILIES:
        same = FAMILIES[family].computes_positions or not FAMILIES[family].positions
        return tuple(way for way in ways if named or not (same and way == "dense-interpolated"))
    odd = [way for way in ways if way in STRETCHED]
    if odd and named:
        raise UnsupportedError(
            f"the position table of {family} cannot be extended", where="--with", hint=f"leave out {', '.join(odd)}"
        )
    return tuple(way for way in ways if way not in odd)


def _windows(asked: _Asked, tokenizer: Any, special: int) -> tuple[Task, dict[str, Any], dict[str, Any]]:
    """The task of windows, what it is, and what its text is."""
    from .ranking import make_task
    from .retrieval_text import read_units

    text = read_units(asked.files, tokenizer, len(tokenizer), asked.column)
    length = asked.tokens - special
    task = make_task(
        text.tokens,
        documents=asked.documents,
        length=length,
        queries=asked.queries or max(1, min(QUERIES, (length - asked.reach) // asked.query_tokens)),
        size=asked.query_tokens,
        beyond=asked.reach,
        unit_of=text.unit_of,
    )
    return task, {"kind": "windows", "unit": text.unit}, text.record


def _whole(asked: _Asked, tokenizer: Any, special: int) -> tuple[Task, dict[str, Any], dict[str, Any]]:
    """The task of whole documents, what it is, and what its text is."""
    from ..data.named import read_named
    from .whole import whole_task

    made = whole_task(
        list(read_named([str(path) for path in asked.files], column=asked.column)),
        tokenizer,
        len(tokenizer),
        documents=asked.documents,
        longer_than=asked.reach - special,
        room=asked.tokens - special,
        queries=asked.queries or SENTENCES,
        size=asked.query_tokens,
        seed=asked.seed,
    )
    mean = sum(map(len, made.task.documents)) / len(made.task.documents)
    shape = {"kind": "whole", "unit": "document", "seed": asked.seed, "mean_tokens": round(mean, 1)}
    return made.task, shape, made.record


def _models(
    source: Path,
    folders: Sequence[Path],
    manifests: Sequence[Mapping[str, Any]],
    ends: tuple[list[int], list[int]],
    ways: Sequence[str],
    tokens: int,
    trust_remote_code: bool,
) -> list[Model]:
    """The source, the source with longer position tables, and the repos, each with what it is measured for."""
    import torch
    import transformers

    from ..embed.whitening import Whitening
    from .dense import dense_layers
    from .embedding_cache import digest_of_model
    from .ranking import Encoder, PiecesEncoder
    from .stretched import stretched
    from .ways import Model

    def load(place: Path, repo: Path, longest: int, trusted: bool, auto: str = "AutoModel", **fields: Any) -> Encoder:
        kind = getattr(transformers, auto)
        model = kind.from_pretrained(place, trust_remote_code=trusted, dtype=torch.float32, **fields)
        return Encoder(model.eval(), *ends, pooling_of(repo), dense_layers(place), longest)

    first, family = manifests[0], FAMILIES.get(manifests[0]["family"])
    auto = family.stock_auto("AutoModel") if family else "AutoModel"
    config, reach = first.get("source_config", {}), int(first["source_max_length"])

    def load_source() -> Encoder:
        return load(source, folders[0], reach, trust_remote_code, auto, **config)

    def load_stretched(how: str) -> Encoder:
        assert family is not None
        short = load_source()
        model = stretched(short.model, family, tokens, how)
        return Encoder(model, *ends, short.pooling, short.dense, tokens)

    versions = (torch.__version__, transformers.__version__, ends)
    of_source = digest_of_model(source, pooling_of(folders[0]), config, *versions)
    own = [way for way in ways if way not in (*STRETCHED, "repo-chunks")]
    repeated = [way for way in ways if way in ("dense", "dense-chunks")]
    models = [
        Model("source", load_source, of_source, own),
        Model("dense", lambda: load_stretched("repeat"), f"{of_source} repeat {tokens}", repeated),
        Model(
            "dense, interpolated",
            lambda: load_stretched("interpolate"),
            f"{of_source} interpolate {tokens}",
            [way for way in ways if way == "dense-interpolated"],
        ),
    ]
    for place, manifest in zip(folders, manifests, strict=True):

        def load_repo(place: Path = place, longest: int = int(manifest["max_length"])) -> Encoder:
            encoder, average = load(place, place, longest, True), average_of(place)
            if average is None:
                return encoder
            fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
            whitening = Whitening.load(average / "model.safetensors")
            return PiecesEncoder(**fields, piece_tokens=piece_settings(place)[PIECE_TOKENS], whitening=whitening)

        measured = ["repo", *(way for way in ways if way == "repo-chunks")]
        models.append(
            Model(place.absolute().name, load_repo, digest_of_model(place, pooling_of(place), *versions), measured)
        )
    return [model for model in models if model.ways]


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} queries"


def _longest(folder: Path, manifest: Mapping[str, Any]) -> int:
    """Tokens of the longest document that a repo takes: in pieces, more than its encoder does."""
    by_pieces = average_of(folder) is not None
    return piece_settings(folder)[DOCUMENT_TOKENS] if by_pieces else int(manifest["max_length"])


def _checked(folder: Path, tokens: int, trust_remote_code: bool) -> dict[str, Any]:
    """The manifest of a repo whose files are what it says, and that takes documents of so many tokens."""
    manifest = read_manifest(folder)
    longest = _longest(folder, manifest)
    if longest < tokens:
        command = "effconv pieces" if average_of(folder) is not None else "convert"
        raise UsageError(
            f"{folder.name} takes {longest} tokens, but a document has {tokens}",
            where="--tokens",
            hint=f"give --tokens {longest} or fewer, or {command} with --max-len {tokens}",
        )
    require_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_hashes(folder, manifest)
    return manifest
