"""`effconv prepare`: texts or shards of others as a prepared corpus. The folder appears when it is complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..convert.errors import BadInputError, OutputError, UsageError
from ..convert.io.source import resolve
from ..convert.io.staging import Staging, check_output
from ..convert.io.tensorfile import file_sha256
from ..convert.options import Progress
from ..version import __version__
from .files import require_files
from .layouts import Example, require_mask_token, single_layout, tokenizer_digest
from .prepared import FORMAT, RECORD, Writer, pyarrow_parquet
from .pretraining import Part, arrays
from .pretraining_options import PrepareOptions, PretrainingOptions
from .shards import is_shard, shard_examples

WHERE = "TEXT"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of `effconv prepare`.

    Attributes:
        output: the folder. record: what effconv-data.json says.
    """

    output: Path
    record: dict[str, Any]

    def described(self) -> dict[str, Any]:
        return {"output": str(self.output), **self.record}


def prepare_texts(
    names: Sequence[str], options: PrepareOptions, progress: Progress = lambda step, done, total: None
) -> Prepared:
    """Writes a prepared corpus.

    Args:
        names: text files, files with columns, datasets of the Hub; or HDF5 and TFRecord shards alone.
        progress: called with each step and, while examples are made, with the bytes of text that were read.

    Raises:
        UsageError: an option is missing, or texts and shards are mixed.
        BadInputError: a text or the tokenizer cannot be used.
        OutputError: the output exists.
    """
    names = [os.fspath(name) for name in names]
    output = _checked(names, options)
    progress("tokenizer", 0, 0)
    tokenizer = load_tokenizer(options)
    require_mask_token(tokenizer, options.objective)
    with Staging(output, overwrite=options.overwrite) as staging:
        record = _record(names, tokenizer, options)
        parts: tuple[Part, ...] = ("train", "heldout") if options.heldout_share else ("train",)
        reading = _Reading(names, options.copies * len(parts), progress)
        for part in parts:
            record[part] = _write(staging.folder, part, _examples(names, tokenizer, options, part, reading), names)
        record["sha256"] = reading.sha256
        record["files"] = {path.name: file_sha256(path) for path in sorted(staging.folder.glob("*.parquet"))}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (staging.folder / RECORD).write_text(text, encoding="utf-8")
        progress("moving the folder into place", 0, 0)
        staging.publish()
    progress("done", 0, 0)
    return Prepared(output, record)


def load_tokenizer(options: PrepareOptions) -> Any:
    """The tokenizer of a folder or of the Hub.

    Raises:
        BadInputError: there is none, or it has code of its own that may not run.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return transformers.AutoTokenizer.from_pretrained(
            options.tokenizer,
            token=options.token,
            local_files_only=options.offline,
            trust_remote_code=options.trust_remote_code,
        )
    except Exception as error:  # each kind of tokenizer file fails in its own way
        said = next(iter(str(error).splitlines()), type(error).__name__)
        if not Path(str(options.tokenizer)).expanduser().is_dir():
            resolve(str(options.tokenizer), token=options.token, offline=options.offline)  # says what the Hub said
        raise BadInputError(
            f"cannot load the tokenizer ({said})",
            where=f"--tokenizer {options.tokenizer}",
            hint="give a folder with tokenizer files, a converted repo or a Hub id",
        ) from None


def _checked(names: Sequence[str], options: PrepareOptions) -> Path:
    """The output folder, after everything was checked that needs no tokenizer."""
    if not names:
        raise UsageError("no text is given", where=WHERE, hint="give text files: effconv prepare TEXT...")
    if options.tokenizer is None:
        raise UsageError(
            "no tokenizer is given", where="--tokenizer", hint="give a model's folder or Hub id with --tokenizer"
        )
    require_files([name for name in names if not is_shard(name)], WHERE)
    shards = [name for name in names if is_shard(name)]
    missing = [name for name in shards if not Path(name).is_file()]
    if missing:
        raise BadInputError(f"no such file: {missing[0]}", where=WHERE, hint="check the name and the current folder")
    if shards and len(shards) < len(names):
        raise UsageError(
            "shards with masks and texts cannot be in one corpus", where=WHERE, hint="prepare them one after the other"
        )
    pyarrow_parquet()
    if options.output is not None:
        output = options.output
    else:
        output = Path(f"{Path(names[0]).stem}-{options.objective.replace('+', '-')}-{options.length}")
    check_output(output, overwrite=options.overwrite)
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD).is_file():
        raise OutputError(
            "the output folder has files and is not a prepared corpus, so --overwrite does not replace it",
            where=str(output),
            hint="choose another path with --output, or remove the folder yourself",
        )
    return output


class _Reading:
    """What was read so far: the sha256 of the lines, once, and the progress."""

    def __init__(self, names: Iterable[str], times: int, progress: Progress) -> None:
        self._progress = progress
        self._total = times * sum(Path(name).stat().st_size for name in names if Path(name).is_file())
        self._done = self._shown = 0
        self._digest: Any = hashlib.sha256()
        self.sha256 = ""

    def line(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        if not self.sha256:
            self._digest.update(data + b"\n")
        self.count(len(data) + 1)

    def count(self, size: int) -> None:
        self._done += size
        if self._done - self._shown >= 1 << 16 or not self._shown:
            self._shown = self._done
            self._progress("examples", self._done, max(self._total, self._done))

    def once(self) -> None:
        """The texts were read to their end: further times give the same digest."""
        self.sha256 = self.sha256 or self._digest.hexdigest()


def _examples(
    names: Sequence[str], tokenizer: Any, options: PrepareOptions, part: Part, reading: _Reading
) -> Iterator[Example]:
    if is_shard(names[0]):
        yield from _from_shards(names, tokenizer, options, reading)
        return
    for copy in range(options.copies):
        one = dataclasses.replace(options, copies=1)
        yield from arrays(
            names, tokenizer, one, part=part, epoch=copy, token=options.token, read=reading.line, where=WHERE
        )
        reading.once()


def _from_shards(names: Sequence[str], tokenizer: Any, options: PrepareOptions, reading: _Reading) -> Iterator[Example]:
    """Examples of shards as they are, where they fit the tokenizer and the options."""
    special = {id for ids in single_layout(tokenizer).special for id in ids} | {tokenizer.sep_token_id}
    rows = len(tokenizer)
    for name in names:
        for number, example in enumerate(shard_examples(name, [id for id in special if id is not None])):
            where, length = f"{name}, example {number}", len(example["input_ids"])
            largest = int(max(example["input_ids"].max(), example["labels"].max()))
            if largest >= rows:
                raise BadInputError(
                    f"the shard has the token id {largest}, and the tokenizer has only {rows} tokens",
                    where=where,
                    hint="give the tokenizer that the shard was made with",
                )
            if length > options.length:
                raise BadInputError(
                    f"the shard has an example of {length} tokens, more than --length {options.length}",
                    where=where,
                    hint="give the length of the shard's examples with --length",
                )
            if options.pairs and "next_sentence_label" not in example:
                raise BadInputError(
                    f"the shard has no next_sentence_labels, which objective {options.objective} needs",
                    where=where,
                    hint="prepare it with --objective mlm",
                )
            yield example
        reading.count(Path(name).stat().st_size)
    reading.once()


def _write(folder: Path, part: Part, examples: Iterable[Example], names: Sequence[str]) -> dict[str, int]:
    with Writer(folder, part) as writer:
        for example in examples:
            writer.add(example)
    if not writer.counts["examples"]:
        raise BadInputError(
            "no document is held out" if part == "heldout" else "no document is left to train on",
            where=", ".join(names),
            hint="give more documents, or another --heldout-share. --documents says what ends a document",
        )
    return dict(writer.counts)


def _record(names: Sequence[str], tokenizer: Any, options: PrepareOptions) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(PretrainingOptions)]
    texts = [
        {"name": Path(name).name, "sha256": file_sha256(Path(name))} if Path(name).is_file() else {"name": name}
        for name in names
    ]
    shards = is_shard(names[0])
    chosen = {name: getattr(options, name) for name in fields}
    if shards:  # the other options had no say
        chosen = {name: chosen[name] for name in ("objective", "length")} | {"masks": "static"}
    folder = Path(str(options.tokenizer))
    return {
        "format": FORMAT,
        "effconv": __version__,
        "texts": texts,
        "tokenizer": {
            "name": folder.resolve().name if folder.exists() else str(options.tokenizer),
            "sha256": tokenizer_digest(tokenizer),
        },
        "options": chosen,
    }
