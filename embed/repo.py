"""`effconv pieces`: a sentence-transformers model → a repo whose `encode_document` averages whitened pieces.

`encode` stays as it is, so that short texts are compared as before. The code that does it is emitted into the repo
(`templates/document_pieces.py`), so that sentence-transformers runs it without effconv.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..convert.errors import CheckFailedError, UnsupportedError
from ..convert.io.staging import Staging, check_apart, check_output, output_errors
from ..convert.options import Progress
from ..convert.repo.card_blocks import with_block, without_scores
from ..convert.repo.manifest import CARD, NAME, belongs, read_manifest
from ..convert.repo.old_card import old_card
from ..convert.repo.own_modules import (
    AVERAGE,
    CODE,
    DOCUMENT_TOKENS,
    PIECE_TOKENS,
    PIECES,
    average_of,
    module_code,
)
from ..convert.repo.record import write_record
from ..convert.repo.sentence import MODULES, SETTINGS, SETTINGS_NAMES
from ..convert.text import counted
from ..data.named import NamedText, read_named
from .encoder import load_model
from .even import RIDGE
from .loadable import UNCHECKED, require_modules
from .options import PiecesOptions
from .pieces import PieceEncoder
from .run import model_folder
from .whitening import Whitening

BLOCK, HEADING = "pieces", "Finding documents"
AT_ONCE = 64  # texts that are read and embedded together
TOLERANCE = 1e-4  # of the numbers of a vector of length 1, between two ways to compute it
SAMPLES = (
    "What is late chunking?",
    "A text of one piece.",
    " ".join(f"Sentence {i} of a longer text says that item {i * i} is in box {i % 7}." for i in range(40)),
)


@dataclass(frozen=True)
class Made:
    """Result of `effconv pieces`.

    Attributes:
        output: the folder. record: pieces, the texts that the whitening was fitted to, what the checks found, notes,
            seconds.
    """

    output: Path
    record: dict[str, Any]

    def described(self) -> dict[str, Any]:
        return {"output": str(self.output), **self.record}


def make_pieces(
    repo: str | os.PathLike[str],
    options: PiecesOptions,
    *,
    progress: Progress = lambda step, done, total: None,
) -> Made:
    """Writes a repo that embeds documents by whitened pieces.

    Returns:
        The new folder, checked.

    Raises:
        CheckFailedError: the new repo does not embed as it should. Nothing is written.
        EffconvError: the model, a text or the whitening cannot be used.
    """
    folder = model_folder(repo)
    if average_of(folder) is not None:
        raise UnsupportedError(
            "the model already embeds documents by pieces",
            where=str(folder),
            hint="give the model from before effconv pieces",
        )
    require_modules(folder, folder, "convert a sentence-transformers model, and give that repo")
    output = Path(os.path.expanduser(options.output or folder.absolute().name + "-pieces")).absolute()
    with output_errors(output):
        check_apart(folder, output)
        check_output(output, overwrite=options.overwrite)
    read, texts = None, iter(list[NamedText]())
    if options.data:
        read = read_named(options.data, column=options.text_column, lines=options.lines)
        texts = itertools.chain([next(read)], read)  # raises before a model is loaded if there is none
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    begun = time.perf_counter()
    progress("models", 0, 0)
    encoder = PieceEncoder(
        folder,
        piece_tokens=options.pieces,
        whitening=options.whitening,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    record: dict[str, Any] = {"piece_tokens": options.pieces, "document_tokens": options.max_length}
    if read is not None:
        record |= _fit(encoder, texts, options, progress)
        record["whitened_on"]["rows_without_text"] = read.rows_without_text
    else:
        record["whitening"] = Path(str(options.whitening)).name
    assert encoder.whitening is not None
    with Staging(output, overwrite=options.overwrite) as staging, output_errors(output):
        _copy(folder, staging.folder)
        write_modules(staging.folder, encoder.whitening, options.pieces, options.max_length)
        progress("verify", 0, 0)
        record["checks"] = _checked(staging.folder, encoder, options)
        progress("publish", 0, 0)
        _write_card(folder, staging.folder, record)
        staging.publish()
    record["seconds"] = round(time.perf_counter() - begun, 3)
    notes = [UNCHECKED] if options.whitening is not None and not encoder.whitening.model else []
    return Made(output, {"model": folder.absolute().name, **record, "notes": notes})


def write_modules(folder: Path, whitening: Whitening, piece_tokens: int, document_tokens: int) -> None:
    """Writes the modules into a folder of sentence-transformers: their code, names, settings and numbers."""
    modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    last = len(modules)
    path = f"{last}_{AVERAGE}"
    first = {**modules[0], "type": f"{CODE}.{PIECES}"}
    average = {"idx": last, "name": str(last), "path": path, "type": f"{CODE}.{AVERAGE}"}
    encoder = folder / str(modules[0].get("path") or "")
    name = next((name for name in SETTINGS_NAMES if (encoder / name).is_file()), SETTINGS)
    there = encoder / name
    settings = json.loads(there.read_text(encoding="utf-8")) if there.is_file() else {}
    (folder / f"{CODE}.py").write_text(module_code(), encoding="utf-8")
    _write(there, {**settings, PIECE_TOKENS: piece_tokens, DOCUMENT_TOKENS: document_tokens})
    (folder / path).mkdir()
    _write(folder / path / "config.json", {"width": len(whitening.mean), "ridge": RIDGE})
    whitening.save(folder / path / "model.safetensors")
    _write(folder / MODULES, [first, *modules[1:], average])


def _fit(
    encoder: PieceEncoder, texts: Iterator[NamedText], options: PiecesOptions, progress: Progress
) -> dict[str, Any]:
    """Fits the encoder's whitening to the pieces of texts; returns how many there were."""
    count = 0
    texts = encoder.with_enough_pieces(texts, lambda text: text.text)
    while part := [text.text for text in itertools.islice(texts, AT_ONCE)]:
        encoder.encode(part, batch_size=options.batch_size)
        count += len(part)
        progress(f"embedding: {counted(count, 'text')}", 0, 0)
    encoder.fit()
    return {"whitened_on": {"files": [Path(name).name for name in options.data], "texts": count,
                            "pieces": encoder.seen.count}}  # fmt: skip


def _copy(folder: Path, new: Path) -> None:
    ours = (folder / NAME).is_file()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if path.is_file() and not hidden and (belongs(name) or not ours) and name.as_posix() != NAME:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, new / name)


@torch.no_grad()
def _checked(new: Path, encoder: PieceEncoder, options: PiecesOptions) -> dict[str, float]:
    """The largest differences between the new repo in sentence-transformers and what it must give.

    Raises:
        CheckFailedError: one is too large.
    """
    made = load_model(new, True, where="effconv pieces", device=options.device).float()
    encoder.model.float()
    quiet: dict[str, Any] = {"show_progress_bar": False, "batch_size": 2}
    samples = list(SAMPLES)

    def difference(one: Any, other: Any) -> float:
        ours, theirs = (np.asarray(rows, dtype=np.float64) for rows in (one, other))
        scale = max(float(np.linalg.norm(theirs, axis=-1).max()), 1e-12)
        return float(np.abs(ours - theirs).max() / scale)

    documents = np.stack([rows[0] for rows in encoder.encode(samples)])
    found = {
        "encode": difference(made.encode(samples, **quiet), encoder.model.encode(samples, **quiet)),
        "encode_document": difference(made.encode_document(samples, **quiet), documents),
        "encode_query": difference(made.encode_query(samples, **quiet), encoder.encode_query(samples, **quiet)),
    }
    wrong = [f"{name} differs by {value:.2g}" for name, value in found.items() if not value <= TOLERANCE]
    if wrong:
        raise CheckFailedError(
            f"the new repo does not embed as it should: {', '.join(wrong)} (tolerance {TOLERANCE:g})",
            hint="use effconv embed --pieces --whiten, which needs no such repo, or another sentence-transformers",
        )
    return found


def _write_card(folder: Path, new: Path, record: Mapping[str, Any]) -> None:
    """The card with a block about pieces, and the manifest of a repo that effconv made."""
    if (folder / NAME).is_file():
        manifest = read_manifest(folder)
        before = old_card(folder, manifest)
        card = with_block(without_scores(before.text), BLOCK, block(record), heading=HEADING)
        known = {name: digest for name, digest in manifest["files"].items() if name.endswith(".safetensors")}
        write_record(new, {**manifest, "pieces": dict(record)}, card, before=before, known=known)
        return
    path = new / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(with_block(text, BLOCK, block(record), heading=HEADING).lstrip(), encoding="utf-8")


def block(record: Mapping[str, Any]) -> str:
    """The card's block."""
    fitted_to = record.get("whitened_on")
    if fitted_to:
        sample = f"{counted(fitted_to['pieces'], 'piece')} of {counted(fitted_to['texts'], 'text')}"
        sample += f" ({', '.join(fitted_to['files'])})"
    else:
        sample = f"another collection ({record['whitening']})"
    longest = record["document_tokens"]
    return f"""`encode_document` gives one vector for a text of up to {longest:,} tokens: a weighted average of
the embeddings of its pieces of {record["piece_tokens"]} tokens, whitened with the mean and covariance of {sample}.
Compare it with `encode_query`. `encode` is the model as it was before: use it to compare texts with each other, and
never with the other two.

```python
# model = SentenceTransformer(..., trust_remote_code=True)
documents = model.encode_document(texts)
queries = model.encode_query(["what is late chunking?"])
```"""


def _write(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
