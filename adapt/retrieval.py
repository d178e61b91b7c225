"""`effconv retrieval`: a retrieval task made from any text, measured for the source and for converted models.

Which long document does a short passage from its later part come from? `ranking` defines the task. This file checks
the options before torch is imported, and loads the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..convert.errors import UsageError
from ..convert.families.registry import FAMILIES
from ..convert.io.tokenizer import require_tokenizer
from ..convert.options import Progress
from ..convert.repo.manifest import check_hashes, read_manifest, repo_folder
from ..convert.text import Named, one_or_several, require_readable
from ..convert.verify.against import source_of
from .sentence import pooling_of

QUERIES = 16  # of a document: short, so that many cost little beside the documents


def retrieval(
    repos: Named | Sequence[Named],
    *,
    against: Named,
    data: Named | Sequence[Named],
    documents: int = 50,
    tokens: int = 2048,
    queries: int | None = None,
    query_tokens: int = 32,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Builds the task from text files and measures the source in three ways, and each repo.

    Args:
        repos: folder of a converted model, or several of one source.
        against: the dense source.
        data: a UTF-8 text file, or several, which are joined.
        documents: number of documents, at most.
        tokens: length of a document.
        queries: queries from each document; by default 16, or as many as fit.
        query_tokens: length of a query.
        token: Hub token; by default HF_TOKEN, else the stored login.
        offline: open no socket; read a Hub id from the cache.
        trust_remote_code: let the source's own code run.
        progress: called with each step.

    Returns:
        "task" (documents, tokens, queries, query_tokens) and "rows", one for each way to embed documents: "documents"
        (its name), "r@1", "mrr", "over_chunk_average" (by how much r@1 exceeds that of the chunk average) and
        "over_chunk_average_error" (the standard error of that difference over documents).

    Raises:
        EffconvError: a repo, the source or a text cannot be used.
    """
    folders, files = (
        [repo_folder(repo) for repo in one_or_several(repos)],
        [Path(path) for path in one_or_several(data)],
    )
    if not folders:
        raise UsageError("no repo to measure", where="REPO", hint="give at least one repo that effconv made")
    if documents < 2:
        raise UsageError("--documents must be at least 2", where="--documents", hint="such as --documents 50")
    if not files:
        raise UsageError("no text given", where="--data", hint="give one or more UTF-8 text files with --data")
    manifests = [_checked(folder, tokens, trust_remote_code) for folder in folders]
    require_readable(files, "--data")
    given = [source_of(against, repo, stated, token, offline) for repo, stated in zip(folders, manifests, strict=True)]
    for repo, found in zip(folders, given, strict=True):
        if found.doubt:
            progress(f"{repo.name}: {found.doubt}", 0, 0)
    folder = given[0].folder
    reach = min(int(manifest["source_max_length"]) for manifest in manifests)
    least = queries or 1
    if tokens < reach + least * query_tokens:
        longest = min(int(manifest["max_length"]) for manifest in manifests)
        raise UsageError(
            f"queries come from after the first {reach} tokens (the source's maximum), and documents of {tokens} "
            f"tokens have no room there for {_queries(least)} of {query_tokens} tokens",
            where="--tokens, --queries, --query-tokens",
            hint=f"give longer documents (the repos take {longest} tokens), or fewer or shorter queries",
        )

    import torch
    import transformers

    from ..targets.text_batches import read_text
    from .dense import dense_layers
    from .ranking import Encoder, make_task, measure

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    names = [folder.absolute().name for folder in folders]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0], trust_remote_code=True)
    text = read_text(files, tokenizer, len(tokenizer), "--data")
    length = tokens - len(text.prefix) - len(text.suffix)
    task = make_task(
        text.tokens,
        documents=documents,
        length=length,
        queries=queries or max(1, min(QUERIES, (length - reach) // query_tokens)),
        size=query_tokens,
        beyond=reach,
    )

    def encoder(place: Path, repo: Path, trusted: bool, auto: str = "AutoModel", **fields: Any) -> Encoder:
        kind = getattr(transformers, auto)
        model = kind.from_pretrained(place, trust_remote_code=trusted, dtype=torch.float32, **fields)
        return Encoder(model.eval(), text.prefix, text.suffix, pooling_of(repo), dense_layers(place))

    family = FAMILIES.get(manifests[0]["family"])
    auto = family.stock_auto("AutoModel") if family else "AutoModel"
    source = encoder(folder, folders[0], trust_remote_code, auto, **manifests[0].get("source_config", {}))
    models = {name: encoder(place, place, True) for name, place in zip(names, folders, strict=True)}
    rows = measure(task, source, reach, models, progress)
    shape = {
        "documents": len(task.documents),
        "tokens": tokens,
        "queries": len(task.queries),
        "query_tokens": query_tokens,
    }
    return {"task": shape, "data": text.record, "rows": rows}


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} queries"


def _checked(folder: Path, tokens: int, trust_remote_code: bool) -> dict[str, Any]:
    """The manifest of a repo whose files are what it says, and that takes documents of so many tokens."""
    manifest = read_manifest(folder)
    if int(manifest["max_length"]) < tokens:
        raise UsageError(
            f"{folder.name} takes {manifest['max_length']} tokens, but a document has {tokens}",
            where="--tokens",
            hint=f"give --tokens {manifest['max_length']} or fewer, or convert with --max-len {tokens}",
        )
    require_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_hashes(folder, manifest)
    return manifest
